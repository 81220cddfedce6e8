//! Take Docker's json-file form off: `{"log":"text\n","stream":"stdout","time":"2016-10-06T00:17:09.669794202Z"}`.
//! Place: follow -> **decode** -> parse; a worker calls it once per line, on its private copy of the slice.
//! Invariants: allocates nothing; never fails: what it cannot read comes out as it is, marked `raw`, and then no byte
//! of it has been touched; else the text is unescaped in place, so the line cannot be read a second time.
//! Source: moby `daemon/logger/jsonfilelog/jsonlog`.
//!
//! Docker cuts a workload's line every 16 KiB; only the last part's text ends in `\n`. It writes the keys in the order
//! above, `attrs` between the last two, and leaves out a `log` that is empty. `<`, `>`, `&`, U+2028, U+2029 and
//! control characters are escaped, and a byte that is not UTF-8 has already become U+FFFD.

use memchr::{memchr, memchr2, memrchr};

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
    let start = LOG.len();
    let first = start + memchr2(b'"', b'\\', &line[start..])?;
    let text = |end, escaped| Text {
        start,
        end,
        escaped,
    };
    // Most lines hold no other escape than that of their end; they are seen here, and nothing in them is moved.
    let (mut text, newline, close) = match &line[first..] {
        [b'"', ..] => (text(first, false), false, first),
        [b'\\', b'n', b'"', ..] => (text(first, false), true, first + 2),
        [b'\\', b'r', b'\\', b'n', b'"', ..] => (text(first, false), true, first + 4),
        _ => {
            let close = last_text_quote(line)?;
            // With an escaped backslash in the text, the quotes would have to be counted: not here.
            if close <= first || !quotes_are_escaped(&line[first..close]) {
                return None;
            }
            (text(close, true), false, close)
        }
    };
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
    if newline && line[..text.end].ends_with(b"\r") {
        text.end -= 1; // a bare one, which Docker does not write
    }
    Some(Found {
        text,
        newline,
        channel,
        time_ns: Some(time_ns),
    })
}

/// Where the text's closing quote has to be, going by the end of the line.
fn last_text_quote(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\"}")?;
    let time = memrchr(b'"', line)? + 1;
    time.checked_sub(STDOUT.len() + 1)
}

/// Whether each quote follows a backslash, and no backslash another: then no string ends in it. Written so that the
/// compiler looks at many bytes at once; a search from quote to quote took as long as all the rest.
fn quotes_are_escaped(text: &[u8]) -> bool {
    let after = text.get(1..).unwrap_or_default();
    let wrong = text.iter().zip(after).fold(0, |wrong, (&before, &byte)| {
        let escaped = before == b'\\';
        wrong
            | (u8::from(byte == b'"') & u8::from(!escaped))
            | (u8::from(byte == b'\\') & u8::from(escaped))
    });
    wrong == 0 && text.first() != Some(&b'"') && text.last() != Some(&b'\\')
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
    loop {
        (read, written) = shift_run(text, read, written);
        // What stands at `read` is a backslash, or the end.
        let plain = match text.get(read + 1) {
            Some(&same @ (b'"' | b'\\' | b'/')) => Some(same),
            Some(b'n') => Some(b'\n'),
            Some(b't') => Some(b'\t'),
            Some(b'r') => Some(b'\r'),
            Some(b'b') => Some(0x08),
            Some(b'f') => Some(0x0c),
            Some(b'u') => match unicode(&text[read + 2..]) {
                Some((character, length)) => {
                    let mut utf8 = [0; 4];
                    let utf8 = character.encode_utf8(&mut utf8).as_bytes();
                    text[written..written + utf8.len()].copy_from_slice(utf8);
                    written += utf8.len();
                    read += 2 + length;
                    continue;
                }
                None => None,
            },
            _ if read >= text.len() => return written,
            _ => None,
        };
        // No escape that JSON knows: the backslash stays, and what follows is looked at for itself.
        text[written] = plain.unwrap_or(b'\\');
        written += 1;
        read += if plain.is_some() { 2 } else { 1 };
    }
}

/// Moves what stands before the next backslash from `read` to `written`, and gives both places after it. By words:
/// in JSON inside of JSON escapes stand a few bytes apart, and each call of `memchr` and `memmove` would cost more.
fn shift_run(text: &mut [u8], mut read: usize, mut written: usize) -> (usize, usize) {
    while let Some(&bytes) = text[read..].first_chunk::<8>() {
        let before = first_backslash(u64::from_le_bytes(bytes));
        if before < 8 && written + 8 > read + before {
            // The word would overwrite what has not been read.
            text.copy_within(read..read + before, written);
        } else {
            text[written..written + 8].copy_from_slice(&bytes);
        }
        read += before;
        written += before;
        if before < 8 {
            return (read, written);
        }
    }
    while let Some(&byte) = text.get(read).filter(|byte| **byte != b'\\') {
        text[written] = byte;
        read += 1;
        written += 1;
    }
    (read, written)
}

/// How many of the eight bytes come before the first backslash.
fn first_backslash(word: u64) -> usize {
    const ONES: u64 = u64::MAX / 255;
    let zero_where_found = word ^ (ONES * b'\\' as u64);
    // Sets the top bit of each zero byte, and maybe of bytes after the first of them.
    let found = zero_where_found.wrapping_sub(ONES) & !zero_where_found & (ONES << 7);
    found.trailing_zeros() as usize / 8
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
