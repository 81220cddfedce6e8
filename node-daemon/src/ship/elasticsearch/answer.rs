//! What a server says of each record: the answer of `_bulk`, read item by item.
//! Invariants: no tree is built of it; an item without a status proves nothing; an answer that does not fit its request
//! proves nothing of any record; no bytes make it panic.
//!
//! Sources: answers recorded from Elasticsearch 7.17.29, 8.18.0, 9.1.0 and OpenSearch 2.19.1 (see the tests beside).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use elasticsearch::http::response::{Error as Fault, Exception};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::TOO_LARGE;
use crate::ship::transport::{Answer, foreign, meaning};
use crate::ship::{Fate, Verdict};

/// How every answer begins that has only good news, and what it says of one record.
const ALL_WELL: &[u8] = b"{\"errors\":false,\"items\":[";
const CREATED: &[u8] = b"{\"create\":{\"status\":201}}";
/// The most that is kept of each text of a server: it may give back a whole field, for each of 20,000 records.
const MOST_WORDS_BYTES: usize = 300;

/// What became of the `records` records of a bulk, from the body of its answer with status 200.
///
/// # Errors
/// Why the answer proves nothing.
pub(super) fn outcomes(body: &[u8], records: usize) -> Result<Verdict, String> {
    if count_created(body) == Some(records) {
        return Ok(Verdict::All(Fate::Delivered));
    }
    let mut items = Items {
        most: records,
        ..Items::default()
    };
    let mut from = serde_json::Deserializer::from_slice(body);
    let read = from.deserialize_map(Root(&mut items));
    if read.and_then(|()| from.end()).is_err() {
        let cure = "check that the address is the server's own";
        return Err(format!(
            "answers, but not as Elasticsearch does; do: {cure}"
        ));
    }
    let fates = items.fates;
    if fates.len() != records {
        return Err(format!(
            "answers for {} records where {records} were sent",
            fates.len()
        ));
    }
    Ok(match fates.first() {
        Some(first) if fates.iter().all(|fate| fate == first) => Verdict::All(first.clone()),
        _ => Verdict::Each(fates),
    })
}

/// How many records were created, if that is all there is to say. The common case, 20 times faster than reading JSON.
fn count_created(body: &[u8]) -> Option<usize> {
    let mut rest = body.strip_prefix(ALL_WELL)?;
    let mut count = 0;
    loop {
        rest = rest.strip_prefix(CREATED)?;
        count += 1;
        match rest.split_first()? {
            (b',', more) => rest = more,
            _ => return (rest == b"]}").then_some(count),
        }
    }
}

/// The fates of the items read so far, and the texts they share.
#[derive(Default)]
struct Items {
    fates: Vec<Fate>,
    /// How many there should be: of more, one is read, which is enough to know that the answer is wrong.
    most: usize,
    class: Option<Arc<str>>,
    cause: Option<Arc<str>>,
}

/// The text, shared with the one before if it is the same: most records that fail together fail alike.
fn share(last: &mut Option<Arc<str>>, text: &str) -> Arc<str> {
    match last {
        Some(last) if **last == *text => Arc::clone(last),
        _ => Arc::clone(last.insert(text.into())),
    }
}

impl Items {
    fn judge(&mut self, item: &Item<'_>) -> Fate {
        let error = item.error.as_ref();
        let ty = error.and_then(|e| e.ty.as_deref()).unwrap_or_default();
        let reason = error.and_then(|e| e.reason.as_deref()).unwrap_or_default();
        let class = match item.status {
            Some(200 | 201) if error.is_none() => return Fate::Delivered,
            Some(409) if ty == "version_conflict_engine_exception" => return Fate::Duplicate,
            Some(413) => Some(TOO_LARGE),
            Some(400) => fault_of_document(ty, reason),
            _ => None,
        };
        match (class, item.status) {
            (Some(class), _) => {
                let cause = error.and_then(|e| e.cause.as_deref()).unwrap_or_default();
                let mut detail = foreign(reason, MOST_WORDS_BYTES);
                // "failed to parse" alone helps nobody.
                if !reason.contains(cause) {
                    detail.push_str(": ");
                    detail.push_str(&foreign(cause, MOST_WORDS_BYTES));
                }
                Fate::Refused {
                    reason: share(&mut self.class, class),
                    detail: detail.into(),
                }
            }
            (None, Some(status)) => Fate::Again {
                cause: share(&mut self.cause, &explain(status, ty, reason)),
            },
            (None, None) => Fate::Again {
                cause: share(
                    &mut self.cause,
                    "the server does not say what became of the record",
                ),
            },
        }
    }
}

/// The class of a fault that is the document's own, so that it never will be taken.
fn fault_of_document(ty: &str, reason: &str) -> Option<&'static str> {
    const ALWAYS: [&str; 5] = [
        "document_parsing_exception",
        "strict_dynamic_mapping_exception",
        "max_bytes_length_exceeded_exception",
        "x_content_parse_exception",
        "json_parse_exception",
    ];
    // An argument may be the document's or the index's. These are of a document and its fields …
    const FIELDS: [&str; 7] = [
        "field",
        "mapper [",
        "Mapper for [",
        "mapping [",
        "mapping depth",
        "immense term",
        "document timestamp",
    ];
    // … and these are not, whatever else they say.
    const INDEX: [&str; 5] = [
        "shards",
        "pipeline",
        "alias",
        "more than 1 type",
        "unknown setting",
    ];
    if let Some(class) = ALWAYS.iter().find(|class| **class == ty) {
        return Some(class);
    }
    match ty {
        // The same type says of an index that it cannot be made: "Failed to parse mapping [_doc]: …".
        "mapper_parsing_exception" if !reason.starts_with("Failed to parse mapping") => {
            Some("mapper_parsing_exception")
        }
        "illegal_argument_exception"
            if FIELDS.iter().any(|word| reason.contains(word))
                && !INDEX.iter().any(|word| reason.contains(word)) =>
        {
            Some("illegal_argument_exception")
        }
        _ => None,
    }
}

/// A fault that is nobody's document's, for an operator.
fn explain(status: u16, ty: &str, reason: &str) -> String {
    let lead = match ty {
        "cluster_block_exception" => "writing is blocked there",
        "index_not_found_exception" => "the index does not exist and may not be made",
        "index_closed_exception" => "the index is closed",
        "es_rejected_execution_exception" | "rejected_execution_exception" => {
            "its queue for writing is full"
        }
        "circuit_breaking_exception" => "it is short of memory",
        "unavailable_shards_exception" => "the shard or a copy of it is not there",
        _ if reason.contains("shards open") => {
            "it may have no more shards; do: delete old indices or raise cluster.max_shards_per_node"
        }
        _ => meaning(status),
    };
    let (ty, reason) = (foreign(ty, 100), foreign(reason, MOST_WORDS_BYTES));
    match (ty.as_str(), reason.as_str()) {
        ("", "") => format!("{lead} ({status})"),
        ("", reason) => format!("{lead} ({status}: {reason})"),
        (ty, "") => format!("{lead} ({status} {ty})"),
        (ty, reason) => format!("{lead} ({status} {ty}: {reason})"),
    }
}

/// What a server says of a request that failed as a whole.
pub(super) fn fault(body: &[u8]) -> Option<Fault> {
    let exception: Exception = serde_json::from_slice(body).ok()?;
    Some(exception.error().clone())
}

/// Why a request failed as a whole, for an operator.
pub(super) fn words(answer: &Answer) -> String {
    let fault = fault(&answer.body);
    let ty = fault.as_ref().and_then(Fault::ty).unwrap_or_default();
    let reason = fault.as_ref().and_then(Fault::reason).unwrap_or_default();
    explain(answer.status, ty, reason)
}

/// One item: `{"create":{"status":400,"error":{…}}}`, without the outer braces.
#[derive(Default, Deserialize)]
struct Item<'a> {
    status: Option<u16>,
    #[serde(borrow, default)]
    error: Option<Error<'a>>,
}

/// What is wrong with an item.
#[derive(Default)]
struct Error<'a> {
    ty: Option<Cow<'a, str>>,
    reason: Option<Cow<'a, str>>,
    cause: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Cause<'a> {
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Error<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ErrorVisitor)
    }
}

struct ErrorVisitor;

impl<'de> Visitor<'de> for ErrorVisitor {
    type Value = Error<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error, or its text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Error<'de>, E> {
        Ok(Error {
            reason: Some(text.to_owned().into()),
            ..Error::default()
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Error<'de>, A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "snake_case")]
        enum Key {
            Type,
            Reason,
            CausedBy,
            #[serde(other)]
            Other,
        }
        let mut error = Error::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Type => error.ty = map.next_value::<Option<Text<'_>>>()?.map(|text| text.0),
                Key::Reason => {
                    error.reason = map.next_value::<Option<Text<'_>>>()?.map(|text| text.0);
                }
                Key::CausedBy => {
                    error.cause = map
                        .next_value::<Option<Cause<'_>>>()?
                        .and_then(|c| c.reason);
                }
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(error)
    }
}

/// A text, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The whole answer.
struct Root<'a>(&'a mut Items);

impl<'de> Visitor<'de> for Root<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer of a bulk")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Key {
            Items,
            #[serde(other)]
            Other,
        }
        while let Some(key) = map.next_key()? {
            match key {
                Key::Items => map.next_value_seed(List(self.0))?,
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// The list of items.
struct List<'a>(&'a mut Items);

impl<'de> de::DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(Named(item)) = list.next_element()? {
            if self.0.fates.len() > self.0.most {
                return Err(de::Error::custom("more items than records"));
            }
            let fate = self.0.judge(&item);
            self.0.fates.push(fate);
        }
        Ok(())
    }
}

/// An item under the name of its action.
struct Named<'a>(Item<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Named<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(NamedVisitor)
    }
}

struct NamedVisitor;

impl<'de> Visitor<'de> for NamedVisitor {
    type Value = Named<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an item")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<'de>, A::Error> {
        let item = match map.next_key::<IgnoredAny>()? {
            Some(_) => map.next_value()?,
            None => Item::default(),
        };
        match map.next_key::<IgnoredAny>()? {
            Some(_) => Err(de::Error::custom("an item with two actions")),
            None => Ok(Named(item)),
        }
    }
}
