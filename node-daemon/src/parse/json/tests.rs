//! Promises of the JSON format, against serde_json.

use proptest::prelude::*;
use serde_json::{Map, Value as Json};

use crate::declare::{Format, TimeKey};
use crate::parse::tests::{ns, parsed, parser, shown, time_key};
use crate::parse::{NOT_IN_FORMAT, Name, Parser, Record, Value};

fn plain() -> Parser {
    parser(&Format::Json(TimeKey::default()))
}

fn fields(text: &str) -> Vec<String> {
    let parser = plain();
    let record = parsed(&parser, text.as_bytes());
    assert_eq!(record.failure, None, "{text}");
    shown(&parser, text.as_bytes(), &record)
}

fn failure(text: &[u8]) -> Option<&'static str> {
    parsed(&plain(), text).failure
}

/// What the fields mean; none if a name stands twice.
fn meaning(text: &[u8], record: &Record) -> Option<Map<String, Json>> {
    let cut = |start: u32, end: u32| &text[start as usize..end as usize];
    let mut map = Map::new();
    for field in &record.fields {
        let (Name::Json(start, end), Value::Json(from, to)) = (field.name, field.value) else {
            return None;
        };
        let name = [b"\"", cut(start, end), b"\""].concat();
        let name: String = serde_json::from_slice(&name).ok()?;
        let value = serde_json::from_slice(cut(from, to)).ok()?;
        if map.insert(name, value).is_some() {
            return None;
        }
    }
    Some(map)
}

/// Objects as programs write them: few names, so that some are repeated, and some of them with escapes.
fn object() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("a".to_owned()),
        Just("\\u0061".to_owned()),
        Just("b".to_owned()),
        Just("time".to_owned()),
        Just("\\\"".to_owned()),
        Just("\u{e9}".to_owned()),
        Just("\\u00e9".to_owned()),
        Just("\\ud83d\\ude00".to_owned()),
        Just("\u{1f600}".to_owned()),
        "[a-c]{0,2}",
    ];
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        (-1e300..1e300).prop_map(|n: f64| format!("{n:e}")),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,2})?",
        ".{0,24}".prop_map(|text| Json::String(text).to_string()),
    ];
    let members = move |value: BoxedStrategy<String>| {
        let blank = "[ \n\t\r]{0,2}";
        let member =
            (name.clone(), blank, value).prop_map(|(k, b, v)| format!("{b}\"{k}\"{b}:{b}{v}{b}"));
        prop::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(",")))
    };
    let inner = members.clone();
    let value = leaf.prop_recursive(3, 24, 5, move |value| {
        let list = prop::collection::vec(value.clone(), 0..4);
        let list = list.prop_map(|values| format!("[{}]", values.join(" ,")));
        prop_oneof![list, inner(value.boxed())]
    });
    members(value.boxed())
}

/// Pieces that texts are made of, in any order.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&[u8]> = vec![
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"",
        b"\"a\"",
        b"\"a\":",
        b"\"b\":1",
        b"0",
        b"-",
        b"1",
        b".",
        b"e",
        b"E+",
        b"true",
        b"fals",
        b"null",
        b"\\",
        b"\\n",
        b"\\u00",
        b"\\ud83d",
        b"\\ude00",
        b" ",
        b"\n",
        b"\x01",
        b"\x7f",
        "\u{e9}".as_bytes(),
        b"\xff",
        b"01",
        b"1.5",
        b"\"\\u0041\"",
    ];
    let piece = prop::sample::select(pieces);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn agrees(text: &[u8]) -> Result<(), TestCaseError> {
    let record = parsed(&plain(), text);
    match serde_json::from_slice::<Map<String, Json>>(text) {
        Ok(map) => prop_assert_eq!(meaning(text, &record), Some(map)),
        Err(error) if error.to_string().starts_with("number out of range") => {}
        Err(_) => prop_assert!(record.failure.is_some(), "{record:?}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn an_object_means_what_serde_json_says_it_means(text in object()) {
        agrees(text.as_bytes())?;
        prop_assert_eq!(failure(text.as_bytes()), None);
    }

    #[test]
    fn one_wrong_byte_is_judged_as_serde_json_judges_it(text in object(), at: prop::sample::Index, byte: u8) {
        let mut text = text.into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        agrees(&text)?;
        text.remove(at);
        agrees(&text)?;
        agrees(&text[..at])?;
    }

    #[test]
    fn pieces_in_any_order_are_judged_as_serde_json_judges_them(inside in soup(), name: bool) {
        agrees(&inside)?;
        let opening: &[u8] = if name { b"{\"x\":" } else { b"{" };
        agrees(&[opening, &inside, b"}"].concat())?;
        agrees(&[b"{\"x\":\"", &inside[..], b"\"}"].concat())?;
    }
}

#[test]
fn members_come_out_as_they_stand() {
    assert_eq!(
        fields(" {\"a\": 1.50 , \"b\":{\"c\":[ ]},\"d\\n\":\"\\u00e9\",\"\":null}\r\n"),
        ["a=1.50", "b={\"c\":[ ]}", "d\\n=\"\\u00e9\"", "=null"]
    );
    assert!(fields("{ }").is_empty());
    assert_eq!(fields("\u{feff}{\"a\":1e999}"), ["a=1e999"]);
}

#[test]
fn a_repeated_key_keeps_its_first_place_and_its_last_value() {
    assert_eq!(
        fields(r#"{"a":1,"b":2,"a":3,"c":4,"a":5}"#),
        ["a=5", "b=2", "c=4"]
    );
    // With an escape the names differ, but not what they mean.
    assert_eq!(fields(r#"{"a":1,"b":2,"\u0061":3}"#), ["a=3", "b=2"]);
    assert_eq!(
        fields(r#"{"\u0061":1,"b":2,"a":3,"b":4}"#),
        ["\\u0061=3", "b=4"]
    );
    assert_eq!(
        fields(r#"{"a\/b":1,"a/b":2,"a\\/b":3}"#),
        ["a\\/b=2", "a\\\\/b=3"]
    );
}

#[test]
fn a_hundred_thousand_keys_of_which_half_are_repeated_are_merged() {
    let members: Vec<String> = (0..100_000)
        .map(|n| format!("\"key-{}\":{n}", n % 50_000))
        .collect();
    let text = format!("{{{}}}", members.join(","));
    let fields = fields(&text);
    assert_eq!(fields.len(), 50_000);
    assert_eq!(fields[0], "key-0=50000");
    assert_eq!(fields[49_999], "key-49999=99999");
}

#[test]
fn what_is_no_object_is_named() {
    for (text, why) in [
        (&b""[..], "json: not an object"),
        (b"[1]", "json: not an object"),
        (b"text", "json: not an object"),
        (b"{\"a\":1} x", "json: text after the object"),
        (b"{\"a\":1", "json: ends before the object does"),
        (b"{\"a\":\"x", "json: ends before the object does"),
        (b"{\"a\":tr", "json: ends before the object does"),
        (b"{\"a\":[", "json: ends before the object does"),
        (b"{\"a\":01}", "json: not valid"),
        (b"{\"a\":1,}", "json: not valid"),
        (b"{a:1}", "json: not valid"),
        (b"{\"a\":[1}", "json: not valid"),
        (b"{\"a\":\"\\x\"}", "json: not valid"),
        (b"{\"a\":\"x\ny\"}", "json: a control character in a string"),
        (b"{\"a\":\"\\ud83d\"}", "json: half a surrogate pair"),
        (b"{\"a\":\"\xff\"}", "json: not UTF-8"),
    ] {
        assert_eq!(
            failure(text),
            Some(why),
            "{}",
            String::from_utf8_lossy(text)
        );
    }
}

#[test]
fn objects_may_be_as_deep_as_serde_json_takes_them_and_no_deeper() {
    for (open, close) in [("[", "]"), ("{\"k\":", "}")] {
        let deep = |depth: usize| {
            let (open, close) = (open.repeat(depth), close.repeat(depth));
            format!("{{\"a\":{open}1{close}}}").into_bytes()
        };
        let known = |text: &[u8]| serde_json::from_slice::<Map<String, Json>>(text).is_ok();
        assert!(known(&deep(126)) && !known(&deep(127)));
        assert_eq!(failure(&deep(126)), None);
        assert_eq!(failure(&deep(127)), Some("json: nested too deep"));
        assert_eq!(failure(&deep(100_000)), Some("json: nested too deep"));
    }
}

#[test]
fn the_time_is_a_string_or_a_number_and_its_member_stays() {
    let time = |key: Option<&str>, format: Option<&str>, text: &str| {
        let parser = parser(&Format::Json(time_key(key, format, Some("+08:00"))));
        let record = parsed(&parser, text.as_bytes());
        assert_eq!(record.failure, None);
        (record.time_ns, record.time_failure, record.fields.len())
    };
    let noon = ns("2024-05-01T12:00:00.25+08:00");
    let text = r#"{"ts":"2024-05-01T12:00:00.25","time":1}"#;
    assert_eq!(time(Some("ts"), None, text), (noon, None, 2));
    let text = r#"{"ts":1714536000.25}"#;
    assert_eq!(time(Some("ts"), None, text), (noon, None, 1));
    let text = r#"{"\u0074s":1714536000250}"#;
    assert_eq!(time(Some("ts"), None, text), (noon, None, 1));
    // PHP escapes every `/`.
    let text = r#"{"time":"01\/May\/2024 12:00:00.25"}"#;
    let format = Some("%d/%b/%Y %H:%M:%S");
    assert_eq!(time(None, format, text), (noon, None, 1));
    // The last value of a repeated key is the one that stays, and the time is of it.
    let text = r#"{"ts":"x","ts":"2024-05-01T12:00:00.25"}"#;
    assert_eq!(time(Some("ts"), None, text), (noon, None, 1));
    for (text, why) in [
        (r#"{"ts":"noon"}"#, Some(NOT_IN_FORMAT)),
        (r#"{"ts":-1}"#, Some(NOT_IN_FORMAT)),
        (r#"{"ts":[1]}"#, Some("time: neither text nor a number")),
        (r#"{"ts":null}"#, None),
        (r#"{"t":null}"#, None),
    ] {
        assert_eq!(time(Some("ts"), None, text), (None, why, 1), "{text}");
    }
}
