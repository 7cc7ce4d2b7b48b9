//! A cable that loses, delays, reorders, duplicates and corrupts datagrams on purpose.
//!
//! It is spliced into a node's cable where that ends at the switch: frames go through two taps, and
//! between them a thread asks a [`Rule`] about every UDP datagram. The programs under test and their
//! sockets stay as they are shipped. All other frames, ARP and TCP, pass untouched.
//!
//! A corrupted datagram gets the right UDP checksum for its wrong bytes: else the receiver's kernel
//! would drop it, and it would be a lost one. So it is the program that has to reject it.
//!
//! It leaves to others: which datagram gets which [`Fate`] (see `faults`), and faults that nftables
//! can inject (see `sieve`).

use std::cmp::{Ordering as Order, Reverse};
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netns::{BRIDGE_INTERFACE, Bridge, Link, NetnsError, run};

/// The kernel's `TUNSETIFF`, `_IOW('T', 202, int)`, and the flags of a tap without extra header
/// (linux/if_tun.h). Without that header the kernel finishes checksums and splits batches itself.
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;

/// Frames taken from one tap before the other gets its turn.
const TURN: usize = 64;
/// Longer than any frame of a tap.
const FRAME_BYTES_MAX: usize = 65_600;
/// How often an idle thread looks whether it should end.
const IDLE: Duration = Duration::from_millis(50);

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES_MIN: usize = 20;
const UDP_BYTES: usize = 8;

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the node to the switch.
    Up,
    /// To the node.
    Down,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// How often it arrives: 0 is lost, 2 duplicated.
    pub copies: u8,
    /// How much later.
    pub hold: Duration,
    /// With one of its bits flipped.
    pub is_corrupted: bool,
}

impl Fate {
    /// Nothing.
    pub const PASS: Fate = Fate {
        copies: 1,
        hold: Duration::ZERO,
        is_corrupted: false,
    };
}

/// Decides about a datagram, given its direction and UDP payload.
pub type Rule = Box<dyn FnMut(Direction, &[u8], &mut Dice) -> Fate + Send>;

/// xorshift64*: the same sequence for the same seed.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Dice {
        // The generator must not start at 0.
        Dice(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }

    /// True so many times of a thousand.
    pub fn per_mille(&mut self, share: u64) -> bool {
        self.below(1000) < share
    }
}

/// What a cable did so far, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Not delivered.
    pub lost: u64,
    /// Delivered later than they came.
    pub held: u64,
    /// Delivered after one that came later, in the same direction.
    pub overtaken: u64,
    /// Delivered twice or more.
    pub duplicated: u64,
    /// Delivered with a flipped bit and the right checksum.
    pub corrupted: u64,
}

#[derive(Debug, Default)]
struct Counters {
    lost: AtomicU64,
    held: AtomicU64,
    overtaken: AtomicU64,
    duplicated: AtomicU64,
    corrupted: AtomicU64,
}

/// A bad cable at work. Dropped, it carries nothing any more.
#[derive(Debug)]
pub struct BadCable {
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BadCable {
    /// Splices a bad piece into `link`, which ends at `bridge`. `seed` starts the rule's dice.
    ///
    /// # Errors
    /// Without root or /dev/net/tun, or when `ip` refuses.
    pub fn splice(bridge: &Bridge, link: &Link, seed: u64, rule: Rule) -> Result<Self, NetnsError> {
        let switch = bridge.namespace();
        // port - stub bridge - node tap - thread - switch tap - the switch's bridge
        let (stub, port) = (format!("stub-{}", link.port), link.port.as_str());
        let taps = [format!("n-{port}"), format!("s-{port}")];
        switch.add_bridge(&stub)?;
        for (tap, master) in taps.iter().zip([stub.as_str(), BRIDGE_INTERFACE]) {
            switch.ip(["tuntap", "add", "dev", tap, "mode", "tap"])?;
            switch.ip(["link", "set", tap, "master", master, "up"])?;
        }
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (opened, is_open) = mpsc::channel();
        let thread = {
            let (handle, counters, stop) = (switch.handle(), counters.clone(), stop.clone());
            let taps = taps.clone();
            std::thread::spawn(move || {
                // Only this thread is moved: a tap is looked up where its opener is.
                let network = Some(LinkNameSpaceType::Network);
                let files = move_into_link_name_space(handle.as_fd(), network)
                    .map_err(io::Error::from)
                    .and_then(|()| Ok([open_tap(&taps[0])?, open_tap(&taps[1])?]));
                let files = match files {
                    Ok(files) => files,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                // Its receiver is gone only with the whole test.
                let _ = opened.send(Ok(()));
                let mut wire = Wire::new(files, rule, seed, counters);
                while !stop.load(Ordering::Relaxed) {
                    wire.turn();
                }
            })
        };
        let cable = BadCable {
            counters,
            stop,
            thread: Some(thread),
        };
        let ended = || io::Error::other("its thread ended");
        is_open
            .recv()
            .unwrap_or_else(|_| Err(ended()))
            .map_err(|source| NetnsError::Tap {
                tap: taps[0].clone(),
                source,
            })?;
        run(
            "ip",
            ["-n", switch.name(), "link", "set", port, "master", &stub],
        )?;
        Ok(cable)
    }

    /// What it did so far.
    pub fn done(&self) -> Done {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Done {
            lost: read(&self.counters.lost),
            held: read(&self.counters.held),
            overtaken: read(&self.counters.overtaken),
            duplicated: read(&self.counters.duplicated),
            corrupted: read(&self.counters.corrupted),
        }
    }
}

impl Drop for BadCable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed; frames stopped, and that fails the row.
            let _ = thread.join();
        }
    }
}

fn open_tap(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/net/tun")?;
    // struct ifreq: 16 bytes of name, the flags, 22 bytes of other members.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI).to_ne_bytes());
    // SAFETY: TUNSETIFF reads a struct ifreq, which is 40 bytes long, from the pointer.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, [u8; 40]>::new(request))? };
    Ok(file)
}

/// A frame on its way. Ordered by when it is due, then by when it came.
#[derive(Debug)]
struct Flight {
    due: Instant,
    serial: u64,
    direction: Direction,
    frame: Vec<u8>,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for Flight {}
impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Flight {
    fn cmp(&self, other: &Self) -> Order {
        (self.due, self.serial).cmp(&(other.due, other.serial))
    }
}

/// The piece between the two taps.
struct Wire {
    /// At the node, at the switch.
    taps: [File; 2],
    rule: Rule,
    dice: Dice,
    counters: Arc<Counters>,
    flights: BinaryHeap<Reverse<Flight>>,
    serial: u64,
    /// The latest serial delivered up and down.
    delivered: [u64; 2],
    buffer: Vec<u8>,
}

impl Wire {
    fn new(taps: [File; 2], rule: Rule, seed: u64, counters: Arc<Counters>) -> Wire {
        Wire {
            taps,
            rule,
            dice: Dice::new(seed),
            counters,
            flights: BinaryHeap::new(),
            serial: 0,
            delivered: [0; 2],
            buffer: vec![0; FRAME_BYTES_MAX],
        }
    }

    /// Waits for frames or for the next that is due, takes some and delivers what is due.
    fn turn(&mut self) {
        let next = self.flights.peek().map(|Reverse(flight)| flight.due);
        let wait = next.map_or(IDLE, |due| {
            due.saturating_duration_since(Instant::now()).min(IDLE)
        });
        let mut polled = [
            PollFd::new(&self.taps[0], PollFlags::IN),
            PollFd::new(&self.taps[1], PollFlags::IN),
        ];
        // Under a second, so that both parts fit.
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: wait.subsec_nanos().into(),
        };
        // Interrupted or not: what follows looks for itself.
        let _ = poll(&mut polled, Some(&wait));
        self.take(Direction::Up);
        self.take(Direction::Down);
        let now = Instant::now();
        while let Some(Reverse(flight)) = self.flights.peek() {
            if flight.due > now {
                break;
            }
            if let Some(Reverse(flight)) = self.flights.pop() {
                self.deliver(&flight);
            }
        }
    }

    fn take(&mut self, direction: Direction) {
        for _ in 0..TURN {
            let tap = &mut self.taps[direction as usize];
            // Nothing there, or the tap is going away with its namespace.
            let Ok(bytes) = tap.read(&mut self.buffer) else {
                return;
            };
            let mut frame = self.buffer[..bytes].to_vec();
            let mut fate = Fate::PASS;
            if let Some(udp) = udp_start(&frame) {
                let payload = &frame[udp + UDP_BYTES..];
                fate = (self.rule)(direction, payload, &mut self.dice);
                fate.is_corrupted &= fate.copies > 0 && !payload.is_empty();
                self.count(fate);
                if fate.is_corrupted {
                    let bits = (frame.len() - udp - UDP_BYTES) as u64 * 8;
                    let bit = self.dice.below(bits) as usize;
                    frame[udp + UDP_BYTES + bit / 8] ^= 1 << (bit % 8);
                    fix_checksum(&mut frame, udp);
                }
            }
            let due = Instant::now() + fate.hold;
            for _ in 0..fate.copies {
                self.serial += 1;
                self.flights.push(Reverse(Flight {
                    due,
                    serial: self.serial,
                    direction,
                    frame: frame.clone(),
                }));
            }
        }
    }

    fn count(&self, fate: Fate) {
        let add = |counter: &AtomicU64, is: bool| {
            counter.fetch_add(u64::from(is), Ordering::Relaxed);
        };
        add(&self.counters.lost, fate.copies == 0);
        add(&self.counters.held, fate.copies > 0 && !fate.hold.is_zero());
        add(&self.counters.duplicated, fate.copies > 1);
        add(&self.counters.corrupted, fate.is_corrupted);
    }

    fn deliver(&mut self, flight: &Flight) {
        let way = flight.direction as usize;
        let latest = &mut self.delivered[way];
        if flight.serial < *latest && udp_start(&flight.frame).is_some() {
            self.counters.overtaken.fetch_add(1, Ordering::Relaxed);
        }
        *latest = flight.serial.max(*latest);
        // Up goes out at the switch, down at the node.
        let mut tap = &self.taps[1 - way];
        // The tap is full or down: then the frame is lost, as on any cable.
        let _ = tap.write(&flight.frame);
    }
}

/// Where the UDP header of a whole IPv4 datagram begins, with room for it and padding-free.
fn udp_start(frame: &[u8]) -> Option<usize> {
    let ip = frame.get(ETHERNET_BYTES..)?;
    if frame[12..14] != [0x08, 0x00] || ip.len() < IPV4_BYTES_MIN || ip[9] != 17 {
        return None;
    }
    // Neither a first fragment nor a later one.
    if u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 {
        return None;
    }
    let header = usize::from(ip[0] & 0x0f) * 4;
    let udp = ip.get(header..)?;
    let length = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    (length >= UDP_BYTES && length == udp.len()).then_some(ETHERNET_BYTES + header)
}

/// The checksum of RFC 768 over pseudo header, header and payload.
fn fix_checksum(frame: &mut [u8], udp: usize) {
    frame[udp + 6..udp + 8].fill(0);
    let addresses = &frame[ETHERNET_BYTES + 12..ETHERNET_BYTES + 20];
    let length = (frame.len() - udp) as u32;
    let words = |bytes: &[u8]| -> u32 {
        let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        bytes.chunks(2).map(word).sum()
    };
    let mut sum = words(addresses) + 17 + length + words(&frame[udp..]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // At most 0xffff by the loop. 0 would mean "no checksum".
    let sum = match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    };
    frame[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 datagram from 10.0.0.1:1 to 10.0.0.2:2 with this payload and no checksum yet.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_BYTES];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let mut ip = vec![
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        ip.extend([0, 1, 0, 2, 0, (UDP_BYTES + payload.len()) as u8, 0, 0]);
        ip.extend(payload);
        frame.extend(ip);
        frame
    }

    #[test]
    fn the_checksum_is_the_one_of_the_rfc() {
        let mut frame = frame(b"abc");
        let udp = udp_start(&frame).unwrap();
        assert_eq!(udp, 34);
        fix_checksum(&mut frame, udp);
        // 0a00+0001+0a00+0002 + 0011+000b + 0001+0002+000b + 6162+6300 = d88f, its complement.
        assert_eq!(frame[40..42], [0x27, 0x70]);
    }

    #[test]
    fn only_whole_ipv4_datagrams_are_touched() {
        assert!(udp_start(&frame(b"")).is_some());
        for (place, byte, what) in [
            (12, 0x86, "another protocol than IPv4"),
            (23, 6, "TCP"),
            (20, 0x60, "a first fragment"),
            (21, 1, "a later fragment"),
            (39, 7, "a length below the header's"),
            (39, 99, "a length beyond the frame"),
        ] {
            let mut frame = frame(b"abc");
            frame[place] = byte;
            assert_eq!(udp_start(&frame), None, "{what}");
        }
        for length in 0..frame(b"abc").len() {
            assert_eq!(udp_start(&frame(b"abc")[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn dice_repeat_themselves() {
        let throws = |seed| {
            let mut dice = Dice::new(seed);
            (0..1000).filter(|_| dice.per_mille(100)).count()
        };
        assert_eq!(throws(7), throws(7));
        assert!((50..200).contains(&throws(7)));
    }
}
