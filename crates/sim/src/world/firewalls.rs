//! Firewalls of nodes: which dials they let pass. What is said on a connection passes them, as an answer.

use super::SEED;
use std::collections::BTreeMap;

/// For so long a firewall takes what comes from somewhere for an answer to what went there: Linux's
/// `nf_conntrack_udp_timeout`.
const ANSWERS_NS: u64 = 30_000_000_000;

/// Who has one, and what it remembers.
#[derive(Debug, Default)]
pub(crate) struct Firewalls {
    /// Whether answers are let in, by host.
    hosts: BTreeMap<u32, bool>,
    /// When the first host last sent to the second one.
    sent_ns: BTreeMap<(u32, u32), u64>,
}

impl Firewalls {
    pub(crate) fn put(&mut self, host: u32, answers: bool) {
        self.hosts.insert(host, answers);
    }

    /// Whether a dial gets through, which begins now. One that does not is lost, whatever is dialed in
    /// the other direction later: that one gets through instead.
    pub(crate) fn pass(&mut self, from: u32, to: u32, now_ns: u64) -> bool {
        if self.hosts.is_empty() || to as usize == SEED {
            return true;
        }
        self.sent_ns.insert((from, to), now_ns);
        // Who lets no answer in hears of none.
        if self.hosts.get(&from) == Some(&false) {
            return false;
        }
        match self.hosts.get(&to) {
            None => true,
            Some(false) => false,
            Some(true) => {
                let sent = self.sent_ns.get(&(to, from));
                sent.is_some_and(|sent_ns| now_ns - sent_ns < ANSWERS_NS)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_to_may_answer_for_a_while() {
        let mut walls = Firewalls::default();
        assert!(walls.pass(1, 2, 0), "none");
        walls.put(1, true);
        walls.put(2, true);
        walls.put(3, false);
        for (from, to, now_ns, passes) in [
            (1, 0, 0, true),
            (4, 1, 0, false),
            (1, 4, 1, true),
            (4, 1, 2, true),
            (1, 2, 3, false),
            (2, 1, 4, true),
            (2, 1, ANSWERS_NS + 3, false),
            (3, 4, 5, false),
            (4, 3, 6, false),
            (3, 0, 7, true),
        ] {
            assert_eq!(walls.pass(from, to, now_ns), passes, "{from} {to} {now_ns}");
        }
    }
}
