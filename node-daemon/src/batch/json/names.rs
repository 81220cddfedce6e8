//! What the fields of a record are called in the end.
//! Invariants: one JSON key once. Ours wins and the workload's moves to `NAME_original`; of fields with one name the
//! last is written. A record of many thousand fields costs a sort, never their square.

use super::range;
use crate::batch::escape::member;
use crate::parse::{Field, Name, Record, Value};
use crate::tag::{Tags, name_hash};

/// The names of a parser's own fields (CSV columns, groups of a regular expression), as a source's records have them.
#[derive(Debug, Clone, Default)]
pub struct Names {
    names: Vec<OwnName>,
    /// No two of them are the same.
    distinct: bool,
}

#[derive(Debug, Clone)]
struct OwnName {
    /// What it is called in the record.
    name: Box<[u8]>,
    hash: u64,
    /// `,"NAME":`
    member: Box<[u8]>,
}

impl Names {
    /// Renders the names that `Name::Own` counts; those that are ours move.
    #[must_use]
    pub fn render(names: &[String], tags: &Tags) -> Self {
        let render = |name: &String| {
            let hash = name_hash(name.as_bytes());
            // The parsers that name their own fields know of no objects: a parent's name always moves.
            if let Some((_, owned)) = tags.owned(name.as_bytes(), hash) {
                return OwnName {
                    name: owned.moved.clone(),
                    hash: owned.moved_hash,
                    member: owned.member.clone(),
                };
            }
            let mut rendered = Vec::new();
            member(&mut rendered, name.as_bytes());
            OwnName {
                name: name.as_bytes().into(),
                hash,
                member: rendered.into(),
            }
        };
        let names: Vec<OwnName> = names.iter().map(render).collect();
        let mut sorted: Vec<&[u8]> = names.iter().map(|own| &*own.name).collect();
        sorted.sort_unstable();
        let distinct = sorted.windows(2).all(|two| two[0] != two[1]);
        Self { names, distinct }
    }

    /// Whether all fields are the parser's own, each another one, with names of their own: then nothing is to be
    /// planned.
    pub(super) fn are_all(&self, fields: &[Field]) -> bool {
        let mut next = 0;
        self.distinct
            && fields.iter().all(|field| match field.name {
                Name::Own(n) if u32::from(n) >= next => {
                    next = u32::from(n) + 1;
                    true
                }
                _ => false,
            })
    }

    /// Appends one of these names as a member's; whether it is one.
    pub(super) fn write(&self, out: &mut Vec<u8>, name: Name) -> bool {
        let Name::Own(n) = name else { return false };
        let own = self.names.get(usize::from(n));
        out.extend_from_slice(own.map_or(b"", |own| &own.member));
        own.is_some()
    }
}

/// Which fields of a record are written, under which names; used again for each record.
#[derive(Debug, Default)]
pub(super) struct Plan {
    fields: Vec<Planned>,
    /// Names that stand in the text with escapes, as they are without.
    plain: Vec<u8>,
}

/// A field that may be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    /// Its number in the record.
    pub(super) field: u32,
    called: Called,
    /// Of the name it is written under.
    hash: u64,
    /// A later field has the same name.
    repeated: bool,
}

/// Where a field's name is.
#[derive(Debug, Clone, Copy)]
enum Called {
    /// A parser's own, of this number.
    Own(u16),
    /// As it stands in the text.
    InText(u32, u32),
    /// In the text with escapes, without them in `Plan::plain`.
    Escaped { text: (u32, u32), plain: (u32, u32) },
    /// One of ours, of this number: it moves.
    Moved(u32),
}

impl Planned {
    /// Appends its name as a member's.
    pub(super) fn write_name(&self, out: &mut Vec<u8>, tags: &Tags, names: &Names, text: &[u8]) {
        match self.called {
            Called::Own(n) => {
                names.write(out, Name::Own(n));
            }
            Called::Moved(n) => {
                out.extend_from_slice(tags.numbered(n).map_or(b"", |owned| &owned.member));
            }
            Called::InText(from, to)
            | Called::Escaped {
                text: (from, to), ..
            } => {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(range(text, from, to));
                out.extend_from_slice(b"\":");
            }
        }
    }
}

/// As many fields are compared by their hashes one by one; more are sorted.
const FEW: usize = 64;

impl Plan {
    /// The fields that are written, in the record's order.
    pub(super) fn fields(&self) -> impl Iterator<Item = &Planned> {
        self.fields.iter().filter(|planned| !planned.repeated)
    }

    /// Finds the name of each field, and the last of each name.
    pub(super) fn make(&mut self, tags: &Tags, names: &Names, text: &[u8], record: &Record) {
        self.fields.clear();
        self.plain.clear();
        for (field, Field { name, value }) in (0..).zip(&record.fields) {
            let (called, hash) = match *name {
                Name::Own(n) => match names.names.get(usize::from(n)) {
                    Some(own) => (Called::Own(n), own.hash),
                    None => continue,
                },
                Name::Json(from, to) => self.in_text(tags, text, (from, to), *value),
            };
            self.fields.push(Planned {
                field,
                called,
                hash,
                repeated: false,
            });
        }
        self.find_repeated(tags, names, text);
    }

    /// What a field is called whose name stands in the text.
    fn in_text(&mut self, tags: &Tags, text: &[u8], at: (u32, u32), value: Value) -> (Called, u64) {
        let written = range(text, at.0, at.1);
        let (called, name) = if written.contains(&b'\\') {
            let start = self.plain.len();
            unescape(&mut self.plain, written);
            // Names without escapes are never longer than the text, whose length is a u32.
            let plain = (start as u32, self.plain.len() as u32);
            (Called::Escaped { text: at, plain }, &self.plain[start..])
        } else {
            (Called::InText(at.0, at.1), written)
        };
        let is_object =
            || matches!(value, Value::Json(from, to) if range(text, from, to).starts_with(b"{"));
        let hash = name_hash(name);
        match tags.owned(name, hash) {
            Some((n, owned)) if !owned.parent || !is_object() => {
                (Called::Moved(n), owned.moved_hash)
            }
            _ => (called, hash),
        }
    }

    /// Marks every field whose name comes again.
    fn find_repeated(&mut self, tags: &Tags, names: &Names, text: &[u8]) {
        let Self { fields, plain } = self;
        let name = |planned: &Planned| match planned.called {
            Called::Own(n) => names
                .names
                .get(usize::from(n))
                .map_or(&b""[..], |own| &own.name),
            Called::Moved(n) => tags.numbered(n).map_or(&b""[..], |owned| &owned.moved),
            Called::InText(from, to) => range(text, from, to),
            Called::Escaped {
                plain: (from, to), ..
            } => range(plain, from, to),
        };
        if fields.len() <= FEW {
            // A set of 1,024 bits: where a hash's bit is new, its name is, too.
            let mut seen = [0_u64; 16];
            for n in 0..fields.len() {
                let (before, after) = fields.split_at_mut(n);
                let Some(here) = after.first() else { break };
                let word = &mut seen[(here.hash >> 6 & 15) as usize];
                let bit = 1 << (here.hash & 63);
                if *word & bit != 0 {
                    for other in before {
                        other.repeated |= other.hash == here.hash && name(other) == name(here);
                    }
                }
                *word |= bit;
            }
            return;
        }
        fields.sort_unstable_by(|a, b| {
            (a.hash.cmp(&b.hash))
                .then_with(|| name(a).cmp(name(b)))
                .then_with(|| a.field.cmp(&b.field))
        });
        for n in 1..fields.len() {
            let (before, after) = fields.split_at_mut(n);
            if let (Some(a), Some(b)) = (before.last_mut(), after.first()) {
                a.repeated = a.hash == b.hash && name(a) == name(b);
            }
        }
        fields.sort_unstable_by_key(|planned| planned.field);
    }
}

/// Appends the inside of a JSON string without its escapes. Half of a surrogate pair, which is no text but occurs,
/// comes out as three bytes of its own, so that two different names stay different; what is no escape stays.
fn unescape(out: &mut Vec<u8>, written: &[u8]) {
    let mut rest = written;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (before, escape) = rest.split_at(at);
        out.extend_from_slice(before);
        let byte = match escape.get(1) {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'u') => {
                rest = &escape[unescape_unit(out, escape)..];
                continue;
            }
            Some(byte) => *byte,
            None => b'\\',
        };
        out.push(byte);
        rest = escape.get(2..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

/// Appends what `\uXXXX`, or two of them that are a pair, stand for; how long they are.
fn unescape_unit(out: &mut Vec<u8>, escape: &[u8]) -> usize {
    let unit = |from: usize| {
        let digits = std::str::from_utf8(escape.get(from..from + 4)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let Some(high) = unit(2) else {
        out.push(b'\\');
        return 1;
    };
    let low = match escape.get(6..8) {
        Some(b"\\u") => unit(8),
        _ => None,
    };
    let (code, length) = match (high, low) {
        (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) => {
            (0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00), 12)
        }
        _ => (high, 6),
    };
    match char::from_u32(code) {
        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => out.extend_from_slice(&[
            0xe0 | (code >> 12) as u8,
            0x80 | (code >> 6 & 63) as u8,
            0x80 | (code & 63) as u8,
        ]),
    }
    length
}
