//! Read RFC 3339 times, as container runtimes write them, into nanoseconds since 1970.
//! Place: both envelopes call it once per line; parse uses its calendar.
//! Invariants: allocates nothing; what is no valid time, or one that nanoseconds in an `i64` cannot say (before
//! 1677-09-21 or after 2262-04-11), is `None`, never a wrong time. Source: RFC 3339 section 5.6; Go's RFC3339Nano.

/// Nanoseconds in a second.
pub const SECOND: i64 = 1_000_000_000;

/// Days from 1970-01-01 to a day of the proleptic Gregorian calendar; month 1 to 12, day 1 to 31.
pub fn days(year: i64, month: u32, day: u32) -> i64 {
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil.
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month = i64::from(month);
    let march_based = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_based + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// How many days a month has; 0 for a month that is none.
pub fn days_in(year: i64, month: u32) -> u32 {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 0,
    }
}

/// A whole text that is a time, in nanoseconds since 1970.
pub fn rfc3339(text: &[u8]) -> Option<i64> {
    let (time_ns, length) = rfc3339_prefix(text)?;
    (length == text.len()).then_some(time_ns)
}

/// A time at the start of a text, and how many bytes it takes: `2026-01-02T03:04:05`, a fraction of any length (what
/// is finer than a nanosecond is cut off), and `Z` or an offset (`+08:00`, `+0800`). The second may be 60.
pub fn rfc3339_prefix(text: &[u8]) -> Option<(i64, usize)> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    if head[4] != b'-' || head[7] != b'-' || head[13] != b':' || head[16] != b':' {
        return None;
    }
    if !matches!(head[10], b'T' | b't' | b' ') {
        return None;
    }
    let year = i64::from(two(head[0], head[1])? * 100 + two(head[2], head[3])?);
    let month = two(head[5], head[6])?;
    let day = two(head[8], head[9])?;
    let hour = two(head[11], head[12])?;
    let minute = two(head[14], head[15])?;
    let second = two(head[17], head[18])?;
    // 28 days has every month; most lines end the test here.
    if day == 0 || month == 0 || month > 12 || (day > 28 && day > days_in(year, month)) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (nanos, rest) = match rest.split_first() {
        Some((b'.', digits)) => fraction(digits)?,
        _ => (0, rest),
    };
    let (offset, rest) = zone(rest)?;
    let of_day = i64::from(hour * 3_600 + minute * 60 + second) - offset;
    let time_ns = (days(year, month, day) * 86_400 + of_day)
        .checked_mul(SECOND)?
        .checked_add(nanos)?;
    Some((time_ns, text.len() - rest.len()))
}

fn two(tens: u8, ones: u8) -> Option<u32> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then_some(u32::from(tens) * 10 + u32::from(ones))
}

/// Digits after a point, as nanoseconds, and what follows them.
fn fraction(digits: &[u8]) -> Option<(i64, &[u8])> {
    // Go writes nine digits unless the last are zeros, and those are most lines.
    if let Some((nine, rest)) = digits.split_first_chunk::<9>()
        && !rest.first().is_some_and(u8::is_ascii_digit)
        && let Some(nanos) = nine.iter().try_fold(0_u32, |value, &byte| {
            let digit = byte.wrapping_sub(b'0');
            (digit <= 9).then_some(value * 10 + u32::from(digit))
        })
    {
        return Some((i64::from(nanos), rest));
    }
    let length = digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (fraction, rest) = digits.split_at(length);
    let mut nanos = 0;
    for place in 0..9 {
        nanos = nanos * 10 + fraction.get(place).map_or(0, |byte| i64::from(byte - b'0'));
    }
    (length > 0).then_some((nanos, rest))
}

/// An offset in seconds east of UTC, and what follows it.
fn zone(text: &[u8]) -> Option<(i64, &[u8])> {
    match text {
        [b'Z' | b'z', rest @ ..] => Some((0, rest)),
        [sign @ (b'+' | b'-'), a, b, b':', c, d, rest @ ..]
        | [sign @ (b'+' | b'-'), a, b, c, d, rest @ ..] => {
            let (hours, minutes) = (two(*a, *b)?, two(*c, *d)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = i64::from(hours * 3_600 + minutes * 60);
            Some((if *sign == b'-' { -seconds } else { seconds }, rest))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_read_with_any_fraction_and_offset() {
        let at = |text: &str| rfc3339(text.as_bytes());
        assert_eq!(at("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(at("1970-01-01T00:00:00.000000001Z"), Some(1));
        assert_eq!(at("1969-12-31T23:59:59.5Z"), Some(-500_000_000));
        assert_eq!(
            at("2016-10-06T00:17:09.669794202Z"),
            Some(1_475_713_029_669_794_202)
        );
        assert_eq!(
            at("2016-10-06T08:17:09.669794202+08:00"),
            Some(1_475_713_029_669_794_202)
        );
        assert_eq!(
            at("2016-10-05 18:47:09.6697942029999-0530"),
            Some(1_475_713_029_669_794_202)
        );
        assert_eq!(at("2024-02-29t00:00:00z"), Some(1_709_164_800 * SECOND));
        assert_eq!(at("2016-12-31T23:59:60Z"), at("2017-01-01T00:00:00Z"));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2016-10-06",
            "2016-10-06T00:17:09",
            "2016-10-06T00:17:09.Z",
            "2016-10-06T00:17:09.1",
            "2016-10-06T00:17:09+",
            "2016-10-06T00:17:09+8:00",
            "2016-10-06T00:17:09+24:00",
            "2016-10-06T00:17:09Zx",
            "2016-13-06T00:17:09Z",
            "2016-00-06T00:17:09Z",
            "2016-10-00T00:17:09Z",
            "2023-02-29T00:17:09Z",
            "2100-02-29T00:17:09Z",
            "2016-10-06T24:17:09Z",
            "2016-10-06T00:60:09Z",
            "2016-10-06T00:17:61Z",
            "2016-1a-06T00:17:09Z",
            "0001-01-01T00:00:00Z",
            "2262-04-11T23:47:16.854775808Z",
            "9999-12-31T23:59:59Z",
        ] {
            assert_eq!(rfc3339(text.as_bytes()), None, "{text}");
        }
        assert_eq!(rfc3339(b"2262-04-11T23:47:16.854775807Z"), Some(i64::MAX));
        assert_eq!(
            rfc3339(b"1677-09-21T00:12:44Z"),
            Some(-9_223_372_036 * SECOND)
        );
    }

    #[test]
    fn a_prefix_says_how_long_it_is() {
        assert_eq!(
            rfc3339_prefix(b"1970-01-01T00:00:01Z F x"),
            Some((SECOND, 20))
        );
        assert_eq!(
            rfc3339_prefix(b"1970-01-01T08:00:01.5+08:00 "),
            Some((SECOND * 3 / 2, 27))
        );
    }

    proptest! {
        /// The whole range, against another implementation.
        #[test]
        fn every_time_is_what_jiff_says(time_ns: i64, digits in 0_usize..=9, minutes in -1439_i32..=1439) {
            let finest = 10_i64.pow(9 - digits as u32);
            let time = jiff::Timestamp::from_nanosecond(i128::from(time_ns)).expect("in range");
            let offset = jiff::tz::Offset::from_seconds(minutes * 60).expect("in range");
            let written = jiff::fmt::temporal::DateTimePrinter::new()
                .precision(Some(digits as u8))
                .timestamp_with_offset_to_string(&time, offset);
            let cut = time_ns.div_euclid(finest).checked_mul(finest);
            prop_assert_eq!(rfc3339(written.as_bytes()), cut, "{}", written);
        }

        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((_, length)) = rfc3339_prefix(&text) {
                prop_assert!(length <= text.len());
            }
        }

        #[test]
        fn nearly_times_panic_neither(text in r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{0,12})?[Z+\-]?[0-9:]{0,6}") {
            let ours = rfc3339(text.as_bytes());
            if let (Some(ours), Ok(theirs)) = (ours, text.parse::<jiff::Timestamp>())
                && !text.contains(":60")
            {
                prop_assert_eq!(i128::from(ours), theirs.as_nanosecond());
            }
        }
    }
}
