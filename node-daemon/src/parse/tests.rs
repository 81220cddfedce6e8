//! Promises that hold for every format, and what each makes of real lines.

use proptest::prelude::*;

use super::*;

/// 2024-03-12T08:00:00Z.
pub(super) const NOW_NS: i64 = 1_710_230_400_000_000_000;

pub(super) fn parser(format: &Format) -> Parser {
    Parser::new(format, "UTC").expect("a good format")
}

pub(super) fn time_key(key: Option<&str>, format: Option<&str>, zone: Option<&str>) -> TimeKey {
    TimeKey {
        key: key.map(str::to_owned),
        format: format.map(str::to_owned),
        zone: zone.map(str::to_owned),
    }
}

pub(super) fn parsed(parser: &Parser, text: &[u8]) -> Record {
    let mut record = Record::default();
    parser.parse(text, NOW_NS, &mut record);
    record
}

/// The fields as `name=value`, text in quotes.
pub(super) fn shown(parser: &Parser, text: &[u8], record: &Record) -> Vec<String> {
    let cut = |bytes: &[u8], start: u32, end: u32| {
        String::from_utf8_lossy(&bytes[start as usize..end as usize]).into_owned()
    };
    let show = |field: &Field| {
        let name = match field.name {
            Name::Own(n) => parser.names()[usize::from(n)].clone(),
            Name::Json(start, end) => cut(text, start, end),
        };
        let value = match field.value {
            Value::Json(start, end) | Value::Number(start, end) => cut(text, start, end),
            Value::Text(start, end) => format!("\"{}\"", cut(text, start, end)),
            Value::Scratch(start, end) => format!("\"{}\"", cut(&record.scratch, start, end)),
            Value::Null => "null".to_owned(),
        };
        format!("{name}={value}")
    };
    record.fields.iter().map(show).collect()
}

fn fields(parser: &Parser, text: &str) -> Vec<String> {
    let record = parsed(parser, text.as_bytes());
    assert_eq!(record.failure, None, "{text}");
    shown(parser, text.as_bytes(), &record)
}

fn failure(parser: &Parser, text: &str) -> Option<&'static str> {
    let record = parsed(parser, text.as_bytes());
    assert!(record.failure.is_none() || record.fields.is_empty());
    record.failure
}

/// What jiff makes of a time in RFC 3339.
pub(super) fn ns(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().expect("a time");
    i64::try_from(time.as_nanosecond()).ok()
}

fn every_format() -> Vec<Parser> {
    let keys = ["time", "b", "c"].map(str::to_owned).to_vec();
    let pattern = r"^(?<time>\S*) (?<b>[^,]*),?(?<c>.*)$".to_owned();
    let time = time_key(Some("time"), None, Some("Europe/Berlin"));
    let clock = time_key(None, Some("%H:%M:%S"), None);
    [
        Format::None,
        Format::Json(time.clone()),
        Format::Csv { keys, time },
        Format::Nginx,
        Format::Apache2,
        Format::ApacheError,
        Format::Regexp {
            pattern,
            time: clock,
        },
    ]
    .iter()
    .map(parser)
    .collect()
}

const SEEDS: [&str; 6] = [
    r#"{"time":"2024-01-01T00:00:00Z","a\u00e9":[1,{"b":null}],"c":"\"x\""}"#,
    r#"2024-01-01,"a ""b"" c",d"#,
    r#"1.2.3.4 - bob [12/Mar/2024:06:25:24 +0000] "GET /a\"b HTTP/1.1" 200 15 "-" "curl" "9.9.9.9""#,
    r#"1.2.3.4 - - [12/Mar/2024:06:25:24 +0000] "GET /" 200 -"#,
    "[Wed Oct 11 14:32:52.1 2000] [core:error] [pid 3:tid 4] [client ::1:80] AH1: no",
    "06:25:24 text,more",
];

/// Bytes that are near to something that some format reads.
fn near_text() -> impl Strategy<Value = Vec<u8>> {
    let cuts = (0..SEEDS.len(), 0..200usize, 0..8usize, any::<Vec<u8>>());
    let near = cuts.prop_map(|(seed, at, removed, put)| {
        let mut text = SEEDS[seed].as_bytes().to_vec();
        let at = at % (text.len() + 1);
        let end = (at + removed).min(text.len());
        text.splice(at..end, put.into_iter().take(4));
        text
    });
    prop_oneof![4 => near, 1 => any::<Vec<u8>>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_the_bytes_the_ranges_lie_in_the_text_and_what_is_called_json_is_json(text in near_text()) {
        let mut record = Record::default();
        for parser in every_format() {
            // Twice: what one text leaves behind must not reach the next.
            for _ in 0..2 {
                parser.parse(&text, NOW_NS, &mut record);
                let cut = |start: u32, end: u32| text.get(start as usize..end as usize);
                if record.failure.is_some() {
                    prop_assert!(record.fields.is_empty() && record.time_ns.is_none());
                    prop_assert!(record.time_failure.is_none());
                }
                for field in &record.fields {
                    match field.name {
                        Name::Own(n) => prop_assert!(usize::from(n) < parser.names().len()),
                        Name::Json(start, end) => {
                            let name = cut(start, end).map(<[u8]>::to_vec);
                            let quoted = [b"\"", &name.unwrap_or_default()[..], b"\""].concat();
                            prop_assert!(serde_json::from_slice::<String>(&quoted).is_ok());
                        }
                    }
                    match field.value {
                        Value::Json(start, end) | Value::Number(start, end) => {
                            let value = cut(start, end).unwrap_or_default();
                            prop_assert!(serde_json::from_slice::<serde_json::Value>(value).is_ok());
                        }
                        Value::Text(start, end) => prop_assert!(cut(start, end).is_some()),
                        Value::Scratch(start, end) => {
                            prop_assert!(record.scratch.get(start as usize..end as usize).is_some());
                        }
                        Value::Null => {}
                    }
                }
            }
        }
    }
}

#[test]
fn a_text_without_format_is_the_message() {
    let parser = parser(&Format::None);
    let record = parsed(&parser, b"anything \xff");
    assert!(record.fields.is_empty() && record.failure.is_none());
}

#[test]
fn a_record_that_was_far_larger_than_others_does_not_stay_so() {
    let members: Vec<String> = (0..50_000).map(|n| format!("\"{n}\":1")).collect();
    let large = format!("{{{}}}", members.join(","));
    let parser = parser(&Format::Json(TimeKey::default()));
    let mut record = Record::default();
    parser.parse(large.as_bytes(), NOW_NS, &mut record);
    assert_eq!(record.fields.len(), 50_000);
    parser.parse(b"{}", NOW_NS, &mut record);
    assert!(record.fields.capacity() <= KEPT && record.work.keys.capacity() <= KEPT);
    // From here on nothing is allocated: the same place serves.
    parser.parse(br#"{"a":1,"b":2}"#, NOW_NS, &mut record);
    let place = record.fields.as_ptr();
    parser.parse(br#"{"c":3}"#, NOW_NS, &mut record);
    assert_eq!(record.fields.as_ptr(), place);
}

#[test]
fn an_apache_error_is_read_as_2_2_and_as_2_4_write_it() {
    let parser = Parser::new(&Format::ApacheError, "+08:00").expect("a good format");
    let old = "[Wed Oct 11 14:32:52 2000] [error] [client 127.0.0.1] client denied by server";
    assert_eq!(
        fields(&parser, old),
        [
            "level=\"error\"",
            "client=\"127.0.0.1\"",
            "message=\"client denied by server\""
        ]
    );
    let record = parsed(&parser, old.as_bytes());
    assert_eq!(record.time_ns, ns("2000-10-11T14:32:52+08:00"));
    let new = "[Wed Oct 11 14:32:52.123456 2000] [core:error] [pid 35708:tid 4328636416] \
               [client 72.15.99.187:1234] AH00128: File does not exist: /favicon.ico\n";
    assert_eq!(
        fields(&parser, new),
        [
            "level=\"core:error\"",
            "pid=\"35708:tid 4328636416\"",
            "client=\"72.15.99.187:1234\"",
            "message=\"AH00128: File does not exist: /favicon.ico\""
        ]
    );
    let record = parsed(&parser, new.as_bytes());
    assert_eq!(record.time_ns, ns("2000-10-11T14:32:52.123456+08:00"));
    let notice = "[Wed Oct 11 14:32:52 2000] [notice] Apache/2.2.15 (Unix) -- resuming";
    assert_eq!(
        fields(&parser, notice),
        [
            "level=\"notice\"",
            "message=\"Apache/2.2.15 (Unix) -- resuming\""
        ]
    );
    let odd = "[yesterday] [notice] x";
    assert_eq!(
        fields(&parser, odd),
        ["level=\"notice\"", "message=\"x\"", "time=\"yesterday\""]
    );
    assert_eq!(
        parsed(&parser, odd.as_bytes()).time_failure,
        Some(NOT_IN_FORMAT)
    );
    for bad in [
        "",
        "[",
        "httpd: syntax error",
        "[Wed] [x",
        "[Wed Oct] [error]x",
    ] {
        assert_eq!(
            failure(&parser, bad),
            Some("apache_error: not `[time] [level] message`"),
            "{bad}"
        );
    }
}

#[test]
fn named_groups_become_fields_and_a_time_that_was_read_does_not() {
    let format = Format::Regexp {
        pattern: r"/^(?<time>\S+ \S+) (?<level>\w+)(?: \[(?<thread>[^\]]*)\])? (?<text>.*)$/"
            .to_owned(),
        time: time_key(None, Some("%Y-%m-%d %H:%M:%S"), Some("Asia/Shanghai")),
    };
    let parser = parser(&format);
    assert!(parser.doubts().is_empty());
    let text = "2024-03-12 14:25:24,5 WARN slow: 9 s";
    assert_eq!(
        fields(&parser, text),
        ["level=\"WARN\"", "text=\"slow: 9 s\""]
    );
    let record = parsed(&parser, text.as_bytes());
    assert_eq!(record.time_ns, ns("2024-03-12T06:25:24.5Z"));
    let odd = "2024-03-12 noon WARN [main] late";
    assert_eq!(
        fields(&parser, odd),
        [
            "time=\"2024-03-12 noon\"",
            "level=\"WARN\"",
            "thread=\"main\"",
            "text=\"late\""
        ]
    );
    assert_eq!(
        parsed(&parser, odd.as_bytes()).time_failure,
        Some(NOT_IN_FORMAT)
    );
    assert_eq!(failure(&parser, "nothing"), Some("regexp: no match"));
}

#[test]
fn of_groups_of_one_name_the_last_that_took_part_counts() {
    let format = Format::Regexp {
        pattern: r"(?<a>x)(?<b>1)|(?<a>y)(?<a>z)?(?<b>2)".to_owned(),
        time: TimeKey::default(),
    };
    let parser = parser(&format);
    assert_eq!(parser.names(), ["a", "b"]);
    assert_eq!(fields(&parser, "x1"), ["a=\"x\"", "b=\"1\""]);
    assert_eq!(fields(&parser, "y2"), ["a=\"y\"", "b=\"2\""]);
    assert_eq!(fields(&parser, "yz2"), ["a=\"z\"", "b=\"2\""]);
}

#[test]
fn a_pattern_that_never_ends_on_a_text_leaves_it_whole() {
    let format = Format::Regexp {
        pattern: r"(?<x>a*)(?<y>a*)\k<x>\k<y>b".to_owned(),
        time: TimeKey::default(),
    };
    let text = "a".repeat(5000) + "!";
    assert_eq!(failure(&parser(&format), &text), Some("regexp: too hard"));
}

#[test]
fn what_cannot_be_compiled_is_said_and_what_has_no_effect_is_a_doubt() {
    let error = |format: Format| {
        Parser::new(&format, "UTC")
            .map(|_| ())
            .expect_err("refused")
    };
    let regexp = |pattern: &str, time: TimeKey| Format::Regexp {
        pattern: pattern.to_owned(),
        time,
    };
    let csv = |time: TimeKey| Format::Csv {
        keys: vec!["a".to_owned()],
        time,
    };
    let zone = time_key(Some("a"), None, Some("Mars"));
    assert_eq!(
        error(Format::Json(zone.clone())),
        "no time zone is called `Mars`"
    );
    assert_eq!(error(csv(zone.clone())), "no time zone is called `Mars`");
    assert_eq!(
        error(regexp(r"\d+", TimeKey::default())),
        "it has no named group `(?<name>…)`, of which fields are made"
    );
    assert!(!error(regexp("(?<a>", TimeKey::default())).is_empty());
    let format = time_key(None, Some("%K"), None);
    assert_eq!(
        error(Format::Json(format)),
        "the time format `%K` has `%K`, which is not known"
    );

    let doubts = |format: Format| parser(&format).doubts().to_vec();
    let key = time_key(Some("ts"), None, None);
    assert_eq!(
        doubts(csv(key.clone())),
        ["no column is called `ts`, so no time is read from the records"]
    );
    assert_eq!(
        doubts(regexp("(?<a>x)", key)),
        ["no group is called `ts`, so no time is read from the records"]
    );
    assert!(doubts(regexp("(?<a>x)", TimeKey::default())).is_empty());
}
