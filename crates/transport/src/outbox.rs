//! Packets of one connection that leave the host in one piece.
//!
//! quinn hands over at most [`LINGERING_SEGMENTS`] packets at a time, and each time a batch walks
//! through the kernel costs the same, whether it holds 10 packets or 40: a third of what a node spent
//! on a fast link. So a batch that is as long as quinn makes them waits for the next one to the same
//! address, for as long as its caller finds right; a shorter one is the end of what there was to
//! say, and leaves at once with all that waited before it.
//!
//! When what waits is sent although nothing follows, and what happens when the socket is full, is
//! [`crate::udp`]'s part.

use std::io;
use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// As many packets as quinn hands over at once.
const LINGERING_SEGMENTS: usize = 10;

/// What one call to the kernel may carry: a UDP datagram with its headers, before it is cut up.
const BATCH_BYTES: usize = 65_487;

/// Addresses for which something may wait: a node has eight uploads under way. What exceeds them
/// leaves at once. Each holds up to [`BATCH_BYTES`].
const BATCHES: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// Those in use first.
    batches: Vec<Batch>,
    in_use: usize,
    /// How many packets quinn should hand over at once.
    at_once: usize,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox {
            batches: Vec::new(),
            in_use: 0,
            at_once: LINGERING_SEGMENTS,
        }
    }
}

#[derive(Debug)]
struct Batch {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    segment_bytes: usize,
    contents: Vec<u8>,
}

impl Outbox {
    /// Sends a transmit, or keeps it for later together with others. `segments` is the most that
    /// the kernel takes at once.
    ///
    /// # Errors
    /// Those of `send`. When the socket is full the transmit was neither sent nor kept.
    pub(crate) fn push(
        &mut self,
        transmit: &Transmit<'_>,
        segments: usize,
        mut send: impl FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some((first, rest)) = cut(transmit) else {
            return self.push_one(transmit, segments, &mut send);
        };
        // As many as go in one call, from now on: seven and seven are two calls, ten and ten were four.
        self.at_once = first.contents.len() / first.segment_size.unwrap_or(1);
        self.push_one(&first, segments, &mut send)?;
        // If the socket is full now the rest is lost, as packets are: the first part has left.
        match self.push_one(&rest, segments, &mut send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            done => done,
        }
    }

    fn push_one(
        &mut self,
        transmit: &Transmit<'_>,
        segments: usize,
        mut send: impl FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let waiting = self.batches[..self.in_use]
            .iter()
            .position(|batch| batch.destination == transmit.destination);
        // Where not even one more would have room it leaves as it is, uncopied.
        let lingers = self.is_full(transmit) && transmit.contents.len() * 2 <= BATCH_BYTES;
        if let Some(at) = waiting {
            let batch = &mut self.batches[at];
            if batch.has_room_for(transmit, segments) {
                batch.contents.extend_from_slice(transmit.contents);
                if !lingers || !batch.has_room_for(transmit, segments) {
                    // If the socket is full now, it has been taken in all the same, and waits.
                    let _ = self.send_at(at, &mut send);
                }
                return Ok(());
            }
            self.send_at(at, &mut send)?;
        }
        match lingers && self.in_use < BATCHES {
            true => self.begin(transmit),
            false => return send(transmit),
        }
        Ok(())
    }

    /// How many packets of one connection to hand over at a time.
    pub(crate) fn at_once(&self) -> usize {
        self.at_once
    }

    /// As long as quinn makes them: more is likely to follow.
    fn is_full(&self, transmit: &Transmit<'_>) -> bool {
        transmit
            .segment_size
            .is_some_and(|segment| transmit.contents.len() >= self.at_once * segment)
    }

    /// Whether something waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.in_use == 0
    }

    /// Sends all that waits.
    ///
    /// # Errors
    /// The first of `send`; what a full socket did not take goes on waiting.
    pub(crate) fn flush(
        &mut self,
        mut send: impl FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        while self.in_use > 0 {
            self.send_at(0, &mut send)?;
        }
        Ok(())
    }

    fn begin(&mut self, transmit: &Transmit<'_>) {
        if self.in_use == self.batches.len() {
            self.batches.push(Batch {
                destination: transmit.destination,
                ecn: None,
                src_ip: None,
                segment_bytes: 0,
                contents: Vec::new(),
            });
        }
        let batch = &mut self.batches[self.in_use];
        self.in_use += 1;
        batch.destination = transmit.destination;
        batch.ecn = transmit.ecn;
        batch.src_ip = transmit.src_ip;
        batch.segment_bytes = transmit.segment_size.unwrap_or(transmit.contents.len());
        batch.contents.clear();
        batch.contents.extend_from_slice(transmit.contents);
    }

    fn send_at(
        &mut self,
        at: usize,
        send: &mut impl FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let batch = &self.batches[at];
        let sent = send(&Transmit {
            destination: batch.destination,
            ecn: batch.ecn,
            contents: &batch.contents,
            segment_size: Some(batch.segment_bytes),
            src_ip: batch.src_ip,
        });
        // What met another error than a full socket is lost, as packets are.
        if !matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.in_use -= 1;
            self.batches.swap(at, self.in_use);
        }
        sent
    }
}

/// quinn hands over ten packets whatever their size, but ten jumbo packets are more than the kernel takes at
/// once: it refuses all of them, and each such batch was a loss. At most twice what it takes: a packet has 9,000
/// bytes at most.
fn cut<'a>(transmit: &Transmit<'a>) -> Option<(Transmit<'a>, Transmit<'a>)> {
    let segment = transmit.segment_size.filter(|segment| *segment > 0)?;
    if transmit.contents.len() <= BATCH_BYTES {
        return None;
    }
    let whole = BATCH_BYTES / segment * segment;
    let (first, rest) = transmit.contents.split_at(whole);
    let part = |contents| Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn,
        contents,
        segment_size: Some(segment),
        src_ip: transmit.src_ip,
    };
    Some((part(first), part(rest)))
}

const _: () = assert!(
    LINGERING_SEGMENTS * crate::tuning::JUMBO_MTU as usize <= 2 * BATCH_BYTES,
    "two calls carry what quinn hands over at once"
);

impl Batch {
    /// Only the last packet of a batch may be shorter than the others.
    fn has_room_for(&self, transmit: &Transmit<'_>, segments: usize) -> bool {
        let added = transmit.contents.len();
        let bytes = self.contents.len() + added;
        let fits = match transmit.segment_size {
            Some(segment) => segment == self.segment_bytes,
            None => added <= self.segment_bytes,
        };
        fits && self.ecn == transmit.ecn
            && self.src_ip == transmit.src_ip
            && self.contents.len().is_multiple_of(self.segment_bytes)
            && bytes <= BATCH_BYTES
            && bytes.div_ceil(self.segment_bytes) <= segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: usize = 1_452;
    const FULL: usize = LINGERING_SEGMENTS * SEGMENT;
    const MOST_SEGMENTS: usize = 64;

    /// What the kernel got: to which port, and each call's packets.
    type Sent = Vec<(u16, Vec<Vec<u8>>)>;

    struct Case {
        outbox: Outbox,
        sent: Sent,
        is_full: bool,
        next: u8,
    }

    impl Case {
        fn new() -> Case {
            Case {
                outbox: Outbox::default(),
                sent: vec![],
                is_full: false,
                next: 0,
            }
        }

        fn send(sent: &mut Sent, is_full: bool, transmit: &Transmit<'_>) -> io::Result<()> {
            if is_full {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
            let packets = transmit.contents.chunks(segment);
            sent.push((
                transmit.destination.port(),
                packets.map(<[u8]>::to_vec).collect(),
            ));
            Ok(())
        }

        /// Contents that differ from one to the next.
        fn push(&mut self, port: u16, bytes: usize, segment: Option<usize>) -> io::Result<()> {
            self.next += 1;
            let transmit = Transmit {
                destination: ([127, 0, 0, 1], port).into(),
                ecn: None,
                contents: &vec![self.next; bytes],
                segment_size: segment,
                src_ip: None,
            };
            let (sent, is_full) = (&mut self.sent, self.is_full);
            self.outbox.push(&transmit, MOST_SEGMENTS, |transmit| {
                Case::send(sent, is_full, transmit)
            })
        }

        fn flush(&mut self) -> io::Result<()> {
            let (sent, is_full) = (&mut self.sent, self.is_full);
            self.outbox
                .flush(|transmit| Case::send(sent, is_full, transmit))
        }

        /// Packets in each call so far.
        fn calls(&self) -> Vec<(u16, usize)> {
            let calls = self.sent.iter();
            calls
                .map(|(port, packets)| (*port, packets.len()))
                .collect()
        }
    }

    #[test]
    fn what_is_short_leaves_at_once_with_all_that_waited() {
        for (pushes, calls) in [
            // A packet, and a batch shorter than quinn's longest.
            (vec![(100, None)], vec![1]),
            (vec![(3 * SEGMENT, Some(SEGMENT))], vec![3]),
            // Long ones wait for each other.
            (vec![(FULL, Some(SEGMENT)); 2], vec![]),
            (
                vec![(FULL, Some(SEGMENT)), (100, None)],
                vec![LINGERING_SEGMENTS + 1],
            ),
            (
                vec![(FULL, Some(SEGMENT)), (2 * SEGMENT + 7, Some(SEGMENT))],
                vec![LINGERING_SEGMENTS + 3],
            ),
            // Until there is no room for another one.
            (vec![(FULL, Some(SEGMENT)); 5], vec![4 * LINGERING_SEGMENTS]),
            // Of another size: what waited goes first.
            (
                vec![(FULL, Some(SEGMENT)), (2_400, Some(1_200))],
                vec![LINGERING_SEGMENTS, 2],
            ),
            (
                vec![(FULL, Some(SEGMENT)), (SEGMENT + 1, None)],
                vec![LINGERING_SEGMENTS, 1],
            ),
        ] {
            let mut case = Case::new();
            for (bytes, segment) in &pushes {
                case.push(1, *bytes, *segment).unwrap();
            }
            let found: Vec<_> = case
                .calls()
                .into_iter()
                .map(|(_, packets)| packets)
                .collect();
            assert_eq!(found, calls, "{pushes:?}");
        }
    }

    #[test]
    fn every_packet_leaves_once_and_as_it_was() {
        let mut case = Case::new();
        for round in 0..60 {
            let port = 1 + round % 11;
            let bytes = [FULL, FULL, FULL + 3 - SEGMENT, 40][usize::from(round % 4)];
            let segment = (bytes > SEGMENT).then_some(SEGMENT);
            case.push(port, bytes, segment).unwrap();
        }
        case.flush().unwrap();
        assert!(case.outbox.is_empty());
        let mut seen = vec![0; 61];
        for (port, packets) in &case.sent {
            assert!(packets.len() <= MOST_SEGMENTS);
            let (last, others) = packets.split_last().unwrap();
            assert!(others.iter().all(|packet| packet.len() == SEGMENT));
            assert!(last.len() <= SEGMENT);
            for packet in packets {
                let number = packet[0];
                assert!(packet.iter().all(|byte| *byte == number));
                assert_eq!(*port, 1 + u16::from(number - 1) % 11);
                seen[usize::from(number)] += packet.len();
            }
        }
        for (round, bytes) in seen[1..].iter().enumerate() {
            assert_eq!(*bytes, [FULL, FULL, FULL + 3 - SEGMENT, 40][round % 4]);
        }
    }

    #[test]
    fn no_more_addresses_than_the_bound_wait() {
        let mut case = Case::new();
        for port in 1..=12 {
            case.push(port, FULL, Some(SEGMENT)).unwrap();
        }
        let beyond: Vec<_> = (BATCHES as u16 + 1..=12)
            .map(|port| (port, LINGERING_SEGMENTS))
            .collect();
        assert_eq!(case.calls(), beyond);
        case.flush().unwrap();
        assert_eq!(case.calls().len(), 12);
    }

    #[test]
    fn a_full_socket_loses_nothing() {
        let mut case = Case::new();
        case.is_full = true;
        assert!(case.push(1, 100, None).is_err(), "not kept");
        case.push(1, FULL, Some(SEGMENT)).unwrap();
        // Taken in with what waits, although that cannot be sent.
        case.push(1, 100, None).unwrap();
        // A batch that is closed takes nothing more.
        assert!(case.push(1, 100, None).is_err());
        assert!(case.push(1, FULL, Some(SEGMENT)).is_err());
        assert!(case.flush().is_err());
        assert!(!case.outbox.is_empty());
        case.is_full = false;
        case.push(1, 50, None).unwrap();
        case.flush().unwrap();
        assert_eq!(case.calls(), [(1, LINGERING_SEGMENTS + 1), (1, 1)]);
        assert!(case.outbox.is_empty());
    }

    /// Ten packets of any size come through, each as it was, and no call is more than the kernel takes. With an
    /// MTU of 9000 all ten were refused, again and again: 55 s for what takes 0.3.
    #[test]
    fn jumbo_packets_go_in_two_calls() {
        for (segment, bytes, calls) in [
            (1_452, 10 * 1_452, 1),
            (3_952, 10 * 3_952, 1),
            (6_548, 10 * 6_548, 1),
            (6_549, 10 * 6_549, 2),
            (8_952, 7 * 8_952, 1),
            (8_952, 7 * 8_952 + 1, 1),
            (8_952, 7 * 8_952 + 3_000, 2),
            (8_952, 8 * 8_952, 2),
            (8_952, 10 * 8_952, 2),
            (8_972, 9 * 8_972 + 17, 2),
        ] {
            let mut case = Case::new();
            case.push(1, bytes, Some(segment)).unwrap();
            case.flush().unwrap();
            assert_eq!(case.sent.len(), calls, "{bytes} in {segment}");
            let packets: Vec<_> = case.sent.iter().flat_map(|(_, packets)| packets).collect();
            let (last, others) = packets.split_last().unwrap();
            assert!(others.iter().all(|packet| packet.len() == segment));
            assert_eq!(others.len() * segment + last.len(), bytes);
            for (_, packets) in &case.sent {
                let call: usize = packets.iter().map(Vec::len).sum();
                assert!(call <= BATCH_BYTES, "{call} bytes at once");
            }
            // A full socket takes none of it, and nothing is kept that quinn will hand over again.
            case.is_full = true;
            let refused = case.push(2, bytes.max(2 * segment), Some(segment));
            let kept = !case.outbox.is_empty();
            assert!(refused.is_err() != kept, "{bytes} in {segment}");
        }
    }

    /// Once it is known that ten are too many, fewer are asked for: each call carries what it can. What fits only
    /// once waits for nothing.
    #[test]
    fn jumbo_packets_fill_each_call() {
        for (segment, at_once) in [(6_549, 9), (7_900, 8), (8_952, 7), (8_972, 7)] {
            let mut case = Case::new();
            assert_eq!(case.outbox.at_once(), LINGERING_SEGMENTS);
            case.push(1, LINGERING_SEGMENTS * segment, Some(segment))
                .unwrap();
            assert_eq!(case.outbox.at_once(), at_once, "{segment}");
            case.flush().unwrap();
            case.sent.clear();
            for _ in 0..3 {
                case.push(1, at_once * segment, Some(segment)).unwrap();
            }
            assert!(case.outbox.is_empty());
            assert_eq!(case.calls(), [(1, at_once); 3], "{segment}");
            // Those of Ethernet's size, on other connections, go on to wait for each other.
            for _ in 0..2 {
                case.push(2, at_once * SEGMENT, Some(SEGMENT)).unwrap();
            }
            assert_eq!(case.calls().len(), 3);
            case.flush().unwrap();
            assert_eq!(case.calls()[3], (2, 2 * at_once));
        }
        let mut case = Case::new();
        for _ in 0..2 {
            case.push(1, LINGERING_SEGMENTS * 3_952, Some(3_952))
                .unwrap();
        }
        assert_eq!(case.calls(), [(1, LINGERING_SEGMENTS); 2]);
    }
}
