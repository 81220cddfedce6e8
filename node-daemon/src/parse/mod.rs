//! Parse a record's text into fields.
//! Place: decode -> **parse** -> batch; a worker owns one `Record` and reuses it for every record.
//! Invariants: no heap object per record once warm; never panics on any bytes; what a format cannot parse
//! stays whole as `message`, with the failure named; its cost grows with the text alone, whatever stands in it.

use crate::declare::{Format, TimeKey};

mod access_log;
mod apache_error;
mod csv;
mod json;
mod regexp;
mod timestamp;

pub use timestamp::TimeFormat;

/// A record's fields as ranges of its text, reused from record to record.
#[derive(Debug, Default)]
pub struct Record {
    /// The fields found, in order. Empty with `failure` set or for format `none`: the text is the `message`.
    pub fields: Vec<Field>,
    /// Text that had to be rewritten (unquoted CSV), referred to by `Value::Scratch`.
    pub scratch: Vec<u8>,
    /// The record's own time, nanoseconds since 1970.
    pub time_ns: Option<i64>,
    /// Why the text could not be parsed, a short constant such as `json: not an object`.
    pub failure: Option<&'static str>,
    /// Why `time_ns` is none although the record says a time; the fields are good.
    pub time_failure: Option<&'static str>,
    /// The parsers' own working space.
    pub(crate) work: Work,
}

#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Keys of a JSON object by hash, to find those that are repeated.
    keys: Vec<json::Key>,
    /// Where the groups of a pattern matched.
    groups: Vec<Option<(usize, usize)>>,
}

/// What a record that was far larger than others leaves allocated at most, in elements.
const KEPT: usize = 4096;

impl Record {
    /// Empties it, so that the next text can be parsed into it.
    pub fn clear(&mut self) {
        self.drop_fields();
        self.time_ns = None;
        self.failure = None;
        self.time_failure = None;
        if self.fields.capacity() > KEPT {
            self.fields.shrink_to(KEPT);
        }
        if self.work.keys.capacity() > KEPT {
            self.work.keys.shrink_to(KEPT);
        }
        if self.scratch.capacity() > 64 * KEPT {
            self.scratch.shrink_to(64 * KEPT);
        }
    }

    fn drop_fields(&mut self) {
        self.fields.clear();
        self.scratch.clear();
        self.work.keys.clear();
    }

    fn push(&mut self, name: u16, value: Value) {
        let name = Name::Own(name);
        self.fields.push(Field { name, value });
    }
}

/// One field of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// What it is called.
    pub name: Name,
    /// What it holds.
    pub value: Value,
}

/// What a field is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The parser's own name of this number (CSV column, regexp group, access-log field).
    Own(u16),
    /// A range of the text: the inside of a JSON string, still escaped as valid JSON.
    Json(u32, u32),
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A range of the text that is a valid JSON value, copied as it is.
    Json(u32, u32),
    /// A range of the text, any bytes: written as a JSON string.
    Text(u32, u32),
    /// A range of `scratch`, any bytes: written as a JSON string.
    Scratch(u32, u32),
    /// A range of the text that is a decimal number valid in JSON, written bare.
    Number(u32, u32),
    /// Nothing was there (`-` in an access log).
    Null,
}

/// A range of the text. Texts longer than 4 GiB are refused before anything is cut from them.
fn span(start: usize, end: usize) -> (u32, u32) {
    (start as u32, end as u32)
}

fn text_value(start: usize, end: usize) -> Value {
    let (start, end) = span(start, end);
    Value::Text(start, end)
}

/// The field that says a record's time, and how.
#[derive(Debug)]
struct TimeField<Which> {
    which: Which,
    format: TimeFormat,
}

impl<Which> TimeField<Which> {
    fn new(which: Which, time: &TimeKey, default_zone: &str) -> Result<Self, String> {
        let zone = time.zone.as_deref().unwrap_or(default_zone);
        let format = TimeFormat::new(time.format.as_deref(), zone)?;
        Ok(Self { which, format })
    }

    /// Takes the record's time from this text; says whether it could be read.
    fn read(&self, text: &[u8], now_ns: i64, record: &mut Record) -> bool {
        record.time_ns = self.format.parse(text, now_ns);
        if record.time_ns.is_none() {
            record.time_failure = Some(NOT_IN_FORMAT);
        }
        record.time_ns.is_some()
    }
}

const NOT_IN_FORMAT: &str = "time: not in its format";
const TOO_LONG: &str = "text too long";
/// The key of the time where only its format or zone was declared: fluentd's own.
const TIME: &str = "time";

/// Reads texts of one declared format. Shared by threads; each brings its own `Record`.
#[derive(Debug)]
pub struct Parser {
    kind: Kind,
    names: Vec<String>,
    doubts: Vec<String>,
}

#[derive(Debug)]
enum Kind {
    None,
    Json(json::Members),
    Csv(csv::Columns),
    AccessLog(access_log::Form),
    ApacheError(apache_error::ApacheError),
    Regexp(regexp::Groups),
}

impl Parser {
    /// Compiles a declared format. `default_zone` (an IANA name or an offset) is for times that say none where the
    /// declaration does not either. The error is a reason in the user's words.
    pub fn new(format: &Format, default_zone: &str) -> Result<Self, String> {
        let mut names = Vec::new();
        let mut doubts = Vec::new();
        let kind = match format {
            Format::None => Kind::None,
            Format::Json(time) => Kind::Json(json::Members::new(time, default_zone)?),
            Format::Csv { keys, time } => {
                names.clone_from(keys);
                Kind::Csv(csv::Columns::new(keys, time, default_zone, &mut doubts)?)
            }
            Format::Nginx => Kind::AccessLog(access_log::Form::Nginx),
            Format::Apache2 => Kind::AccessLog(access_log::Form::Apache2),
            Format::ApacheError => {
                names.extend(apache_error::NAMES.map(str::to_owned));
                Kind::ApacheError(apache_error::ApacheError::new(default_zone)?)
            }
            Format::Regexp { pattern, time } => Kind::Regexp(regexp::Groups::new(
                pattern,
                time,
                default_zone,
                &mut names,
                &mut doubts,
            )?),
        };
        if let Kind::AccessLog(form) = &kind {
            names.extend(form.names().iter().map(|&name| name.to_owned()));
        }
        Ok(Self {
            kind,
            names,
            doubts,
        })
    }

    /// The parser's own field names; `Name::Own(n)` is the one at `n`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What was declared and can have no effect, in the user's words: told, but no reason not to collect.
    pub fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// Parses one text into `record`, which is cleared first. `now_ns`, nanoseconds since 1970, is when it was read:
    /// it completes times without a year.
    pub fn parse(&self, text: &[u8], now_ns: i64, record: &mut Record) {
        record.clear();
        if u32::try_from(text.len()).is_err() {
            record.failure = Some(TOO_LONG);
            return;
        }
        let outcome = match &self.kind {
            Kind::None => Ok(()),
            Kind::Json(members) => members.parse(text, now_ns, record),
            Kind::Csv(columns) => columns.parse(text, now_ns, record),
            Kind::AccessLog(form) => form.parse(text, record),
            Kind::ApacheError(log) => log.parse(text, now_ns, record),
            Kind::Regexp(groups) => groups.parse(text, now_ns, record),
        };
        if let Err(failure) = outcome {
            record.drop_fields();
            record.time_ns = None;
            record.time_failure = None;
            record.failure = Some(failure);
        }
    }
}

/// Bytes of the byte order mark at the text's start: Windows programs begin their files with one.
fn mark_length(text: &[u8]) -> usize {
    if text.starts_with(b"\xEF\xBB\xBF") {
        3
    } else {
        0
    }
}

#[cfg(test)]
mod tests;
