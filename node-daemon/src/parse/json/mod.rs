//! Read one JSON object: its members become fields, whose values are copied as they are.
//! Place: one of `parse`'s formats.
//! Invariants: one pass and no recursion; every range that comes out is valid JSON and valid UTF-8, so that copying
//! it into a larger object gives one. Accepts what serde_json accepts as an object, at most 127 deep, and also
//! numbers beyond an f64 (`1e999`), which are only copied, and a byte order mark before the object.
//! A key that is repeated keeps its first place and its last value. Source: RFC 8259.

use memchr::memchr;

use super::{Field, Record, TIME, TimeField, Value, mark_length};
use crate::declare::TimeKey;

mod keys;

pub(super) use keys::Key;
use keys::{Keys, hex, merge_repeated, name_of, unescaped};

/// Objects and arrays in each other within the outermost object: serde_json's limit.
const MOST_NESTED: u32 = 126;
/// The longest time that is written with escapes.
const LONGEST_TIME: usize = 64;

const INVALID: &str = "json: not valid";
const CUT_SHORT: &str = "json: ends before the object does";

/// Reads objects.
#[derive(Debug)]
pub(super) struct Members {
    time: Option<TimeField<String>>,
}

impl Members {
    pub(super) fn new(time: &TimeKey, default_zone: &str) -> Result<Self, String> {
        let declared = time.format.is_some() || time.zone.is_some();
        let key = time.key.as_deref().or(declared.then_some(TIME));
        let time = key.map(|key| TimeField::new(key.to_owned(), time, default_zone));
        Ok(Self {
            time: time.transpose()?,
        })
    }

    pub(super) fn parse(
        &self,
        text: &[u8],
        now_ns: i64,
        record: &mut Record,
    ) -> Result<(), &'static str> {
        let mut keys = Keys::default();
        let mut scan = Scan {
            text,
            at: mark_length(text),
            bytes: 0,
        };
        scan.blank();
        if scan.next() != Some(b'{') {
            return Err("json: not an object");
        }
        scan.blank();
        if scan.peek() == Some(b'}') {
            scan.at += 1;
        } else {
            loop {
                let name = scan.key()?;
                let start = scan.at;
                scan.value()?;
                keys.put(text, name, (start, scan.at), record);
                scan.blank();
                match scan.next() {
                    Some(b',') => scan.blank(),
                    Some(b'}') => break,
                    Some(_) => return Err(INVALID),
                    None => return Err(CUT_SHORT),
                }
            }
        }
        scan.blank();
        if scan.at != text.len() {
            return Err("json: text after the object");
        }
        // Outside strings every byte is ASCII, and strings are looked at eight bytes at a time anyway.
        if scan.bytes & EACH_HIGH_BIT != 0 && std::str::from_utf8(text).is_err() {
            return Err("json: not UTF-8");
        }
        if keys.must_sort {
            merge_repeated(text, record);
        }
        if let Some(time) = &self.time {
            read_time(time, text, now_ns, record);
        }
        Ok(())
    }
}

/// A JSON text that is read from left to right.
struct Scan<'text> {
    text: &'text [u8],
    at: usize,
    /// All bytes of strings so far, or-ed.
    bytes: u64,
}

const EACH: u64 = 0x0101_0101_0101_0101;
const EACH_HIGH_BIT: u64 = 0x80 * EACH;

/// Marks by their high bit the bytes of a word that end a string's plain stretch: quotes, backslashes and control
/// characters. Only the lowest mark is exact, for a borrow may run on from it.
fn special(word: u64) -> u64 {
    let zero = |word: u64| word.wrapping_sub(EACH) & !word;
    let quote = zero(word ^ (u64::from(b'"') * EACH));
    let backslash = zero(word ^ (u64::from(b'\\') * EACH));
    let control = word.wrapping_sub(0x20 * EACH) & !word;
    (quote | backslash | control) & EACH_HIGH_BIT
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn blank(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// What is wrong at a place where something else should stand.
    fn wrong(&self) -> &'static str {
        if self.at >= self.text.len() {
            CUT_SHORT
        } else {
            INVALID
        }
    }

    /// A key and its colon, up to the first byte of its value; the range of its inside.
    fn key(&mut self) -> Result<(usize, usize), &'static str> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong());
        }
        self.at += 1;
        let start = self.at;
        self.string()?;
        let end = self.at - 1;
        self.blank();
        if self.peek() != Some(b':') {
            return Err(self.wrong());
        }
        self.at += 1;
        self.blank();
        Ok((start, end))
    }

    /// A string from behind its first quote to behind its last.
    fn string(&mut self) -> Result<(), &'static str> {
        loop {
            let byte = loop {
                let Some(rest) = self.text.get(self.at..) else {
                    return Err(CUT_SHORT);
                };
                if let Some(chunk) = rest.first_chunk() {
                    let word = u64::from_le_bytes(*chunk);
                    self.bytes |= word;
                    let marks = special(word);
                    if marks == 0 {
                        self.at += 8;
                        continue;
                    }
                    let length = marks.trailing_zeros() as usize / 8;
                    self.at += length + 1;
                    break chunk[length];
                }
                let Some(&byte) = rest.first() else {
                    return Err(CUT_SHORT);
                };
                self.bytes |= u64::from(byte);
                self.at += 1;
                if byte < 0x20 || matches!(byte, b'"' | b'\\') {
                    break byte;
                }
            };
            match byte {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                _ => return Err("json: a control character in a string"),
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<(), &'static str> {
        match self.next() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(()),
            Some(b'u') => {
                // Half a surrogate pair is no character; many readers refuse the whole text for it.
                match self.hex()? {
                    0xDC00..=0xDFFF => Err(LONE),
                    0xD800..=0xDBFF => {
                        if self.next() != Some(b'\\') || self.next() != Some(b'u') {
                            return Err(LONE);
                        }
                        match self.hex()? {
                            0xDC00..=0xDFFF => Ok(()),
                            _ => Err(LONE),
                        }
                    }
                    _ => Ok(()),
                }
            }
            Some(_) => Err(INVALID),
            None => Err(CUT_SHORT),
        }
    }

    fn hex(&mut self) -> Result<u32, &'static str> {
        let digits = self.text.get(self.at..).and_then(|rest| rest.first_chunk());
        let number = hex(*digits.ok_or(CUT_SHORT)?).ok_or(INVALID)?;
        self.at += 4;
        Ok(number)
    }

    /// Any value.
    fn value(&mut self) -> Result<(), &'static str> {
        match self.peek() {
            Some(b'{' | b'[') => self.nested(),
            _ => self.scalar(),
        }
    }

    /// A value that holds no other.
    fn scalar(&mut self) -> Result<(), &'static str> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.string()
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => Err(self.wrong()),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), &'static str> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        let cut = word.starts_with(&self.text[self.at..]);
        Err(if cut { CUT_SHORT } else { INVALID })
    }

    fn number(&mut self) -> Result<(), &'static str> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), &'static str> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.wrong());
        }
        Ok(())
    }

    /// An object or array with all it holds.
    fn nested(&mut self) -> Result<(), &'static str> {
        // What is open, the innermost in the lowest bit; a one is an object.
        let mut objects = 0u128;
        let mut depth = 0;
        loop {
            // Here a value starts.
            match self.peek() {
                Some(opening @ (b'{' | b'[')) => {
                    depth += 1;
                    if depth > MOST_NESTED {
                        return Err("json: nested too deep");
                    }
                    let object = opening == b'{';
                    objects = (objects << 1) | u128::from(object);
                    self.at += 1;
                    self.blank();
                    if self.peek() == Some(if object { b'}' } else { b']' }) {
                        self.at += 1;
                        depth -= 1;
                        objects >>= 1;
                    } else {
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // Here a value has ended.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                self.blank();
                let object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.blank();
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    _ => return Err(self.wrong()),
                }
                self.at += 1;
                depth -= 1;
                objects >>= 1;
            }
        }
    }
}

const LONE: &str = "json: half a surrogate pair";

/// Takes the record's time from the member that holds it: a string or a number.
fn read_time(time: &TimeField<String>, text: &[u8], now_ns: i64, record: &mut Record) {
    let wanted = time.which.as_bytes();
    let is_it = |field: &&Field| {
        let key = name_of(text, field);
        key == wanted
            || (key.len() > wanted.len()
                && memchr(b'\\', key).is_some()
                && unescaped(key).eq(wanted.iter().copied()))
    };
    let Some(Value::Json(start, end)) = record.fields.iter().find(is_it).map(|field| field.value)
    else {
        return;
    };
    match &text[start as usize..end as usize] {
        [b'"', inside @ .., b'"'] if memchr(b'\\', inside).is_none() => {
            time.read(inside, now_ns, record);
        }
        [b'"', inside @ .., b'"'] => {
            // PHP writes `01\/Jan\/2024`.
            let mut plain = [0; LONGEST_TIME];
            let mut length = 0;
            for byte in unescaped(inside) {
                if let Some(place) = plain.get_mut(length) {
                    *place = byte;
                }
                length += 1;
            }
            time.read(plain.get(..length).unwrap_or_default(), now_ns, record);
        }
        number @ [b'-' | b'0'..=b'9', ..] => {
            time.read(number, now_ns, record);
        }
        b"null" => {}
        _ => record.time_failure = Some("time: neither text nor a number"),
    }
}

#[cfg(test)]
mod tests;
