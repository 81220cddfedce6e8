//! Turn text of another encoding into UTF-8.
//! Place: after the envelope is off, before multi-line, filter and parse; UTF-8 itself does not come here.
//! Invariants: allocates only while `scratch` grows; never fails: what is no character becomes U+FFFD.
//! Source: the WHATWG Encoding Standard (`encoding_rs`); names as Filebeat has them besides.

use encoding_rs::{CoderResult, Encoding};

use super::lines::Unit;

/// How far `cut` looks back for a byte that surely is no part of a longer character.
const LOOK_BACK: usize = 4 * 1024;

/// An encoding that log text may be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charset {
    encoding: &'static Encoding,
    unit: Unit,
}

impl Charset {
    /// The encoding of a WHATWG label (`gbk`, `gb18030`, `utf-16le`, `latin1`, …) or of Filebeat's name for it
    /// (`plain`, `utf-16be-bom`). The error is one line of cause and cure.
    pub fn new(label: &str) -> Result<Self, String> {
        let name = label.trim().to_ascii_lowercase();
        let name = match name.as_str() {
            "plain" => "utf-8",
            "utf-16-bom" => "utf-16le",
            other => other.strip_suffix("-bom").unwrap_or(other),
        };
        let encoding = Encoding::for_label_no_replacement(name.as_bytes()).ok_or_else(|| {
            format!(
                "no encoding is called `{}`; use for example gbk, gb18030, big5, utf-16le or latin1",
                label.escape_default()
            )
        })?;
        let unit = if encoding == encoding_rs::UTF_16LE {
            Unit::Utf16Le
        } else if encoding == encoding_rs::UTF_16BE {
            Unit::Utf16Be
        } else {
            Unit::One
        };
        Ok(Self { encoding, unit })
    }

    /// What its name is.
    pub fn name(&self) -> &'static str {
        self.encoding.name()
    }

    /// Whether it is UTF-8: then the text needs no step here, as records are made valid where they are written.
    pub fn is_utf8(&self) -> bool {
        self.encoding == encoding_rs::UTF_8
    }

    /// What its line ends are searched in.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// How many bytes of byte order mark stand at the start of a file; the caller skips them there and only there.
    pub fn mark(&self, file_start: &[u8]) -> usize {
        let mark: &[u8] = match self.unit {
            Unit::Utf16Le => b"\xff\xfe",
            Unit::Utf16Be => b"\xfe\xff",
            Unit::One if self.is_utf8() => b"\xef\xbb\xbf",
            Unit::One if self.encoding == encoding_rs::GB18030 => b"\x84\x31\x95\x33",
            Unit::One => b"",
        };
        if file_start.starts_with(mark) {
            mark.len()
        } else {
            0
        }
    }

    /// The text in UTF-8: itself where it already is, else in `scratch`, whose length has no meaning afterwards.
    pub fn to_utf8<'a>(&self, text: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let same = if self.is_utf8() {
            Encoding::utf8_valid_up_to(text)
        } else if self.encoding == encoding_rs::ISO_2022_JP {
            Encoding::iso_2022_jp_ascii_valid_up_to(text)
        } else if self.unit == Unit::One {
            Encoding::ascii_valid_up_to(text)
        } else {
            0
        };
        if same == text.len() {
            return text;
        }
        // The part that is the same is decoded again: a character may have begun in it.
        let mut decoder = self.encoding.new_decoder_without_bom_handling();
        // Never shortened, so that no byte is zeroed twice; half more is enough for most text.
        let enough = text.len() + text.len() / 2 + 16;
        if scratch.len() < enough {
            scratch.resize(enough, 0);
        }
        let (mut read, mut written) = (0, 0);
        loop {
            let (result, took, put, _) =
                decoder.decode_to_utf8(&text[read..], &mut scratch[written..], true);
            read += took;
            written += put;
            match result {
                CoderResult::InputEmpty => return &scratch[..written],
                CoderResult::OutputFull => {
                    let more = (text.len() - read) * 3 + 16;
                    scratch.resize(written + more, 0);
                }
            }
        }
    }

    /// The longest piece of at most `most` bytes that ends between two characters, as far as that can be told from
    /// the `LOOK_BACK` bytes before; 0 if the first character is longer.
    pub(super) fn cut(&self, line: &[u8], most: usize) -> usize {
        let most = most.min(line.len());
        if self.is_utf8() || self.encoding.is_single_byte() || !self.encoding.is_ascii_compatible()
        {
            return match self.is_utf8() {
                true => super::lines::utf8_cut(line, most),
                false => most,
            };
        }
        // Below 0x30 there are no second, third or fourth bytes in any of these encodings.
        let start = most.saturating_sub(LOOK_BACK);
        let certain = line[start..most].iter().rposition(|&byte| byte < 0x30);
        let mut at = match certain {
            Some(before) => start + before + 1,
            None if start == 0 => 0,
            None => return most,
        };
        while at < most {
            let next = at + self.length(&line[at..]);
            if next > most {
                return at;
            }
            at = next;
        }
        at
    }

    /// How long the character at the start is, going by its first bytes; it may end after the text.
    fn length(&self, text: &[u8]) -> usize {
        let first = text.first().copied().unwrap_or_default();
        if first < 0x81 || first == 0xff {
            return 1;
        }
        let (gb, euc_jp, shift_jis) = (
            self.encoding == encoding_rs::GBK || self.encoding == encoding_rs::GB18030,
            self.encoding == encoding_rs::EUC_JP,
            self.encoding == encoding_rs::SHIFT_JIS,
        );
        match text.get(1) {
            _ if shift_jis && (0xa0..0xe0).contains(&first) => 1,
            Some(0x30..=0x39) if gb => 4,
            _ if euc_jp && first == 0x8f => 3,
            // No second byte of any: the first stands alone, broken.
            Some(..0x40) => 1,
            _ => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(label: &str, bytes: &[u8]) -> String {
        let mut scratch = Vec::new();
        let utf8 = Charset::new(label)
            .expect("a label")
            .to_utf8(bytes, &mut scratch)
            .to_vec();
        String::from_utf8(utf8).expect("a label")
    }

    #[test]
    fn labels_are_those_of_the_web_and_of_filebeat() {
        for (label, name) in [
            ("GBK", "GBK"),
            ("gb2312", "GBK"),
            ("gb18030", "gb18030"),
            ("utf-16", "UTF-16LE"),
            ("utf-16be", "UTF-16BE"),
            ("utf-16be-bom", "UTF-16BE"),
            ("latin1", "windows-1252"),
            ("iso8859-1", "windows-1252"),
            ("big5", "Big5"),
            ("plain", "UTF-8"),
        ] {
            assert_eq!(
                Charset::new(label).expect("a label").name(),
                name,
                "{label}"
            );
        }
        for label in ["klingon", "", "hz-gb-2312", "iso-2022-kr"] {
            let told = Charset::new(label).expect_err("refused");
            assert!(
                told.contains(&format!("`{label}`")) && told.contains("use for"),
                "{told}"
            );
        }
    }

    #[test]
    fn text_of_other_encodings_becomes_utf8() {
        assert_eq!(text("gbk", b"\xd6\xd0\xb9\xfa ok"), "中国 ok");
        assert_eq!(text("gb18030", b"\x84\x31\xa4\x37"), "\u{fffd}"); // U+FFFD itself, in four bytes
        assert_eq!(text("latin1", b"caf\xe9 \x80"), "café €");
        assert_eq!(text("utf-16le", b"a\0\x3d\xd8\0\xde"), "a😀");
        assert_eq!(text("utf-16be", b"\0a\xd8\x3d\xde\0"), "a😀");
        assert_eq!(text("shift_jis", b"\x93\xfa\x96\x7b"), "日本");
        assert_eq!(text("iso-2022-jp", b"\x1b$B\x46\x7c\x1b(B"), "日");
    }

    #[test]
    fn what_is_no_character_is_marked_and_the_rest_stays() {
        assert_eq!(text("gbk", b"a\xff b"), "a\u{fffd} b");
        assert_eq!(text("gbk", b"a\xd6"), "a\u{fffd}");
        assert_eq!(text("utf-16le", b"a\0\0\xdcb\0"), "a\u{fffd}b");
        assert_eq!(text("utf-16le", b"a\0b"), "a\u{fffd}");
        assert_eq!(text("utf-8", b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn plain_ascii_is_not_copied() {
        let mut scratch = Vec::new();
        let bytes = b"GET / HTTP/1.1";
        let same = Charset::new("gbk")
            .expect("a label")
            .to_utf8(bytes, &mut scratch);
        assert_eq!(same.as_ptr(), bytes.as_ptr());
        assert_eq!(scratch.capacity(), 0);
    }

    #[test]
    fn a_mark_is_told_and_only_the_encodings_own() {
        let mark = |label, bytes: &[u8]| Charset::new(label).expect("a label").mark(bytes);
        assert_eq!(mark("utf-16le", b"\xff\xfea\0"), 2);
        assert_eq!(mark("utf-16be", b"\xff\xfea\0"), 0);
        assert_eq!(mark("utf-8", b"\xef\xbb\xbfa"), 3);
        assert_eq!(mark("gbk", b"\xef\xbb\xbfa"), 0);
        assert_eq!(text("utf-16le", b"\xff\xfea\0"), "\u{feff}a");
    }

    proptest! {
        #[test]
        fn any_bytes_of_any_encoding_are_what_encoding_rs_says(
            label in prop_oneof![
                Just("gbk"), Just("gb18030"), Just("utf-16le"), Just("utf-16be"), Just("latin1"), Just("big5"),
                Just("shift_jis"), Just("euc-jp"), Just("euc-kr"), Just("iso-2022-jp"), Just("utf-8"),
            ],
            lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..4),
        ) {
            let charset = Charset::new(label).expect("a label");
            let mut scratch = Vec::new();
            for line in lines {
                let encoding = Encoding::for_label(label.as_bytes()).expect("a label");
                let expected = encoding.decode_without_bom_handling(&line).0;
                prop_assert_eq!(charset.to_utf8(&line, &mut scratch), expected.as_bytes());
            }
        }
    }
}
