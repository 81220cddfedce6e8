use proptest::prelude::*;

use super::*;

const TIME: i64 = 1_475_713_029_669_794_202;

fn text(line: &[u8]) -> (Part, Vec<u8>) {
    let mut line = line.to_vec();
    let part = decode(&mut line);
    (part, line[part.start..part.end].to_vec())
}

/// A line with this between the quotes of `log`.
fn line(log: &str) -> Vec<u8> {
    let start = format!(r#"{{"log":"{log}","stream":"stdout","#);
    format!("{start}\"time\":\"2016-10-06T00:17:09.669794202Z\"}}\n").into_bytes()
}

#[test]
fn a_whole_line_and_its_parts_are_told_apart() {
    let whole = line(r"hello world\n");
    let (part, kept) = text(&whole);
    assert_eq!(kept, b"hello world");
    assert_eq!(
        part,
        Part {
            start: 8,
            end: 19,
            time_ns: Some(TIME),
            channel: Channel::Stdout,
            whole: true,
            raw: false
        }
    );
    let (part, kept) = text(&line("hello "));
    assert_eq!(
        (kept.as_slice(), part.whole, part.raw),
        (&b"hello "[..], false, false)
    );
    let (part, _) =
        text(br#"{"log":"x\n","stream":"stderr","time":"2016-10-06T08:17:09.669794202+08:00"}"#);
    assert_eq!((part.channel, part.time_ns), (Channel::Stderr, Some(TIME)));
}

#[test]
fn escapes_are_those_of_json_and_one_line_end_is_taken_off() {
    for (log, kept, whole) in [
        (r"", "", false),
        (r"\n", "", true),
        (r"\r\n", "", true),
        (r"a\r\n", "a", true),
        (r"a\u000a", "a", true),
        (r"a\tb\r\n", "a\tb", true),
        (r"a\r", "a\r", false),
        (r"a\n\n", "a\n", true),
        (r"\\n", "\\n", false),
        (r"\\\n", "\\", true),
        (r"\\", "\\", false),
        (r#"\"\\\/\b\f\t\u0009"#, "\"\\/\u{8}\u{c}\t\t", false),
        (r"\u003c\u003E\u0026\u2028", "<>&\u{2028}", false),
        (r"\u4e2d\ud83d\ude00é", "中😀é", false),
        (r#"{\"a\":\"b\\n\"}\n"#, r#"{"a":"b\n"}"#, true),
        // Half a pair.
        (r"\ud83d", "\u{fffd}", false),
        (r"\ud83dx", "\u{fffd}x", false),
        (r"\ud83d\u0041", "\u{fffd}A", false),
        (r"\ud83d\ud83d\ude00", "\u{fffd}😀", false),
        (r"\ude00\ud83d", "\u{fffd}\u{fffd}", false),
        // No escapes at all.
        (r"\q\u12g4\x\u1", r"\q\u12g4\x\u1", false),
    ] {
        let (part, text) = text(&line(log));
        let text = String::from_utf8(text).expect("valid");
        assert_eq!(
            (text.as_str(), part.whole, part.raw),
            (kept, whole, false),
            "{log}"
        );
        assert_eq!(part.time_ns, Some(TIME));
    }
}

#[test]
fn keys_stand_in_any_order_with_spaces_and_others_between_them() {
    for line in [
        r#"{"log":"a\tb\n","stream":"stderr","attrs":{"k":"v\"}","n":[1,{"x":null}]},"time":"1970-01-01T00:00:01Z"}"#,
        r#" { "time" : "1970-01-01T00:00:01Z" , "stream" : "stderr" , "log" : "a\tb\n" } "#,
        r#"{"x":-1.5e+3,"y":true,"z":[],"log":"a\tb\n","w":{},"stream":"stderr","time":"1970-01-01T00:00:01Z"}"#,
        r#"{"log":"other","log":"a\tb\n","stream":"stdout","stream":"stderr","time":"1970-01-01T00:00:01Z"}"#,
        "\0\0{\"log\":\"a\\tb\\n\",\"stream\":\"stderr\",\"time\":\"1970-01-01T00:00:01Z\"}\r\n",
    ] {
        let (part, kept) = text(line.as_bytes());
        assert_eq!(
            (kept.as_slice(), part.raw, part.whole),
            (&b"a\tb"[..], false, true),
            "{line}"
        );
        assert_eq!(
            (part.channel, part.time_ns),
            (Channel::Stderr, Some(1_000_000_000)),
            "{line}"
        );
    }
}

#[test]
fn a_line_without_time_or_with_another_is_still_a_line() {
    for line in [
        r#"{"log":"a\n","stream":"stdout"}"#,
        r#"{"log":"a\n","stream":"stdout","time":""}"#,
        r#"{"log":"a\n","stream":"stdout","time":"yesterday"}"#,
        r#"{"log":"a\n","stream":"stdout","time":"0001-01-01T00:00:00Z"}"#,
        r#"{"log":"a\n"}"#,
    ] {
        let (part, kept) = text(line.as_bytes());
        assert_eq!(
            (kept.as_slice(), part.raw, part.whole),
            (&b"a"[..], false, true),
            "{line}"
        );
        assert_eq!(part.time_ns, None);
    }
    let (part, kept) = text(br#"{"stream":"stdout","time":"1970-01-01T00:00:01Z"}"#);
    assert_eq!(
        (kept.len(), part.raw, part.whole),
        (0, false, false),
        "an empty text is not written"
    );
}

#[test]
fn what_cannot_be_read_comes_out_untouched() {
    for line in [
        r"",
        r"hello",
        r"{",
        r"{}",
        r"{]",
        r"[]",
        r#"{"log""#,
        r#"{"log":"#,
        r#"{"log":"a\tb"#,
        r#"{"log":"a\tb\"#,
        r#"{"log":"a\tb\n"#,
        r#"{"log":"a\tb\n""#,
        r#"{"log":"a\tb\n","stream":"std"#,
        r#"{"log":"a\tb\n","stream":"stdout","time":"1970-01-01T00:00:01Z""#,
        r#"{"log":"a\tb\n","stream":"stdout","time":"1970-01-01T00:00:01Z"}x"#,
        r#"{"log":"a\tb\n","stream":"stdout","time":"1970-01-01T00:00:01Z"}{"log":""}"#,
        r#"{"log":"a\tb\n","stream":"std{"log":"a\tb\n","stream":"stdout","time":"1970-01-01T00:00:01Z"}"#,
        r#"{"log":"a\tb\n",}"#,
        r#"{"log":"a\tb\n","x":}"#,
        r#"{"log":"a\tb\n","x":[[[}"#,
        r#"{"log":"a\tb\n","x":;}"#,
        r#"{"log":1}"#,
        r#"{"log":null,"stream":"stdout","time":"1970-01-01T00:00:01Z"}"#,
        r#"{"level":"info","msg":"an application's own"}"#,
    ] {
        let mut ended = format!("{line}\r\n").into_bytes();
        let part = decode(&mut ended);
        assert_eq!(ended, format!("{line}\r\n").as_bytes(), "touched: {line}");
        assert!(part.raw && part.whole, "{line}");
        assert_eq!((part.start, part.end), (0, line.len()), "{line}");
        assert_eq!((part.time_ns, part.channel), (None, Channel::Stdout));
    }
}

/// As moby's `writeJSONString` does it.
fn docker_escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\0'..=' ' if character != ' ' => out += &format!("\\u{:04x}", u32::from(character)),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out += &format!("\\u{:04x}", u32::from(character));
            }
            other => out.push(other),
        }
    }
    out
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        r#"[a-c"\\\n\r\t<>&/ é中😀\u{2028}\u{0}]{0,60}"#,
        any::<String>(),
        "[a-z ]{0,40}\r?\n?",
    ]
}

/// Text, where the whole line ends, and the text again.
fn expected(text: &str) -> (&str, bool) {
    match text.strip_suffix('\n') {
        Some(line) => (line.strip_suffix('\r').unwrap_or(line), true),
        None => (text, false),
    }
}

proptest! {
    #[test]
    fn what_docker_writes_is_read(text in texts(), time_ns in 0_i64..4_000_000_000_000_000_000, stderr: bool) {
        let time = jiff::Timestamp::from_nanosecond(i128::from(time_ns)).expect("valid");
        let log = docker_escaped(&text);
        let stream = if stderr { "stderr" } else { "stdout" };
        let line = format!("{{\"log\":\"{log}\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n");
        let (part, kept) = super::tests::text(line.as_bytes());
        prop_assert_eq!((std::str::from_utf8(&kept).expect("valid"), part.whole), expected(&text));
        prop_assert_eq!((part.time_ns, part.raw), (Some(time_ns), false));
        prop_assert_eq!(part.channel == Channel::Stderr, stderr);
    }

    /// Any object that serde_json writes, keys in any order and more of them.
    #[test]
    fn what_serde_json_writes_is_read(
        text in texts(),
        attribute in texts(),
        keys in Just(["log", "stream", "time", "attrs", "n"]).prop_shuffle(),
        pretty: bool,
    ) {
        let mut object = serde_json::Map::new();
        for key in keys {
            let value = match key {
                "log" => serde_json::json!(text),
                "stream" => serde_json::json!("stderr"),
                "time" => serde_json::json!("1970-01-01T00:00:01Z"),
                "attrs" => serde_json::json!({"a": [attribute, {"b": -1.5e300}, null, {}], "": true}),
                _ => serde_json::json!(7),
            };
            object.insert(key.to_owned(), value);
        }
        let line = if pretty {
            serde_json::to_string_pretty(&object).expect("valid").replace('\n', " ")
        } else {
            serde_json::to_string(&object).expect("valid")
        };
        let (part, kept) = super::tests::text(line.as_bytes());
        prop_assert_eq!((std::str::from_utf8(&kept).expect("valid"), part.whole), expected(&text));
        prop_assert_eq!((part.time_ns, part.channel, part.raw), (Some(1_000_000_000), Channel::Stderr, false));
    }

    /// Escapes of all kinds; where serde_json can read the string, it reads the same.
    #[test]
    fn an_unescaped_string_is_what_serde_json_reads(
        inside in r#"(\\u[0-9a-fA-F]{4}|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|\\["\\/bfnrt]|[a-z é😀]){0,20}"#,
    ) {
        let (part, kept) = super::tests::text(&line(&inside));
        prop_assert!(!part.raw);
        let kept = std::str::from_utf8(&kept).expect("valid");
        if let Ok(text) = serde_json::from_str::<String>(&format!("\"{inside}\"")) {
            prop_assert_eq!((kept, part.whole), expected(&text));
        }
    }

    #[test]
    fn no_bytes_panic(
        start in r#"\{?"(log|stream|time|x)":"?[a\\"nu0d8{}\[\],:]{0,30}"#,
        rest in proptest::collection::vec(any::<u8>(), 0..20),
        end in r#"(","stream":"stdout","time":"1970-01-01T00:00:01Z"\})?"#,
    ) {
        let line = [start.as_bytes(), &rest, end.as_bytes()].concat();
        let mut copy = line.clone();
        let part = decode(&mut copy);
        prop_assert!(part.start <= part.end && part.end <= line.len());
        if part.raw {
            prop_assert_eq!(copy, line);
        }
    }
}
