//! From what a text says of a time to nanoseconds since 1970.
//! Place: after `text` has read it.
//! Invariant: nothing outside 1970..=2262 comes out.

use super::zone::Zone;
use super::{DAY_S, SECOND_NS};

/// A time without a year is of the latest year that puts it at most this far into the future.
const AHEAD_WITHOUT_YEAR_S: i64 = DAY_S;
/// A time without a date is of the latest day that puts it at most this far into the future.
const AHEAD_WITHOUT_DATE_S: i64 = 3600;

/// What a text said of a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) year: Option<i64>,
    pub(super) month: Option<u8>,
    pub(super) day: Option<u8>,
    pub(super) day_of_year: Option<u16>,
    pub(super) hour: u8,
    pub(super) afternoon: Option<bool>,
    pub(super) minute: u8,
    pub(super) second: u8,
    pub(super) nanos: u32,
    /// Seconds ahead of UTC.
    pub(super) offset: Option<i32>,
    /// Nanoseconds since 1970: says everything but the fraction.
    pub(super) epoch_ns: Option<i64>,
}

impl Parts {
    pub(super) const NONE: Self = Self {
        year: None,
        month: None,
        day: None,
        day_of_year: None,
        hour: 0,
        afternoon: None,
        minute: 0,
        second: 0,
        nanos: 0,
        offset: None,
        epoch_ns: None,
    };

    /// The time meant, with what the text does not say from `zone` and `now_ns`.
    pub(super) fn resolve(&self, zone: &Zone, now_ns: i64) -> Option<i64> {
        if let Some(epoch_ns) = self.epoch_ns {
            return epoch_ns.checked_add(i64::from(self.nanos));
        }
        let hour = match self.afternoon {
            Some(afternoon) => i64::from(self.hour % 12) + if afternoon { 12 } else { 0 },
            None => i64::from(self.hour),
        };
        // A leap second is the one before it: clocks that count nanoseconds since 1970 have none.
        let of_day = hour * 3600 + i64::from(self.minute) * 60 + i64::from(self.second.min(59));
        let at = |day: i64| {
            let local = day * DAY_S + of_day;
            let ahead = match self.offset {
                Some(offset) => i64::from(offset),
                None => zone.ahead_s(local)?,
            };
            Some(local - ahead)
        };
        let now_s = now_ns.div_euclid(SECOND_NS);
        let seconds = match (self.year, self.month, self.day_of_year) {
            (Some(year), ..) => at(self.day_in(year)?)?,
            (None, None, None) => {
                let latest = now_s + AHEAD_WITHOUT_DATE_S;
                let today = latest.div_euclid(DAY_S);
                // A zone is at most a good day away from UTC on either side.
                (today - 2..=today + 2)
                    .rev()
                    .filter_map(at)
                    .find(|time| *time <= latest)?
            }
            (None, ..) => {
                let latest = now_s + AHEAD_WITHOUT_YEAR_S;
                let year = 1970 + latest.div_euclid(DAY_S) / 365;
                // Far enough back for the 29th of February on either side of 2100.
                (year - 10..=year + 1)
                    .rev()
                    .filter_map(|year| at(self.day_in(year)?))
                    .find(|time| *time <= latest)?
            }
        };
        if seconds < 0 {
            return None;
        }
        seconds
            .checked_mul(SECOND_NS)?
            .checked_add(i64::from(self.nanos))
    }

    /// The day meant, if it is of this year, counted from 1970-01-01. Only what the text said is used.
    fn day_in(&self, year: i64) -> Option<i64> {
        if let Some(day) = self.day_of_year {
            let length = if is_leap(year) { 366 } else { 365 };
            return (1..=length)
                .contains(&day)
                .then(|| day_number(year, 1, 1) + i64::from(day) - 1);
        }
        let (month, day) = (self.month.unwrap_or(1), self.day.unwrap_or(1));
        is_date(year, month, day).then(|| day_number(year, month, day))
    }
}

/// Whether there is such a day: years to 2262, and from 1969, whose last day was 1970 already further east.
fn is_date(year: i64, month: u8, day: u8) -> bool {
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => return false,
    };
    (1969..=2262).contains(&year) && (1..=length).contains(&day)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days since 1970-01-01 of a date of the Gregorian calendar; years above 0.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
fn day_number(year: i64, month: u8, day: u8) -> i64 {
    let month = i64::from(month);
    // Years begin in March, so that the leap day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Reads an access log's `10/Oct/2000:13:55:36 -0700`, nanoseconds since 1970.
pub(in crate::parse) fn access_log_time(text: &[u8]) -> Option<i64> {
    let text: &[u8; 26] = text.try_into().ok()?;
    let two = |at: usize| match text[at..at + 2] {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some((tens - b'0') * 10 + (ones - b'0')),
        _ => None,
    };
    let marks = [text[2], text[6], text[11], text[14], text[17], text[20]];
    if marks != *b"//::: " {
        return None;
    }
    let year = i64::from(two(7)?) * 100 + i64::from(two(9)?);
    let (month, day) = (month_of([text[3], text[4], text[5]])?, two(0)?);
    let (hour, minute, second) = (two(12)?, two(15)?, two(18)?);
    let (ahead_hours, ahead_minutes) = (two(22)?, two(24)?);
    if !is_date(year, month, day) || hour > 23 || minute > 59 || second > 60 || ahead_minutes > 59 {
        return None;
    }
    let ahead = i64::from(ahead_hours) * 3600 + i64::from(ahead_minutes) * 60;
    let ahead = match text[21] {
        b'+' => ahead,
        b'-' => -ahead,
        _ => return None,
    };
    let seconds = day_number(year, month, day) * DAY_S
        + i64::from(hour) * 3600
        + i64::from(minute) * 60
        + i64::from(second.min(59))
        - ahead;
    if seconds < 0 {
        return None;
    }
    seconds.checked_mul(SECOND_NS)
}

/// The month whose first three letters these are.
pub(super) fn month_of(letters: [u8; 3]) -> Option<u8> {
    Some(match &letters.map(|letter| letter | 0x20) {
        b"jan" => 1,
        b"feb" => 2,
        b"mar" => 3,
        b"apr" => 4,
        b"may" => 5,
        b"jun" => 6,
        b"jul" => 7,
        b"aug" => 8,
        b"sep" => 9,
        b"oct" => 10,
        b"nov" => 11,
        b"dec" => 12,
        _ => return None,
    })
}
