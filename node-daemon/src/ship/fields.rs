//! The fields of an encoded record, for outputs whose protocol has fields of its own.
//! Cost: a record is read once to find its fields, and each text that has escapes once more; nothing else is copied.

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A field's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field<'record> {
    /// A string.
    Text(Cow<'record, str>),
    /// Anything else, as its JSON.
    Json(&'record str),
}

impl Field<'_> {
    /// The value as text: a string's own, or the JSON of anything else.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Json(json) => json,
        }
    }
}

/// A string that borrows where it can.
#[derive(Deserialize)]
struct Text<'record>(#[serde(borrow)] Cow<'record, str>);

/// Calls `each` with every field of a record, in its order; whether the record is one whole JSON object.
pub(super) fn each<'record>(
    record: &'record [u8],
    each: impl FnMut(Cow<'record, str>, Field<'record>),
) -> bool {
    struct Fields<F>(F);
    impl<'de, F: FnMut(Cow<'de, str>, Field<'de>)> Visitor<'de> for Fields<F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a record")
        }
        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                let value = value.get();
                let field = match value.starts_with('"') {
                    true => match serde_json::from_str(value) {
                        Ok(Text(text)) => Field::Text(text),
                        // Half of a surrogate pair: its JSON says what it is.
                        Err(_) => Field::Json(value),
                    },
                    false => Field::Json(value),
                };
                (self.0)(name, field);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_slice(record);
    json.deserialize_map(Fields(each)).is_ok() && json.end().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_given_in_order_and_borrowed_where_it_can_be() {
        let record = br#"{"a":"x","b\u0041":"l\n","n":1.5,"o":{"p":[1,"q"]},"t":true,"z":null,"s":"\ud800"}"#;
        let mut seen = Vec::new();
        assert!(each(record, |name, field| seen.push((name, field))));
        assert!(matches!(
            &seen[0],
            (Cow::Borrowed("a"), Field::Text(Cow::Borrowed("x")))
        ));
        let texts: Vec<(&str, &str)> = seen.iter().map(|(n, f)| (&**n, f.as_str())).collect();
        assert_eq!(
            texts,
            [
                ("a", "x"),
                ("bA", "l\n"),
                ("n", "1.5"),
                ("o", r#"{"p":[1,"q"]}"#),
                ("t", "true"),
                ("z", "null"),
                ("s", r#""\ud800""#),
            ]
        );
    }

    #[test]
    fn what_is_no_whole_object_is_told() {
        for wrong in ["", "1", "[]", "{\"a\":1", "{\"a\":1}x", "\u{0}"] {
            assert!(!each(wrong.as_bytes(), |_, _| {}), "{wrong}");
        }
    }
}
