//! What the person at the console sees: how far it is, from whom it comes, why it waits.
//!
//! Reads as well on a serial line as in a log file: whole lines, at most one a second, none when
//! nothing changed. Time comes in as an argument; printing is the caller's.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units;

/// How a download stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The image's length; 0 while it is unknown.
    pub bytes_total: u64,
    /// Verified and stored.
    pub bytes_have: u64,
    /// Of these, from the seed over the swarm's protocol.
    pub bytes_from_seed: u64,
    /// Of these, from other nodes.
    pub bytes_from_peers: u64,
    /// Of these, over HTTP.
    pub bytes_from_http: u64,
    /// Given away.
    pub bytes_uploaded: u64,
    /// Received more than once.
    pub duplicate_bytes: u64,
    /// Connected nodes.
    pub peers: u32,
    /// Whether the seed is connected.
    pub seed_connected: bool,
}

impl Snapshot {
    /// Whether everything is there.
    pub fn is_complete(&self) -> bool {
        self.bytes_total > 0 && self.bytes_have >= self.bytes_total
    }
}

/// Where the bytes come from decides what is worth saying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From seed and peers.
    Swarm,
    /// From one web server.
    Http,
}

/// Turns snapshots into lines.
#[derive(Debug)]
pub struct Meter {
    source: Source,
    last_line: Option<Duration>,
    last_snapshot: Option<Snapshot>,
    /// When how much was there, over the last few seconds.
    history: VecDeque<(Duration, u64)>,
    last_cause: Option<Duration>,
}

/// At most one line in this time.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// The rate shown is the mean over this time: long enough to be calm, short enough to be true.
const RATE_WINDOW: Duration = Duration::from_secs(4);

impl Meter {
    /// A meter for one download.
    pub fn new(source: Source) -> Meter {
        Meter {
            source,
            last_line: None,
            last_snapshot: None,
            history: VecDeque::new(),
            last_cause: None,
        }
    }

    /// The line to print `now` (since the start), if one is due: something changed, and the last
    /// line is a second old. The last one, at 100 %, is always due.
    pub fn line(&mut self, now: Duration, snapshot: &Snapshot) -> Option<String> {
        self.history.push_back((now, snapshot.bytes_have));
        while self.history.len() > 2
            && self
                .history
                .front()
                .is_some_and(|(at, _)| now.saturating_sub(*at) > RATE_WINDOW)
        {
            self.history.pop_front();
        }
        let moved = self.last_snapshot.is_none_or(|last| {
            (last.bytes_have, last.peers) != (snapshot.bytes_have, snapshot.peers)
        });
        let recent = self
            .last_line
            .is_some_and(|last| now.saturating_sub(last) < LINE_INTERVAL);
        let finished =
            snapshot.is_complete() && self.last_snapshot.is_none_or(|last| !last.is_complete());
        if !finished && (!moved || recent || snapshot.bytes_total == 0) {
            return None;
        }
        self.last_line = Some(now);
        self.last_snapshot = Some(*snapshot);
        Some(self.render(snapshot))
    }

    /// Whether the cause of a retry may be said now: at most one a second.
    pub fn may_say_cause(&mut self, now: Duration) -> bool {
        let recent = self
            .last_cause
            .is_some_and(|last| now.saturating_sub(last) < LINE_INTERVAL);
        if !recent {
            self.last_cause = Some(now);
        }
        !recent
    }

    fn render(&self, s: &Snapshot) -> String {
        let percent = s.bytes_have.saturating_mul(100) / s.bytes_total.max(1);
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let mut line = format!(
            "{percent}% {:.1}/{:.1} MB {:.1} MB/s",
            mb(s.bytes_have),
            mb(s.bytes_total),
            self.rate_bytes_per_s() / 1e6
        );
        if self.source == Source::Swarm {
            let peers = if s.peers == 1 { "peer" } else { "peers" };
            line += &format!(
                ", {} {peers}, {:.1} MB from peers, {:.1} MB from the seed",
                s.peers,
                mb(s.bytes_from_peers),
                mb(s.bytes_from_seed)
            );
            if s.bytes_from_http > 0 {
                line += &format!(", {:.1} MB by http", mb(s.bytes_from_http));
            }
        }
        line
    }

    fn rate_bytes_per_s(&self) -> f64 {
        let (Some((from, old)), Some((to, new))) = (self.history.front(), self.history.back())
        else {
            return 0.0;
        };
        let seconds = to.saturating_sub(*from).as_secs_f64();
        if seconds > 0.0 {
            new.saturating_sub(*old) as f64 / seconds
        } else {
            0.0
        }
    }
}

/// The last line of a download: `96300000 bytes in 8.412 s, 38100000 from peers, …`; bytes as plain
/// numbers, because scripts add them up.
pub fn summary(what: &str, took: Duration, s: &Snapshot) -> String {
    format!(
        "fetched {what} in {:.3} s: {} bytes, {} from the seed, {} from peers, {} by http ({}/s)",
        took.as_secs_f64(),
        s.bytes_total,
        s.bytes_from_seed,
        s.bytes_from_peers,
        s.bytes_from_http,
        units::size((s.bytes_have as f64 / took.as_secs_f64().max(0.001)) as u64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(have: u64, peers: u32) -> Snapshot {
        Snapshot {
            bytes_total: 96_300_000,
            bytes_have: have,
            bytes_from_peers: have / 2,
            bytes_from_seed: have - have / 2,
            peers,
            ..Snapshot::default()
        }
    }

    #[test]
    fn lines_come_once_a_second_on_change() {
        let mut meter = Meter::new(Source::Swarm);
        let ms = Duration::from_millis;
        assert_eq!(
            meter.line(ms(0), &Snapshot::default()),
            None,
            "nothing known yet"
        );
        let first = meter.line(ms(10), &at(0, 1)).unwrap();
        assert_eq!(
            first,
            "0% 0.0/96.3 MB 0.0 MB/s, 1 peer, 0.0 MB from peers, 0.0 MB from the seed"
        );
        assert_eq!(meter.line(ms(500), &at(5_000_000, 3)), None, "too early");
        let second = meter.line(ms(2010), &at(22_000_000, 3)).unwrap();
        assert!(
            second.starts_with("22% 22.0/96.3 MB 10.9 MB/s, 3 peers, 11.0 MB"),
            "{second}"
        );
        assert_eq!(meter.line(ms(4000), &at(22_000_000, 3)), None, "no change");
        assert!(
            meter.line(ms(5000), &at(22_000_000, 4)).is_some(),
            "a peer more"
        );
        assert!(
            meter
                .line(ms(5100), &at(96_300_000, 4))
                .unwrap()
                .starts_with("100% ")
        );
        assert_eq!(
            meter.line(ms(9000), &at(96_300_000, 4)),
            None,
            "the end is said once"
        );
    }

    #[test]
    fn plain_http_has_no_peers() {
        let mut meter = Meter::new(Source::Http);
        let line = meter.line(Duration::ZERO, &at(9_630_000, 0)).unwrap();
        assert_eq!(line, "10% 9.6/96.3 MB 0.0 MB/s");
    }

    #[test]
    fn causes_come_once_a_second() {
        let mut meter = Meter::new(Source::Swarm);
        let said = (0..40).filter(|tick| meter.may_say_cause(Duration::from_millis(tick * 100)));
        assert_eq!(said.count(), 4);
    }

    #[test]
    fn the_summary_has_plain_numbers() {
        let text = summary("debian", Duration::from_millis(8412), &at(96_300_000, 0));
        assert_eq!(
            text,
            "fetched debian in 8.412 s: 96300000 bytes, 48150000 from the seed, 48150000 from \
             peers, 0 by http (11.4 MB/s)"
        );
    }
}
