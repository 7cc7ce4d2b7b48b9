//! What a namespace drops of what arrives and of what leaves.

use super::{Namespace, PREFIX, Result, output};

impl Namespace {
    /// Drops this share (0.0 to 1.0) of what arrives and of what leaves, at random.
    /// Replaces what [`Namespace::lose`] or [`Namespace::block_udp`] did before.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn lose(&self, share: f64) -> Result<()> {
        const SCALE: u32 = 100_000;
        let limit = (share.clamp(0.0, 1.0) * f64::from(SCALE)).round() as u32;
        // nftables refuses a comparison that is always true.
        let drop = match limit {
            SCALE.. => "drop".to_owned(),
            limit => format!("numgen random mod {SCALE} < {limit} drop"),
        };
        self.filter(
            &format!("oifname != lo {drop}"),
            &format!("iifname != lo {drop}"),
        )
    }

    /// Drops all UDP, as a site's firewall does.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn block_udp(&self) -> Result<()> {
        self.filter("meta l4proto udp drop", "meta l4proto udp drop")
    }

    /// A firewall that drops UDP which is no answer to what this host sent.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn drop_unasked(&self) -> Result<()> {
        self.filter(
            "accept",
            "iifname lo accept; meta l4proto != udp accept; \
             ct state established,related accept; counter drop",
        )
    }

    /// A firewall that remembers nothing and drops all UDP that does not come from this port.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn drop_all_but(&self, port: u16) -> Result<()> {
        self.filter(
            "accept",
            &format!("iifname lo accept; meta l4proto != udp accept; udp sport {port} accept; counter drop"),
        )
    }

    /// Packets that one of these has dropped.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn dropped(&self) -> Result<u64> {
        let rules = output(self.command("nft").args(["list", "table", "inet", PREFIX]))?;
        let counted = rules
            .split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1);
        Ok(counted.and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    /// Lets everything through again.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn unblock(&self) -> Result<()> {
        self.filter("accept", "accept")
    }

    fn filter(&self, out_rule: &str, in_rule: &str) -> Result<()> {
        let script = format!(
            "table inet {PREFIX}\ndelete table inet {PREFIX}\ntable inet {PREFIX} {{\n\
             chain out {{ type filter hook output priority 0; {out_rule}; }}\n\
             chain in {{ type filter hook input priority 0; {in_rule}; }}\n}}\n"
        );
        output(self.command("nft").arg(script)).map(drop)
    }
}
