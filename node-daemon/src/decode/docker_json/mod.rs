//! Take Docker's json-file form off: `{"log":"text\n","stream":"stdout","time":"2016-10-06T00:17:09.669794202Z"}`.
//! Place: follow -> **decode** -> parse; a worker calls it once per line, on its private copy of the slice.
//! Invariants: allocates nothing; never fails: what it cannot read comes out as it is, marked `raw`, and then no byte
//! of it has been touched; else the text is unescaped in place, so the line cannot be read a second time.
//! Source: moby `daemon/logger/jsonfilelog/jsonlog`.
//!
//! Docker cuts a workload's line every 16 KiB; only the last part's text ends in `\n`. It writes the keys in the order
//! above, `attrs` between the last two, and leaves out a `log` that is empty. `<`, `>`, `&`, U+2028, U+2029 and
//! control characters are escaped, and a byte that is not UTF-8 has already become U+FFFD.

use memchr::{memchr, memchr2};

use super::lines::{self, Unit};
use super::{Channel, Part, raw, time};

/// Unwraps a line, given with or without its line end.
///
/// An escape that JSON does not know stays as it is written, and half a surrogate pair becomes U+FFFD. Other keys are
/// skipped; a key that stands twice counts once, the last time.
pub fn decode(line: &mut [u8]) -> Part {
    let Some(found) = usual(line).or_else(|| any_order(line)) else {
        return raw(line);
    };
    let Text {
        start,
        mut end,
        escaped,
    } = found.text;
    if escaped {
        end = start + unescape(&mut line[start..end]);
    }
    let text = &line[start..end];
    let whole = text.last() == Some(&b'\n');
    if whole {
        // In a part that goes on, a `\r` at the end is the workload's own.
        end = start + lines::trim(Unit::One, text).len();
    }
    Part {
        start,
        end,
        time_ns: found.time_ns,
        channel: found.channel,
        whole: whole || found.newline,
        raw: false,
    }
}

/// The inside of a JSON string.
#[derive(Clone, Copy, Default)]
struct Text {
    start: usize,
    end: usize,
    /// Whether it holds a backslash.
    escaped: bool,
}

struct Found {
    text: Text,
    /// The text ended in an escaped `\n` that `text` no longer covers.
    newline: bool,
    channel: Channel,
    time_ns: Option<i64>,
}

const LOG: &[u8] = br#"{"log":""#;
const STDOUT: &[u8; 27] = br#","stream":"stdout","time":""#;
const STDERR: &[u8; 27] = br#","stream":"stderr","time":""#;

/// The line as Docker writes it, without attributes; `None` sends it to `any_order`.
fn usual(line: &[u8]) -> Option<Found> {
    if !line.starts_with(LOG) {
        return None;
    }
    let (mut text, newline, close) = log_text(line, LOG.len())?;
    let (head, rest) = line[close + 1..].split_first_chunk::<27>()?;
    let channel = match head {
        STDOUT => Channel::Stdout,
        STDERR => Channel::Stderr,
        _ => return None,
    };
    let (time_ns, length) = time::rfc3339_prefix(rest)?;
    if !matches!(&rest[length..], b"\"}" | b"\"}\n" | b"\"}\r\n") {
        return None;
    }
    if newline && !text.escaped && line[..text.end].ends_with(b"\r") {
        text.end -= 1; // a bare one, which Docker does not write
    }
    Some(Found {
        text,
        newline,
        channel,
        time_ns: Some(time_ns),
    })
}

/// The string that begins at `start`, whether an ending `\n` was taken off it, and where its closing quote is.
/// Most lines hold no other escape than that one; they are seen here and never unescaped.
fn log_text(line: &[u8], start: usize) -> Option<(Text, bool, usize)> {
    let first = start + memchr2(b'"', b'\\', line.get(start..)?)?;
    let text = |end, escaped| Text {
        start,
        end,
        escaped,
    };
    match &line[first..] {
        [b'"', ..] => Some((text(first, false), false, first)),
        [b'\\', b'n', b'"', ..] => Some((text(first, false), true, first + 2)),
        [b'\\', b'r', b'\\', b'n', b'"', ..] => Some((text(first, false), true, first + 4)),
        _ => {
            let close = closing_quote(line, first)?;
            Some((text(close, true), false, close))
        }
    }
}

/// Where the string ends that `from` is inside of, not behind a backslash.
fn closing_quote(line: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let quote = at + memchr(b'"', line.get(at..)?)?;
        let before = line[from..quote].iter().rev();
        if before.take_while(|byte| **byte == b'\\').count() % 2 == 0 {
            return Some(quote);
        }
        at = quote + 1;
    }
}

/// The same object in any other spelling: order, spaces, further keys.
fn any_order(line: &[u8]) -> Option<Found> {
    let mut json = Json { line, at: 0 };
    let mut text = None;
    let (mut channel, mut stream_seen) = (Channel::Stdout, false);
    let (mut time_ns, mut time_seen) = (None, false);
    // A file system that lost power may leave zeros before the first line after it.
    json.skip(|byte| byte == 0);
    json.expect(b'{')?;
    if !json.has(b'}') {
        loop {
            let key = json.string()?;
            json.expect(b':')?;
            match &line[key.start..key.end] {
                b"log" => text = Some(json.string()?),
                b"stream" => {
                    let value = json.string()?;
                    stream_seen = true;
                    channel = match &line[value.start..value.end] {
                        b"stderr" => Channel::Stderr,
                        _ => Channel::Stdout,
                    };
                }
                b"time" => {
                    let value = json.string()?;
                    time_seen = true;
                    time_ns = time::rfc3339(&line[value.start..value.end]);
                }
                _ => json.value()?,
            }
            if !json.has(b',') {
                break;
            }
        }
        json.expect(b'}')?;
    }
    json.skip(|byte| byte.is_ascii_whitespace());
    if json.at < line.len() {
        return None;
    }
    let text = match text {
        Some(text) => text,
        // An empty one is not written; anything else without a text is somebody else's object.
        None if stream_seen && time_seen => Text::default(),
        None => return None,
    };
    Some(Found {
        text,
        newline: false,
        channel,
        time_ns,
    })
}

/// A place in a line of JSON.
struct Json<'a> {
    line: &'a [u8],
    at: usize,
}

impl Json<'_> {
    fn skip(&mut self, which: impl Fn(u8) -> bool) {
        while self.line.get(self.at).is_some_and(|&byte| which(byte)) {
            self.at += 1;
        }
    }

    /// Takes the byte if it is the next that is no space.
    fn has(&mut self, byte: u8) -> bool {
        self.skip(|byte| byte.is_ascii_whitespace());
        let found = self.line.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.has(byte).then_some(())
    }

    fn string(&mut self) -> Option<Text> {
        self.expect(b'"')?;
        let start = self.at;
        let first = start + memchr2(b'"', b'\\', &self.line[start..])?;
        let escaped = self.line[first] == b'\\';
        let end = if escaped {
            closing_quote(self.line, first)?
        } else {
            first
        };
        self.at = end + 1;
        Some(Text {
            start,
            end,
            escaped,
        })
    }

    /// Skips a value of any kind; what is inside of it is not judged further than to find its end.
    fn value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            self.skip(|byte| {
                byte.is_ascii_whitespace() || (depth > 0 && matches!(byte, b',' | b':'))
            });
            match *self.line.get(self.at)? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                _ => {
                    let start = self.at;
                    self.skip(|byte| {
                        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
                    });
                    if self.at == start {
                        return None;
                    }
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

/// Unescapes a JSON string in place and gives its new length, which is never longer.
fn unescape(text: &mut [u8]) -> usize {
    let (mut read, mut written) = (0, 0);
    while read < text.len() {
        let run = run(&text[read..]);
        if run > 0 {
            text.copy_within(read..read + run, written);
            read += run;
            written += run;
            continue;
        }
        // `text[read]` is a backslash.
        let plain = match text.get(read + 1) {
            Some(&same @ (b'"' | b'\\' | b'/')) => same,
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'u') => {
                if let Some((character, length)) = unicode(&text[read + 2..]) {
                    let mut utf8 = [0; 4];
                    let utf8 = character.encode_utf8(&mut utf8).as_bytes();
                    text[written..written + utf8.len()].copy_from_slice(utf8);
                    written += utf8.len();
                    read += 2 + length;
                    continue;
                }
                text[written] = b'\\';
                written += 1;
                read += 1;
                continue;
            }
            _ => {
                text[written] = b'\\';
                written += 1;
                read += 1;
                continue;
            }
        };
        text[written] = plain;
        written += 1;
        read += 2;
    }
    written
}

/// How many bytes come before the next backslash. Escapes stand close together where they are many (JSON inside of
/// JSON): there a search that starts up costs more than a look at the bytes.
fn run(text: &[u8]) -> usize {
    let near = text.len().min(16);
    match text[..near].iter().position(|&byte| byte == b'\\') {
        Some(at) => at,
        None => near + memchr(b'\\', &text[near..]).unwrap_or(text.len() - near),
    }
}

/// The character of four hex digits after `\u`, and how many bytes it takes with the second half of a pair.
fn unicode(text: &[u8]) -> Option<(char, usize)> {
    let first = hex(text)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, 4));
    }
    let second = match text.get(4..6) {
        Some(br"\u") if first < 0xdc00 => {
            hex(&text[6..]).filter(|half| (0xdc00..0xe000).contains(half))
        }
        _ => None,
    };
    Some(match second {
        Some(second) => {
            let value = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            (
                char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER),
                10,
            )
        }
        None => (char::REPLACEMENT_CHARACTER, 4),
    })
}

fn hex(text: &[u8]) -> Option<u32> {
    text.first_chunk::<4>()?.iter().try_fold(0, |value, &byte| {
        Some(value << 4 | char::from(byte).to_digit(16)?)
    })
}

#[cfg(test)]
mod tests;
