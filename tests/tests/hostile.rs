//! Real hostile peers among real programs: they join as any node does, with a key of their own and
//! the seed's certificate, and then serve what does not belong to the image, or nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rootswarm_image::{ChunkIndex, Geometry, RootUrl};
use rootswarm_tests::scenario::scenario;
use rootswarm_tests::source;
use rootswarm_tests::swarm::{Agent, Place, SWARM_PORT, Seed};
use rootswarm_transport::node::{JoinRequest, Node, NodeConfig, SeedTrust, SwarmHandle};
use rootswarm_transport::store::{ChunkSource, FileStore};
use rootswarm_transport::tuning::Tuning;
use tokio::runtime::Runtime;

const MB: u64 = 1_000_000;
const BYTES: u64 = 12 * MB;
const LIMIT: Duration = Duration::from_secs(60);
/// So slow that nodes need each other, and ask the hostile one.
const SEED_OPTIONS: [&str; 2] = ["--upload-limit", "16Mbit"];

/// Serves every chunk with one bit flipped.
struct BitFlipper(FileStore);

impl ChunkSource for BitFlipper {
    fn chunk(&self, index: ChunkIndex) -> Option<Bytes> {
        let mut bytes = self.0.chunk(index)?.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(Bytes::from(bytes))
    }
}

/// Claims every chunk and has none.
struct Liar;

impl ChunkSource for Liar {
    fn chunk(&self, _index: ChunkIndex) -> Option<Bytes> {
        None
    }
}

/// A node that is in the swarm as long as this lives.
struct Hostile {
    _swarm: SwarmHandle,
    // After the swarm: its tasks run here.
    _runtime: Runtime,
}

impl Hostile {
    fn join(
        seed: &Seed,
        url: &str,
        source: impl FnOnce(&Geometry) -> Result<Arc<dyn ChunkSource>, Box<dyn std::error::Error>>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let RootUrl::Swarm { name, pin, .. } = url.parse()? else {
            return Err(url.into());
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let swarm = runtime.block_on(async {
            let node = Node::bind(NodeConfig {
                bind: Some(IpAddr::V4(Place::loopback().address)),
                port: 0,
                trust: SeedTrust::FirstUse,
                upload_limit_bytes_per_s: None,
                tuning: Tuning::default(),
            });
            let node = node.await?;
            let request = JoinRequest {
                name,
                pin,
                token: None,
                rack: None,
            };
            let seed = SocketAddr::from((seed.address, SWARM_PORT));
            let joined = node.join(&[seed], &request).await?;
            let source = source(joined.manifest.geometry())?;
            Ok::<_, Box<dyn std::error::Error>>(node.serve(joined, source)?)
        })?;
        Ok(Hostile {
            _swarm: swarm,
            _runtime: runtime,
        })
    }
}

fn fetch_three(directory: &Path, url: &str) -> Result<Vec<Agent>, Box<dyn std::error::Error>> {
    let fetch = |number| {
        let label = format!("node{number}");
        Agent::fetch(Place::loopback(), directory, &label, url, &["--stay"])
    };
    Ok((0..3).map(fetch).collect::<Result<_, _>>()?)
}

#[test]
fn a_peer_that_flips_bits_is_banned_and_the_image_is_intact_everywhere() {
    scenario(200 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let published = [("debian", image.as_path())];
        let mut seed = Seed::start(Place::loopback(), directory, &published, &SEED_OPTIONS)?;
        let url = seed.url("debian")?;
        let hostile = Hostile::join(&seed, &url, |geometry| {
            Ok(Arc::new(BitFlipper(FileStore::open(&image, geometry)?)))
        })?;
        let mut agents = fetch_three(directory, &url)?;
        let mut banned = BTreeSet::new();
        for agent in &mut agents {
            agent.wait_complete(LIMIT)?;
            assert!(
                source::same(&image, agent.output())?,
                "{}",
                agent.process.label()
            );
            agent.wait_until("its ban in the status", LIMIT, |agent| {
                Ok(agent.status()?["banned"]
                    .as_array()
                    .is_some_and(|bans| !bans.is_empty()))
            })?;
            let status = agent.status()?;
            for ban in status["banned"].as_array().into_iter().flatten() {
                let reason = ban[1].as_str().unwrap_or_default();
                assert!(reason.contains("hash"), "{status}");
                banned.insert(ban[0].as_str().unwrap_or_default().to_owned());
            }
        }
        assert_eq!(
            banned.len(),
            1,
            "only the hostile node is banned: {banned:?}"
        );
        drop(hostile);
        Ok(())
    });
}

#[test]
fn a_peer_that_claims_chunks_it_does_not_have_delays_nobody_for_long() {
    scenario(200 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let published = [("debian", image.as_path())];
        let mut seed = Seed::start(Place::loopback(), directory, &published, &SEED_OPTIONS)?;
        let url = seed.url("debian")?;
        let hostile = Hostile::join(&seed, &url, |_| Ok(Arc::new(Liar)))?;
        let start = std::time::Instant::now();
        let mut agents = fetch_three(directory, &url)?;
        for agent in &mut agents {
            agent.wait_complete(LIMIT)?;
            assert!(
                source::same(&image, agent.output())?,
                "{}",
                agent.process.label()
            );
        }
        // One copy takes the seed 6 s; without the liar the three need little more.
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
        drop(hostile);
        Ok(())
    });
}
