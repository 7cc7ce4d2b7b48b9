//! Packets lost on a machine's cable, both ways, and counted.
//!
//! The rules stand at the switch's port of the one machine (nftables, family netdev): all that it
//! sends and is sent goes through them, from its firmware's first DHCP question on, whoever is at
//! the other end. What goes from one such machine to another passes two of them.

use std::process::Command;

use crate::netns::{BRIDGE_INTERFACE, Bridge};

/// Share of a whole, in nftables' integers.
const SCALE: u32 = 100_000;

/// Why packets are not lost, or not counted.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// A program is missing or refuses.
    #[error("`{command}` failed: {reason} (losing packets needs nftables and root)")]
    Refused {
        /// The program.
        command: &'static str,
        /// What it said, on one line.
        reason: String,
    },
    /// The counters are not as they should be.
    #[error("nft list counters: no counter `{counter}` in `{printed}`")]
    Counter {
        /// Which is missing.
        counter: &'static str,
        /// What was printed.
        printed: String,
    },
}

/// The rules at one port. They go with the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    table: String,
}

/// What the rules have seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets that came, from the machine and for it.
    pub packets: u64,
    /// Those of them that were dropped.
    pub dropped: u64,
}

impl Loss {
    /// Loses this share (0.0 to 1.0) of what goes through `tap` of `bridge` from now on.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn start(bridge: &Bridge, tap: &str, share: f64) -> Result<Loss, LossError> {
        // Each packet is lost alone: the host's kernel hands a burst of up to 64 KiB to the port as
        // one, unless the bridge says that it cannot take it.
        let mut segments = bridge.namespace().command("ip");
        segments.args(["link", "set", "dev", BRIDGE_INTERFACE, "gso_max_segs", "1"]);
        output("ip", &mut segments)?;
        let limit = (share.clamp(0.0, 1.0) * f64::from(SCALE)).round() as u32;
        let table = format!("loss_{tap}");
        let script = script(&table, tap, limit);
        output("nft", bridge.namespace().command("nft").arg(script))?;
        Ok(Loss { table })
    }

    /// What it has seen so far.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn counted(&self, bridge: &Bridge) -> Result<Counted, LossError> {
        let mut list = bridge.namespace().command("nft");
        list.args(["list", "counters", "table", "netdev", &self.table]);
        let printed = output("nft", &mut list)?;
        let counter = |counter| {
            packets(&printed, counter).ok_or_else(|| LossError::Counter {
                counter,
                printed: printed.clone(),
            })
        };
        Ok(Counted {
            packets: counter("seen")?,
            dropped: counter("dropped")?,
        })
    }
}

fn script(table: &str, tap: &str, limit: u32) -> String {
    let rules = format!(
        "counter name seen\nnumgen random mod {SCALE} < {limit} counter name dropped drop\n"
    );
    format!(
        "table netdev {table} {{\ncounter seen {{\n}}\ncounter dropped {{\n}}\n\
         chain from {{\ntype filter hook ingress device {tap} priority 0\n{rules}}}\n\
         chain to {{\ntype filter hook egress device {tap} priority 0\n{rules}}}\n}}\n"
    )
}

fn output(name: &'static str, command: &mut Command) -> Result<String, LossError> {
    let refused = |reason| LossError::Refused {
        command: name,
        reason,
    };
    let output = command
        .output()
        .map_err(|error| refused(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).collect();
    Err(refused(lines.join("; ")))
}

/// The packets of one counter in what `nft list counters` prints.
fn packets(printed: &str, counter: &str) -> Option<u64> {
    let (_, rest) = printed.split_once(&format!("counter {counter} {{"))?;
    let mut words = rest.split_whitespace();
    words.find(|word| *word == "packets")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_name() {
        let printed = "table netdev loss_tap0 {\n\tcounter seen {\n\t\tpackets 120 bytes 9000\n\t}\n\
                       \tcounter dropped {\n\t\tpackets 3 bytes 200\n\t}\n}\n";
        assert_eq!(packets(printed, "seen"), Some(120));
        assert_eq!(packets(printed, "dropped"), Some(3));
        assert_eq!(packets(printed, "lost"), None);
    }
}
