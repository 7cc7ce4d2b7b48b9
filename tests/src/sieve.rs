//! nftables rules on a cable that count, and drop in silence.
//!
//! They stand where packets come in, at both ends of the cable: what is dropped there was sent, and
//! nobody tells the sender. (A rule on the way out would fail the sender's system call.) Batches that
//! programs hand to the kernel are taken apart before, so that one packet on the wire is one here.
//!
//! It leaves to others: faults that nftables does not know (see `bad_cable`).

use crate::netns::{Link, NetnsError, run};

const TABLE: &str = "sieve";

/// Rules on one cable. They stay when this is dropped, until the cable's end.
#[derive(Debug)]
pub struct Sieve {
    /// Namespaces of the cable's ends, with the name of the table there.
    tables: [(String, String); 2],
    rules: usize,
}

/// What matched a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP.
    pub bytes: u64,
}

impl Sieve {
    /// Puts `rules` on both ends, in the place of those there were. Each is nftables' match followed
    /// by what is to be done, and has to hold `counter`: `meta length > 1400 counter drop`. The length
    /// is that of the IP packet.
    ///
    /// # Errors
    /// When nftables or `ip` is missing or refuses.
    pub fn put_on(link: &Link, rules: &[&str]) -> Result<Sieve, NetnsError> {
        let table = |interface: &str| format!("{TABLE}_{interface}");
        for (namespace, interface) in link.ends() {
            run(
                "ip",
                [
                    "-n",
                    namespace,
                    "link",
                    "set",
                    interface,
                    "gso_max_segs",
                    "1",
                ],
            )?;
            let (table, body) = (table(interface), rules.join("; "));
            let script = format!(
                "table netdev {table}\ndelete table netdev {table}\ntable netdev {table} {{\n\
                 chain in {{ type filter hook ingress device \"{interface}\" priority 0; {body}; }}\n}}\n"
            );
            run("ip", ["netns", "exec", namespace, "nft", &script])?;
        }
        Ok(Sieve {
            tables: link
                .ends()
                .map(|(namespace, interface)| (namespace.to_owned(), table(interface))),
            rules: rules.len(),
        })
    }

    /// What matched each rule so far, in the rules' order, both directions together.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn counted(&self) -> Result<Vec<Counted>, NetnsError> {
        let mut sums = vec![Counted::default(); self.rules];
        for (namespace, table) in &self.tables {
            let args = [
                "netns", "exec", namespace, "nft", "list", "table", "netdev", table,
            ];
            let listing = run("ip", args)?;
            for (sum, counted) in sums.iter_mut().zip(counters(&listing)) {
                sum.packets += counted.packets;
                sum.bytes += counted.bytes;
            }
        }
        Ok(sums)
    }
}

/// Every `counter packets N bytes M`.
fn counters(listing: &str) -> impl Iterator<Item = Counted> {
    listing
        .split("counter packets ")
        .skip(1)
        .filter_map(|rest| {
            let mut words = rest.split_whitespace();
            Some(Counted {
                packets: words.next()?.parse().ok()?,
                bytes: words.nth(1)?.parse().ok()?,
            })
        })
}

#[cfg(test)]
mod tests {
    use super::{Counted, counters};

    #[test]
    fn counters_are_read_in_the_order_of_the_rules() {
        let listing = "table netdev sieve_eth0 {\n\tchain in {\n\
            \t\tnumgen random mod 1000 < 10 counter packets 17 bytes 9000 drop\n\
            \t\tmeta length > 1400 counter packets 0 bytes 0\n\t}\n}\n";
        let counted = |packets, bytes| Counted { packets, bytes };
        let found: Vec<_> = counters(listing).collect();
        assert_eq!(found, [counted(17, 9000), counted(0, 0)]);
    }
}
