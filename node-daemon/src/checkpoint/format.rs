//! The checkpoint on disk: what its lines look like, and how they are read from a file that may be damaged.
//! Place: within **checkpoint**; `journal` writes and reads by it.
//!
//! A segment `checkpoint-N.log` is text, one entry a line: `CRC32C-IN-HEX JSON\n`, the sum over the JSON. The first
//! line names the format and the node; then comes everything that was known when the segment was begun, up to the
//! line `"Whole"`; then what was appended. A line `"Durable"` says that everything before it had been synced when it
//! was written. So what is wrong can be told apart:
//! - after the last `Durable` of a former boot, the first bad line ends what the power loss left: **torn**, expected,
//!   and nothing behind it counts, for the disk may have kept later pages and lost earlier ones;
//! - in the same boot nothing written can be missing, so only the very last line may lack its end: **torn**;
//! - anything else, or a segment without `Whole`, is **damage**: what is good still counts, but the file output
//!   cannot rely on having been told everything.

use std::io;

use ringpilot_shared::host::OwnFile;
use serde::{Deserialize, Serialize};

use super::Entry;
use super::live::Live;

/// The format this release writes. It reads 1 only, there being no older one.
pub(super) const FORMAT: u32 = 1;
/// A longer line is nothing that was ever written.
const LONGEST_LINE: usize = 64 << 20;
const READ_BYTES: usize = 256 << 10;
const WHOLE: &[u8] = b"\"Whole\"";
const DURABLE: &[u8] = b"\"Durable\"";
const HEADER_STARTS: &[u8] = b"{\"format\":";

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Comes first, so that any release knows it is no entry.
    pub format: u32,
    #[serde(default)]
    pub node: String,
}

fn hex(sum: u32) -> [u8; 8] {
    let mut digits = [0; 8];
    for (place, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(sum >> (28 - 4 * place)) as usize & 15];
    }
    digits
}

/// Appends one line.
fn line(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(b"00000000 ");
    let text = out.len();
    if let Err(error) = write(out) {
        out.truncate(start);
        return Err(error);
    }
    let sum = hex(crc32c::crc32c(&out[text..]));
    out[start..start + 8].copy_from_slice(&sum);
    out.push(b'\n');
    Ok(())
}

/// Appends an entry's line.
pub(super) fn write_entry(out: &mut Vec<u8>, entry: &Entry) -> io::Result<()> {
    line(out, |out| Ok(serde_json::to_writer(out, entry)?))
}

/// Appends a segment's first line.
pub(super) fn write_header(out: &mut Vec<u8>, node: &str) -> io::Result<()> {
    let header = Header {
        format: FORMAT,
        node: node.to_owned(),
    };
    line(out, |out| Ok(serde_json::to_writer(out, &header)?))
}

/// Appends the line that ends what was known at the segment's beginning.
pub(super) fn write_whole(out: &mut Vec<u8>) -> io::Result<()> {
    line(out, |out| {
        out.extend_from_slice(WHOLE);
        Ok(())
    })
}

/// Appends the line that says: everything before is durable.
pub(super) fn write_durable(out: &mut Vec<u8>) -> io::Result<()> {
    line(out, |out| {
        out.extend_from_slice(DURABLE);
        Ok(())
    })
}

/// What one line is.
#[derive(Debug)]
enum Piece {
    Header(Header),
    Whole,
    Durable,
    Entry(Box<Entry>),
    /// Its sum is right, but this release knows no such entry.
    Unknown,
    Bad,
}

fn piece(line: &[u8]) -> Piece {
    let Some((sum, text)) = line.split_at_checked(9) else {
        return Piece::Bad;
    };
    if sum[..8] != hex(crc32c::crc32c(text)) || sum[8] != b' ' {
        return Piece::Bad;
    }
    match text {
        WHOLE => Piece::Whole,
        DURABLE => Piece::Durable,
        _ if text.starts_with(HEADER_STARTS) => match serde_json::from_slice(text) {
            Ok(header) => Piece::Header(header),
            Err(_) => Piece::Unknown,
        },
        _ => match serde_json::from_slice(text) {
            Ok(entry) => Piece::Entry(Box::new(entry)),
            Err(_) => Piece::Unknown,
        },
    }
}

/// What a segment turned out to be.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Its first line, if that is good.
    pub header: Option<Header>,
    /// Bad lines, and stretches without any line end.
    pub bad: usize,
    /// Good lines of a kind that this release does not know.
    pub unknown: usize,
    /// Where reading it ended early, and why.
    pub unread: Option<(u64, io::Error)>,
    /// The tail was cut, as a crash does.
    pub torn: bool,
    /// Something is missing that no crash takes away.
    pub damaged: bool,
}

impl Found {
    /// Whether a later release wrote it.
    pub(super) fn newer(&self) -> Option<u32> {
        let format = self.header.as_ref()?.format;
        (format > FORMAT).then_some(format)
    }
}

/// Reads a segment into `live`: every entry that counts, in order. `boot` is this boot.
pub(super) fn read(file: &dyn OwnFile, live: &mut Live, boot: u128) -> Found {
    let mut found = Found::default();
    let (mut whole, mut first) = (false, true);
    // Entries behind a bad line whose meaning is not yet known: torn, or damaged.
    let mut behind: Vec<Entry> = Vec::new();
    let mut bad_since_durable = false;
    let mut bad_with_end = false;
    let mut lines = Lines::new(file);
    loop {
        let next = match lines.next() {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(error) => {
                found.unread = Some((lines.read, error));
                found.damaged = true;
                break;
            }
        };
        // A line without its end is cut, even where the sum is right by chance.
        let ended = next.ended;
        let piece = if ended { piece(next.text) } else { Piece::Bad };
        match piece {
            Piece::Header(header) if first => found.header = Some(header),
            Piece::Header(_) | Piece::Unknown => found.unknown += 1,
            Piece::Whole | Piece::Durable => {
                whole |= matches!(piece, Piece::Whole);
                if bad_since_durable {
                    found.damaged = true;
                    bad_since_durable = false;
                    behind.drain(..).for_each(|entry| live.apply(entry));
                }
            }
            Piece::Entry(read) if bad_since_durable => behind.push(*read),
            Piece::Entry(read) => live.apply(*read),
            Piece::Bad => {
                found.bad += 1;
                bad_since_durable = true;
                bad_with_end |= ended;
            }
        }
        first = false;
    }
    // A segment gets its name when its first part is whole and synced.
    found.damaged |= found.header.is_none() || !whole;
    if bad_since_durable {
        let same_boot = live.boot == Some(boot);
        if found.damaged || (same_boot && bad_with_end) {
            found.damaged = true;
            behind.drain(..).for_each(|entry| live.apply(entry));
        } else {
            found.torn = true;
        }
    }
    found
}

/// A line, without its end.
struct Line<'buffer> {
    text: &'buffer [u8],
    ended: bool,
}

/// Goes through a file line by line.
struct Lines<'file> {
    file: &'file dyn OwnFile,
    buffer: Vec<u8>,
    /// Where in the buffer the next line begins.
    next: usize,
    /// Bytes read so far.
    read: u64,
    end: bool,
}

impl<'file> Lines<'file> {
    fn new(file: &'file dyn OwnFile) -> Self {
        Self {
            file,
            buffer: Vec::new(),
            next: 0,
            read: 0,
            end: false,
        }
    }

    fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        let mut searched = self.next;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[searched..]) {
                let (from, to) = (self.next, searched + at);
                self.next = to + 1;
                return Ok(Some(Line {
                    text: &self.buffer[from..to],
                    ended: true,
                }));
            }
            if self.end {
                let from = std::mem::replace(&mut self.next, self.buffer.len());
                let text = &self.buffer[from..];
                return Ok((!text.is_empty()).then_some(Line { text, ended: false }));
            }
            self.buffer.drain(..self.next);
            self.next = 0;
            if self.buffer.len() > LONGEST_LINE {
                // Only its being bad matters from here on.
                self.buffer.truncate(1);
            }
            searched = self.buffer.len();
            self.fill()?;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let have = self.buffer.len();
        self.buffer.resize(have + READ_BYTES, 0);
        let got = loop {
            match self.file.read_at(&mut self.buffer[have..], self.read) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer
            .truncate(have + got.as_ref().map_or(0, |got| *got));
        let got = got?;
        self.read += got as u64;
        self.end = got == 0;
        Ok(())
    }
}

/// A path of any bytes: as text where it is text, else as a list of its bytes. JSON knows only text, and a container
/// may name its files as it likes.
pub(super) mod any_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        path: &Path,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => text.serialize(serializer),
            None => path.as_os_str().as_bytes().serialize(serializer),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PathBuf, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum AnyPath {
            Text(PathBuf),
            Bytes(Vec<u8>),
        }
        Ok(match AnyPath::deserialize(deserializer)? {
            AnyPath::Text(path) => path,
            AnyPath::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}
