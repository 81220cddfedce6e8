//! A line of a CRI runtime: no panic; what is read can be written again and read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpilot::decode::lines::{self, Unit};
use ringpilot::decode::{Channel, cri};

fuzz_target!(|line: &[u8]| {
    let part = cri::decode(line);
    let text = &line[part.start..part.end];
    if part.raw {
        assert_eq!(text, lines::trim(Unit::One, line));
        return;
    }
    assert!(part.time_ns.is_some());
    let stream = match part.channel {
        Channel::Stdout => "stdout",
        Channel::Stderr => "stderr",
    };
    let tag = if part.whole { "F" } else { "P" };
    let mut again = format!("1970-01-01T00:00:01Z {stream} {tag} ").into_bytes();
    again.extend_from_slice(text);
    again.push(b'\n');
    let other = cri::decode(&again);
    assert_eq!(
        (other.channel, other.whole, other.raw),
        (part.channel, part.whole, false)
    );
    // A second `\r` before the end would now be taken for the line's.
    if !text.ends_with(b"\r") || !part.whole {
        assert_eq!(&again[other.start..other.end], text);
    }
});
