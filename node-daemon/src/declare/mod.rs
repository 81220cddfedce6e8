//! Declarations: what a workload asked for, parsed, and what was wrong with it.
//! Place: discover -> **declare** -> follow.
//! Invariant: each declaration stands alone: a bad one is a `Problem` and stops no other.

mod custom;
pub mod key;
mod read;
pub(crate) mod target;

use std::time::Duration;

pub use read::{ALL_STDOUT, MOST_TARGETS, Reading, read, who};

/// One log that a workload, or the configuration, wants collected.
#[derive(Debug, Clone, PartialEq)]
pub struct Declaration {
    /// Its name: `[0-9A-Za-z_-]+`.
    pub name: String,
    /// What is read.
    pub what: What,
    /// Fields added to each record, in the order written.
    pub tags: Vec<(String, String)>,
    /// Index, topic or logstore: `[A-Za-z0-9][A-Za-z0-9._-]{0,199}`, never `..`.
    pub target: String,
    /// How a record's text is read.
    pub format: Format,
    /// Which lines make one record.
    pub multiline: Option<Multiline>,
    /// Only records that match one of these are kept, if any.
    pub include: Vec<String>,
    /// Records that match one of these are dropped, counted as filtered; after `include`.
    pub exclude: Vec<String>,
    /// The text's encoding (a WHATWG label); UTF-8 if none.
    pub encoding: Option<String>,
    /// Longest record in bytes; the daemon's `max_line_bytes` if none.
    pub max_bytes: Option<usize>,
    /// Files not modified for longer than this when first seen are not read.
    pub ignore_older: Option<Duration>,
    /// Where files that exist at the first start on a fresh `data_dir` are begun.
    pub start_at: Option<StartAt>,
    /// The outputs it goes to; all if empty.
    pub outputs: Vec<String>,
}

impl Declaration {
    /// One that says no more than its name, which is also its target, and what it reads.
    pub fn new(name: &str, what: What) -> Self {
        Self {
            name: name.to_owned(),
            what,
            tags: Vec::new(),
            target: name.to_owned(),
            format: Format::None,
            multiline: None,
            include: Vec::new(),
            exclude: Vec::new(),
            encoding: None,
            max_bytes: None,
            ignore_older: None,
            start_at: None,
            outputs: Vec::new(),
        }
    }

    /// Its target at an output of this type: a tag named `index` wins for Elasticsearch, one named `topic` for Kafka
    /// and Redis.
    pub fn target_for(&self, output_kind: &str) -> &str {
        let tag = match output_kind {
            "elasticsearch" => self.tag("index"),
            "kafka" | "redis" => self.tag("topic"),
            _ => None,
        };
        tag.unwrap_or(&self.target)
    }

    /// What a tag says.
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.tags
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Sets a tag; one of that name keeps its place and gets the new value.
fn put_tag(tags: &mut Vec<(String, String)>, key: &str, value: String) {
    match tags.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => tags.push((key.to_owned(), value)),
    }
}

/// What a declaration reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The container's stdout and stderr.
    Stdout,
    /// An absolute path in the container (or on the host, for a static source); globs in names and directories.
    Files(String),
}

/// Where a file that is already there at the very first start is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// At its first byte.
    Beginning,
    /// At its end.
    End,
    /// At its first byte if it was modified within this age, else at its end.
    Age(Duration),
}

/// How a record's text is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Format {
    /// As it is, into `message`.
    #[default]
    None,
    /// A JSON object: its members become fields.
    Json(TimeKey),
    /// Comma separated; `keys` names the columns.
    Csv {
        /// Column names, in order.
        keys: Vec<String>,
        /// Where its time is.
        time: TimeKey,
    },
    /// nginx's and Apache's combined log format.
    Nginx,
    /// Apache's access log, common or combined.
    Apache2,
    /// Apache's error log.
    ApacheError,
    /// A regular expression with named groups, as written (Onigmo syntax, maybe in `/…/`).
    Regexp {
        /// The pattern.
        pattern: String,
        /// Where its time is; key `time` unless given.
        time: TimeKey,
    },
}

/// Where and how a record says its own time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimeKey {
    /// The field that holds it.
    pub key: Option<String>,
    /// strptime syntax plus `%L`, `%N`, `%3N`; RFC 3339 and epoch numbers are tried if none.
    pub format: Option<String>,
    /// IANA name or offset for times without one; the daemon's `time_zone` if none.
    pub zone: Option<String>,
}

/// Which lines make one record (Filebeat's `multiline.*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multiline {
    /// A regular expression.
    pub pattern: String,
    /// Whether a line matches when the pattern does not.
    pub negate: bool,
    /// Whether matching lines follow the line before them, or precede the one after.
    pub place: Place,
    /// Most lines of a record; further lines are kept in the next record, flagged. Default 500.
    pub max_lines: usize,
    /// A group that has not grown for this long at the end of its file is closed. Default 5 s.
    pub timeout: Duration,
}

impl Multiline {
    /// Most lines of a record unless told otherwise.
    pub const MAX_LINES: usize = 500;
    /// How long a group may rest at the end of its file unless told otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(5);
}

/// Where lines that match belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// To the line before them.
    After,
    /// To the line after them.
    Before,
}

#[cfg(test)]
mod tests;
