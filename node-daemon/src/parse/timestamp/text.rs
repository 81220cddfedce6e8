//! Read what a text says of a time.
//! Place: `TimeFormat` chooses which of the three readers is asked.
//! Invariants: no heap object; every reader reads its text to the end.

use super::moment::{Parts, month_of};
use super::zone::{Said, said};
use super::{Item, SECOND_NS};

/// A text that is read from left to right.
#[derive(Debug, Clone, Copy)]
struct Rest<'text>(&'text [u8]);

impl Rest<'_> {
    fn skip(&mut self, bytes: usize) {
        self.0 = self.0.get(bytes..).unwrap_or_default();
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        (self.0.first() == Some(&byte)).then(|| self.skip(1))
    }

    fn blank(&mut self) {
        self.0 = self.0.trim_ascii_start();
    }

    /// A number of one to `most` digits.
    fn number(&mut self, most: usize) -> Option<u64> {
        let mut value = 0u64;
        let mut length = 0;
        for byte in self.0.iter().take(most) {
            if !byte.is_ascii_digit() {
                break;
            }
            value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
            length += 1;
        }
        self.skip(length);
        (length > 0).then_some(value)
    }

    /// A number of one or two digits in this range.
    fn small(&mut self, range: std::ops::RangeInclusive<u8>) -> Option<u8> {
        let number = u8::try_from(self.number(2)?).ok()?;
        range.contains(&number).then_some(number)
    }

    /// Skips a space that stands where a zero may stand.
    fn pad(&mut self) {
        if self.0.first() == Some(&b' ') {
            self.skip(1);
        }
    }

    /// A number of one or two digits in this range, maybe padded.
    fn padded(&mut self, range: std::ops::RangeInclusive<u8>) -> Option<u8> {
        self.pad();
        self.small(range)
    }

    /// Digits after a point, as nanoseconds; what is finer is left out.
    fn fraction(&mut self, most: usize) -> Option<u32> {
        let mut nanos = 0;
        let mut length = 0;
        let mut unit = 100_000_000;
        for byte in self.0.iter().take(most) {
            if !byte.is_ascii_digit() {
                break;
            }
            nanos += u32::from(byte - b'0') * unit;
            unit /= 10;
            length += 1;
        }
        self.skip(length);
        (length > 0).then_some(nanos)
    }

    /// A point or comma with digits behind it, or nothing.
    fn point_fraction(&mut self) -> u32 {
        match self.0 {
            [b'.' | b',', b'0'..=b'9', ..] => {
                self.skip(1);
                self.fraction(usize::MAX).unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Skips the rest of a name of which three letters are enough.
    fn name(&mut self, full: &str) {
        let whole = self.0.get(..full.len());
        let whole = whole.is_some_and(|text| text.eq_ignore_ascii_case(full.as_bytes()));
        self.skip(if whole { full.len() } else { 3 });
    }
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// Reads a text by a compiled format, to its end.
pub(super) fn matched(items: &[Item], text: &[u8]) -> Option<Parts> {
    let mut rest = Rest(text);
    let mut parts = Parts::NONE;
    for item in items {
        match *item {
            Item::Byte(byte) => rest.byte(byte)?,
            Item::Blank => rest.blank(),
            Item::Year => parts.year = i64::try_from(rest.number(4)?).ok(),
            Item::ShortYear => {
                let year = i64::from(rest.padded(0..=99)?);
                parts.year = Some(if year < 69 { 2000 + year } else { 1900 + year });
            }
            Item::Month => parts.month = Some(rest.padded(1..=12)?),
            Item::MonthName => {
                let month = month_of(*rest.0.first_chunk::<3>()?)?;
                rest.name(MONTHS[usize::from(month) - 1]);
                parts.month = Some(month);
            }
            Item::Day => parts.day = Some(rest.padded(1..=31)?),
            Item::DayOfYear => {
                rest.pad();
                parts.day_of_year = u16::try_from(rest.number(3)?).ok();
            }
            Item::WeekdayName => {
                let letters = rest.0.first_chunk::<3>()?;
                let name = WEEKDAYS
                    .iter()
                    .find(|name| name.as_bytes()[..3].eq_ignore_ascii_case(letters))?;
                rest.name(name);
            }
            Item::Weekday => {
                rest.number(1)?;
            }
            Item::Hour => parts.hour = rest.padded(0..=23)?,
            Item::HalfDay => {
                parts.afternoon = Some(match rest.0.first()? | 0x20 {
                    b'a' => false,
                    b'p' => true,
                    _ => return None,
                });
                match rest.0.get(1..)? {
                    [b'm' | b'M', ..] => rest.skip(2),
                    [b'.', b'm' | b'M', b'.', ..] => rest.skip(4),
                    _ => return None,
                }
            }
            Item::Minute => parts.minute = rest.padded(0..=59)?,
            Item::Second => parts.second = rest.padded(0..=60)?,
            Item::Fraction(most) => parts.nanos = rest.fraction(usize::from(most))?,
            Item::PointFraction => parts.nanos = rest.point_fraction(),
            Item::Offset => {
                let (Said::Offset(offset), length) = said(rest.0)? else {
                    return None;
                };
                parts.offset = Some(offset);
                rest.skip(length);
            }
            Item::ZoneName => {
                let (said, length) = said(rest.0)?;
                if let Said::Offset(offset) = said {
                    parts.offset = Some(offset);
                }
                rest.skip(length);
            }
            Item::EpochSeconds => {
                let seconds = i64::try_from(rest.number(usize::MAX)?).ok()?;
                parts.epoch_ns = Some(seconds.checked_mul(SECOND_NS)?);
            }
            Item::EpochMillis => {
                let millis = i64::try_from(rest.number(usize::MAX)?).ok()?;
                parts.epoch_ns = Some(millis.checked_mul(1_000_000)?);
            }
        }
    }
    // Ruby reads no further than the format; digits after the seconds cannot be meant otherwise.
    if !rest.0.is_empty() && matches!(items.last(), Some(Item::Second | Item::EpochSeconds)) {
        parts.nanos = rest.point_fraction();
    }
    rest.0.is_empty().then_some(parts)
}

/// Reads `2024-05-01T10:00:00.123+08:00`, with `T`, `t` or a space, with or without seconds, fraction and zone.
pub(super) fn rfc_3339(text: &[u8]) -> Option<Parts> {
    let mut rest = Rest(text);
    let mut parts = Parts::NONE;
    parts.year = i64::try_from(rest.number(4)?).ok();
    rest.byte(b'-')?;
    parts.month = Some(rest.small(1..=12)?);
    rest.byte(b'-')?;
    parts.day = Some(rest.small(1..=31)?);
    match rest.0.first()? {
        b'T' | b't' | b' ' => rest.skip(1),
        _ => return None,
    }
    rest.blank();
    parts.hour = rest.small(0..=23)?;
    rest.byte(b':')?;
    parts.minute = rest.small(0..=59)?;
    if rest.byte(b':').is_some() {
        parts.second = rest.small(0..=60)?;
        parts.nanos = rest.point_fraction();
    }
    rest.blank();
    if !rest.0.is_empty() {
        let (said, length) = said(rest.0)?;
        rest.skip(length);
        if let Said::Offset(offset) = said {
            parts.offset = Some(offset);
        }
    }
    rest.0.is_empty().then_some(parts)
}

/// Reads a number of seconds since 1970, or of milliseconds, microseconds or nanoseconds if it is too large for that,
/// maybe with a fraction and an exponent.
pub(super) fn epoch(text: &[u8]) -> Option<i64> {
    let mut rest = Rest(text);
    let mut digits: i128 = 0;
    // `digits` times ten to the power of this is the number.
    let mut power: i32 = 0;
    let mut any = false;
    let mut behind_point = false;
    loop {
        match rest.0.first() {
            Some(digit @ b'0'..=b'9') => {
                any = true;
                // More digits than this are finer than a nanosecond or beyond 2262.
                if digits < 10_i128.pow(28) {
                    digits = digits * 10 + i128::from(digit - b'0');
                    power -= i32::from(behind_point);
                } else {
                    power += i32::from(!behind_point);
                }
            }
            Some(b'.') if any && !behind_point => behind_point = true,
            _ => break,
        }
        rest.skip(1);
    }
    if !any {
        return None;
    }
    if let Some(b'e' | b'E') = rest.0.first() {
        rest.skip(1);
        let negative = rest.byte(b'-').is_some();
        if !negative && rest.0.first() == Some(&b'+') {
            rest.skip(1);
        }
        let exponent = i32::try_from(rest.number(3)?).ok()?;
        power += if negative { -exponent } else { exponent };
    }
    if !rest.0.is_empty() {
        return None;
    }
    // In units of 10^-9 of what was written, whatever that is.
    let shift = power + 9;
    let scale = 10_i128.checked_pow(shift.unsigned_abs());
    let nanos = match scale {
        Some(scale) if shift >= 0 => digits.checked_mul(scale)?,
        Some(scale) => digits / scale,
        None if shift >= 0 && digits > 0 => return None,
        None => 0,
    };
    // Seconds end in 2286; every larger number is the next finer unit, which begins in April 1970.
    let seconds_end = 10_i128.pow(10) * i128::from(SECOND_NS);
    let nanos = match nanos / seconds_end {
        0 => nanos,
        1..1_000 => nanos / 1_000,
        1_000..1_000_000 => nanos / 1_000_000,
        _ => nanos / 1_000_000_000,
    };
    i64::try_from(nanos).ok()
}
