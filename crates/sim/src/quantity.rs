//! Quantities as a plan writes them: sizes, rates and times, each a number with its unit.
//!
//! A unit is never left out: `4` might be seconds or microseconds, `4s` is not. Only the text is
//! here; which values make sense is `plan_file`'s to say, field by field.

use serde::de::{Deserializer, Error as _};
use std::str::FromStr;

/// A length in bytes: `96301056B`, `256KiB`, `1GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
}

/// A link's rate in bits per second: `100Mbit`, `1Gbit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    pub(crate) bits_per_s: f64,
}

/// A time: `250ms`, `100us`, `10s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) us: u64,
}

/// Splits `96.3MB` into its number and the factor of its unit.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..end].parse().ok()?;
    let unit = text[end..].trim_start();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(number * factor)
}

/// A whole number of the smallest unit, and one that a float holds exactly.
fn whole(value: f64) -> Option<u64> {
    let rounded = value.round();
    // 0.1 has no exact form: a thousandth of the smallest unit is not a fraction somebody wrote.
    let exact = (value - rounded).abs() < 1e-3 && (0.0..9e15).contains(&rounded);
    exact.then_some(rounded as u64)
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: &[(&str, f64)] = &[
            ("B", 1.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
        ];
        let bytes = scaled(text, UNITS).and_then(whole);
        let bytes = bytes.ok_or_else(|| {
            format!("found {text:?}, expected a whole number of bytes with a unit, as in 1GB, 256KiB or 96301056B")
        })?;
        Ok(Size { bytes })
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: &[(&str, f64)] = &[("kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
        let bits_per_s = scaled(text, UNITS).ok_or_else(|| {
            format!("found {text:?}, expected a number and kbit, Mbit or Gbit, as in 100Mbit")
        })?;
        Ok(Rate { bits_per_s })
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: &[(&str, f64)] = &[("us", 1.0), ("ms", 1e3), ("s", 1e6), ("min", 60e6)];
        let us = scaled(text, UNITS).and_then(whole).ok_or_else(|| {
            format!(
                "found {text:?}, expected whole microseconds with a unit, as in 100us, 250ms or 10s"
            )
        })?;
        Ok(Time { us })
    }
}

/// Deserialises from a string through [`FromStr`]; the error names what was found and expected.
macro_rules! from_text {
    ($($quantity:ty),*) => {$(
        impl<'de> serde::Deserialize<'de> for $quantity {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = String::deserialize(input)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

from_text!(Size, Rate, Time);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_nonsense_is_refused() {
        let size = |text: &str| text.parse::<Size>().ok().map(|size| size.bytes);
        let time = |text: &str| text.parse::<Time>().ok().map(|time| time.us);
        let rate = |text: &str| text.parse::<Rate>().ok().map(|rate| rate.bits_per_s);
        assert_eq!(size("1GB"), Some(1_000_000_000));
        assert_eq!(size("96.3MB"), Some(96_300_000));
        assert_eq!(size("1 MiB"), Some(1 << 20));
        assert_eq!(size("0B"), Some(0));
        assert_eq!(time("250ms"), Some(250_000));
        assert_eq!(time("0.1s"), Some(100_000));
        assert_eq!(time("2min"), Some(120_000_000));
        assert_eq!(rate("1Gbit"), Some(1e9));
        assert_eq!(rate("2.5 Gbit"), Some(2.5e9));
        for text in [
            "", "1", "GB", "-1GB", "1gb", "1e3B", "1..2GB", "0.5B", "1GBx", "1Gbit",
        ] {
            assert_eq!(size(text), None, "{text:?}");
        }
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "5 S",
            "0.5us",
            "5sec",
            "99999999999min",
        ] {
            assert_eq!(time(text), None, "{text:?}");
        }
        for text in ["", "100", "Mbit", "100MB", "-1Mbit", "1Mbit/s"] {
            assert_eq!(rate(text), None, "{text:?}");
        }
        let error = "12".parse::<Rate>().expect_err("no unit");
        assert_eq!(
            error,
            "found \"12\", expected a number and kbit, Mbit or Gbit, as in 100Mbit"
        );
    }
}
