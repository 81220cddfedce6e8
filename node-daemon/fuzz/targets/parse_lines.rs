//! Lines of access logs and error logs, and what a pattern makes of them: every range lies in the text.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ringpilot::declare::{Format, TimeKey};
use ringpilot::parse::{Name, Parser, Record, Value};

static PARSERS: LazyLock<Vec<Parser>> = LazyLock::new(|| {
    let pattern = r"^(?<time>[^ ]+) (?:\[(?<a>[^\]]*)\])? ?(?<b>\w+)(?<a>.*)$".to_owned();
    let time = TimeKey::default();
    [
        Format::Nginx,
        Format::Apache2,
        Format::ApacheError,
        Format::Regexp { pattern, time },
    ]
    .iter()
    .map(|format| Parser::new(format, "Europe/Berlin").expect("a good format"))
    .collect()
});

fuzz_target!(|text: &[u8]| {
    let mut record = Record::default();
    for parser in PARSERS.iter() {
        parser.parse(text, 0, &mut record);
        assert!(record.failure.is_none() || record.fields.is_empty());
        let mut before = None;
        for field in &record.fields {
            let Name::Own(name) = field.name else {
                panic!("not of this format: {field:?}");
            };
            assert!(usize::from(name) < parser.names().len());
            assert!(before < Some(name), "a name twice");
            before = Some(name);
            match field.value {
                Value::Text(start, end) => assert!(start <= end && end as usize <= text.len()),
                Value::Number(start, end) => {
                    let number = &text[start as usize..end as usize];
                    serde_json::from_slice::<serde_json::Value>(number).expect("a number");
                }
                Value::Null => {}
                other => panic!("not of this format: {other:?}"),
            }
        }
    }
});
