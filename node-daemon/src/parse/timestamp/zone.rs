//! Time zones: what a clock at a place was ahead of UTC, and offsets as texts write them.
//! Place: `timestamp` asks here for the seconds between a wall clock and UTC.
//! Invariant: no heap object and no lock per question. Source of the rules: the system's tz database, by jiff.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

/// A wall clock, by which times without an offset are read.
#[derive(Debug)]
pub(super) enum Zone {
    /// Always this many seconds ahead of UTC.
    Fixed(i64),
    /// By the rules of a place.
    Ruled(TimeZone, Recent),
}

impl Zone {
    /// An IANA name or an offset such as `+08:00`. The error is a reason in the user's words.
    pub(super) fn new(name: &str) -> Result<Self, String> {
        let zone = jiff::fmt::temporal::DateTimeParser::new()
            .parse_time_zone(name)
            .map_err(|_| format!("no time zone is called `{name}`"))?;
        Ok(match zone.to_fixed_offset() {
            Ok(offset) => Self::Fixed(i64::from(offset.seconds())),
            Err(_) => Self::Ruled(zone, Recent::default()),
        })
    }

    /// How many seconds this clock was ahead of UTC when it showed `local_s` (seconds since 1970-01-01 00:00 as it
    /// shows them). An hour that comes twice is its first; in one that is skipped, the clock is taken as not yet
    /// turned. `None` outside jiff's years.
    pub(super) fn ahead_s(&self, local_s: i64) -> Option<i64> {
        match self {
            Self::Fixed(ahead) => Some(*ahead),
            Self::Ruled(zone, recent) => recent
                .get(local_s)
                .or_else(|| recent.fill(zone, local_s))
                .or_else(|| ruled(zone, local_s).map(|(ahead, _)| ahead)),
        }
    }
}

/// The offset in force at a local time, and whether there is no doubt.
fn ruled(zone: &TimeZone, local_s: i64) -> Option<(i64, bool)> {
    let shown = Offset::UTC.to_datetime(Timestamp::from_second(local_s).ok()?);
    Some(match zone.to_ambiguous_timestamp(shown).offset() {
        AmbiguousOffset::Unambiguous { offset } => (i64::from(offset.seconds()), true),
        AmbiguousOffset::Gap { before, .. } | AmbiguousOffset::Fold { before, .. } => {
            (i64::from(before.seconds()), false)
        }
    })
}

/// The last hour asked about, as the hour's number and its offset in one word: log lines come in the order of time,
/// and the database costs some 100 ns a question.
#[derive(Debug)]
pub(super) struct Recent(AtomicU64);

impl Default for Recent {
    fn default() -> Self {
        // The hour of this number is far beyond the years that are read.
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Recent {
    const HOUR_S: i64 = 3600;

    fn hour(local_s: i64) -> Option<u32> {
        u32::try_from(local_s.div_euclid(Self::HOUR_S)).ok()
    }

    fn get(&self, local_s: i64) -> Option<i64> {
        let word = self.0.load(Ordering::Relaxed);
        let hour = (word >> 32) as u32;
        // The lower half is an i32 as it was put in.
        (Self::hour(local_s)? == hour).then_some(i64::from(word as u32 as i32))
    }

    /// Remembers the hour if one offset is in force from its first second to its last.
    fn fill(&self, zone: &TimeZone, local_s: i64) -> Option<i64> {
        let hour = Self::hour(local_s)?;
        let first = i64::from(hour) * Self::HOUR_S;
        let (ahead, sure) = ruled(zone, first)?;
        let last = ruled(zone, first + Self::HOUR_S - 1)?;
        if !sure || last != (ahead, true) {
            return None;
        }
        let word = (u64::from(hour) << 32) | u64::from(i32::try_from(ahead).ok()? as u32);
        self.0.store(word, Ordering::Relaxed);
        Some(ahead)
    }
}

/// A zone as a text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Seconds ahead of UTC.
    Offset(i32),
    /// A name that says nothing for sure (`CST` is four zones): the declared zone counts.
    Name,
}

/// Reads `Z`, `UTC`, `GMT`, `UT`, `+08`, `+0800`, `+08:00`, `+08:00:00`, `GMT+8:00` or any other name at the start of
/// `text`; also how many bytes it takes.
pub(super) fn said(text: &[u8]) -> Option<(Said, usize)> {
    let letters = text
        .iter()
        .take_while(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'/' | b'_'))
        .count();
    let name = &text[..letters];
    if letters == 0 {
        let (ahead, end) = offset(text)?;
        return Some((Said::Offset(ahead), end));
    }
    if !["z", "utc", "gmt", "ut"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    {
        return Some((Said::Name, letters));
    }
    match offset(&text[letters..]) {
        Some((ahead, end)) if letters > 1 => Some((Said::Offset(ahead), letters + end)),
        _ => Some((Said::Offset(0), letters)),
    }
}

/// Reads `+8`, `+08`, `+0800`, `+08:00` or with seconds.
fn offset(text: &[u8]) -> Option<(i32, usize)> {
    let sign = match text.first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let two = |at: usize| match text.get(at..at + 2) {
        Some(&[tens @ b'0'..=b'9', ones @ b'0'..=b'9']) => {
            Some(i32::from(tens - b'0') * 10 + i32::from(ones - b'0'))
        }
        _ => None,
    };
    let (hours, mut at) = match two(1) {
        Some(hours) => (hours, 3),
        None => (
            i32::from(text.get(1).filter(|byte| byte.is_ascii_digit())? - b'0'),
            2,
        ),
    };
    let mut ahead = hours * 3600;
    for unit in [60, 1] {
        let colon = usize::from(text.get(at) == Some(&b':'));
        let Some(number) = two(at + colon) else { break };
        if number > 59 {
            return None;
        }
        ahead += number * unit;
        at += colon + 2;
    }
    (ahead < 26 * 3600).then_some((sign * ahead, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_in_every_form_that_logs_use() {
        for (text, ahead, length) in [
            ("Z", 0, 1),
            ("utc", 0, 3),
            ("+08:00", 28_800, 6),
            ("+0800]", 28_800, 5),
            ("-03", -10_800, 3),
            ("+8", 28_800, 2),
            ("-02:30:15", -9_015, 9),
            ("GMT+8:00", 28_800, 8),
            ("GMT", 0, 3),
        ] {
            assert_eq!(
                said(text.as_bytes()),
                Some((Said::Offset(ahead), length)),
                "{text}"
            );
        }
        assert_eq!(said(b"CST 2024"), Some((Said::Name, 3)));
        assert_eq!(said(b"Asia/Shanghai"), Some((Said::Name, 13)));
        for text in ["", "+", "+x", "+08:61", "+99:00", "8"] {
            assert_eq!(said(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_hour_that_comes_twice_is_its_first_and_the_hours_around_are_their_own() {
        let berlin = Zone::new("Europe/Berlin").expect("known");
        // 2024-10-27: 03:00 becomes 02:00 again; 2024-03-31: 02:00 becomes 03:00.
        let at = |text: &str| {
            let shown: jiff::civil::DateTime = text.parse().expect("a date and time");
            let local = Offset::UTC
                .to_timestamp(shown)
                .expect("in range")
                .as_second();
            // Twice: once from the database, once from memory.
            let (first, second) = (berlin.ahead_s(local), berlin.ahead_s(local));
            assert_eq!(first, second, "{text}");
            first
        };
        assert_eq!(at("2024-10-27T01:59:59"), Some(7200));
        assert_eq!(at("2024-10-27T02:30:00"), Some(7200));
        assert_eq!(at("2024-10-27T03:00:00"), Some(3600));
        assert_eq!(at("2024-03-31T01:59:59"), Some(3600));
        assert_eq!(at("2024-03-31T02:30:00"), Some(3600));
        assert_eq!(at("2024-03-31T03:00:00"), Some(7200));
        assert_eq!(
            Zone::new("+08:00").expect("an offset").ahead_s(0),
            Some(28_800)
        );
        assert!(Zone::new("Mars/Olympus").is_err());
    }
}
