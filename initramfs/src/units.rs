//! Sizes and rates as people write and read them.
//!
//! Sizes are printed in decimal megabytes, as `ls --si` and every network figure does. Rates are
//! read the way `tc` reads them: `bit` units are bits a second, `B` units and bare letters bytes.

/// `96.3 MB`; small sizes in kB and bytes.
pub fn size(bytes: u64) -> String {
    let b = bytes as f64;
    if bytes >= 10_000_000_000 {
        format!("{:.1} GB", b / 1e9)
    } else if bytes >= 100_000 {
        format!("{:.1} MB", b / 1e6)
    } else if bytes >= 1_000 {
        format!("{:.1} kB", b / 1e3)
    } else {
        format!("{bytes} B")
    }
}

/// Why a rate could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad rate \"{0}\": write a number and a unit, such as 100mbit, 12MB or 500kB (a second)")]
pub struct RateError(pub String);

/// Reads a rate into bytes a second: `100mbit`, `1gbit`, `12.5MB`, `500k`, `4MiB/s`, `65536`.
///
/// `bps` is not taken: half the world means bits by it, `tc` means bytes. Zero is refused: it would mean "never upload", which has a name of its own (`serve=no`).
pub fn parse_rate(text: &str) -> Result<u64, RateError> {
    let bad = || RateError(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix("/s").unwrap_or(&lower);
    let split = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let factor = match unit.trim_start() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "bit" => 1.0 / 8.0,
        "kbit" => 1e3 / 8.0,
        "mbit" => 1e6 / 8.0,
        "gbit" => 1e9 / 8.0,
        _ => return Err(bad()),
    };
    let rate = number * factor;
    // The upper bound keeps the float exact as an integer (2^53) and is far above any link.
    if !rate.is_finite() || !(1.0..9e15).contains(&rate) {
        return Err(bad());
    }
    Ok(rate as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_500, "1.5 kB"),
            (100_000, "0.1 MB"),
            (96_300_000, "96.3 MB"),
            (12_000_000_000, "12.0 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn rates() {
        for (text, rate) in [
            ("65536", 65536),
            ("1mbit", 125_000),
            ("100Mbit", 12_500_000),
            ("1gbit/s", 125_000_000),
            ("12.5MB", 12_500_000),
            ("500k", 500_000),
            ("4MiB/s", 4 << 20),
        ] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for text in [
            "",
            "fast",
            "-1",
            "0",
            "10 parsecs",
            "10mbps",
            "1e400",
            "NaN",
            "inf",
            "99999999gbit",
        ] {
            assert_eq!(parse_rate(text), Err(RateError(text.to_owned())), "{text}");
        }
    }
}
