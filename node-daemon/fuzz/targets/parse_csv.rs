//! A CSV record: what is read is what csv-core reads.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ringpilot::declare::{Format, TimeKey};
use ringpilot::parse::{Parser, Record, Value};

const COLUMNS: usize = 20;

static PARSER: LazyLock<Parser> = LazyLock::new(|| {
    let time = TimeKey {
        key: Some("1".to_owned()),
        ..TimeKey::default()
    };
    let keys = (0..COLUMNS).map(|n| n.to_string()).collect();
    Parser::new(&Format::Csv { keys, time }, "UTC").expect("a good format")
});

fuzz_target!(|text: &[u8]| {
    let mut record = Record::default();
    PARSER.parse(text, 0, &mut record);
    if record.failure.is_some() {
        assert!(record.fields.is_empty());
        return;
    }
    let (mut output, mut ends) = (vec![0; text.len() + 1], [0; COLUMNS + 1]);
    let mut reader = csv_core::Reader::new();
    let (result, read, bytes, mut values) = reader.read_record(text, &mut output, &mut ends);
    if result != csv_core::ReadRecordResult::Record {
        // The end of the text ends the record.
        let rest = (&mut output[bytes..], &mut ends[values..]);
        values += reader.read_record(&text[read..], rest.0, rest.1).3;
    }
    assert_eq!(record.fields.len(), values);
    let mut start = 0;
    for (field, end) in record.fields.iter().zip(ends) {
        let value: &[u8] = match field.value {
            Value::Text(from, to) => &text[from as usize..to as usize],
            Value::Scratch(from, to) => &record.scratch[from as usize..to as usize],
            Value::Null => b"",
            other => panic!("not CSV: {other:?}"),
        };
        assert_eq!(value, &output[start..end]);
        start = end;
    }
});
