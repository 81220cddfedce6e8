//! Read one CSV record: values between commas, quoted with `"` where they hold commas, line ends or quotes.
//! Place: one of `parse`'s formats.
//! Invariants: one pass; a value is a range of the text unless it holds doubled quotes. An unclosed quote, an
//! unquoted line end or too many values is a failure, not a guess.
//! Source: RFC 4180, with the `csv` crate's reading of what it leaves open (`a"b` is itself, `"a"b` is `ab`).

use memchr::{memchr, memchr3};

use super::{Record, TIME, TimeField, Value, mark_length, span, text_value};
use crate::declare::TimeKey;

/// Reads records of these columns.
#[derive(Debug)]
pub(super) struct Columns {
    count: usize,
    time: Option<TimeField<usize>>,
}

const MANY_RECORDS: &str = "csv: a line end outside quotes";

impl Columns {
    pub(super) fn new(
        keys: &[String],
        time: &TimeKey,
        default_zone: &str,
        doubts: &mut Vec<String>,
    ) -> Result<Self, String> {
        if keys.len() > usize::from(u16::MAX) {
            return Err(format!("at most {} columns can be named", u16::MAX));
        }
        let declared = time.format.is_some() || time.zone.is_some();
        let key = time.key.as_deref().or(declared.then_some(TIME));
        let time = match key.map(|key| (key, keys.iter().position(|name| name == key))) {
            None => None,
            Some((_, Some(column))) => Some(TimeField::new(column, time, default_zone)?),
            Some((key, None)) => {
                doubts.push(format!(
                    "no column is called `{key}`, so no time is read from the records"
                ));
                None
            }
        };
        Ok(Self {
            count: keys.len(),
            time,
        })
    }

    pub(super) fn parse(
        &self,
        text: &[u8],
        now_ns: i64,
        record: &mut Record,
    ) -> Result<(), &'static str> {
        let mut at = mark_length(text);
        let text = without_line_end(text);
        if at >= text.len() {
            return Err("csv: nothing there");
        }
        for column in 0.. {
            if column == self.count {
                return Err("csv: more values than keys");
            }
            let (value, end) = match text.get(at) {
                Some(b'"') => quoted(text, at, &mut record.scratch)?,
                _ => {
                    let end = value_end(text, at)?;
                    let empty = at == end;
                    (
                        if empty {
                            Value::Null
                        } else {
                            text_value(at, end)
                        },
                        end,
                    )
                }
            };
            // There are at most `u16::MAX` columns.
            record.push(column as u16, value);
            if end == text.len() {
                break;
            }
            at = end + 1;
        }
        if let Some(time) = &self.time
            && let Some(field) = record.fields.get(time.which)
        {
            match field.value {
                Value::Text(start, end) => {
                    time.read(&text[start as usize..end as usize], now_ns, record);
                }
                Value::Scratch(start, end) => {
                    let scratch = std::mem::take(&mut record.scratch);
                    time.read(&scratch[start as usize..end as usize], now_ns, record);
                    record.scratch = scratch;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn without_line_end(text: &[u8]) -> &[u8] {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.strip_suffix(b"\r").unwrap_or(text)
}

/// Where an unquoted value ends: at a comma or the text's end.
fn value_end(text: &[u8], at: usize) -> Result<usize, &'static str> {
    match memchr3(b',', b'\n', b'\r', &text[at..]) {
        None => Ok(text.len()),
        Some(length) if text[at + length] == b',' => Ok(at + length),
        Some(_) => Err(MANY_RECORDS),
    }
}

/// Reads a value whose first quote is at `at`; also where it ends.
fn quoted(text: &[u8], at: usize, scratch: &mut Vec<u8>) -> Result<(Value, usize), &'static str> {
    let mut from = at + 1;
    // Where the value starts in `scratch`, if it must be rewritten.
    let mut rewritten = None;
    loop {
        let quote = from + memchr(b'"', &text[from..]).ok_or("csv: a quote is not closed")?;
        match text.get(quote + 1) {
            Some(b'"') => {
                rewritten.get_or_insert(scratch.len());
                scratch.extend_from_slice(&text[from..=quote]);
                from = quote + 2;
            }
            None | Some(b',') => {
                let value = match rewritten {
                    None => text_value(from, quote),
                    Some(start) => {
                        scratch.extend_from_slice(&text[from..quote]);
                        scratch_value(start, scratch.len())
                    }
                };
                return Ok((value, quote + 1));
            }
            Some(_) => {
                let end = value_end(text, quote + 1)?;
                let start = *rewritten.get_or_insert(scratch.len());
                scratch.extend_from_slice(&text[from..quote]);
                scratch.extend_from_slice(&text[quote + 1..end]);
                return Ok((scratch_value(start, scratch.len()), end));
            }
        }
    }
}

fn scratch_value(start: usize, end: usize) -> Value {
    let (start, end) = span(start, end);
    Value::Scratch(start, end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::declare::Format;
    use crate::parse::tests::{ns, parsed, parser, shown, time_key};
    use crate::parse::{NOT_IN_FORMAT, Parser};

    fn columns(keys: &str, time: TimeKey) -> Parser {
        let keys = keys.split(',').map(str::to_owned).collect();
        parser(&Format::Csv { keys, time })
    }

    fn fields(text: &str) -> Vec<String> {
        let parser = columns("a,b,c", TimeKey::default());
        let record = parsed(&parser, text.as_bytes());
        assert_eq!(record.failure, None, "{text}");
        shown(&parser, text.as_bytes(), &record)
    }

    fn failure(text: &str) -> Option<&'static str> {
        parsed(&columns("a,b,c", TimeKey::default()), text.as_bytes()).failure
    }

    /// All records that csv-core finds.
    fn by_csv_core(text: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let mut reader = csv_core::Reader::new();
        let (mut output, mut ends) = (vec![0; text.len() + 16], vec![0; text.len() + 16]);
        let (mut records, mut rest) = (Vec::new(), text);
        let (mut bytes, mut values) = (0, 0);
        loop {
            let (result, read, wrote, ended) =
                reader.read_record(rest, &mut output[bytes..], &mut ends[values..]);
            rest = &rest[read..];
            bytes += wrote;
            values += ended;
            match result {
                csv_core::ReadRecordResult::Record => {
                    let mut start = 0;
                    let cut = ends[..values].iter().map(|&end| {
                        let value = output[start..end].to_vec();
                        start = end;
                        value
                    });
                    records.push(cut.collect());
                    (bytes, values) = (0, 0);
                }
                csv_core::ReadRecordResult::End => return records,
                _ => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn a_record_is_what_csv_core_reads(text in "[ab\",\"\"é\r\n ,]{0,14}") {
            let text = text.as_bytes();
            let parser = columns("1,2,3,4,5,6", TimeKey::default());
            let record = parsed(&parser, text);
            let known = by_csv_core(text);
            // With a quote open, the line end and what follows belong to the last value.
            let closed = by_csv_core(&[text, b"\nx"].concat()).len() == known.len() + 1;
            if record.failure.is_none() {
                let values: Vec<Vec<u8>> = record.fields.iter().map(|field| match field.value {
                    Value::Text(start, end) => text[start as usize..end as usize].to_vec(),
                    Value::Scratch(start, end) => record.scratch[start as usize..end as usize].to_vec(),
                    _ => Vec::new(),
                }).collect();
                prop_assert!(closed);
                prop_assert_eq!(known, vec![values]);
            } else {
                let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
                let ends = text.iter().rev().take_while(|byte| is_end(byte)).count();
                let lines = ends > 1 || text.first().is_some_and(is_end);
                let many = known.iter().any(|values| values.len() > 6);
                prop_assert!(!closed || lines || known.len() != 1 || many, "{:?}", record.failure);
            }
        }
    }

    #[test]
    fn values_are_cut_at_commas_and_lose_their_quotes() {
        assert_eq!(fields("1,x y,z"), ["a=\"1\"", "b=\"x y\"", "c=\"z\""]);
        assert_eq!(
            fields("\"1,2\",\"\",\r\n"),
            ["a=\"1,2\"", "b=\"\"", "c=null"]
        );
        assert_eq!(fields("\"say \"\"hi\"\"\""), ["a=\"say \"hi\"\""]);
        assert_eq!(
            fields("\"two\nlines\",\u{e9}"),
            ["a=\"two\nlines\"", "b=\"\u{e9}\""]
        );
        assert_eq!(fields("\u{feff}\"x\"y,a\"b"), ["a=\"xy\"", "b=\"a\"b\""]);
        assert_eq!(fields(","), ["a=null", "b=null"]);
    }

    #[test]
    fn what_is_no_single_record_is_named() {
        assert_eq!(failure("1,2,3,4"), Some("csv: more values than keys"));
        assert_eq!(failure("1,2,3,"), Some("csv: more values than keys"));
        assert_eq!(failure("1,\"2"), Some("csv: a quote is not closed"));
        assert_eq!(failure("1,2\n3,4"), Some(MANY_RECORDS));
        assert_eq!(failure("\"1\"\n3,4"), Some(MANY_RECORDS));
        for empty in ["", "\n", "\r\n", "\u{feff}"] {
            assert_eq!(failure(empty), Some("csv: nothing there"));
        }
    }

    #[test]
    fn the_time_is_a_column_that_stays() {
        let parser = columns("level,at", time_key(Some("at"), None, Some("+08:00")));
        let time = |text: &str| {
            let record = parsed(&parser, text.as_bytes());
            (record.time_ns, record.time_failure, record.fields.len())
        };
        let noon = ns("2024-05-01T12:00:00+08:00");
        assert_eq!(time("info,2024-05-01 12:00:00"), (noon, None, 2));
        assert_eq!(
            time("info,\"2024-05-01 12:00:00\"\"\""),
            (None, Some(NOT_IN_FORMAT), 2)
        );
        assert_eq!(time("info,noon"), (None, Some(NOT_IN_FORMAT), 2));
        assert_eq!(time("info,"), (None, None, 2));
        assert_eq!(time("info"), (None, None, 1));
        // Only a format was declared: the column is fluentd's `time`.
        let parser = columns("time,b", time_key(None, Some("%d.%m.%Y"), None));
        let record = parsed(&parser, b"1.5.2024,x");
        assert_eq!(record.time_ns, ns("2024-05-01T00:00:00Z"));
    }
}
