//! The harness itself: a guard that leaves something behind, or a link that is not as slow as it
//! says, would make every other test here lie.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rootswarm_tests::keeper::{self, Kept};
use rootswarm_tests::netns::{Bridge, NODE_INTERFACE, Namespace};
use rootswarm_tests::process::Process;

type TestResult = Result<(), Box<dyn Error>>;

const PREFIX_LEN: u8 = 24;
const SECOND: Duration = Duration::from_secs(1);
/// A test binary that finds this set plays the part it names instead of testing.
const PART: &str = "ROOTSWARM_TEST_PART";
const PORT: u16 = 7777;

fn exists(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

/// This test binary again, running only `part`, so that it can be killed or moved elsewhere.
fn play(mut command: Command, part: &str) -> Command {
    command
        .args(["--exact", "part", "--nocapture"])
        .env(PART, part);
    command
}

/// Not a test of its own: what the children of the tests below do.
#[test]
#[allow(clippy::print_stdout)] // Its parent reads what it prints.
fn part() -> TestResult {
    let Ok(part) = std::env::var(PART) else {
        return Ok(());
    };
    match part.split('|').collect::<Vec<_>>()[..] {
        ["leave", directory] => {
            keeper::register(Kept::Directory(Path::new(directory)))?;
            let namespace = Namespace::create("left")?;
            println!("\nmade {}", namespace.name());
            std::thread::sleep(60 * SECOND);
        }
        ["receive tcp", address] => {
            let listener = TcpListener::bind((address.parse::<Ipv4Addr>()?, PORT))?;
            println!("\nlistening");
            let (mut stream, _) = listener.accept()?;
            std::io::copy(&mut stream, &mut std::io::sink())?;
            stream.write_all(b"k")?;
        }
        ["send tcp", address, bytes] => {
            let mut stream = TcpStream::connect((address.parse::<Ipv4Addr>()?, PORT))?;
            std::io::copy(&mut std::io::repeat(7).take(bytes.parse()?), &mut stream)?;
            stream.shutdown(Shutdown::Write)?;
            stream.read_exact(&mut [0])?;
        }
        ["receive udp", address] => {
            let socket = UdpSocket::bind((address.parse::<Ipv4Addr>()?, PORT))?;
            println!("\nlistening");
            loop {
                let length = socket.recv(&mut [0; 16])?;
                println!("\ngot {length}");
            }
        }
        ["send udp", address, length] => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let payload = vec![0; length.parse()?];
            // A packet dropped on the way out is reported as a refusal to send it.
            let _ = socket.send_to(&payload, (address.parse::<Ipv4Addr>()?, PORT));
        }
        _ => return Err(format!("no such part: {part}").into()),
    }
    Ok(())
}

#[test]
fn a_dropped_namespace_takes_its_processes_with_it() -> TestResult {
    let namespace = Namespace::create("dropped")?;
    let name = namespace.name().to_owned();
    assert!(exists(&name));
    // Not a `Process`: nothing but the namespace knows this child.
    let mut child = namespace.command("sleep").arg("600").spawn()?;
    drop(namespace);
    assert!(!exists(&name), "{name} is still there");
    assert_eq!(child.wait()?.code(), None, "it should have been killed");
    Ok(())
}

#[test]
fn the_keeper_removes_what_a_killed_process_left() -> TestResult {
    let directory = tempfile::tempdir()?;
    let kept = directory.path().join("kept with spaces");
    std::fs::create_dir(&kept)?;
    std::fs::write(kept.join("file"), "x")?;

    let leaver = play(
        Command::new(std::env::current_exe()?),
        &format!("leave|{}", kept.display()),
    );
    let mut leaver = Process::spawn("leaver", leaver, &directory.path().join("log"))?;
    let made = leaver.wait_for_line("made ", 20 * SECOND)?;
    let name = made.trim_start_matches("made ");
    assert!(exists(name) && kept.exists());
    leaver.kill()?;

    let deadline = Instant::now() + 10 * SECOND;
    while exists(name) || kept.exists() {
        assert!(
            Instant::now() < deadline,
            "{name} or {} is still there",
            kept.display()
        );
        std::thread::sleep(SECOND / 20);
    }
    Ok(())
}

#[test]
fn a_shaped_link_is_as_fast_as_it_says_in_both_directions() -> TestResult {
    const RATE_BIT_PER_S: u64 = 80_000_000;
    const PAYLOAD_BYTES: u64 = 10_000_000;
    let bridge = Bridge::create("shaped")?;
    let (left, right) = (Namespace::create("left")?, Namespace::create("right")?);
    let left_link = bridge.attach(&left, Ipv4Addr::new(10, 77, 0, 1), PREFIX_LEN)?;
    let right_link = bridge.attach(&right, Ipv4Addr::new(10, 77, 0, 2), PREFIX_LEN)?;
    left_link.shape(RATE_BIT_PER_S)?;
    let directory = tempfile::tempdir()?;

    for (sender, receiver, address) in [
        (&left, &right, right_link.address()),
        (&right, &left, left_link.address()),
    ] {
        let log = |name: &str| directory.path().join(format!("{name}-{address}"));
        let this = std::env::current_exe()?;
        let receive = play(receiver.command(&this), &format!("receive tcp|{address}"));
        let mut receive = Process::spawn("receiver", receive, &log("receiver"))?;
        receive.wait_for_line("listening", 20 * SECOND)?;

        let before = sender.traffic(NODE_INTERFACE)?;
        let start = Instant::now();
        let send = play(
            sender.command(&this),
            &format!("send tcp|{address}|{PAYLOAD_BYTES}"),
        );
        let mut send = Process::spawn("sender", send, &log("sender"))?;
        assert!(send.wait(20 * SECOND)?.success(), "{}", send.tail(5));
        let took_s = start.elapsed().as_secs_f64();
        let sent_bytes = sender.traffic(NODE_INTERFACE)?.tx_bytes - before.tx_bytes;

        let bound_s = (PAYLOAD_BYTES * 8) as f64 / RATE_BIT_PER_S as f64;
        assert!(
            (0.95 * bound_s..1.5 * bound_s).contains(&took_s),
            "{} -> {}: {took_s:.2} s instead of about {bound_s:.2} s",
            sender.name(),
            receiver.name(),
        );
        assert!(
            (PAYLOAD_BYTES..PAYLOAD_BYTES * 11 / 10).contains(&sent_bytes),
            "the counter of {} says {sent_bytes}",
            sender.name(),
        );
    }
    Ok(())
}

#[test]
fn a_blocked_and_a_pulled_link_come_back() -> TestResult {
    let bridge = Bridge::create("pulled")?;
    let (left, right) = (Namespace::create("left")?, Namespace::create("right")?);
    let link = bridge.attach(&left, Ipv4Addr::new(10, 77, 1, 1), PREFIX_LEN)?;
    let address = bridge
        .attach(&right, Ipv4Addr::new(10, 77, 1, 2), PREFIX_LEN)?
        .address();
    let directory = tempfile::tempdir()?;
    let this = std::env::current_exe()?;
    let receive = play(right.command(&this), &format!("receive udp|{address}"));
    let mut receive = Process::spawn("receiver", receive, &directory.path().join("receiver"))?;
    receive.wait_for_line("listening", 20 * SECOND)?;

    // Each packet has a length of its own, so a late one is not taken for the next.
    let mut length = 0;
    let mut arrives = || -> Result<bool, Box<dyn Error>> {
        length += 1;
        let send = play(left.command(&this), &format!("send udp|{address}|{length}"));
        let mut send = Process::spawn("sender", send, &directory.path().join("sender"))?;
        assert!(send.wait(20 * SECOND)?.success(), "{}", send.tail(5));
        Ok(receive
            .wait_for_line(&format!("got {length}"), SECOND / 2)
            .is_ok())
    };
    assert!(arrives()?, "nothing is in the way yet");
    right.block_udp()?;
    assert!(!arrives()?, "UDP is blocked");
    right.unblock()?;
    assert!(arrives()?, "UDP is no longer blocked");
    link.set_up(false)?;
    assert!(!arrives()?, "the cable is pulled");
    link.set_up(true)?;
    assert!(arrives()?, "the cable is back");
    left.lose(1.0)?;
    assert!(!arrives()?, "all is lost");
    left.lose(0.0)?;
    assert!(arrives()?, "nothing is lost");
    Ok(())
}
