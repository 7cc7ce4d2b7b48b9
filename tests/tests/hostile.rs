//! Real hostile peers among real programs: they join as any node does, with a key of their own and
//! the seed's certificate, and then serve what does not belong to the image, or nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rootswarm_image::{ChunkIndex, Geometry, RootUrl};
use rootswarm_tests::hostile::arena::Arena;
use rootswarm_tests::hostile::{
    Answering, Attack, Hold, Outlaw, OutlawError, Prey, Target, besiege,
};
use rootswarm_tests::scenario::{Outcome as ScenarioOutcome, scenario};
use rootswarm_tests::source;
use rootswarm_tests::swarm::{Agent, Place, SWARM_PORT, Seed};
use rootswarm_transport::join::Refusal;
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

/// Eight honest nodes under all of `attacks` at once: everybody finishes with the right bytes, every
/// attack fired, and nobody grows beyond its bound (the kernel kills who does).
fn withstands(
    directory: &Path,
    rate: &'static str,
    attacks: &[(Attack, Target)],
) -> ScenarioOutcome {
    let arena = Arena {
        nodes: 8,
        image_bytes: 3 * MB,
        rate,
        // Eight attackers at each of eight nodes, on as few cores as there are.
        limit: 2 * LIMIT,
        siege: Duration::from_secs(1),
    };
    let outcome = arena.run(directory, attacks, 1)?;
    assert_eq!(outcome.fetch_s.len(), 8);
    for (attack, target, fired) in &outcome.fired {
        assert!(*fired > 0, "{} at the {target} never fired", attack.name());
    }
    // Shown with --nocapture.
    #[allow(clippy::print_stderr)]
    {
        eprintln!("{outcome:?}");
    }
    Ok(())
}

#[test]
fn nodes_withstand_peers_that_send_what_they_should_not() {
    scenario(400 * MB, |directory| {
        let attacks = [
            Answering::Garbage,
            Answering::OtherImage,
            Answering::Nothing,
            Answering::Trickle,
            Answering::Endless,
            Answering::Half,
            Answering::Everywhere,
        ];
        let mut attacks = attacks
            .map(|how| (Attack::Serve(how), Target::Nodes))
            .to_vec();
        attacks.push((Attack::Unasked, Target::Nodes));
        // Slow, so that every one of them is asked for chunks.
        withstands(directory, "12Mbit", &attacks)
    });
}

#[test]
fn nodes_withstand_peers_that_hold_on_to_what_they_can() {
    scenario(400 * MB, |directory| {
        let attacks = [
            Attack::Streams,
            Attack::Pinned,
            Attack::SlowReader,
            Attack::Silent,
            Attack::Handshakes,
            Attack::Requests,
            Attack::Offers,
            Attack::Haves,
        ];
        withstands(
            directory,
            "32Mbit",
            &attacks.map(|attack| (attack, Target::Nodes)),
        )
    });
}

#[test]
fn everybody_withstands_frames_that_are_none() {
    scenario(400 * MB, |directory| {
        let attacks = [
            Attack::Oversize,
            Attack::Truncated,
            Attack::Random,
            Attack::Claims,
            Attack::WantPeers,
            Attack::Versions,
        ];
        let both = [Target::Seed, Target::Nodes];
        let attacks: Vec<_> = both
            .into_iter()
            .flat_map(|target| attacks.map(|attack| (attack, target)))
            .collect();
        withstands(directory, "32Mbit", &attacks)
    });
}

#[test]
fn the_seed_withstands_members_that_take_what_they_can() {
    scenario(400 * MB, |directory| {
        let attacks = [
            Attack::Unasked,
            Attack::Streams,
            Attack::Pinned,
            Attack::SlowReader,
            Attack::Silent,
            Attack::Handshakes,
            Attack::Joins,
            Attack::Requests,
            Attack::Offers,
            Attack::Haves,
        ];
        withstands(
            directory,
            "32Mbit",
            &attacks.map(|attack| (attack, Target::Seed)),
        )
    });
}

/// Everybody is allowed on the loopback, those who say nothing too: who has none gets one of their places.
#[test]
fn the_seed_withstands_who_comes_in_and_says_nothing() {
    scenario(400 * MB, |directory| {
        let attacks = [Attack::IdleJoins, Attack::IdleHttp];
        withstands(
            directory,
            "32Mbit",
            &attacks.map(|attack| (attack, Target::Seed)),
        )
    });
}

/// A seed, a boot loader, monitoring and a node beside strangers from as many addresses as they like.
#[allow(clippy::print_stdout)] // The figure, for whoever asks with --nocapture.
fn strangers(what: Hold, addresses: u8, each: usize) {
    scenario(400 * MB, |directory| {
        let siege = besiege(directory, what, addresses, each)?;
        println!("{what:?}, {addresses} strangers: {siege:?}");
        assert!(siege.held > 0);
        Ok(())
    });
}

#[test]
fn nine_strangers_that_hold_joins_keep_nobody_out() {
    strangers(Hold::Joins, 9, 64);
}

#[test]
fn many_strangers_that_hold_joins_keep_nobody_out() {
    strangers(Hold::Joins, 40, 16);
}

#[test]
fn strangers_that_hold_http_keep_no_kernel_back() {
    strangers(Hold::Http, 33, 64);
}

#[test]
fn a_token_is_good_for_one_node() {
    scenario(200 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, MB, 1)?;
        let published = [("debian", image.as_path())];
        let options = ["--admission", "token"];
        let mut seed = Seed::start(Place::loopback(), directory, &published, &options)?;
        let url = seed.url("debian")?;
        let made = Place::loopback()
            .command(&rootswarm_tests::swarm::programs()?.server)
            .args(["token", "create", "--state"])
            .arg(seed.state())
            .output()?;
        let token = String::from_utf8(made.stdout)?.trim().to_owned();
        assert!(
            !token.is_empty(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let prey = Prey::of(&url, SocketAddr::from((seed.address, SWARM_PORT)))?;
        let runtime = Runtime::new()?;
        let from = || IpAddr::V4(Place::loopback().address);
        let join = |token: Option<&str>| runtime.block_on(Outlaw::join(from(), &prey, token));
        join(Some(&token))?;
        // Again, with another key and from another address, as often as one likes; a part of it; none.
        let replays = [
            Some(&token[..]),
            Some(&token[..]),
            Some(&token[..8]),
            Some(""),
            None,
        ];
        let mut refused = 0;
        for replay in replays {
            match join(replay) {
                Err(OutlawError::Refused(Refusal::NotAdmitted(_))) => refused += 1,
                Ok(_) => panic!("{replay:?} was let in"),
                Err(error) => return Err(error.into()),
            }
        }
        assert_eq!(refused, replays.len());
        Ok(())
    });
}

/// Row 10 of the threats: what a forged source address gets is at most three times what was sent.
#[test]
fn a_seed_sends_little_to_who_has_not_proven_an_address() {
    scenario(200 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, MB, 1)?;
        let published = [("debian", image.as_path())];
        let seed = Seed::start(Place::loopback(), directory, &published, &[])?;
        let to = SocketAddr::from((seed.address, SWARM_PORT));
        let from = IpAddr::V4(Place::loopback().address);
        let runtime = Runtime::new()?;
        // One packet from each source, and a flood from each.
        for (sources, each) in [(40, 1), (20, 20)] {
            let wait = Duration::from_secs(3);
            let counted = runtime.block_on(rootswarm_tests::hostile::reflect(
                from, to, sources, each, wait,
            ))?;
            assert!(counted.returned_bytes > 0, "it answered: {counted:?}");
            assert!(counted.worst_ratio <= 3.0, "{counted:?}");
        }
        Ok(())
    });
}
