//! Drop the records that a workload does not want; they are counted as filtered.
//! Place: decode -> **filter** -> parse, on the whole text of a record.
//! Invariants: allocates nothing; a record is only dropped when it is certain that it is to be: one on which a pattern
//! cannot be decided within its limits is kept. Source: Filebeat's `include_lines` and `exclude_lines`.

use crate::pattern::AnyOf;

/// Which records are kept.
#[derive(Debug, Clone)]
pub struct Filter {
    include: AnyOf,
    exclude: AnyOf,
}

impl Filter {
    /// Compiles the patterns (Go's syntax, as Filebeat takes it). The error is one line and names the pattern.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, String> {
        let of = |side, patterns| {
            AnyOf::new(patterns).map_err(|reason| format!("the {side} pattern {reason}"))
        };
        Ok(Self {
            include: of("include", include)?,
            exclude: of("exclude", exclude)?,
        })
    }

    /// Whether it keeps everything, so that it need not be asked.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a record is kept: one of `include` matches, if there are some, and none of `exclude` does.
    pub fn keeps(&self, text: &[u8]) -> bool {
        if !self.include.is_empty() && self.include.is_match(text) == Ok(false) {
            return false;
        }
        self.exclude.is_match(text) != Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let owned = |patterns: &[&str]| patterns.iter().map(|&p| p.to_owned()).collect::<Vec<_>>();
        Filter::new(&owned(include), &owned(exclude)).expect("patterns")
    }

    #[test]
    fn what_is_included_is_kept_unless_it_is_excluded() {
        let none = filter(&[], &[]);
        assert!(none.is_empty() && none.keeps(b"x") && none.keeps(b""));
        let both = filter(&["^ERR", "^WARN"], &["healthz", "^$"]);
        assert!(!both.is_empty());
        assert!(both.keeps(b"ERR a") && both.keeps(b"WARN b"));
        assert!(!both.keeps(b"INFO ERR") && !both.keeps(b"ERR GET /healthz") && !both.keeps(b""));
        let exclude = filter(&[], &["^DEBUG"]);
        assert!(exclude.keeps(b"INFO") && !exclude.keeps(b"DEBUG x"));
    }

    #[test]
    fn a_pattern_is_of_the_first_line_as_in_filebeat() {
        let exclude = filter(&[], &["^at "]);
        assert!(
            exclude.keeps(b"panic\nat x"),
            "`^` is the start of the record, not of any line"
        );
        assert!(!filter(&[], &["(?m)^at "]).keeps(b"panic\nat x"));
    }

    #[test]
    fn text_that_is_no_utf8_is_judged_too() {
        assert!(!filter(&[], &["^a.b$"]).keeps(b"a\xffb"));
        assert!(filter(&["b$"], &[]).keeps(b"\xff\xfeb"));
    }

    #[test]
    fn hard_and_plain_patterns_count_together() {
        let include = filter(&["^a", "b(?!c)"], &[]);
        assert!(include.keeps(b"a") && include.keeps(b"xbd") && !include.keeps(b"xbc"));
    }

    #[test]
    fn a_record_that_cannot_be_judged_is_kept() {
        let text = format!("{}b", "a".repeat(200));
        let hard = r"^(a|aa)+\1c";
        assert!(filter(&[hard], &[]).keeps(text.as_bytes()));
        assert!(filter(&[], &[hard]).keeps(text.as_bytes()));
        assert!(
            !filter(&[], &[hard, "b$"]).keeps(text.as_bytes()),
            "another pattern is certain"
        );
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_named() {
        let told = Filter::new(&[], &["a".to_owned(), "a[".to_owned()]).expect_err("refused");
        assert_eq!(
            told,
            "the exclude pattern `a[`: `[` at character 2 has no `]`"
        );
    }
}
