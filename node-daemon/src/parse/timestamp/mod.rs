//! A record's own time: strptime formats compiled once, matched without a heap object.
//! Place: the parsers hand the text of their time field here and get nanoseconds since 1970.
//! Invariants: any bytes are `None` at worst; what comes out lies within 1970..=2262.
//! Source of the syntax: Ruby's `Time.strptime`, which fluentd used; `%f`, `%.f` and widths as in other languages.

mod moment;
mod text;
mod zone;

pub(super) use moment::access_log_time;
use text::{epoch, matched, rfc_3339};
use zone::Zone;

const DAY_S: i64 = 86_400;
const SECOND_NS: i64 = 1_000_000_000;
/// How times are written, compiled.
#[derive(Debug)]
pub struct TimeFormat {
    /// None: RFC 3339 or an epoch number, whichever it is.
    items: Option<Box<[Item]>>,
    zone: Zone,
}

/// One step of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// This byte.
    Byte(u8),
    /// Any white space, or none.
    Blank,
    Year,
    ShortYear,
    Month,
    MonthName,
    Day,
    DayOfYear,
    /// A weekday by name, which says nothing that the date does not.
    WeekdayName,
    /// A weekday by number.
    Weekday,
    Hour,
    HalfDay,
    Minute,
    Second,
    /// Digits after the point; at most so many, because more digits follow that mean something else.
    Fraction(u8),
    /// A point with digits, or nothing.
    PointFraction,
    Offset,
    ZoneName,
    EpochSeconds,
    EpochMillis,
}

impl Item {
    /// Whether it starts with a digit, so that the number before it may not take all there are.
    fn is_number(self) -> bool {
        match self {
            Self::Byte(byte) => byte.is_ascii_digit(),
            Self::Blank
            | Self::MonthName
            | Self::WeekdayName
            | Self::HalfDay
            | Self::PointFraction
            | Self::Offset
            | Self::ZoneName => false,
            _ => true,
        }
    }
}

impl TimeFormat {
    /// Compiles a strptime format; `None` reads RFC 3339 (with `T` or a space, with or without a zone), or a number of
    /// seconds, milliseconds, microseconds or nanoseconds by its size. `zone`, an IANA name or an offset, is for times
    /// that say none. The error is a reason in the user's words.
    pub fn new(format: Option<&str>, zone: &str) -> Result<Self, String> {
        let zone = Zone::new(zone)?;
        let Some(format) = format else {
            return Ok(Self { items: None, zone });
        };
        let mut items = Vec::new();
        compile(format, &mut items)?;
        let has = |wanted: &[Item]| items.iter().any(|item| wanted.contains(item));
        let dated = has(&[Item::Month, Item::MonthName, Item::DayOfYear]);
        if has(&[Item::Day]) && !has(&[Item::Month, Item::MonthName]) {
            return Err(format!(
                "the time format `{format}` has a day, but no month"
            ));
        }
        if !dated
            && !has(&[
                Item::Year,
                Item::Hour,
                Item::EpochSeconds,
                Item::EpochMillis,
            ])
        {
            return Err(format!(
                "the time format `{format}` says neither a date nor an hour"
            ));
        }
        // `%L%z` may take all digits there are, `%L%S` must leave some.
        for n in 0..items.len() {
            let digits_follow = items.get(n + 1).is_some_and(|next| next.is_number());
            if let Item::Fraction(most) = &mut items[n]
                && !digits_follow
            {
                *most = u8::MAX;
            }
        }
        Ok(Self {
            items: Some(items.into()),
            zone,
        })
    }

    /// Nanoseconds since 1970 UTC. `now_ns`, when the record was read, gives a time without year or date its own.
    /// `None` if the text is not in the format, is no time, or lies outside 1970..=2262.
    pub fn parse(&self, text: &[u8], now_ns: i64) -> Option<i64> {
        let text = text.trim_ascii();
        match &self.items {
            Some(items) => matched(items, text)?.resolve(&self.zone, now_ns),
            None => match text.get(4) {
                Some(b'-') => rfc_3339(text)?.resolve(&self.zone, now_ns),
                _ => epoch(text),
            },
        }
    }
}

/// Appends the steps of a format.
fn compile(format: &str, items: &mut Vec<Item>) -> Result<(), String> {
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c.is_ascii_whitespace() {
            items.push(Item::Blank);
            continue;
        }
        if c != '%' {
            let mut bytes = [0; 4];
            items.extend(c.encode_utf8(&mut bytes).bytes().map(Item::Byte));
            continue;
        }
        let mut directive = rest.next();
        // Flags are for writing; `E` and `O` for other calendars, `:` for the offset, which is read in every form.
        while matches!(
            directive,
            Some('-' | '_' | '0' | '^' | '#' | ':' | 'E' | 'O')
        ) {
            directive = rest.next();
        }
        let point = directive == Some('.');
        if point {
            directive = rest.next();
        }
        let mut width = None;
        while let Some(digit) = directive.and_then(|c| c.to_digit(10)) {
            // At most nine digits of a fraction mean anything.
            width = Some((width.unwrap_or(0) * 10 + digit).min(9));
            directive = rest.next();
        }
        let width = |default: u32| width.unwrap_or(default) as u8;
        let item = match directive {
            Some('f' | 'N' | 'L') if point => Item::PointFraction,
            Some('L') => Item::Fraction(width(3)),
            Some('N' | 'f') => Item::Fraction(width(9)),
            Some(c) if point => return Err(unknown(format, c)),
            Some('Y') => Item::Year,
            Some('y') => Item::ShortYear,
            Some('m') => Item::Month,
            Some('b' | 'B' | 'h') => Item::MonthName,
            Some('d' | 'e') => Item::Day,
            Some('j') => Item::DayOfYear,
            Some('a' | 'A') => Item::WeekdayName,
            Some('u' | 'w') => Item::Weekday,
            Some('H' | 'k' | 'I' | 'l') => Item::Hour,
            Some('p' | 'P') => Item::HalfDay,
            Some('M') => Item::Minute,
            Some('S') => Item::Second,
            Some('z') => Item::Offset,
            Some('Z') => Item::ZoneName,
            Some('s') => Item::EpochSeconds,
            Some('Q') => Item::EpochMillis,
            Some('n' | 't') => Item::Blank,
            Some('%') => Item::Byte(b'%'),
            Some('T' | 'X') => {
                compile("%H:%M:%S", items)?;
                continue;
            }
            Some('F') => {
                compile("%Y-%m-%d", items)?;
                continue;
            }
            Some('D' | 'x') => {
                compile("%m/%d/%y", items)?;
                continue;
            }
            Some('R') => {
                compile("%H:%M", items)?;
                continue;
            }
            Some('r') => {
                compile("%I:%M:%S %p", items)?;
                continue;
            }
            Some('c') => {
                compile("%a %b %e %H:%M:%S %Y", items)?;
                continue;
            }
            Some('v') => {
                compile("%e-%b-%Y", items)?;
                continue;
            }
            Some('+') => {
                compile("%a %b %e %H:%M:%S %Z %Y", items)?;
                continue;
            }
            Some(c) => return Err(unknown(format, c)),
            None => return Err(format!("the time format `{format}` ends within a `%`")),
        };
        items.push(item);
    }
    Ok(())
}

fn unknown(format: &str, directive: char) -> String {
    format!("the time format `{format}` has `%{directive}`, which is not known")
}

#[cfg(test)]
mod tests;
