//! A seed whose network is one thing and the strangers who can reach it another.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use super::idle::{Hold, Strangers};
use crate::netns::{Bridge, NODE_INTERFACE, Namespace};
use crate::source;
use crate::swarm::{Agent, HTTP_PORT, Place, SWARM_PORT, Seed};

/// For everything that an honest machine does, on a busy one.
const LIMIT: Duration = Duration::from_secs(60);

/// What boot loaders and monitoring wait at the most: less than a silent connection had to itself.
const HTTP_LIMIT: Duration = Duration::from_secs(10);

/// How the honest fared.
#[derive(Clone, Copy, Debug)]
pub struct Siege {
    /// Connections that the strangers had.
    pub held: u64,
    /// Until a kernel had come, and the word that the seed lives.
    pub http_s: [f64; 2],
    /// Until a node had the image, by the swarm.
    pub node_s: f64,
}

/// Lets strangers from `addresses` addresses outside `--allow` hold `each` connections from each, and a
/// node and a boot loader on the allowed network do what they came for.
///
/// # Errors
/// When they cannot, or what was to hold them up did not begin.
pub fn besiege(
    directory: &Path,
    what: Hold,
    addresses: u8,
    each: usize,
) -> Result<Siege, Box<dyn std::error::Error>> {
    let image = directory.join("source");
    source::write(&image, 3_000_000, 1)?;
    let bridge = Bridge::create("door")?;
    let (home, abroad) = (Namespace::create("home")?, Namespace::create("abroad")?);
    let at = |net: u8, host: u8| Ipv4Addr::new(10, 77, net, host);
    let _cables = [
        bridge.attach(&home, at(0, 1), 16)?,
        bridge.attach(&abroad, at(1, 1), 16)?,
    ];
    for host in 2..=addresses {
        abroad.add_address(NODE_INTERFACE, at(1, host), 16)?;
    }
    home.add_address(NODE_INTERFACE, at(0, 2), 16)?;
    let options = ["--allow", "10.77.0.0/24"];
    let published = [("debian", image.as_path())];
    let place = Place::inside(&home, at(0, 1));
    let mut seed = Seed::start(place, directory, &published, &options)?;
    let url = seed.url("debian")?;
    std::fs::write(seed.state().join("boot/vmlinuz"), b"kernel")?;
    let port = match what {
        Hold::Joins => SWARM_PORT,
        Hold::Http => HTTP_PORT,
    };
    let from = (1..=addresses).map(|host| at(1, host).into()).collect();
    let victim = SocketAddr::from((at(0, 1), port));
    let strangers = Strangers::begin(&abroad, what, victim, from, each);
    let begun = Instant::now();
    while strangers.fired() < 8 {
        if begun.elapsed() > LIMIT {
            return Err(format!("strangers had {} connections", strangers.fired()).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // All that they can get is theirs by then.
    std::thread::sleep(Duration::from_secs(2));
    let mut http_s = [0.0; 2];
    for (path, took_s) in ["boot/vmlinuz", "healthz"].into_iter().zip(&mut http_s) {
        let url = format!("http://{}:{HTTP_PORT}/{path}", at(0, 1));
        let asked = Instant::now();
        loop {
            let mut wget = home.command("wget");
            wget.args(["-q", "-O", "/dev/null", "--tries=1", "--timeout=5", &url]);
            if wget.status()?.success() {
                break;
            }
            if asked.elapsed() > HTTP_LIMIT {
                let held = strangers.fired();
                return Err(format!("no {path}, {held} connections were held").into());
            }
        }
        *took_s = asked.elapsed().as_secs_f64();
    }
    let asked = Instant::now();
    let place = Place::inside(&home, at(0, 2));
    let mut agent = Agent::fetch(place, directory, "node", &url, &["--stay"])?;
    agent.wait_complete(LIMIT)?;
    let node_s = asked.elapsed().as_secs_f64();
    if agent.count("bytes_from_http")? > 0 {
        return Err("the node had to go around the swarm".into());
    }
    if !source::same(&image, agent.output())? {
        return Err("the node ended with other bytes than the image's".into());
    }
    Ok(Siege {
        held: strangers.fired(),
        http_s,
        node_s,
    })
}
