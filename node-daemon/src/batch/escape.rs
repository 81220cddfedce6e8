//! Write any bytes as the inside of a JSON string.
//! Place: within **batch**, for every text, name and tag that is written.
//! Invariants: what comes out is valid UTF-8 and stands in a JSON string as it is; valid UTF-8 comes back unchanged
//! from a parser; each maximal invalid part becomes one U+FFFD, as `String::from_utf8_lossy` has it.
//! Source: RFC 8259, section 7; Unicode 16, section 3.9 (maximal subparts).

/// Bytes that are looked at together. Two SSE2 or NEON registers: the compiler makes the loop over them one compare
/// each, which a search byte by byte never becomes.
const CHUNK: usize = 32;

/// Bytes that are looked at together where some must be escaped.
const WORD: usize = 8;

/// Appends `text`, escaped, without quotes around it.
pub fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let (clean, rest) = text.split_at(clean_ascii(text));
    out.extend_from_slice(clean);
    if !rest.is_empty() {
        escape_rest(out, rest);
    }
}

/// Appends a member's name as it stands within an object that is not empty: `,"NAME":`.
pub(crate) fn member(out: &mut Vec<u8>, name: &[u8]) {
    out.extend_from_slice(b",\"");
    escape(out, name);
    out.extend_from_slice(b"\":");
}

/// Appends `"TEXT"`.
pub(crate) fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}

/// Whether a byte is ASCII and needs no escape.
fn is_clean(byte: u8) -> bool {
    // As a signed number what is above ASCII is negative: one compare serves both ends.
    byte.cast_signed() >= 0x20 && byte != b'"' && byte != b'\\'
}

/// A length up to which all is clean; the whole if all is.
fn clean_ascii(text: &[u8]) -> usize {
    let all_clean = |bytes: &[u8]| bytes.iter().fold(true, |all, byte| all & is_clean(*byte));
    let Some(last) = text.last_chunk::<CHUNK>() else {
        let (words, tail) = text.as_chunks::<WORD>();
        let dirty = words.iter().position(|word| {
            let word = u64::from_le_bytes(*word);
            (special(word) | word) & HIGH != 0
        });
        return match dirty {
            Some(n) => n * WORD,
            None if all_clean(tail) => text.len(),
            None => words.len() * WORD,
        };
    };
    let (chunks, _) = text.as_chunks::<CHUNK>();
    for (n, chunk) in chunks.iter().enumerate() {
        if !all_clean(chunk) {
            return n * CHUNK;
        }
    }
    // The tail, with some bytes before it once more: cheaper than one by one.
    if all_clean(last) {
        text.len()
    } else {
        chunks.len() * CHUNK
    }
}

/// For a text that has something to escape or is not ASCII.
#[inline(never)]
fn escape_rest(out: &mut Vec<u8>, text: &[u8]) {
    if simdutf8::basic::from_utf8(text).is_ok() {
        return escape_valid(out, text);
    }
    for part in text.utf8_chunks() {
        escape_valid(out, part.valid().as_bytes());
        if !part.invalid().is_empty() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
}

/// For valid UTF-8.
fn escape_valid(out: &mut Vec<u8>, text: &[u8]) {
    // Everything before has been written.
    let mut written = 0;
    let mut word = |start: usize, bytes: &[u8; WORD]| {
        let mut found = special(u64::from_le_bytes(*bytes));
        while found != 0 {
            let at = start + found.trailing_zeros() as usize / 8;
            out.extend_from_slice(&text[written..at]);
            one(out, text[at]);
            written = at + 1;
            found &= found - 1;
        }
    };
    let (chunks, _) = text.as_chunks::<CHUNK>();
    for (n, chunk) in chunks.iter().enumerate() {
        let dirty = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
        if chunk.iter().fold(false, |any, byte| any | dirty(byte)) {
            for (m, bytes) in chunk.as_chunks().0.iter().enumerate() {
                word(n * CHUNK + m * WORD, bytes);
            }
        }
    }
    let start = chunks.len() * CHUNK;
    let (words, tail) = text[start..].as_chunks();
    for (m, bytes) in words.iter().enumerate() {
        word(start + m * WORD, bytes);
    }
    let mut padded = [b' '; WORD];
    padded[..tail.len()].copy_from_slice(tail);
    word(start + words.len() * WORD, &padded);
    out.extend_from_slice(&text[written..]);
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x80 * ONES;
const LOW: u64 = 0x7f * ONES;

/// The high bit of each byte of `word` that must be escaped. No sum carries into the next byte, so each bit is exact.
fn special(word: u64) -> u64 {
    let control = !((word & LOW) + 0x60 * ONES) & !word;
    let is = |byte: u8| {
        let differs = word ^ (u64::from(byte) * ONES);
        !(((differs & LOW) + LOW) | differs)
    };
    (control | is(b'"') | is(b'\\')) & HIGH
}

/// Appends the escape of one byte that must be.
fn one(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(text: &[u8]) -> String {
        let mut out = Vec::new();
        string(&mut out, text);
        String::from_utf8(out).expect("what is written is UTF-8")
    }

    #[test]
    fn each_byte_is_written_as_the_standard_asks_at_every_place_in_a_line() {
        for byte in 0..=u8::MAX {
            for before in 0..70 {
                for after in [0, 1, 40] {
                    let mut text = vec![b'a'; before];
                    text.push(byte);
                    text.resize(before + 1 + after, b'z');
                    let want = serde_json::to_string(&String::from_utf8_lossy(&text));
                    assert_eq!(escaped(&text), want.expect("a string"), "{byte} {before}");
                }
            }
        }
    }

    #[test]
    fn a_cut_character_becomes_one_mark_and_its_neighbours_stay() {
        assert_eq!(
            escaped(b"\xe6\x97a\xff\xfe\"\xf0\x9f\x98"),
            "\"\u{FFFD}a\u{FFFD}\u{FFFD}\\\"\u{FFFD}\""
        );
        assert_eq!(
            escaped("日志 \u{2028}\u{7f}😀".as_bytes()),
            "\"日志 \u{2028}\u{7f}😀\""
        );
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_as_their_lossy_text(
            text in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                prop::collection::vec(prop::sample::select(b"abcdef \"\\\n\xe6".to_vec()), 0..200),
                "\\PC{0,120}".prop_map(String::into_bytes),
            ]
        ) {
            let back: String = serde_json::from_str(&escaped(&text)).expect("a JSON string");
            prop_assert_eq!(back, String::from_utf8_lossy(&text));
        }
    }
}
