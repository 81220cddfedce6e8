//! Decode a physical line: unwrap what the runtime wrapped around the workload's text.
//! Place: follow -> **decode** -> parse; a worker calls it once per physical line, on the slice's own bytes.
//! Invariants: allocates nothing; never fails: what it cannot read comes out as it is, marked `raw`.

pub mod charset;
pub mod cri;
pub mod docker_json;
pub mod lines;
pub mod multiline;
pub mod time;

/// What stands around a workload's text in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Envelope {
    /// Nothing: the file is the workload's own.
    Plain,
    /// Docker's json-file: `{"log":"text\n","stream":"stdout","time":"…"}`.
    DockerJson,
    /// The CRI form: `TIME STREAM TAGS TEXT`.
    Cri,
}

/// Which of a container's two outputs a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// Standard output; also every plain file.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One physical line, unwrapped. Ranges are of the line's own bytes, which may have been unescaped in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where the text starts in the line.
    pub start: usize,
    /// Where it ends; line ends (`\n`, `\r\n`) are not part of it.
    pub end: usize,
    /// When the runtime took it, nanoseconds since 1970.
    pub time_ns: Option<i64>,
    /// Which output it was written to.
    pub channel: Channel,
    /// Whether the workload's line ends here (CRI `F`, docker-json text with `\n`).
    pub whole: bool,
    /// The envelope could not be read: the text is the whole line.
    pub raw: bool,
}

/// A line whose envelope could not be read: it is its own text.
fn raw(line: &[u8]) -> Part {
    Part {
        start: 0,
        end: lines::trim(lines::Unit::One, line).len(),
        time_ns: None,
        channel: Channel::Stdout,
        whole: true,
        raw: true,
    }
}
