//! Host names without a C library's name service: a static program cannot load its modules, and
//! an initramfs has none. Knows numeric addresses, a hosts file, and one plain DNS question
//! (A and AAAA) to the name servers that DHCP left behind.
//!
//! No search domains, no TCP, no DNSSEC: whoever forges an answer gains nothing over an image that
//! is held to a pin or a key.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rootswarm_image::Host;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Where names and name servers are found; a test has its own.
#[derive(Debug, Clone)]
pub struct Resolver {
    /// The root of the file system: `/`.
    pub root: PathBuf,
    /// The port name servers listen on: 53.
    pub port: u16,
    /// What an earlier root said. It counts beside what the present one says.
    pub remembered: Remembered,
}

/// What a root says about names. After the handoff the initramfs is empty, and the booted system may
/// know less than it did, or nothing yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    hosts: String,
    servers: Vec<IpAddr>,
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver {
            root: "/".into(),
            port: 53,
            remembered: Remembered::default(),
        }
    }
}

/// Why a host has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Not in the hosts file, and nobody to ask.
    #[error(
        "host {name}: not in /etc/hosts and no name server known \
         (neither /etc/resolv.conf nor DHCP named one); use a numeric address"
    )]
    NoServer {
        /// The host.
        name: String,
    },
    /// Nobody answered.
    #[error("host {name}: no answer from name server {servers}")]
    NoAnswer {
        /// The host.
        name: String,
        /// Who was asked.
        servers: String,
    },
    /// There is an answer, and it is no.
    #[error("host {name}: name server {server} knows no address for it")]
    Unknown {
        /// The host.
        name: String,
        /// Who said so.
        server: IpAddr,
    },
    /// Not a name DNS could know.
    #[error("host {name}: not a host name (labels of 1 to 63 letters, digits and hyphens)")]
    BadName {
        /// The host.
        name: String,
    },
}

/// How long one name server has, per try.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries at one name server.
const TRIES: usize = 2;
/// When the next name server is asked as well: one that is dead costs a second, and all of them no
/// more than (MAX_SERVERS - 1) of these and the last one's tries, 6 s; with those that are remembered
/// 9 s.
const NEXT_SERVER_AFTER: Duration = Duration::from_secs(1);
/// Name servers asked, as in the C library, and as many that are remembered.
const MAX_SERVERS: usize = 3;
/// The longest of the files that is read. A large cluster's hosts file is some hundred KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The largest answer over UDP without extensions is 512 bytes; some servers ignore that.
const MAX_ANSWER_BYTES: usize = 4096;

impl Resolver {
    /// The addresses of a host. The caller repeats it while the network comes up.
    pub async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        let name = match host {
            Host::V4(address) => return Ok(vec![(*address).into()]),
            Host::V6(address) => return Ok(vec![(*address).into()]),
            Host::Name(name) => name.as_str(),
        };
        // What was known once comes last: which of them is right shows when they are dialled.
        let once = find_in_hosts(&self.remembered.hosts, name);
        let now = find_in_hosts(&self.hosts(), name);
        let found = match now.is_empty() {
            true => self.ask(name).await,
            false => Ok(now),
        };
        match found {
            Err(_) if !once.is_empty() => Ok(once),
            Err(error) => Err(error),
            Ok(mut found) => {
                for address in once {
                    if !found.contains(&address) {
                        found.push(address);
                    }
                }
                Ok(found)
            }
        }
    }

    /// Asks the name servers.
    async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let servers = self.all_servers();
        if servers.is_empty() {
            return Err(ResolveError::NoServer {
                name: name.to_owned(),
            });
        }
        let bad_name = || ResolveError::BadName {
            name: name.to_owned(),
        };
        // Each asks on its own, so that they end with this call.
        let mut asked = JoinSet::new();
        for (index, server) in servers.iter().copied().enumerate() {
            let question = |kind| Question::new(name, kind).ok_or_else(bad_name);
            let (a, aaaa) = (question(RecordKind::A)?, question(RecordKind::Aaaa)?);
            let port = self.port;
            asked.spawn(async move {
                tokio::time::sleep(NEXT_SERVER_AFTER * index as u32).await;
                (
                    server,
                    tokio::join!(a.ask(server, port), aaaa.ask(server, port)),
                )
            });
        }
        let mut refused = None;
        while let Some(answer) = asked.join_next().await {
            // Nothing in such a task panics, and nobody ends it.
            let Ok((server, (a, aaaa))) = answer else {
                continue;
            };
            if a.is_ok() || aaaa.is_ok() {
                refused.get_or_insert(server);
            }
            let found: Vec<IpAddr> = [a, aaaa].into_iter().flatten().flatten().collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let name = name.to_owned();
        Err(match refused {
            Some(server) => ResolveError::Unknown { name, server },
            None => {
                let servers = servers
                    .iter()
                    .map(IpAddr::to_string)
                    .collect::<Vec<_>>()
                    .join(", ");
                ResolveError::NoAnswer { name, servers }
            }
        })
    }

    /// Keeps what the present root says, for when it is gone.
    pub fn remember(&mut self) {
        self.remembered = Remembered {
            hosts: self.hosts(),
            servers: self.servers(),
        };
    }

    fn hosts(&self) -> String {
        read_small(&self.root.join("etc/hosts"))
    }

    /// The present ones, and then those that are remembered.
    fn all_servers(&self) -> Vec<IpAddr> {
        let mut servers = self.servers();
        for server in &self.remembered.servers {
            if !servers.contains(server) {
                servers.push(*server);
            }
        }
        servers
    }

    /// From /etc/resolv.conf, and from what initramfs-tools' ipconfig left in /run/net-*.conf.
    fn servers(&self) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        let text = read_small(&self.root.join("etc/resolv.conf"));
        servers.extend(text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let is_server = words.next() == Some("nameserver");
            let address: IpAddr = words.next()?.parse().ok()?;
            is_server.then_some(address)
        }));
        for path in net_files(&self.root.join("run")) {
            let text = read_small(&path);
            servers.extend(text.lines().filter_map(|line| {
                let (name, value) = line.split_once('=')?;
                if !name.starts_with("IPV4DNS") && !name.starts_with("IPV6DNS") {
                    return None;
                }
                value.trim_matches(['\'', '"']).parse::<IpAddr>().ok()
            }));
        }
        // ipconfig writes 0.0.0.0 for "none".
        servers.retain(|server| !server.is_unspecified());
        let mut once = Vec::new();
        for server in servers {
            if !once.contains(&server) {
                once.push(server);
            }
        }
        once.truncate(MAX_SERVERS);
        once
    }
}

/// A question to name servers.
struct Question {
    kind: RecordKind,
    id: u16,
    message: Vec<u8>,
}

impl Question {
    /// `None` when the name cannot be one.
    fn new(name: &str, kind: RecordKind) -> Option<Question> {
        let mut id = [0; 2];
        // Without randomness there is no TLS either: who forges an answer has the least to gain.
        let _ = getrandom::fill(&mut id);
        let id = u16::from_be_bytes(id);
        let message = encode_question(id, name, kind)?;
        Some(Question { kind, id, message })
    }

    async fn ask(self, server: IpAddr, port: u16) -> io::Result<Vec<IpAddr>> {
        let local: SocketAddr = match server {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(local).await?;
        socket.connect((server, port)).await?;
        let mut answer = vec![0; MAX_ANSWER_BYTES];
        for _ in 0..TRIES {
            socket.send(&self.message).await?;
            let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
            // Datagrams that answer something else do not end the wait.
            while let Ok(received) =
                tokio::time::timeout_at(deadline, socket.recv(&mut answer)).await
            {
                let length = received?;
                if let Some(addresses) = decode_answer(&answer[..length], self.id, self.kind) {
                    return Ok(addresses);
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// A file's text, or nothing. Whatever else an image has there (a pipe, a device) delays nobody.
fn read_small(path: &Path) -> String {
    use std::os::unix::fs::OpenOptionsExt;
    let read = || -> io::Result<Vec<u8>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

fn net_files(run: &Path) -> Vec<PathBuf> {
    let mut paths = fs::read_dir(run)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            name.ends_with(".conf") && (name.starts_with("net-") || name.starts_with("net6-"))
        })
        .collect::<Vec<_>>();
    paths.sort();
    paths
}

fn find_in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let address: IpAddr = words.next()?.parse().ok()?;
            words
                .any(|word| word.eq_ignore_ascii_case(name))
                .then_some(address)
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordKind {
    A,
    Aaaa,
}

impl RecordKind {
    fn code(self) -> u16 {
        match self {
            RecordKind::A => 1,
            RecordKind::Aaaa => 28,
        }
    }
}

/// A query with recursion desired; `None` when the name cannot be written as labels.
fn encode_question(id: u16, name: &str, kind: RecordKind) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(18 + name.len());
    message.extend(id.to_be_bytes());
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|n| (1..=63).contains(n))?;
        message.push(length);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.code().to_be_bytes());
    message.extend([0, 1]);
    Some(message)
}

/// The addresses in an answer to question `id`. `None` when it is not one; a server's "no such
/// name" is an answer without addresses. CNAMEs are followed by taking every address the server
/// put beside them.
fn decode_answer(message: &[u8], id: u16, kind: RecordKind) -> Option<Vec<IpAddr>> {
    let word = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(
            message.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let is_answer = message.get(2)? & 0x80 != 0;
    if word(0)? != id || !is_answer {
        return None;
    }
    const NO_SUCH_NAME: u8 = 3;
    match message.get(3)? & 0x0f {
        0 => {}
        NO_SUCH_NAME => return Some(Vec::new()),
        _ => return None,
    }
    let (questions, answers) = (word(4)?, word(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = skip_name(message, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = skip_name(message, at)?;
        let (code, class, length) = (word(at)?, word(at + 2)?, usize::from(word(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        if code != kind.code() || class != 1 {
            continue;
        }
        match kind {
            RecordKind::A => found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            RecordKind::Aaaa => found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
        }
    }
    Some(found)
}

/// Steps over a name without following pointers, so there is nothing to loop in.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length >> 6 {
            0 if length == 0 => return Some(at + 1),
            0 => at += 1 + usize::from(length),
            3 => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        name.parse::<rootswarm_image::HostPort>().unwrap().host
    }

    #[test]
    fn hosts_files() {
        let text = "127.0.0.1 localhost # seed\n10.0.0.1\tseed.lab seed\n::5 SEED\nbad seed\n";
        let expected: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "::5".parse().unwrap()];
        assert_eq!(find_in_hosts(text, "seed"), expected);
        assert_eq!(find_in_hosts(text, "lab"), Vec::<IpAddr>::new());
    }

    #[test]
    fn servers_come_from_both_places_once() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("run")).unwrap();
        let resolv = "search lab\nnameserver 10.0.0.2\nnameserver x\n";
        fs::write(root.path().join("etc/resolv.conf"), resolv).unwrap();
        let net = "DEVICE='eth0'\nIPV4DNS0='10.0.0.2'\nIPV4DNS1='10.0.0.3'\nIPV4DNS2='0.0.0.0'\n";
        fs::write(root.path().join("run/net-eth0.conf"), net).unwrap();
        let resolver = Resolver {
            root: root.path().to_owned(),
            ..Resolver::default()
        };
        let expected: Vec<IpAddr> = vec!["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()];
        assert_eq!(resolver.servers(), expected);
    }

    /// The root is replaced by one that knows less, nothing, or something else.
    #[test]
    fn what_an_earlier_root_said_counts_beside_the_present_one() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let find = |resolver: &Resolver| runtime.block_on(resolver.resolve(&host("seed.lab")));
        let mut resolver = Resolver {
            root: root.path().to_owned(),
            ..Resolver::default()
        };
        write("etc/hosts", "10.0.0.1 seed.lab\nfd00::1 seed.lab\n");
        write("run/net-eth0.conf", "IPV4DNS0='10.0.0.9'\n");
        resolver.remember();
        let both = vec![address("10.0.0.1"), address("fd00::1")];
        assert_eq!(find(&resolver).unwrap(), both);
        // Gone, as after switch_root.
        fs::remove_dir_all(root.path().join("etc")).unwrap();
        fs::remove_dir_all(root.path().join("run")).unwrap();
        assert_eq!(resolver.all_servers(), [address("10.0.0.9")]);
        // Nobody answers there; here nobody listens, so that it is over at once.
        resolver.remembered.servers = vec![address("127.0.0.1")];
        assert_eq!(find(&resolver).unwrap(), both);
        // A root of its own, in which the seed has moved and there are other name servers.
        write("etc/hosts", "127.0.0.1 localhost\n10.0.0.2 SEED.lab seed\n");
        write(
            "etc/resolv.conf",
            "nameserver 10.0.0.8\nnameserver 10.0.0.9\n",
        );
        let moved = [&[address("10.0.0.2")], &both[..]].concat();
        assert_eq!(find(&resolver).unwrap(), moved);
        let servers = ["10.0.0.8", "10.0.0.9", "127.0.0.1"].map(address);
        assert_eq!(resolver.all_servers(), servers);
        fs::remove_file(root.path().join("etc/resolv.conf")).unwrap();
        // What is no file is nothing, and holds nobody up.
        fs::remove_file(root.path().join("etc/hosts")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(root.path().join("etc/hosts"))
            .status();
        assert!(made.unwrap().success());
        assert_eq!(find(&resolver).unwrap(), both);
    }

    #[test]
    fn names_that_cannot_be_asked() {
        for name in ["", ".", "a..b", &"a".repeat(64), &"a.".repeat(130)] {
            assert_eq!(encode_question(1, name, RecordKind::A), None, "{name}");
        }
    }

    /// Cut anywhere, an answer is refused or short, never a panic; nothing in it can loop.
    #[test]
    fn answers_cut_anywhere() {
        let mut answer = encode_question(7, "seed.lab", RecordKind::A).unwrap();
        answer[2] = 0x81;
        answer[7] = 2;
        // A CNAME first, then the address.
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
        let expected = Some(vec!["10.0.0.1".parse().unwrap()]);
        assert_eq!(decode_answer(&answer, 7, RecordKind::A), expected);
        assert_eq!(decode_answer(&answer, 8, RecordKind::A), None);
        assert_eq!(
            decode_answer(&answer, 7, RecordKind::Aaaa),
            Some(Vec::new())
        );
        for length in 0..answer.len() {
            assert_eq!(
                decode_answer(&answer[..length], 7, RecordKind::A),
                None,
                "{length}"
            );
        }
    }

    /// The first name server never answers; the second does when it is asked.
    #[tokio::test]
    async fn a_dead_server_is_passed_over() {
        let dead = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let port = dead.local_addr().unwrap().port();
        let alive = UdpSocket::bind(("127.0.0.3", port)).await.unwrap();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = alive.recv_from(&mut buffer).await.unwrap();
                let mut answer = buffer[..length].to_vec();
                answer[2] = 0x81;
                if answer[length - 3] == 1 {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
                }
                alive.send_to(&answer, from).await.unwrap();
            }
        });
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        let text = "nameserver 127.0.0.2\nnameserver 127.0.0.3\n";
        fs::write(root.path().join("etc/resolv.conf"), text).unwrap();
        let resolver = Resolver {
            root: root.path().to_owned(),
            port,
            ..Resolver::default()
        };
        let found = resolver.resolve(&host("seed.lab")).await.unwrap();
        assert_eq!(found, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        serving.abort();
        // It was asked once for each kind: nobody waited for its second try.
        let mut questions = 0;
        while dead.try_recv(&mut [0; 512]).is_ok() {
            questions += 1;
        }
        assert_eq!(questions, 2);
    }

    #[tokio::test]
    async fn a_server_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 512];
            for _ in 0..4 {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                let mut answer = buffer[..length].to_vec();
                let is_a = answer[length - 3] == 1;
                let known = answer.windows(5).any(|w| w == b"\x04seed");
                answer[2] = 0x81;
                if known && is_a {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
                } else if !known {
                    answer[3] = 3;
                }
                // Noise first: an answer to somebody else's question.
                let mut noise = answer.clone();
                noise[0] ^= 0xff;
                server.send_to(&noise, from).await.unwrap();
                server.send_to(&answer, from).await.unwrap();
            }
        });
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(
            root.path().join("etc/resolv.conf"),
            "nameserver 127.0.0.1\n",
        )
        .unwrap();
        let resolver = Resolver {
            root: root.path().to_owned(),
            port,
            ..Resolver::default()
        };
        let found = resolver.resolve(&host("seed.lab")).await.unwrap();
        assert_eq!(found, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let error = resolver.resolve(&host("other.lab")).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "host other.lab: name server 127.0.0.1 knows no address for it"
        );
        serving.await.unwrap();
        fs::write(root.path().join("etc/resolv.conf"), "").unwrap();
        let error = resolver.resolve(&host("seed")).await.unwrap_err();
        assert!(matches!(error, ResolveError::NoServer { .. }), "{error}");
    }
}
