use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::*;
use crate::declare::{Declaration, What};
use crate::discover::{Workload, fixed};
use crate::parse::{Field, Name};
use crate::settings::{FieldShape, FieldsFrom};
use crate::tag::WRITTEN;

const TIME_NS: i64 = 1_795_519_825_123_456_789;

/// A parsed object that still has every key it was written with.
#[derive(Debug)]
struct Members(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

impl Members {
    fn get(&self, name: &str) -> Option<&serde_json::Value> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }
}

/// Reads what was written: one line, one object, each key once.
fn read(out: &[u8]) -> Members {
    let line = out.strip_suffix(b"\n").expect("a line end");
    assert!(!line.contains(&b'\n'), "{}", String::from_utf8_lossy(line));
    let members: Members = serde_json::from_slice(line)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(line)));
    let mut keys: Vec<&str> = members.0.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    for two in keys.windows(2) {
        assert_ne!(two[0], two[1], "{}", String::from_utf8_lossy(line));
    }
    members
}

fn tags(shape: FieldShape, tags: &[(&str, &str)]) -> Tags {
    let mut declaration = Declaration::new("access", What::Stdout);
    declaration.tags = (tags.iter())
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let workload = Workload {
        name: "web".to_owned(),
        ..fixed::workload()
    };
    Tags::render(&workload, &declaration, "n1", shape, &FieldsFrom::default())
}

fn write(tags: &Tags, own: &[&str], text: &[u8], record: &Record) -> String {
    let own: Vec<String> = own.iter().map(|name| (*name).to_owned()).collect();
    let mut out = Vec::new();
    Writer::default().write_record(
        &mut out,
        tags,
        &Names::render(&own, tags),
        &Entry {
            text,
            record,
            time_ns: TIME_NS,
            channel: None,
            flags: Flags::default(),
        },
    );
    read(&out);
    String::from_utf8(out).expect("UTF-8")
}

/// The record that a JSON parser makes of an object: `(name as written, value)` in turn.
fn object(members: &[(&str, &str)]) -> (Vec<u8>, Record) {
    let (mut text, mut record) = (b"{".to_vec(), Record::default());
    for (name, value) in members {
        text.push(b'"');
        let start = text.len() as u32;
        text.extend_from_slice(name.as_bytes());
        let name = Name::Json(start, text.len() as u32);
        text.extend_from_slice(b"\":");
        let start = text.len() as u32;
        text.extend_from_slice(value.as_bytes());
        record.fields.push(Field {
            name,
            value: Value::Json(start, text.len() as u32),
        });
        text.push(b',');
    }
    (text, record)
}

/// What stands between the time and our own fields.
fn fields(line: &str) -> &str {
    let start = "{\"@timestamp\":\"2026-11-24T11:30:25.123456789Z\",";
    let line = line.strip_prefix(start).expect("the time comes first");
    line.split(",\"docker_container\"").next().unwrap_or(line)
}

#[test]
fn a_line_without_fields_is_the_message_and_everything_has_its_place() {
    let tags = tags(FieldShape::LogPilot, &[("env", "prod")]);
    let mut out = Vec::new();
    let entry = Entry {
        text: b"GET /\"x\"\t\xe6\x97\xa5\xff",
        record: &Record::default(),
        time_ns: TIME_NS,
        channel: Some(Channel::Stderr),
        flags: Flags {
            incomplete: true,
            split: true,
            time_suspect: true,
            failure: Some("cri: no time"),
            time_failure: Some("time: not `%H`"),
        },
    };
    Writer::default().write_record(&mut out, &tags, &Names::default(), &entry);
    read(&out);
    insta::assert_snapshot!(String::from_utf8(out).expect("UTF-8"));
}

#[test]
fn a_raw_record_is_its_text_with_the_line_ends_within() {
    let mut out = Vec::new();
    write_raw(&mut out, b"panic\n  at main\xff");
    assert_eq!(out, b"panic\n  at main\xff\n");
}

#[test]
fn what_a_workload_calls_like_one_of_ours_moves_and_nothing_else_does() {
    let tags = tags(FieldShape::LogPilot, &[("env", "prod")]);
    let (text, record) = object(&[
        ("host", "1"),
        ("env", "2"),
        ("@timestamp", "3"),
        ("message", "4"),
        ("k8s_pod", "5"),
        (r"in\u0064ex", "6"),
        ("split", "7"),
    ]);
    let line = write(&tags, &[], &text, &record);
    assert_eq!(
        fields(&line),
        r#""host_original":1,"env_original":2,"@timestamp_original":3,"message":4,"k8s_pod":5,"index_original":6,"split_original":7"#
    );
    // The same for names that a parser knows before it reads.
    let own = ["host", "message", "remote"];
    let csv = Record {
        fields: (0..4)
            .map(|n| Field {
                name: Name::Own(n),
                value: Value::Text(0, 1),
            })
            .collect(),
        ..Record::default()
    };
    assert_eq!(
        fields(&write(&tags, &own, b"x", &csv)),
        r#""host_original":"x","message":"x","remote":"x""#
    );
}

#[test]
fn a_key_that_is_repeated_keeps_its_last_value_however_it_is_written() {
    let tags = tags(FieldShape::LogPilot, &[]);
    for (members, want) in [
        (vec![("a", "1"), ("b", "2"), ("a", "3")], r#""b":2,"a":3"#),
        (vec![("a", "1"), (r"\u0061", "3")], r#""\u0061":3"#),
        (vec![(r"\u0061", "1"), ("a", "3")], r#""a":3"#),
        (
            vec![("host", "1"), ("host_original", "2")],
            r#""host_original":2"#,
        ),
        (
            vec![("host_original", "1"), ("host", "2")],
            r#""host_original":2"#,
        ),
        (
            vec![(r"\ud83d\ude00", "1"), ("😀", "2"), (r"\\u0061", "3")],
            r#""😀":2,"\\u0061":3"#,
        ),
        (vec![("", "1"), ("", "2")], r#""":2"#),
    ] {
        let (text, record) = object(&members);
        assert_eq!(fields(&write(&tags, &[], &text, &record)), want);
    }
    let csv = |n| Field {
        name: Name::Own(n),
        value: Value::Text(u32::from(n), u32::from(n) + 1),
    };
    let short = Record {
        fields: vec![csv(0)],
        ..Record::default()
    };
    let long = Record {
        fields: vec![csv(0), csv(1), csv(2)],
        ..Record::default()
    };
    assert_eq!(
        fields(&write(&tags, &["a", "b", "a"], b"xyz", &short)),
        r#""a":"x""#
    );
    assert_eq!(
        fields(&write(&tags, &["a", "b", "a"], b"xyz", &long)),
        r#""b":"y","a":"z""#
    );
}

#[test]
fn a_tag_moves_out_of_the_way_of_ours_and_a_field_out_of_the_way_of_both() {
    let tags = tags(
        FieldShape::LogPilot,
        &[("host", "tagged"), ("message", "hello")],
    );
    let (text, record) = object(&[("host", "1"), ("message", "2"), ("message_original", "3")]);
    let line = write(&tags, &[], &text, &record);
    assert_eq!(
        fields(&line),
        r#""host_original_original":1,"message":2,"message_original_original":3"#
    );
    let members = read(line.as_bytes());
    assert_eq!(members.get("host"), Some(&"n1".into()));
    assert_eq!(members.get("host_original"), Some(&"tagged".into()));
    assert_eq!(members.get("message_original"), Some(&"hello".into()));
}

#[test]
fn a_value_that_an_index_could_not_put_beside_ours_moves_but_an_object_stays() {
    let tags = tags(FieldShape::Ecs, &[]);
    let (text, record) = object(&[("host", "\"10.0.0.1\""), ("event", "{\"action\":1}")]);
    let line = write(&tags, &[], &text, &record);
    let members = read(line.as_bytes());
    assert_eq!(members.get("host_original"), Some(&"10.0.0.1".into()));
    assert_eq!(members.get("host"), None);
    assert_eq!(members.get("host.name"), Some(&"n1".into()));
    assert!(
        members
            .get("event")
            .is_some_and(serde_json::Value::is_object)
    );
}

#[test]
fn an_object_over_several_lines_stays_one_record() {
    let tags = tags(FieldShape::LogPilot, &[]);
    let (text, record) = object(&[("a", "{\r\n  \"b\": \"c\\n\",\n  \"d\": [1,\n2]\n}")]);
    let line = write(&tags, &[], &text, &record);
    assert_eq!(
        read(line.as_bytes()).get("a"),
        Some(&serde_json::json!({"b": "c\n", "d": [1, 2]}))
    );
}

#[test]
fn a_record_that_could_not_be_parsed_is_its_text_with_the_reason() {
    let tags = tags(FieldShape::LogPilot, &[]);
    let (text, mut record) = object(&[("a", "1")]);
    record.failure = Some("json: not an object");
    let line = write(&tags, &[], &text, &record);
    assert_eq!(fields(&line), r#""message":"{\"a\":1,""#);
    assert!(
        line.ends_with(",\"parse_error\":\"json: not an object\"}\n"),
        "{line}"
    );
}

#[test]
fn ranges_that_are_none_and_names_that_nobody_gave_harm_nothing() {
    let tags = tags(FieldShape::LogPilot, &[]);
    let at = |name, value| Field { name, value };
    let record = Record {
        fields: vec![
            at(Name::Json(0, 1), Value::Json(9, 3)),
            at(Name::Json(1, 2), Value::Number(7, 700)),
            at(Name::Json(2, 3), Value::Scratch(0, 1)),
            at(Name::Own(7), Value::Null),
            at(Name::Json(3, 900), Value::Null),
        ],
        ..Record::default()
    };
    let line = write(&tags, &[], b"abcd", &record);
    assert_eq!(fields(&line), r#""a":null,"b":null,"c":"","":null"#);
}

/// One field of an arbitrary record.
#[derive(Debug, Clone)]
enum Made {
    Own(u16, Vec<u8>),
    Scratch(u16, Vec<u8>),
    Null(u16),
    Number(String, i64),
    /// Its name, whether that is written with escapes, and its value.
    Json(String, bool, serde_json::Value),
}

/// Names that meet each other, ours, and the names that those move to.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(WRITTEN.to_vec()).prop_map(str::to_owned),
        prop::sample::select(vec![
            "message",
            "host",
            "host_original",
            "index",
            "env",
            "env_original",
            "a",
            "b",
            "event",
            "labels",
            "host.name",
            "docker_container",
            "\"",
            "\\",
            "日志",
            "😀",
            "",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
    ]
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        "\\PC{0,20}".prop_map(Into::into),
        prop::collection::vec(any::<u8>(), 0..4).prop_map(Into::into),
        ("\\PC{0,5}", any::<u8>()).prop_map(|(k, v)| serde_json::json!({ k: [v, null] })),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..30);
    prop_oneof![
        (0..12_u16, bytes()).prop_map(|(n, text)| Made::Own(n, text)),
        (0..12_u16, bytes()).prop_map(|(n, text)| Made::Scratch(n, text)),
        (0..12_u16).prop_map(Made::Null),
        (name(), any::<i64>()).prop_map(|(name, n)| Made::Number(name, n)),
        (name(), any::<bool>(), value())
            .prop_map(|(name, escaped, v)| Made::Json(name, escaped, v)),
        (name(), any::<bool>(), value())
            .prop_map(|(name, escaped, v)| Made::Json(name, escaped, v)),
    ]
}

/// The inside of a JSON string, as short as can be or every UTF-16 unit as `\uXXXX`.
fn written(name: &str, escaped: bool) -> String {
    if escaped {
        return name
            .encode_utf16()
            .map(|unit| format!("\\u{unit:04X}"))
            .collect();
    }
    let quoted = serde_json::to_string(name).expect("a string");
    quoted[1..quoted.len() - 1].to_owned()
}

/// The text and record of such fields, and each field's name and value.
fn build(
    own: &[String],
    made: &[Made],
) -> (Vec<u8>, Record, Vec<(String, bool, serde_json::Value)>) {
    let (mut text, mut record, mut plain) = (Vec::new(), Record::default(), Vec::new());
    let put = |to: &mut Vec<u8>, bytes: &[u8]| {
        let start = to.len() as u32;
        to.extend_from_slice(bytes);
        (start, to.len() as u32)
    };
    let lossy = |bytes: &[u8]| serde_json::Value::from(String::from_utf8_lossy(bytes).into_owned());
    for made in made {
        let own_name = |n: u16| own.get(usize::from(n)).cloned();
        let (name, value, meant) = match made {
            Made::Own(n, bytes) => {
                let (from, to) = put(&mut text, bytes);
                (
                    Name::Own(*n),
                    Value::Text(from, to),
                    own_name(*n).map(|name| (name, lossy(bytes))),
                )
            }
            Made::Scratch(n, bytes) => {
                let (from, to) = put(&mut record.scratch, bytes);
                (
                    Name::Own(*n),
                    Value::Scratch(from, to),
                    own_name(*n).map(|name| (name, lossy(bytes))),
                )
            }
            Made::Null(n) => {
                let meant = own_name(*n).map(|name| (name, serde_json::Value::Null));
                (Name::Own(*n), Value::Null, meant)
            }
            Made::Number(name, number) => {
                let at = put(&mut text, written(name, false).as_bytes());
                let (from, to) = put(&mut text, number.to_string().as_bytes());
                let meant = (name.clone(), (*number).into());
                (Name::Json(at.0, at.1), Value::Number(from, to), Some(meant))
            }
            Made::Json(name, escaped, value) => {
                let at = put(&mut text, written(name, *escaped).as_bytes());
                let pretty = serde_json::to_string_pretty(value).expect("a value");
                let (from, to) = put(&mut text, pretty.as_bytes());
                let meant = (name.clone(), value.clone());
                (Name::Json(at.0, at.1), Value::Json(from, to), Some(meant))
            }
        };
        record.fields.push(Field { name, value });
        if let Some((name, meant)) = meant {
            let own = matches!(
                record.fields.last(),
                Some(Field {
                    name: Name::Own(_),
                    ..
                })
            );
            plain.push((name, own, meant));
        }
    }
    (text, record, plain)
}

proptest! {
    #[test]
    fn whatever_a_workload_writes_one_valid_object_comes_out_with_its_last_values(
        own in prop::collection::vec(name(), 0..10),
        made in prop_oneof![
            4 => prop::collection::vec(made(), 0..12),
            1 => prop::collection::vec(made(), 60..140),
            2 => prop::collection::vec(any::<Vec<u8>>(), 0..9).prop_map(|texts| {
                (0..).zip(texts).map(|(n, text)| Made::Own(n, text)).collect()
            }),
        ],
        tagged in prop::collection::vec((name(), "\\PC{0,8}"), 0..5),
        ecs in any::<bool>(),
        time_ns in any::<i64>(),
    ) {
        let shape = if ecs { FieldShape::Ecs } else { FieldShape::LogPilot };
        let tagged: BTreeMap<String, String> = tagged.into_iter().collect();
        let tagged: Vec<(&str, &str)> = tagged.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let tags = tags(shape, &tagged);
        let ours = {
            let json = [b"{\"\":0".as_slice(), tags.json(), b"}"].concat();
            let Members(mut members) = serde_json::from_slice(&json).expect("an object");
            members.remove(0);
            members
        };
        let (text, record, meant) = build(&own, &made);

        let mut out = Vec::new();
        let flags = Flags { split: true, time_failure: Some("\u{1}\""), ..Flags::default() };
        let entry = Entry { text: &text, record: &record, time_ns, channel: Some(Channel::Stdout), flags };
        let mut writer = Writer::default();
        let names = Names::render(&own, &tags);
        writer.write_record(&mut out, &tags, &names, &entry);
        let members = read(&out);
        // What a writer did before changes nothing.
        let mut again = Vec::new();
        writer.write_record(&mut again, &tags, &names, &entry);
        prop_assert_eq!(&out, &again);

        let mut want: BTreeMap<String, serde_json::Value> = BTreeMap::new();
        let parents: &[&str] = if ecs {
            &["container", "kubernetes", "kubernetes.node", "event", "labels", "host"]
        } else {
            &[]
        };
        let owned = |name: &str| {
            WRITTEN.contains(&name) || ours.iter().any(|(key, _)| key == name)
        };
        for (name, own, value) in meant {
            let mut key = name;
            let blocks = |key: &str| parents.contains(&key) && (own || !value.is_object());
            if owned(&key) || blocks(&key) {
                key += "_original";
                while owned(&key) || parents.contains(&key.as_str()) {
                    key += "_original";
                }
            }
            want.insert(key, value);
        }
        if record.fields.is_empty() {
            want.insert("message".to_owned(), String::from_utf8_lossy(&text).into());
        }
        want.insert("stream".to_owned(), "stdout".into());
        want.insert("split".to_owned(), true.into());
        want.insert("time_error".to_owned(), "\u{1}\"".into());
        want.extend(ours.iter().cloned());
        let time = members.get("@timestamp").and_then(|time| time.as_str()).map(str::to_owned);
        let time: jiff::Timestamp = time.expect("a time").parse().expect("RFC 3339");
        prop_assert_eq!(time.as_nanosecond(), i128::from(time_ns));
        let mut got: BTreeMap<String, serde_json::Value> = members.0.into_iter().collect();
        got.remove("@timestamp");
        prop_assert_eq!(got, want);
    }
}
