//! Text of any encoding: lines cover it, cuts get on, and UTF-8 comes out, as encoding_rs has it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpilot::decode::charset::Charset;
use ringpilot::decode::lines;

const LABELS: [&str; 12] = [
    "utf-8",
    "gbk",
    "gb18030",
    "big5",
    "shift_jis",
    "euc-jp",
    "euc-kr",
    "iso-2022-jp",
    "latin1",
    "koi8-r",
    "utf-16le",
    "utf-16be",
];

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (label, max, bytes) = input;
    let label = LABELS[usize::from(label) % LABELS.len()];
    let max = usize::from(max);
    let charset = Charset::new(label).expect("a label");
    let encoding = encoding_rs::Encoding::for_label(label.as_bytes()).expect("a label");
    let unit = charset.unit();
    let mut scratch = Vec::new();
    let mut from = charset.mark(bytes);
    while from < bytes.len() {
        let end = lines::next_line(unit, bytes, from).unwrap_or(bytes.len());
        assert!(end > from);
        let line = lines::trim(unit, &bytes[from..end]);
        assert!(line.len() + 2 * unit.bytes() >= end - from);
        let mut rest = line;
        while !rest.is_empty() {
            let length = lines::cut(unit, Some(&charset), rest, max);
            assert!(length > 0 && length <= rest.len() && length <= max.max(unit.bytes()));
            let (piece, after) = rest.split_at(length);
            let utf8 = charset.to_utf8(piece, &mut scratch);
            assert_eq!(
                utf8,
                encoding.decode_without_bom_handling(piece).0.as_bytes()
            );
            rest = after;
        }
        from = end;
    }
});
