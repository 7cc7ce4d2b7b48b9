//! What holds up a seed: a lock that another program holds, strangers that take what they can get.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rootswarm_transport::join::Refusal;
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::{Failure, Fault, Outcome};
use crate::hostile::{Hold, Outlaw, OutlawError, Prey, besiege};
use crate::source;
use crate::swarm::{HTTP_PORT, Place, SWARM_PORT, Seed, programs};

pub(super) const LOCKED: Fault = Fault {
    name: "disk: state locked",
    need_bytes: 50_000_000,
    bound: None,
    inject: locked,
};

pub(super) const HELD_JOINS: Fault = Fault {
    name: "strangers: hold joins",
    need_bytes: 50_000_000,
    bound: None,
    inject: |directory| strangers(directory, Hold::Joins, 9),
};

pub(super) const HELD_HTTP: Fault = Fault {
    name: "strangers: hold http",
    need_bytes: 50_000_000,
    bound: None,
    inject: |directory| strangers(directory, Hold::Http, 33),
};

fn strangers(directory: &Path, what: Hold, addresses: u8) -> Result<Outcome, Failure> {
    let siege = besiege(directory, what, addresses, 64)?;
    Ok(Outcome {
        fired: siege.held,
        unit: "connections held",
        outcome: format!(
            "a kernel after {:.2} s, /healthz after {:.2} s, a node has the image after {:.1} s",
            siege.http_s[0], siege.http_s[1], siege.node_s
        ),
        added: None,
    })
}

/// Nodes that show one-time tokens while another program holds the lock on the state directory.
fn locked(directory: &Path) -> Result<Outcome, Failure> {
    const NODES: usize = 50;
    const HELD: Duration = Duration::from_secs(10);
    /// A seed that waits for the lock says nothing until it is free.
    const SILENCE_MAX: Duration = Duration::from_secs(5);
    let image = directory.join("source");
    source::write(&image, 3_000_000, 1)?;
    let options = ["--admission", "token"];
    let published = [("debian", image.as_path())];
    let mut seed = Seed::start(Place::loopback(), directory, &published, &options)?;
    let url = seed.url("debian")?;
    let prey = Prey::of(&url, SocketAddr::from((seed.address, SWARM_PORT)))?;
    let mut tokens = Vec::new();
    for _ in 0..NODES {
        let mut make = Place::loopback().command(&programs()?.server);
        make.args(["token", "create", "--state"]).arg(seed.state());
        let made = String::from_utf8(make.output()?.stdout)?;
        tokens.push(made.trim().to_owned());
    }
    let lock = std::fs::File::open(seed.state().join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let runtime = Runtime::new()?;
    let mut joins = JoinSet::new();
    for token in tokens {
        let prey = prey.clone();
        let from = IpAddr::V4(Place::loopback().address);
        let join = async move { (Outlaw::join(from, &prey, Some(&token)).await, token) };
        joins.spawn_on(join, runtime.handle());
    }
    let http = SocketAddr::from((seed.address, HTTP_PORT));
    let (begin, mut silence) = (Instant::now(), Duration::ZERO);
    while begin.elapsed() < HELD {
        let asked = Instant::now();
        healthz(http).map_err(|error| format!("/healthz: {error}"))?;
        silence = silence.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    if silence > SILENCE_MAX {
        return Err(format!("/healthz was silent for {silence:.1?}").into());
    }
    let mut busy = 0;
    let mut again = Vec::new();
    while let Some(joined) = runtime.block_on(joins.join_next()) {
        match joined? {
            (Err(OutlawError::Refused(Refusal::Busy)), token) => {
                busy += 1;
                again.push(token);
            }
            (Err(error), _) => return Err(error.into()),
            (Ok(_), _) => return Err("let in under the lock".into()),
        }
    }
    drop(lock);
    let free = Instant::now();
    for token in &again {
        let from = IpAddr::V4(Place::loopback().address);
        runtime.block_on(Outlaw::join(from, &prey, Some(token)))?;
    }
    Ok(Outcome {
        fired: busy,
        unit: "joins told to ask again",
        outcome: format!(
            "/healthz silent for {:.2} s at the most; all {NODES} let in {:.1} s after the lock",
            silence.as_secs_f64(),
            free.elapsed().as_secs_f64()
        ),
        added: None,
    })
}

fn healthz(http: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(http)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.ends_with("ok\n") {
        true => Ok(()),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}
