//! A group of logs as `PutLogs` takes it: the protobuf message `LogGroup` of the vendor's published schema.
//! Place: records as JSON objects -> **log group** -> compressed body.
//! Invariants: each member of a record's object is a content of its log, in its order: a text as it is, anything else
//! as JSON; nothing is kept per record or member but its bytes in the message.
//!
//! ```proto
//! message Log { required uint32 Time = 1; repeated Content Contents = 2; optional fixed32 Time_ns = 4; }
//! message Content { required string Key = 1; required string Value = 2; }
//! message LogGroup { repeated Log Logs = 1; optional string Topic = 3; optional string Source = 4; }
//! ```

use std::borrow::Cow;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Whose member a log's time is read from.
const TIME_KEY: &str = "@timestamp";
/// One log whose time is earlier than this or later than that makes the service refuse its whole group: such a log has
/// the time of now, and keeps its own as a content. The service allows 7 days and 15 minutes.
const EARLIEST: SignedDuration = SignedDuration::from_hours(-(7 * 24 - 1));
const LATEST: SignedDuration = SignedDuration::from_mins(14);

/// A message that grows.
#[derive(Debug, Default)]
pub(super) struct LogGroup {
    bytes: Vec<u8>,
    /// The contents of one log.
    contents: Vec<u8>,
    logs: usize,
}

impl LogGroup {
    /// Adds a record: one JSON object. `now` is the time of one that has none.
    ///
    /// # Errors
    /// It is no JSON object; then the group is as it was.
    pub(super) fn push(&mut self, record: &[u8], now: Timestamp) -> Result<(), serde_json::Error> {
        self.contents.clear();
        let mut time = None;
        let mut from = serde_json::Deserializer::from_slice(record);
        let members = Members {
            contents: &mut self.contents,
            time: &mut time,
        };
        members.deserialize(&mut from)?;
        from.end()?;
        let allowed = |time: &Timestamp| (EARLIEST..=LATEST).contains(&time.duration_since(now));
        let time = time.filter(allowed).unwrap_or(now);
        let seconds = u64::try_from(time.as_second()).unwrap_or_default();
        let nanoseconds = u32::try_from(time.subsec_nanosecond()).unwrap_or_default();

        let length =
            key_len(1) + encoded_len_varint(seconds) + self.contents.len() + key_len(4) + 4;
        encode_key(1, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(length as u64, &mut self.bytes);
        encode_key(1, WireType::Varint, &mut self.bytes);
        encode_varint(seconds, &mut self.bytes);
        self.bytes.extend_from_slice(&self.contents);
        encode_key(4, WireType::ThirtyTwoBit, &mut self.bytes);
        self.bytes.extend_from_slice(&nanoseconds.to_le_bytes());
        self.logs += 1;
        Ok(())
    }

    /// Logs in it.
    pub(super) fn len(&self) -> usize {
        self.logs
    }

    /// Its bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The whole message; an empty topic or source is left out.
    pub(super) fn finish(mut self, topic: &str, source: &str) -> Vec<u8> {
        for (tag, text) in [(3, topic), (4, source)] {
            if !text.is_empty() {
                write_text(tag, text, &mut self.bytes);
            }
        }
        self.bytes
    }
}

fn text_len(tag: u32, text: &str) -> usize {
    key_len(tag) + encoded_len_varint(text.len() as u64) + text.len()
}

fn write_text(tag: u32, text: &str, to: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(text.len() as u64, to);
    to.extend_from_slice(text.as_bytes());
}

fn write_content(key: &str, value: &str, to: &mut Vec<u8>) {
    encode_key(2, WireType::LengthDelimited, to);
    encode_varint((text_len(1, key) + text_len(2, value)) as u64, to);
    write_text(1, key, to);
    write_text(2, value, to);
}

/// The members of a record's object, written as they are read.
struct Members<'a> {
    contents: &'a mut Vec<u8>,
    time: &'a mut Option<Timestamp>,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record: one JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key::<Text<'_>>()? {
            let raw = map.next_value::<&RawValue>()?.get();
            let value = match raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')) {
                Some(plain) if !plain.contains('\\') => Cow::Borrowed(plain),
                Some(_) => Cow::Owned(serde_json::from_str(raw).map_err(de::Error::custom)?),
                None => Cow::Borrowed(raw),
            };
            if key == TIME_KEY {
                *self.time = value.parse().ok();
            }
            write_content(&key, &value, self.contents);
        }
        Ok(())
    }
}

/// A text, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::super::tests::{NOW, recorded};
    use super::*;
    use crate::ship::aliyun_sls::schema;

    #[test]
    fn a_group_is_byte_for_byte_what_the_vendors_client_writes() {
        let mut group = LogGroup::default();
        let first = r#"{"@timestamp":"2026-11-24T10:00:00.123456789Z","message":"he said \"grüße\" \\ \u2028 and left","n":42,"nested":{"a":[1,null,true]},"empty":""}"#;
        let second = r#"{"@timestamp":"2026-11-24T10:00:01.000000005Z","message":"plain"}"#;
        for record in [first, second] {
            group.push(record.as_bytes(), NOW).expect("a record");
        }
        assert_eq!(group.len(), 2);
        let theirs = recorded().into_iter().find(|request| request.name == "put");
        let theirs = theirs.expect("a recording").raw;
        assert_eq!(hex::encode(group.finish("a topic", "node-1")), theirs);
    }

    #[test]
    fn a_time_the_service_would_refuse_its_group_for_is_replaced_by_now() {
        let mut group = LogGroup::default();
        let near = "2026-11-24T09:00:00Z";
        for time in [
            "2026-11-17T09:00:00Z",
            "2026-11-24T10:20:00Z",
            "no time",
            near,
        ] {
            let record = format!(r#"{{"@timestamp":"{time}"}}"#);
            group.push(record.as_bytes(), NOW).expect("a record");
        }
        group.push(b"{}", NOW).expect("a record");
        let group = schema::LogGroup::decode(&*group.finish("", "")).expect("a group");
        let times: Vec<i64> = group.logs.iter().map(|log| i64::from(log.time)).collect();
        let now = NOW.as_second();
        assert_eq!(times, [now, now, now, now - 3_600, now]);
        assert_eq!(group.logs[0].contents[0].value, "2026-11-17T09:00:00Z");
    }

    #[test]
    fn what_is_no_object_leaves_the_group_as_it_was() {
        let mut group = LogGroup::default();
        group.push(b"{\"a\":\"b\"}\n", NOW).expect("a record");
        for wrong in [
            &b"{\"a\":\"b\""[..],
            b"[]",
            b"",
            b"{\"a\":\"\xff\"}",
            b"{} {}",
            b"{\"a\":\"\\ud800\"}",
        ] {
            assert!(group.push(wrong, NOW).is_err(), "{wrong:?}");
        }
        let group = schema::LogGroup::decode(&*group.finish("", "")).expect("a group");
        assert_eq!(group.logs.len(), 1);
    }

    proptest! {
        #[test]
        fn every_member_of_every_record_is_a_content(
            records in prop::collection::vec(
                prop::collection::vec((".{0,12}", prop_oneof![
                    ".{0,40}".prop_map(serde_json::Value::from),
                    any::<i64>().prop_map(serde_json::Value::from),
                    Just(serde_json::json!({"a": [1, {"b": null}]})),
                    Just(serde_json::Value::Null),
                ]), 0..6),
                0..20,
            ),
        ) {
            let mut group = LogGroup::default();
            for record in &records {
                let members: Vec<String> = record
                    .iter()
                    .map(|(key, value)| format!("{}:{value}", serde_json::json!(key)))
                    .collect();
                let record = format!("{{{}}}\n", members.join(","));
                group.push(record.as_bytes(), NOW).expect("a record");
            }
            let read = schema::LogGroup::decode(&*group.finish("t", "")).expect("a group");
            prop_assert_eq!(read.logs.len(), records.len());
            prop_assert_eq!(read.topic.as_deref(), Some("t"));
            prop_assert_eq!(read.source, None);
            for (log, record) in read.logs.iter().zip(&records) {
                let contents: Vec<(String, String)> = log
                    .contents
                    .iter()
                    .map(|content| (content.key.clone(), content.value.clone()))
                    .collect();
                let expected: Vec<(String, String)> = record
                    .iter()
                    .map(|(key, value)| {
                        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        (key.clone(), value)
                    })
                    .collect();
                prop_assert_eq!(contents, expected);
            }
        }
    }
}
