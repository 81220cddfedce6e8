//! A JSON record: accepted exactly where serde_json accepts an object, with the same members and values.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ringpilot::declare::{Format, TimeKey};
use ringpilot::parse::{Name, Parser, Record, Value};
use serde_json::{Map, Value as Json};

static PARSER: LazyLock<Parser> = LazyLock::new(|| {
    let time = TimeKey {
        key: Some("t".to_owned()),
        ..TimeKey::default()
    };
    Parser::new(&Format::Json(time), "UTC").expect("a good format")
});

fuzz_target!(|text: &[u8]| {
    let mut record = Record::default();
    PARSER.parse(text, 0, &mut record);
    let plain = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    match serde_json::from_slice::<Map<String, Json>>(plain) {
        Ok(map) => {
            assert_eq!(record.failure, None);
            let cut = |start: u32, end: u32| &text[start as usize..end as usize];
            let mut found = Map::new();
            for field in &record.fields {
                let (Name::Json(start, end), Value::Json(from, to)) = (field.name, field.value)
                else {
                    panic!("not JSON: {field:?}");
                };
                let name = [b"\"", cut(start, end), b"\""].concat();
                let name = serde_json::from_slice(&name).expect("a string");
                let value = serde_json::from_slice(cut(from, to)).expect("a value");
                assert_eq!(found.insert(name, value), None, "a key twice");
            }
            assert_eq!(found, map);
        }
        // Numbers beyond an f64 are only copied.
        Err(error) if error.to_string().starts_with("number out of range") => {}
        Err(_) => assert!(record.failure.is_some()),
    }
});
