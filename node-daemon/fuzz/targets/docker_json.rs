//! A line of Docker's: no panic; what cannot be read is untouched; what serde_json reads is read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpilot::decode::docker_json;

#[derive(Debug)]
struct Expected {
    text: String,
    whole: bool,
}

/// What serde_json makes of it, if that is a line of Docker's beyond doubt.
fn expected(line: &[u8]) -> Option<Expected> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).ok()?;
    if count_of(line, b"\"log\"") != 1 || count_of(line, b"\\u") > 0 {
        return None; // a key twice, or one written in escapes
    }
    let text = object.get("log")?.as_str()?;
    if ["stream", "time"]
        .iter()
        .any(|key| object.get(*key).is_some_and(|value| !value.is_string()))
    {
        return None;
    }
    let (text, whole) = match text.strip_suffix('\n') {
        Some(text) => (text.strip_suffix('\r').unwrap_or(text), true),
        None => (text, false),
    };
    Some(Expected {
        text: text.to_owned(),
        whole,
    })
}

fn count_of(line: &[u8], what: &[u8]) -> usize {
    line.windows(what.len())
        .filter(|part| *part == what)
        .count()
}

fuzz_target!(|line: &[u8]| {
    let mut copy = line.to_vec();
    let part = docker_json::decode(&mut copy);
    let text = &copy[part.start..part.end];
    if part.raw {
        assert_eq!(copy, line);
        assert!(part.whole);
    }
    if let Some(expected) = expected(line) {
        assert!(!part.raw);
        assert_eq!(
            (str::from_utf8(text), part.whole),
            (Ok(expected.text.as_str()), expected.whole)
        );
    }
});
