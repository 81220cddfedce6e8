//! Decide which lines make one record. The decision is pure: the flow keeps what is open, and where.
//! Place: after the envelope and the encoding, before filter and parse; called once per whole line.
//! Invariants: every line belongs to just one record; none is dropped; allocates nothing where the pattern is plain.
//! Source: Filebeat's `multiline.*` (`libbeat/reader/multiline/pattern.go`), whose settings give the same records here.
//!
//! A line *matches* when the pattern does, or with `negate` when it does not.
//!
//! | `negate` | `match` | a record is | for example |
//! |---|---|---|---|
//! | false | after | a line, and the lines after it that have the pattern | `^[[:space:]]`: stack traces |
//! | true | after | a line, and the lines after it that do not have the pattern | `^\d{4}-`: begins with a date |
//! | false | before | lines that have the pattern, and the line after them | `\\$`: goes on after a backslash |
//! | true | before | lines that do not have the pattern, and the line after them, which has it | `^END`: ends so |
//!
//! What differs from Filebeat: lines beyond `max_lines` are not cut off but make the next record, and such records are
//! flagged; a record whose last line says so (`before`) is closed at once instead of with the next line; and a line
//! that the pattern cannot decide within its limits is a record of its own, not glued to others.

use std::time::Duration;

use crate::declare::{Multiline, Place};
use crate::pattern::{Pattern, one_line};

/// Where a line belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It begins a record; an open group is a whole record before it.
    Begin,
    /// It belongs to the open group, which stays open.
    Continue,
    /// It belongs to the open group, if there is one, and is its last line.
    End,
    /// It belongs to the open group, but that has `max_lines` already: it is closed, flagged, and the line begins
    /// the next record, which is flagged, too, as it is the rest of the one before.
    Overflow {
        /// It is also the last line of that record.
        end: bool,
    },
}

/// A multi-line rule, compiled.
#[derive(Debug, Clone)]
pub struct Rule {
    pattern: Pattern,
    negate: bool,
    place: Place,
    /// Most lines of a record.
    pub max_lines: usize,
    /// A group that has not grown for this long at the end of its file is closed.
    pub timeout: Duration,
}

impl Rule {
    /// Compiles a rule. The error is one line, in the words of the pattern's author.
    pub fn new(declared: &Multiline) -> Result<Self, String> {
        let pattern = Pattern::filebeat(&declared.pattern).map_err(|reason| {
            let written = &declared.pattern;
            one_line(format!(
                "the multi-line pattern `{written}` cannot be used: {reason}"
            ))
        })?;
        Ok(Self {
            pattern,
            negate: declared.negate,
            place: declared.place,
            // None at all would be no record; Filebeat, too, takes it for no limit.
            max_lines: match declared.max_lines {
                0 => usize::MAX,
                lines => lines,
            },
            timeout: declared.timeout,
        })
    }

    /// Where this line belongs, given in UTF-8 and without its end, when the open group has so many lines (0: none is
    /// open).
    pub fn place(&self, line: &[u8], lines_in_group: usize) -> Step {
        let open = lines_in_group > 0;
        let matches = self
            .pattern
            .is_match(line)
            .map(|found| found != self.negate);
        let (continues, ends) = match self.place {
            // It says whether it belongs to the line before it.
            Place::After => (open && matches == Ok(true), false),
            // It says whether the next belongs to it.
            Place::Before => (open, matches != Ok(true)),
        };
        match (continues, ends) {
            (true, end) if lines_in_group >= self.max_lines => Step::Overflow { end },
            (_, true) => Step::End,
            (true, false) => Step::Continue,
            (false, false) => Step::Begin,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(pattern: &str, negate: bool, place: Place, max_lines: usize) -> Rule {
        Rule::new(&Multiline {
            pattern: pattern.to_owned(),
            negate,
            place,
            max_lines,
            timeout: Multiline::TIMEOUT,
        })
        .expect("a pattern")
    }

    /// Puts lines together as the flow does.
    fn records<'a>(rule: &Rule, lines: &[&'a str]) -> Vec<Vec<&'a str>> {
        let (mut done, mut open) = (Vec::new(), Vec::new());
        for line in lines {
            let step = rule.place(line.as_bytes(), open.len());
            if matches!(step, Step::Begin | Step::Overflow { .. }) && !open.is_empty() {
                done.push(std::mem::take(&mut open));
            }
            assert!(
                step != Step::Continue || !open.is_empty(),
                "nothing to continue"
            );
            open.push(*line);
            if matches!(step, Step::End | Step::Overflow { end: true }) {
                done.push(std::mem::take(&mut open));
            }
        }
        done.extend((!open.is_empty()).then_some(open));
        done
    }

    /// What Filebeat's reader does, line by line, with what is over `max_lines` kept as records.
    fn filebeat<'a>(rule: &Rule, lines: &[&'a str]) -> Vec<Vec<&'a str>> {
        let matches =
            |line: &str| rule.pattern.is_match(line.as_bytes()).expect("a pattern") != rule.negate;
        let mut messages: Vec<Vec<&str>> = Vec::new();
        for line in lines {
            match messages.last_mut() {
                Some(message)
                    if match rule.place {
                        Place::After => matches(line),
                        Place::Before => matches(message.last().expect("a pattern")),
                    } =>
                {
                    message.push(line);
                }
                _ => messages.push(vec![line]),
            }
        }
        let pieces = messages
            .iter()
            .flat_map(|message| message.chunks(rule.max_lines));
        pieces.map(<[_]>::to_vec).collect()
    }

    #[test]
    fn the_four_forms_group_as_filebeat_documents_them() {
        use Place::{After, Before};
        let lines = ["b", "a1", "a2", "b", "c", "a3", "a4", "c"];
        let grouped = |negate, place| {
            let records = records(&rule("^a", negate, place, 500), &lines);
            records
                .iter()
                .map(|record| record.join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(grouped(false, After), ["b a1 a2", "b", "c a3 a4", "c"]);
        assert_eq!(grouped(true, After), ["b", "a1", "a2 b c", "a3", "a4 c"]);
        assert_eq!(grouped(false, Before), ["b", "a1 a2 b", "c", "a3 a4 c"]);
        assert_eq!(grouped(true, Before), ["b a1", "a2", "b c a3", "a4", "c"]);
    }

    #[test]
    fn a_full_group_goes_on_in_the_next_record() {
        let java = rule(r"^\d{4}-", true, Place::After, 2);
        let lines = [
            "2024-01-01 a",
            " at b",
            " at c",
            " at d",
            " at e",
            "2024-01-02 f",
        ];
        assert_eq!(java.place(lines[1].as_bytes(), 1), Step::Continue);
        assert_eq!(
            java.place(lines[2].as_bytes(), 2),
            Step::Overflow { end: false }
        );
        assert_eq!(
            java.place(lines[5].as_bytes(), 2),
            Step::Begin,
            "full, but done in any case"
        );
        assert_eq!(
            records(&java, &lines),
            [&lines[0..2], &lines[2..4], &lines[4..5], &lines[5..6]].map(<[_]>::to_vec)
        );
        let slash = rule(r"\\$", false, Place::Before, 2);
        assert_eq!(slash.place(b"c", 2), Step::Overflow { end: true });
        assert_eq!(slash.place(b"c\\", 2), Step::Overflow { end: false });
    }

    #[test]
    fn a_line_too_hard_to_decide_stands_alone() {
        let text = format!("{}b", "a".repeat(200));
        for (negate, place, step) in [
            (false, Place::After, Step::Begin),
            (true, Place::After, Step::Begin),
            (false, Place::Before, Step::End),
            (true, Place::Before, Step::End),
        ] {
            let rule = rule(r"^(a|aa)+\1c", negate, place, 500);
            assert!(rule.pattern.is_match(text.as_bytes()).is_err());
            assert_eq!(rule.place(text.as_bytes(), 3), step);
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_told_in_one_line() {
        let told = Rule::new(&Multiline {
            pattern: "^(a".to_owned(),
            negate: false,
            place: Place::After,
            max_lines: 0,
            timeout: Multiline::TIMEOUT,
        });
        assert_eq!(
            told.expect_err("refused"),
            "the multi-line pattern `^(a` cannot be used: `(` at character 2 has no `)`"
        );
    }

    proptest! {
        #[test]
        fn records_are_those_of_filebeat(
            negate: bool,
            before: bool,
            max_lines in 1_usize..5,
            lines in proptest::collection::vec("[ab]{0,2}", 0..30),
        ) {
            let place = if before { Place::Before } else { Place::After };
            let rule = rule("^a", negate, place, max_lines);
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            prop_assert_eq!(records(&rule, &lines), filebeat(&rule, &lines));
        }
    }
}
