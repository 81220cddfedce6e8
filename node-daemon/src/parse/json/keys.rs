//! Find the keys of an object that are repeated, and what keys mean.
//! Place: `json` puts each member here.
//! Invariants: equal keys are found whatever their escapes; the cost never grows with the square of the keys.

use std::cmp::Ordering;

use memchr::memchr;
use xxhash_rust::xxh3::xxh3_64;

use crate::parse::{Field, Name, Record, Value, span};

/// Up to so many keys each is compared with those before it; more are sorted.
const FEW_KEYS: usize = 64;

/// The keys so far.
#[derive(Default)]
pub(super) struct Keys {
    /// A bit for each key that was put, by its length and some of its bytes.
    seen: u64,
    /// Repeated keys cannot be found one by one: there are many, or they have escapes.
    pub(super) must_sort: bool,
}

impl Keys {
    /// Adds a field, or gives its value to the one of this name.
    pub(super) fn put(
        &mut self,
        text: &[u8],
        name: (usize, usize),
        value: (usize, usize),
        record: &mut Record,
    ) {
        let key = &text[name.0..name.1];
        let value = span(value.0, value.1);
        let value = Value::Json(value.0, value.1);
        if !self.must_sort {
            self.must_sort = record.fields.len() == FEW_KEYS || memchr(b'\\', key).is_some();
        }
        if !self.must_sort {
            let bit = 1 << bit_of(key);
            if self.seen & bit != 0 {
                let same = |field: &&mut Field| name_of(text, field) == key;
                if let Some(field) = record.fields.iter_mut().find(same) {
                    field.value = value;
                    return;
                }
            }
            self.seen |= bit;
        }
        let name = span(name.0, name.1);
        let name = Name::Json(name.0, name.1);
        record.fields.push(Field { name, value });
    }
}

/// A number below 64 that equal keys share and others mostly do not.
fn bit_of(key: &[u8]) -> u32 {
    let (Some(first), Some(last)) = (key.first(), key.last()) else {
        return 0;
    };
    let middle = key[key.len() / 2];
    let mixed = u32::from(*first)
        | (u32::from(*last) << 8)
        | (u32::from(middle) << 16)
        | ((key.len() as u32) << 24);
    mixed.wrapping_mul(0x9E37_79B1) >> 26
}

pub(super) fn name_of<'text>(text: &'text [u8], field: &Field) -> &'text [u8] {
    match field.name {
        Name::Json(start, end) => &text[start as usize..end as usize],
        Name::Own(_) => &[],
    }
}

/// A key of many.
#[derive(Debug)]
pub(in crate::parse) struct Key {
    /// Of what the key means, so that most comparisons are of numbers.
    hash: u64,
    /// Which field it names.
    field: u32,
    /// Which field's value is the last of this name, in the first field of this name; in others `REPEATED`.
    value_of: u32,
}

/// A field that is not the first of its name.
const REPEATED: u32 = u32::MAX;

/// Gives the first field of each name its last value and removes the others. By sorting, because somebody may write
/// 100,000 keys, and with the keys themselves where hashes are equal, because hashes can be made equal.
pub(super) fn merge_repeated(text: &[u8], record: &mut Record) {
    let Record {
        fields,
        scratch,
        work,
        ..
    } = record;
    let keys = &mut work.keys;
    for (n, field) in fields.iter().enumerate() {
        let key = name_of(text, field);
        let hash = if memchr(b'\\', key).is_none() {
            xxh3_64(key)
        } else {
            scratch.clear();
            scratch.extend(unescaped(key));
            xxh3_64(scratch)
        };
        // As many as the text has bytes at most.
        let field = n as u32;
        let value_of = field;
        keys.push(Key {
            hash,
            field,
            value_of,
        });
    }
    scratch.clear();
    let compare_names = |a: &Key, b: &Key| {
        let of = |key: &Key| name_of(text, &fields[key.field as usize]);
        a.hash.cmp(&b.hash).then_with(|| compare_keys(of(a), of(b)))
    };
    keys.sort_unstable_by(|a, b| compare_names(a, b).then(a.field.cmp(&b.field)));
    let mut repeated = false;
    for same in keys.chunk_by_mut(|a, b| compare_names(a, b) == Ordering::Equal) {
        repeated |= same.len() > 1;
        let last = same.last().map_or(REPEATED, |key| key.field);
        for (n, key) in same.iter_mut().enumerate() {
            key.value_of = if n == 0 { last } else { REPEATED };
        }
    }
    if !repeated {
        return;
    }
    // A value is taken from a field that is about to go, or from the field itself: none is overwritten before.
    for key in keys.iter() {
        if key.value_of == REPEATED {
            // No JSON field has such a name.
            fields[key.field as usize].name = Name::Own(0);
        } else {
            fields[key.field as usize].value = fields[key.value_of as usize].value;
        }
    }
    fields.retain(|field| matches!(field.name, Name::Json(..)));
}

/// Compares what two keys mean.
fn compare_keys(a: &[u8], b: &[u8]) -> Ordering {
    if memchr(b'\\', a).is_none() && memchr(b'\\', b).is_none() {
        a.cmp(b)
    } else {
        unescaped(a).cmp(unescaped(b))
    }
}

/// The bytes that the inside of a valid JSON string means.
pub(super) fn unescaped(inside: &[u8]) -> Unescaped<'_> {
    Unescaped {
        rest: inside,
        character: [0; 4],
        pending: 0..0,
    }
}

pub(super) struct Unescaped<'text> {
    rest: &'text [u8],
    /// The character of an escape, as UTF-8.
    character: [u8; 4],
    /// What of it is still to come.
    pending: std::ops::Range<usize>,
}

impl Iterator for Unescaped<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if let Some(n) = self.pending.next() {
            return self.character.get(n).copied();
        }
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        if byte != b'\\' {
            return Some(byte);
        }
        let (&letter, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(match letter {
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut unit = || {
                    let number = hex(*self.rest.first_chunk()?)?;
                    self.rest = &self.rest[4..];
                    Some(number)
                };
                let mut number = unit()?;
                if let 0xD800..=0xDBFF = number {
                    self.rest = self.rest.get(2..)?;
                    let low = hex(*self.rest.first_chunk()?)?;
                    self.rest = &self.rest[4..];
                    number = 0x1_0000 + ((number - 0xD800) << 10) + low.checked_sub(0xDC00)?;
                }
                let length = char::from_u32(number)?
                    .encode_utf8(&mut self.character)
                    .len();
                self.pending = 1..length;
                self.character[0]
            }
            itself => itself,
        })
    }
}

/// The number of four hexadecimal digits.
pub(super) fn hex(digits: [u8; 4]) -> Option<u32> {
    let mut number = 0;
    for digit in digits {
        number = number * 16 + char::from(digit).to_digit(16)?;
    }
    Some(number)
}
