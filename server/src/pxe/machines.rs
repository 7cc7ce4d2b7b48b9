//! One boot entry for each machine, with a one-time token of its own.
//!
//! A token on everybody's kernel command line is everybody's; a one-time token there admits the first
//! machine only. So each machine that is named by its Ethernet address gets its own entry, where boot
//! loaders look before the common one: `pxelinux.cfg/01-aa-bb-…`, `grub/grub.cfg-01-aa-bb-…`, and for
//! iPXE a script of its own that the common one asks for. The entries are good for one boot within the
//! tokens' lifetime; writing them again takes the unused ones back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::Plan;
use crate::token::{TokenError, Tokens, Use};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let bad =
            || format!("bad machine {text:?}: expected its Ethernet address, 52:54:00:12:34:56");
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(bad)?;
            // It would take a sign, too.
            let digits = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let value = u8::from_str_radix(part, 16).ok().filter(|_| digits);
            *byte = value.ok_or_else(bad)?;
        }
        // The lowest bit of the first byte is a group's, which no machine has; all zeros is none.
        match parts.next() {
            None if bytes[0] & 1 == 0 && bytes != [0; 6] => Ok(Mac(bytes)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.joined(":"))
    }
}

impl Mac {
    fn joined(&self, separator: &str) -> String {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(separator)
    }

    /// `aa-bb-cc-dd-ee-ff`, as boot loaders ask for it.
    pub fn hyphens(&self) -> String {
        self.joined("-")
    }
}

/// The same plan with a token.
pub fn with_token(plan: &Plan, token: &str) -> Plan {
    Plan {
        append: format!("{} rootswarm.token={token}", plan.append.trim()),
        ..plan.clone()
    }
}

/// A token for each machine; those that an earlier run made for it and nobody used end here.
pub fn tokens(
    tokens: &Tokens,
    machines: &[Mac],
    lifetime: Duration,
    now_unix_s: u64,
) -> Result<Vec<(Mac, String)>, TokenError> {
    let mut machines = machines.to_vec();
    machines.sort();
    machines.dedup();
    let notes: Vec<String> = machines.iter().map(|mac| format!("pxe {mac}")).collect();
    let notes: Vec<&str> = notes.iter().map(String::as_str).collect();
    let known = tokens.list(now_unix_s)?.into_iter();
    let old = known.filter(|record| notes.contains(&&*record.note));
    let old: Vec<String> = old.map(|record| record.id).collect();
    tokens.revoke_each(&old, now_unix_s)?;
    let made = tokens.create_all(Use::OneTime, Some(lifetime), &notes, now_unix_s)?;
    Ok(machines.into_iter().zip(made).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["52:54:00:12:ab:56", "52-54-00-12-AB-56"] {
            let mac: Mac = text.parse().unwrap();
            assert_eq!(mac.hyphens(), "52-54-00-12-ab-56");
            assert_eq!(mac.to_string(), "52:54:00:12:ab:56");
        }
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54-00:12:34:56",
            "5:54:00:12:34:56",
            "+2:54:00:12:34:56",
            "gg:54:00:12:34:56",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "../../etc/passwd",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
