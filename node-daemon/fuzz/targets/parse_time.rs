//! Times by any format: no panic, nothing before 1970, and the same when asked again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpilot::parse::TimeFormat;

const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/New_York", "+05:45"];

fuzz_target!(|input: (&str, &[u8], i64, u8)| {
    let (format, text, now_ns, zone) = input;
    let zone = ZONES[usize::from(zone) % ZONES.len()];
    for format in [None, Some(format)] {
        if let Ok(compiled) = TimeFormat::new(format, zone) {
            let time = compiled.parse(text, now_ns);
            assert!(time.is_none_or(|time| time >= 0), "{time:?}");
            // The zone's last hour is remembered by now.
            assert_eq!(compiled.parse(text, now_ns), time);
        }
    }
});
