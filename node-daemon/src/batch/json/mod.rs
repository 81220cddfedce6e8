//! Write records: as one JSON object and `\n` each, or as their text alone.
//! Place: parse, tag -> **batch** -> ship; a worker owns one `Writer` and uses it for every record.
//! Invariants: no heap object per record once warm; one JSON key once, see `names`; never a line end within an
//! object. What comes out is JSON whatever the text holds, as long as what a parser calls JSON (`Value::Json`,
//! `Value::Number`, `Name::Json`) is.
//!
//! ```text
//! {"@timestamp":"2026-11-24T11:30:25.123456789Z","message":"…","stream":"stdout","docker_container":"web",…}
//!  └ TimeCache                                  ┘└ or fields  ┘└ if any         ┘└ Tags, then Flags        ┘
//! ```

mod names;

use memchr::memchr2;

use super::escape::{member, string};
use super::time::TimeCache;
use crate::decode::Channel;
use crate::parse::{Record, Value};
use crate::tag::{MESSAGE, Tags};

pub use names::Names;

/// One record, as it is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its text, any bytes; the ranges in `record` are of it.
    pub text: &'a [u8],
    /// What the parser found. With no fields, or a failure, the text is the `message`.
    pub record: &'a Record,
    /// Its time, nanoseconds since 1970.
    pub time_ns: i64,
    /// Which output of a container it was written to; `None` for a file.
    pub channel: Option<Channel>,
    /// What is odd about it.
    pub flags: Flags<'a>,
}

/// What is odd about a record; each is a field only if it is set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags<'a> {
    /// `"incomplete":true`: its group was closed before its end came.
    pub incomplete: bool,
    /// `"split":true`: a line or group that was too long is cut, and this is a part of it.
    pub split: bool,
    /// `"time_suspect":true`: its time is too far from the day on which it was read.
    pub time_suspect: bool,
    /// `"parse_error":"…"`: why it could not be unwrapped. `Record::failure` is written where this is none.
    pub failure: Option<&'a str>,
    /// `"time_error":"…"`: why its own time could not be read.
    pub time_failure: Option<&'a str>,
}

impl Flags<'_> {
    fn write(&self, out: &mut Vec<u8>, failure: Option<&str>) {
        if self.incomplete {
            out.extend_from_slice(b",\"incomplete\":true");
        }
        if self.split {
            out.extend_from_slice(b",\"split\":true");
        }
        if self.time_suspect {
            out.extend_from_slice(b",\"time_suspect\":true");
        }
        if let Some(failure) = self.failure.or(failure) {
            out.extend_from_slice(b",\"parse_error\":");
            string(out, failure.as_bytes());
        }
        if let Some(failure) = self.time_failure {
            out.extend_from_slice(b",\"time_error\":");
            string(out, failure.as_bytes());
        }
    }
}

/// Writes a record as its text and `\n`. A line end within a text of several lines stays.
pub fn write_raw(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Writes records as JSON.
#[derive(Debug, Default)]
pub struct Writer {
    time: TimeCache,
    plan: names::Plan,
}

impl Writer {
    /// Appends a record and `\n`. `names` are those that `Name::Own` counts, rendered with the same `tags`.
    pub fn write_record(
        &mut self,
        out: &mut Vec<u8>,
        tags: &Tags,
        names: &Names,
        entry: &Entry<'_>,
    ) {
        let (text, record) = (entry.text, entry.record);
        // As much as a record without escapes needs, at once.
        out.reserve(text.len() + tags.json().len() + 256);
        self.time.write(out, entry.time_ns);
        if record.fields.is_empty() || record.failure.is_some() {
            member(out, MESSAGE.as_bytes());
            string(out, text);
        } else {
            self.write_fields(out, tags, names, text, record);
        }
        match entry.channel {
            Some(Channel::Stdout) => out.extend_from_slice(b",\"stream\":\"stdout\""),
            Some(Channel::Stderr) => out.extend_from_slice(b",\"stream\":\"stderr\""),
            None => {}
        }
        out.extend_from_slice(tags.json());
        entry.flags.write(out, record.failure);
        out.extend_from_slice(b"}\n");
    }

    fn write_fields(
        &mut self,
        out: &mut Vec<u8>,
        tags: &Tags,
        names: &Names,
        text: &[u8],
        record: &Record,
    ) {
        // A text of several lines may have their ends between the tokens of a JSON value.
        let folded = memchr2(b'\n', b'\r', text).is_some();
        let value = |out: &mut Vec<u8>, value| match value {
            Value::Text(from, to) => string(out, range(text, from, to)),
            Value::Scratch(from, to) => string(out, range(&record.scratch, from, to)),
            Value::Json(from, to) | Value::Number(from, to) => {
                write_json(out, range(text, from, to), folded);
            }
            Value::Null => out.extend_from_slice(b"null"),
        };
        if names.are_all(&record.fields) {
            for field in &record.fields {
                if names.write(out, field.name) {
                    value(out, field.value);
                }
            }
            return;
        }
        self.plan.make(tags, names, text, record);
        for planned in self.plan.fields() {
            if let Some(field) = record.fields.get(planned.field as usize) {
                planned.write_name(out, tags, names, text);
                value(out, field.value);
            }
        }
    }
}

/// A range of a text; nothing where it is none.
fn range(text: &[u8], from: u32, to: u32) -> &[u8] {
    text.get(from as usize..to as usize).unwrap_or_default()
}

fn write_json(out: &mut Vec<u8>, value: &[u8], folded: bool) {
    if value.is_empty() {
        out.extend_from_slice(b"null");
    } else if folded {
        // A line end would end the record. In a string it is always escaped, so these stand between tokens.
        out.extend(value.iter().map(|byte| match byte {
            b'\n' | b'\r' => b' ',
            byte => *byte,
        }));
    } else {
        out.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests;
