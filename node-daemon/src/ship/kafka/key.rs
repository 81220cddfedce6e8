//! The key of a Kafka message: what decides its partition, and so which records stay in order.
//! Source of the field form: Filebeat's format strings, which log-pilot's `KAFKA_PARTITION_KEY` may hold.

use std::borrow::Cow;

use crate::ship::fields::{self, Field};

/// Where a message's key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// The record's source, as 16 hexadecimal digits: a source keeps its order.
    Source,
    /// None: the partition is chosen without one.
    None,
    /// A text with `{target}` and `%{[FIELD]}` filled in. Each record is parsed if there is a field.
    Text(Vec<Piece>),
}

/// A piece of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Literal(String),
    Target,
    /// A field of the record, by its name.
    Field(String),
}

impl Key {
    /// Reads a key as written.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (literal, here) = rest.split_at(at);
            let (literal, piece, after) = if let Some(after) = here.strip_prefix("{target}") {
                (literal, Piece::Target, after)
            } else if let Some(literal) = literal.strip_suffix('%')
                && let Some((name, after)) = field(here)
            {
                (literal, Piece::Field(name), after)
            } else {
                return Err(format!("`{here}` cannot be filled in"));
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.to_owned()));
            }
            pieces.push(piece);
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.to_owned()));
        }
        match pieces.is_empty() {
            true => Err("it is empty".to_owned()),
            false => Ok(Self::Text(pieces)),
        }
    }

    /// The key that is the same for all records of a target; `None` if it is not.
    pub(super) fn of_target(&self, target: &str) -> Option<String> {
        let Self::Text(pieces) = self else {
            return None;
        };
        let texts = pieces.iter().map(|piece| match piece {
            Piece::Literal(text) => Some(text.as_str()),
            Piece::Target => Some(target),
            Piece::Field(_) => None,
        });
        texts.collect()
    }

    /// Writes the key of one record into `key`; whether it has all the fields that it needs.
    pub(super) fn of_record(&self, target: &str, record: &[u8], key: &mut Vec<u8>) -> bool {
        key.clear();
        let Self::Text(pieces) = self else {
            return false;
        };
        pieces.iter().all(|piece| {
            match piece {
                Piece::Literal(text) => key.extend_from_slice(text.as_bytes()),
                Piece::Target => key.extend_from_slice(target.as_bytes()),
                Piece::Field(name) => match value(record, name) {
                    Some(value) => key.extend_from_slice(value.as_bytes()),
                    None => return false,
                },
            }
            true
        })
    }
}

/// Splits `{[NAME]}` or `{[A][B]}` off, whose name is `A.B`.
fn field(text: &str) -> Option<(String, &str)> {
    let (inner, after) = text.strip_prefix("{[")?.split_once("]}")?;
    let name = inner.replace("][", ".");
    let good = !name.is_empty() && !name.contains(['[', ']', '{', '}', ':']);
    good.then_some((name, after))
}

/// A record's field as text; numbers and booleans as they are written, anything else is none.
fn value<'record>(record: &'record [u8], name: &str) -> Option<Cow<'record, str>> {
    let mut found = None;
    let whole = fields::each(record, |key, field| {
        if key == name {
            found = match field {
                Field::Text(text) => Some(text),
                Field::Json(json) if json.starts_with(['{', '[', 'n', '"']) => None,
                Field::Json(json) => Some(Cow::Borrowed(json)),
            };
        }
    });
    found.filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pattern: &str, record: &str) -> Option<String> {
        let mut out = Vec::new();
        let found =
            Key::parse(pattern)
                .expect("a key")
                .of_record("web", record.as_bytes(), &mut out);
        found.then(|| String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_key_is_filled_in_from_target_and_fields() {
        let record = r#"{"a":1,"docker_container":"x\"y","n":{"a":2},"z.b":true,"none":null}"#;
        assert_eq!(key("all", record).as_deref(), Some("all"));
        assert_eq!(key("{target}-1", record).as_deref(), Some("web-1"));
        let two = key("<%{[docker_container]}/%{[a]}>", record);
        assert_eq!(two.as_deref(), Some("<x\"y/1>"));
        assert_eq!(key("%{[z][b]}", record).as_deref(), Some("true"));
        for missing in ["%{[b]}", "%{[n]}", "%{[none]}"] {
            assert_eq!(key(missing, record), None, "{missing}");
        }
        assert_eq!(key("%{[a]}", "no record"), None);
        assert_eq!(key("100%", record).as_deref(), Some("100%"));
    }

    #[test]
    fn what_cannot_be_filled_in_is_told() {
        for wrong in [
            "", "{date}", "%{a}", "%{[]}", "%{[a", "}", "{target", "%{[a:b]}",
        ] {
            assert!(Key::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_without_fields_is_made_once_for_a_target() {
        let parsed = Key::parse("{target}-1").expect("a key");
        assert_eq!(parsed.of_target("web").as_deref(), Some("web-1"));
        let parsed = Key::parse("%{[a]}").expect("a key");
        assert_eq!(parsed.of_target("web"), None);
    }
}
