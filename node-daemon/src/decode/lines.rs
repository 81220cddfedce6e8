//! Find where physical lines end, in the unit that the encoding counts in, and where to cut one that is too long.
//! Place: follow -> **decode**: a worker asks for one line after the other of its slice.
//! Invariants: allocates nothing; lines cover the slice in order, without a gap; a cut always gets on.

use super::charset::Charset;

/// What a line end is searched in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Bytes: UTF-8, and every encoding in which the byte 0x0A is only ever a line end.
    #[default]
    One,
    /// Two bytes, the lesser first.
    Utf16Le,
    /// Two bytes, the greater first.
    Utf16Be,
}

impl Unit {
    /// How many bytes it has.
    pub fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Utf16Le | Self::Utf16Be => 2,
        }
    }
}

/// The index one past the end of the line that begins at `from`, its `\n` included; `None` if there is none yet.
/// Units of two bytes count from the start of `bytes`, which therefore stands at an even offset of its file.
pub fn next_line(unit: Unit, bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let newline = at + memchr::memchr(b'\n', bytes.get(at..)?)?;
        match unit {
            Unit::One => return Some(newline + 1),
            Unit::Utf16Le if newline.is_multiple_of(2) && bytes.get(newline + 1) == Some(&0) => {
                return Some(newline + 2);
            }
            Unit::Utf16Be if !newline.is_multiple_of(2) && bytes.get(newline - 1) == Some(&0) => {
                return Some(newline + 1);
            }
            // Half of another character, such as U+010A or U+0A05.
            Unit::Utf16Le | Unit::Utf16Be => at = newline + 1,
        }
    }
}

/// The line without its `\n` or `\r\n`.
pub fn trim(unit: Unit, line: &[u8]) -> &[u8] {
    let (newline, carriage_return): (&[u8], &[u8]) = match unit {
        Unit::One => (b"\n", b"\r"),
        Unit::Utf16Le => (b"\n\0", b"\r\0"),
        Unit::Utf16Be => (b"\0\n", b"\0\r"),
    };
    // A suffix of an odd number of bytes before it would be half of one unit and half of another.
    if !line.len().is_multiple_of(unit.bytes()) {
        return line;
    }
    match line.strip_suffix(newline) {
        Some(line) => line.strip_suffix(carriage_return).unwrap_or(line),
        None => line,
    }
}

/// Where to cut a line of which only `max` bytes may be one record: the length of its first piece, which is at least
/// one byte (one unit, where the line has one) and at most `max` otherwise. No character is cut in two where that can
/// be told from the bytes around; `charset` is `None` for UTF-8. The line comes without its end.
pub fn cut(unit: Unit, charset: Option<&Charset>, line: &[u8], max: usize) -> usize {
    if line.len() <= max {
        return line.len();
    }
    let most = max - max % unit.bytes();
    let wanted = match (unit, charset) {
        (Unit::One, None) => utf8_cut(line, most),
        (Unit::One, Some(charset)) => charset.cut(line, most),
        (Unit::Utf16Le, _) => utf16_cut(line, most, u16::from_le_bytes),
        (Unit::Utf16Be, _) => utf16_cut(line, most, u16::from_be_bytes),
    };
    match wanted {
        // Nothing whole fits: a torn character is better than no progress.
        0 => most.max(unit.bytes()).min(line.len()),
        length => length,
    }
}

pub(super) fn utf8_cut(line: &[u8], most: usize) -> usize {
    // A character has at most three bytes after its first; more of them are no UTF-8, and any place is as good.
    let lead = (most.saturating_sub(3)..=most)
        .rev()
        .find(|&at| line.get(at).is_some_and(|byte| byte & 0xc0 != 0x80));
    match lead {
        Some(lead) if line[lead] >= 0xc0 && lead < most => {
            let length = match line[lead] {
                0xf0.. => 4,
                0xe0.. => 3,
                _ => 2,
            };
            if lead + length > most { lead } else { most }
        }
        _ => most,
    }
}

fn utf16_cut(line: &[u8], most: usize, unit: fn([u8; 2]) -> u16) -> usize {
    let at = |from: usize| match line.get(from..from + 2) {
        Some(&[a, b]) => unit([a, b]),
        _ => 0,
    };
    let torn = most >= 2
        && (0xd800..0xdc00).contains(&at(most - 2))
        && (0xdc00..0xe000).contains(&at(most));
    if torn { most - 2 } else { most }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn utf16(unit: Unit, text: &str) -> Vec<u8> {
        text.encode_utf16()
            .flat_map(|word| match unit {
                Unit::Utf16Be => word.to_be_bytes(),
                _ => word.to_le_bytes(),
            })
            .collect()
    }

    #[test]
    fn a_line_ends_in_its_own_unit() {
        assert_eq!(next_line(Unit::One, b"ab\r\nc", 0), Some(4));
        assert_eq!(next_line(Unit::One, b"ab\r\nc", 4), None);
        assert_eq!(next_line(Unit::One, b"", 0), None);
        assert_eq!(next_line(Unit::One, b"\n", 7), None);
        // U+0A0A holds two bytes 0x0A and ends no line; neither do U+000D U+0A00 across two units.
        for unit in [Unit::Utf16Le, Unit::Utf16Be] {
            let text = utf16(unit, "\u{a0a}\u{10a}\u{a00}x\r\ny\n");
            assert_eq!(next_line(unit, &text, 0), Some(12));
            assert_eq!(next_line(unit, &text, 12), Some(16));
            assert_eq!(next_line(unit, &text, 16), None);
            assert_eq!(
                trim(unit, &text[..12]),
                utf16(unit, "\u{a0a}\u{10a}\u{a00}x")
            );
            assert_eq!(
                next_line(unit, &text[..11], 0),
                None,
                "half of a line end is none"
            );
        }
    }

    #[test]
    fn one_line_end_is_trimmed_and_no_more() {
        assert_eq!(trim(Unit::One, b"a\r\n"), b"a");
        assert_eq!(trim(Unit::One, b"a\n"), b"a");
        assert_eq!(trim(Unit::One, b"a\r\r\n"), b"a\r");
        assert_eq!(trim(Unit::One, b"a\n\n"), b"a\n");
        assert_eq!(trim(Unit::One, b"a\r"), b"a\r");
        assert_eq!(trim(Unit::One, b"\n"), b"");
        assert_eq!(trim(Unit::Utf16Le, b"a\0\n\0"), b"a\0");
        assert_eq!(trim(Unit::Utf16Be, b"\0a\0\r\0\n"), b"\0a");
        assert_eq!(trim(Unit::Utf16Be, b"a\0\n"), b"a\0\n");
    }

    #[test]
    fn a_cut_leaves_characters_whole() {
        let gbk = Charset::new("gbk").expect("a label");
        let gb18030 = Charset::new("gb18030").expect("a label");
        let euc_jp = Charset::new("euc-jp").expect("a label");
        let latin1 = Charset::new("latin1").expect("a label");
        assert_eq!(cut(Unit::One, None, "aé€😀".as_bytes(), 100), 10);
        for (max, length) in [
            (1, 1),
            (2, 1),
            (3, 3),
            (4, 3),
            (5, 3),
            (6, 6),
            (7, 6),
            (9, 6),
        ] {
            assert_eq!(
                cut(Unit::One, None, "aé€😀".as_bytes(), max),
                length,
                "{max}"
            );
        }
        // `中` is D6 D0 and `国` B9 FA in GBK.
        let text = b"a \xd6\xd0\xb9\xfa\xd6\xd0";
        for (max, length) in [(2, 2), (3, 2), (4, 4), (5, 4), (6, 6), (7, 6)] {
            assert_eq!(cut(Unit::One, Some(&gbk), text, max), length, "{max}");
        }
        let four = b"a\n\x84\x31\xa4\x37\x84\x31\xa4\x37";
        for (max, length) in [(3, 2), (4, 2), (5, 2), (6, 6), (9, 6)] {
            assert_eq!(cut(Unit::One, Some(&gb18030), four, max), length, "{max}");
        }
        assert_eq!(
            cut(Unit::One, Some(&euc_jp), b"a\x8f\xb0\xa1\xb0\xa1", 3),
            1
        );
        assert_eq!(cut(Unit::One, Some(&latin1), b"\xe9\xe9\xe9", 2), 2);
        let text = utf16(Unit::Utf16Le, "a😀b");
        for (max, length) in [(2, 2), (3, 2), (4, 2), (5, 2), (6, 6), (7, 6)] {
            assert_eq!(cut(Unit::Utf16Le, None, &text, max), length, "{max}");
        }
    }

    #[test]
    fn a_cut_gets_on_even_where_nothing_whole_fits() {
        for max in 0..3 {
            assert_eq!(cut(Unit::One, None, "😀".as_bytes(), max), max.max(1));
        }
        assert_eq!(cut(Unit::Utf16Be, None, &utf16(Unit::Utf16Be, "😀"), 1), 2);
        assert_eq!(cut(Unit::Utf16Le, None, b"a", 0), 1);
        assert_eq!(
            cut(
                Unit::One,
                Some(&Charset::new("gbk").expect("a label")),
                b"\xd6\xd0",
                1
            ),
            1
        );
        assert_eq!(cut(Unit::One, None, &[0x80; 20], 10), 10);
    }

    fn units() -> impl Strategy<Value = Unit> {
        prop_oneof![Just(Unit::One), Just(Unit::Utf16Le), Just(Unit::Utf16Be)]
    }

    /// Bytes in which line ends, whole and torn, are frequent.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            Just(0),
            Just(b'\n'),
            Just(b'\r'),
            Just(0xd8),
            Just(0xdc),
            any::<u8>()
        ];
        proptest::collection::vec(byte, 0..80)
    }

    proptest! {
        #[test]
        fn lines_are_those_of_a_naive_split(unit in units(), bytes in noise()) {
            let end: &[u8] = match unit {
                Unit::One => b"\n",
                Unit::Utf16Le => b"\n\0",
                Unit::Utf16Be => b"\0\n",
            };
            let naive: Vec<usize> = bytes
                .chunks_exact(unit.bytes())
                .enumerate()
                .filter(|(_, word)| *word == end)
                .map(|(at, _)| (at + 1) * unit.bytes())
                .collect();
            let mut ours = Vec::new();
            let mut from = 0;
            while let Some(end) = next_line(unit, &bytes, from) {
                ours.push(end);
                from = end;
            }
            prop_assert_eq!(ours, naive);
        }

        #[test]
        fn cuts_get_on_within_their_bound(
            unit in units(),
            charset in prop_oneof![Just("utf-8"), Just("gbk"), Just("gb18030"), Just("shift_jis"), Just("big5"), Just("euc-jp"), Just("latin1")],
            bytes in noise(),
            max in 0_usize..20,
        ) {
            let charset = Charset::new(charset).expect("a label");
            let mut at = 0;
            while at < bytes.len() {
                let length = cut(unit, Some(&charset), &bytes[at..], max);
                prop_assert!(length > 0);
                prop_assert!(length <= max.max(unit.bytes()));
                prop_assert!(at + length <= bytes.len());
                at += length;
            }
        }

        #[test]
        fn pieces_of_text_are_text(text in "[a é中😀]{0,60}", max in 4_usize..20) {
            for (unit, label) in [
                (Unit::One, "utf-8"),
                (Unit::One, "gb18030"),
                (Unit::Utf16Le, "utf-16le"),
                (Unit::Utf16Be, "utf-16be"),
            ] {
                let charset = Charset::new(label).expect("a label");
                let bytes = match unit {
                    Unit::One => encoding_rs::Encoding::for_label(label.as_bytes()).expect("a label").encode(&text).0.into_owned(),
                    unit => utf16(unit, &text),
                };
                let (mut rest, mut joined) = (bytes.as_slice(), Vec::new());
                let mut scratch = Vec::new();
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(cut(unit, Some(&charset), rest, max));
                    joined.extend_from_slice(charset.to_utf8(piece, &mut scratch));
                    rest = after;
                }
                prop_assert_eq!(str::from_utf8(&joined).expect("a label"), text.as_str(), "{}", label);
            }
        }
    }
}
