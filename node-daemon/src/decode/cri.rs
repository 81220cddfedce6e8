//! Take the CRI form off: `TIME STREAM TAGS TEXT\n`, one part of a workload's line per line.
//! Place: follow -> **decode** -> parse; a worker calls it once per line, on the slice's own bytes.
//! Invariants: allocates nothing; never fails: what it cannot read comes out as it is, marked `raw`.
//! Source: Kubernetes `cri-client/pkg/logs`; containerd `internal/cri/io/logger.go`; CRI-O's conmon, whose times have
//! an offset.
//!
//! TAGS are separated by `:`, and the first is `P` (the line goes on in a later line of the same STREAM) or `F`. What
//! may come after it is not known yet, and skipped.

use super::lines::{self, Unit};
use super::{Channel, Part, raw, time};

/// Unwraps a line, given with or without its line end.
pub fn decode(line: &[u8]) -> Part {
    read(line).unwrap_or_else(|| raw(line))
}

fn read(line: &[u8]) -> Option<Part> {
    let (time_ns, length) = time::rfc3339_prefix(line)?;
    let (channel, rest) = match line[length..].split_first_chunk::<8>()? {
        (b" stdout ", rest) => (Channel::Stdout, rest),
        (b" stderr ", rest) => (Channel::Stderr, rest),
        _ => return None,
    };
    let (whole, rest) = match rest {
        [b'F', rest @ ..] => (true, rest),
        [b'P', rest @ ..] => (false, rest),
        _ => return None,
    };
    let text = match rest {
        [b' ', text @ ..] => text,
        [b':', tags @ ..] => match memchr::memchr2(b' ', b'\n', tags) {
            Some(space) if tags[space] == b' ' => &tags[space + 1..],
            end => &tags[end.unwrap_or(tags.len())..],
        },
        // No text and no space before it, as an editor would leave it.
        [] | [b'\n'] | [b'\r', b'\n'] => rest,
        _ => return None,
    };
    let start = line.len() - text.len();
    let kept = if whole {
        lines::trim(Unit::One, text)
    } else {
        // A `\r` before the end of a part is the workload's own: its line goes on.
        text.strip_suffix(b"\n").unwrap_or(text)
    };
    Some(Part {
        start,
        end: start + kept.len(),
        time_ns: Some(time_ns),
        channel,
        whole,
        raw: false,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: i64 = 1_475_713_029_669_794_202;

    fn text(line: &[u8]) -> (Part, &[u8]) {
        let part = decode(line);
        (part, &line[part.start..part.end])
    }

    #[test]
    fn a_whole_line_and_its_parts_are_told_apart() {
        let (part, kept) = text(b"2016-10-06T00:17:09.669794202Z stdout F hello world\n");
        assert_eq!(kept, b"hello world");
        assert_eq!(
            part,
            Part {
                start: 40,
                end: 51,
                time_ns: Some(TIME),
                channel: Channel::Stdout,
                whole: true,
                raw: false
            }
        );
        let (part, kept) = text(b"2016-10-06T08:17:09.669794202+08:00 stderr P a \r\n");
        assert_eq!(
            kept, b"a \r",
            "what ends a part is not the workload's line end"
        );
        assert_eq!((part.time_ns, part.channel), (Some(TIME), Channel::Stderr));
        assert!(!part.whole && !part.raw);
    }

    #[test]
    fn later_tags_and_missing_texts_are_no_fault() {
        for (line, kept, whole) in [
            (
                &b"1970-01-01T00:00:00Z stdout F:x:y text\r\n"[..],
                &b"text"[..],
                true,
            ),
            (b"1970-01-01T00:00:00Z stdout P:x text", b"text", false),
            (b"1970-01-01T00:00:00Z stdout F  two", b" two", true),
            (b"1970-01-01T00:00:00Z stdout F \n", b"", true),
            (b"1970-01-01T00:00:00Z stdout F ", b"", true),
            (b"1970-01-01T00:00:00Z stdout F\n", b"", true),
            (b"1970-01-01T00:00:00Z stdout F", b"", true),
            (b"1970-01-01T00:00:00Z stdout P\r\n", b"\r", false),
            (b"1970-01-01T00:00:00Z stdout F:x\n", b"", true),
            (b"1970-01-01T00:00:00Z stdout F:x", b"", true),
            (b"1970-01-01T00:00:00Z stdout F \xff\n", b"\xff", true),
        ] {
            let (part, text) = text(line);
            assert_eq!(
                (text, part.whole, part.raw),
                (kept, whole, false),
                "{}",
                line.escape_ascii()
            );
        }
    }

    #[test]
    fn what_is_no_cri_line_comes_out_as_it_is() {
        for line in [
            &b""[..],
            b"hello",
            b"1970-01-01T00:00:00Z",
            b"1970-01-01T00:00:00Z stdout",
            b"1970-01-01T00:00:00Z stdout ",
            b"1970-01-01T00:00:00Z stdin F x",
            b"1970-01-01T00:00:00Z stdout Full x",
            b"1970-01-01T00:00:00Z stdout x",
            b"1970-01-01 00:00 stdout F x",
            b"1970-99-01T00:00:00Z stdout F x",
            b"\0\0\0\0",
        ] {
            let mut ended = line.to_vec();
            ended.extend_from_slice(b"\r\n");
            let (part, kept) = text(&ended);
            assert_eq!(kept, line, "{}", line.escape_ascii());
            assert!(part.raw && part.whole);
            assert_eq!((part.time_ns, part.channel), (None, Channel::Stdout));
        }
    }

    proptest! {
        #[test]
        fn what_a_runtime_writes_is_read(
            time_ns in 0_i64..4_000_000_000_000_000_000,
            stderr: bool,
            whole: bool,
            tags in "(:[A-Za-z0-9]{0,4}){0,3}",
            written in proptest::collection::vec(any::<u8>().prop_filter("a line", |byte| *byte != b'\n'), 0..100),
        ) {
            let time = jiff::Timestamp::from_nanosecond(i128::from(time_ns)).expect("in range");
            let stream = if stderr { "stderr" } else { "stdout" };
            let tag = if whole { "F" } else { "P" };
            let mut line = format!("{time} {stream} {tag}{tags} ").into_bytes();
            line.extend_from_slice(&written);
            line.push(b'\n');
            let (part, kept) = text(&line);
            let expected = match written.strip_suffix(b"\r") {
                Some(before) if whole => before,
                _ => written.as_slice(),
            };
            prop_assert_eq!(kept, expected);
            prop_assert_eq!(part.time_ns, Some(time_ns));
            prop_assert_eq!(part.channel == Channel::Stderr, stderr);
            prop_assert_eq!((part.whole, part.raw), (whole, false));
        }

        #[test]
        fn no_bytes_panic(
            start in "1970-01-01T00:00:00Z std(out|err) [FP]?:?[ x]?",
            rest in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            for line in [rest.clone(), [start.as_bytes(), &rest].concat()] {
                let part = decode(&line);
                prop_assert!(part.start <= part.end && part.end <= line.len());
            }
        }
    }
}
