//! Sizes, durations and rates as people write them: `32MiB`, `500ms`, `5MB/s`.
//! Place: settings, and the outputs' own keys. Powers of ten are `kB MB GB`, of two `KiB MiB GiB`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes, written `4MiB`, `500kB`, `4096` or `4096B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// As an index on this machine, the largest one if it does not fit.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A duration, written `500ms`, `10s`, `5m`, `1h30m` or `7d`; a bare number is refused but for 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

/// Bytes per second, written `5MB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

/// File permissions, written in octal as `0640` or `"640"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permissions(pub u32);

/// Reads a size.
///
/// # Errors
/// Says what is wrong and, after `; do: `, what to write.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let refuse = || {
        format!(
            "`{text}` is no size; do: write a number and a unit, such as `32MiB`, `500kB` or `4096`"
        )
    };
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return Err(refuse()),
    };
    scale(number, factor).ok_or_else(refuse)
}

/// Multiplies a decimal number such as `1.5`, exactly, rounding down.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let part = |digits: &str| {
        if digits.is_empty() {
            Some(0)
        } else {
            digits.parse::<u64>().ok()
        }
    };
    let below = u128::from(part(fraction)?) * u128::from(factor)
        / 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    part(whole)?
        .checked_mul(factor)?
        .checked_add(u64::try_from(below).ok()?)
}

/// Reads a duration.
///
/// # Errors
/// Says what is wrong and, after `; do: `, what to write.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || {
        format!(
            "`{text}` is no duration; do: write a number and a unit, such as `500ms`, `10s`, `5m`, `1h` or `7d`"
        )
    };
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(refuse());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(refuse)?;
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit() || c == ' ')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let nanoseconds: u64 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" | "min" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(refuse()),
        };
        let step = Duration::from_nanos(scale(number, nanoseconds).ok_or_else(refuse)?);
        total = total.checked_add(step).ok_or_else(refuse)?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// Reads a duration where a bare number means seconds, as other agents' variables and keys have it.
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(u64::from(seconds))),
        Err(_) => parse_duration(text),
    }
}

/// Reads a rate in bytes per second.
///
/// # Errors
/// Says what is wrong and, after `; do: `, what to write.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    text.trim()
        .strip_suffix("/s")
        .and_then(|size| parse_size(size).ok())
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| {
            format!("`{text}` is no rate; do: write bytes per second, such as `5MB/s`, or `none`")
        })
}

/// Writes a size as it would be read, in the largest unit that divides it.
pub fn show_size(bytes: u64) -> String {
    for (unit, name) in [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_size(self.0))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", show_size(self.0))
    }
}

/// Takes a string or a whole number and hands it as text to `read`.
struct AsText<T> {
    expecting: &'static str,
    read: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for AsText<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(AsText {
                expecting: "a size such as `32MiB`",
                read: parse_size,
            })
            .map(Self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(AsText {
                expecting: "a duration such as `10s`",
                read: parse_duration,
            })
            .map(Self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(AsText {
                expecting: "a rate such as `5MB/s`",
                read: parse_rate,
            })
            .map(Self)
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn read(text: &str) -> Result<u32, String> {
            let digits = text.trim().trim_start_matches("0o");
            u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
                format!("`{text}` are no file permissions; do: write them in octal, such as \"0640\"")
            })
        }
        deserializer
            .deserialize_any(AsText {
                expecting: "permissions in octal, such as \"0640\"",
                read,
            })
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_rates_are_read_as_people_write_them() {
        assert_eq!(parse_size("32MiB"), Ok(32 << 20));
        assert_eq!(parse_size("500 kB"), Ok(500_000));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse_seconds("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_rate("5MB/s"), Ok(5_000_000));
    }

    #[test]
    fn what_is_no_size_duration_or_rate_is_refused_with_an_example() {
        for bad in [
            "",
            "MiB",
            "-1",
            "1.2.3",
            "12XB",
            "99999999999999999999",
            "19000000TB",
            ".",
        ] {
            assert!(
                parse_size(bad).is_err_and(|why| why.contains("; do: ")),
                "{bad}"
            );
        }
        for bad in [
            "",
            "10",
            "s",
            "5 parsecs",
            "1h30",
            "-5s",
            "99999999999999999999d",
            ".s",
        ] {
            assert!(
                parse_duration(bad).is_err_and(|why| why.contains("; do: ")),
                "{bad}"
            );
        }
        for bad in ["", "5MB", "0/s", "fast/s"] {
            assert!(
                parse_rate(bad).is_err_and(|why| why.contains("; do: ")),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_size_is_shown_as_it_would_be_read() {
        for bytes in [0, 1, 1023, 1024, 4 << 20, 3 << 29, 5_000_000] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
    }
}
