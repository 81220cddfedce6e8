//! Read Apache's error log, as 2.2 and 2.4 write it.
//! Place: one of `parse`'s formats.
//! Source of names: fluentd's `parser_apache_error.rb`: `[WEEKDAY TIME] [LEVEL] [pid PID] [client CLIENT] MESSAGE`,
//! where pid and client may be missing; 2.4 writes `core:error` as the level and `35708:tid 4328636416` as the pid.

use memchr::memchr;

use super::{NOT_IN_FORMAT, Record, TimeFormat, text_value};

pub(super) const NAMES: [&str; 5] = ["level", "pid", "client", "message", "time"];

/// Reads one line. Its times have no zone.
#[derive(Debug)]
pub(super) struct ApacheError {
    time: TimeFormat,
}

impl ApacheError {
    pub(super) fn new(zone: &str) -> Result<Self, String> {
        Ok(Self {
            time: TimeFormat::new(Some("%a %b %d %H:%M:%S%.f %Y"), zone)?,
        })
    }

    pub(super) fn parse(
        &self,
        text: &[u8],
        now_ns: i64,
        record: &mut Record,
    ) -> Result<(), &'static str> {
        const FORM: &str = "apache_error: not `[time] [level] message`";
        let text = text.trim_ascii_end();
        let mut at = 0;
        let time = bracketed(text, &mut at, b"[").ok_or(FORM)?;
        let level = bracketed(text, &mut at, b" [").ok_or(FORM)?;
        record.push(0, text_value(level.0, level.1));
        if let Some((start, end)) = bracketed(text, &mut at, b" [pid ") {
            record.push(1, text_value(start, end));
        }
        if let Some((start, end)) = bracketed(text, &mut at, b" [client ") {
            record.push(2, text_value(start, end));
        }
        match text.get(at) {
            Some(b' ') => record.push(3, text_value(at + 1, text.len())),
            // An empty message, of which the end of the line was cut.
            None => record.push(3, text_value(at, at)),
            Some(_) => return Err(FORM),
        }
        match self.time.parse(&text[time.0..time.1], now_ns) {
            Some(time_ns) => record.time_ns = Some(time_ns),
            None => {
                record.time_failure = Some(NOT_IN_FORMAT);
                record.push(4, text_value(time.0, time.1));
            }
        }
        Ok(())
    }
}

/// The range from behind `opening` to the next `]`, and `at` behind it; or nothing, and `at` stays.
fn bracketed(text: &[u8], at: &mut usize, opening: &[u8]) -> Option<(usize, usize)> {
    let rest = text.get(*at..)?.strip_prefix(opening)?;
    let start = *at + opening.len();
    let end = start + memchr(b']', rest)?;
    *at = end + 1;
    Some((start, end))
}
