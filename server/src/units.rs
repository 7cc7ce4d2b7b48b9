//! Quantities as an admin writes and reads them: rates, sizes, durations.
//!
//! Bits are always spelt `bit` and bytes always `B`, so that nobody waits eight times too long.
//! Only the text is here; what is done with a rate is the limiter's business.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Why a quantity was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not of the form number and unit.
    #[error(
        "bad rate {0:?}: expected a number and a unit, as in 100Mbit, 10MB/s or 1MiB/s (no unit: bytes per second)"
    )]
    Rate(String),
    /// A rate of nothing.
    #[error("bad rate {0:?}: a rate of zero would serve nobody")]
    ZeroRate(String),
    /// Not a size.
    #[error("bad size {0:?}: expected a number and a unit, as in 256KiB or 1MiB (no unit: bytes)")]
    Size(String),
    /// Not a duration.
    #[error("bad duration {0:?}: expected a number and s, m, h or d, as in 10m")]
    Duration(String),
}

/// Splits `12.5Mbit` into its number and its unit.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

/// The factor of a decimal or binary prefix: `k`, `M`, `G`, `T`, and the same with `i`.
fn prefix_factor(prefix: &str) -> Option<f64> {
    Some(match prefix {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    })
}

/// A transfer rate. `1Mbit` and `1Mbit/s` are a million bits per second, `10MB/s` ten million
/// bytes, `1MiB/s` 1,048,576 bytes; a plain number is bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    bytes_per_s: u64,
}

impl Rate {
    /// The rate in bytes per second, never zero.
    pub fn bytes_per_s(self) -> u64 {
        self.bytes_per_s
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Rate, UnitError> {
        let bad = || UnitError::Rate(text.to_owned());
        let (number, unit) = split_number(text.trim()).ok_or_else(bad)?;
        let unit = unit.strip_suffix("/s").unwrap_or(unit);
        let (prefix, divisor) =
            if let Some(prefix) = unit.strip_suffix("bits").or(unit.strip_suffix("bit")) {
                (prefix, 8.0)
            } else if let Some(prefix) = unit.strip_suffix('B') {
                (prefix, 1.0)
            } else if unit.is_empty() {
                ("", 1.0)
            } else {
                return Err(bad());
            };
        let bytes = number * prefix_factor(prefix).ok_or_else(bad)? / divisor;
        if !bytes.is_finite() || bytes >= u64::MAX as f64 {
            return Err(bad());
        }
        // Rounded up, so that the smallest rate that can be written is not zero.
        let bytes_per_s = bytes.ceil() as u64;
        if bytes_per_s == 0 {
            return Err(UnitError::ZeroRate(text.to_owned()));
        }
        Ok(Rate { bytes_per_s })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Bytes(self.bytes_per_s))
    }
}

/// Parses a size in bytes: `65536`, `256KiB`, `1MiB`, also `256K` and `1M`, which mean the binary
/// ones here because chunk sizes are powers of two.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Size(text.to_owned());
    let (number, unit) = split_number(text.trim()).ok_or_else(bad)?;
    let prefix = unit.strip_suffix('B').unwrap_or(unit);
    let factor = match (prefix, unit.ends_with('B')) {
        ("k" | "K", false) => 1024.0,
        ("M", false) => 1024.0 * 1024.0,
        _ => prefix_factor(prefix).ok_or_else(bad)?,
    };
    let bytes = number * factor;
    if !bytes.is_finite() || bytes >= u64::MAX as f64 || bytes.fract() != 0.0 {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// Parses a duration: `30s`, `10m`, `2h`, `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let bad = || UnitError::Duration(text.to_owned());
    let trimmed = text.trim();
    let end = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(bad)?;
    let number: u64 = trimmed[..end].parse().map_err(|_| bad())?;
    let seconds = match &trimmed[end..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(bad()),
    };
    // A century: more than any token should live, and no overflow when added to a date.
    const MAX_S: u64 = 100 * 366 * 86400;
    match number.checked_mul(seconds) {
        Some(total) if total > 0 && total <= MAX_S => Ok(Duration::from_secs(total)),
        _ => Err(bad()),
    }
}

/// A number of bytes, printed in at most nine characters: `96.3 MB`, `512 B`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
        if self.0 < 1000 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1000.0;
        let mut unit = 0;
        // 999.95 would print as 1000.0: it belongs to the next unit.
        while value >= 999.95 && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
        }
        f.pad(&format!("{value:.1} {}", UNITS[unit]))
    }
}

/// Seconds since 1970 as `2026-11-22 12:15`, in UTC.
pub fn format_utc(unix_s: u64) -> String {
    // Days to civil date, after Howard Hinnant's algorithm: eras of 400 years from 0000-03-01.
    let days = unix_s / 86400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let seconds = unix_s % 86400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}",
        seconds / 3600,
        seconds % 3600 / 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for (text, bytes_per_s) in [
            ("1Mbit", 125_000),
            ("100Mbit", 12_500_000),
            ("100 Mbit/s", 12_500_000),
            ("1Gbits", 125_000_000),
            ("2.5Gbit", 312_500_000),
            ("10MB/s", 10_000_000),
            ("10MB", 10_000_000),
            ("1MiB/s", 1_048_576),
            ("64kB", 64_000),
            ("8bit", 1),
            ("1bit", 1),
            ("12345", 12_345),
            ("12345B", 12_345),
        ] {
            assert_eq!(
                text.parse::<Rate>().map(Rate::bytes_per_s),
                Ok(bytes_per_s),
                "{text}"
            );
        }
        for text in [
            "",
            "fast",
            "Mbit",
            "1Mb",
            "1Xbit",
            "-1Mbit",
            "1e9",
            "1..2MB",
            "999999999999TB",
            "10 furlongs",
        ] {
            assert_eq!(
                text.parse::<Rate>(),
                Err(UnitError::Rate(text.to_owned())),
                "{text}"
            );
        }
        assert_eq!("0".parse::<Rate>(), Err(UnitError::ZeroRate("0".into())));
        assert_eq!(
            "0Mbit".parse::<Rate>(),
            Err(UnitError::ZeroRate("0Mbit".into()))
        );
    }

    #[test]
    fn sizes_and_durations() {
        for (text, bytes) in [
            ("65536", 65536),
            ("256KiB", 262_144),
            ("256K", 262_144),
            ("1M", 1 << 20),
            ("1MiB", 1 << 20),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "big", "1.3", "-1", "1Mbit"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        for text in [
            "",
            "10",
            "m",
            "0s",
            "10y",
            "99999999999999999999d",
            "99999999d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn printing() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (96_300_000, "96.3 MB"),
            (999_999_999, "1.0 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (unix_s, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_400, "2000-02-29 00:00"),
            (1_795_349_742, "2026-11-22 12:15"),
        ] {
            assert_eq!(format_utc(unix_s), text);
        }
    }
}
