//! The two engines behind a pattern, and their limits.

use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::util::syntax;
use regex_automata::{Input, PatternID, meta};

use super::translate::{GO_NO_WORD_EDGE, GO_WORD_EDGE};
use super::{LONGEST_TEXT_FOR_HARD, NEST_LIMIT, TooHard};

/// Most steps back of a hard pattern on one text; about 2 ms.
const BACKTRACK_LIMIT: usize = 100_000;

/// Most bytes of a compiled pattern, and of each cache its lazy automaton may fill.
const SIZE_LIMIT: usize = 1024 * 1024;

/// Most instructions of a hard pattern.
const INSTRUCTIONS: usize = 20_000;

const TOO_LARGE: &str = "it becomes too large (smaller counts in `{…}` help)";

/// A compiled pattern, already translated.
#[derive(Clone)]
pub(super) enum Engine {
    /// In time linear in the text.
    Plain(meta::Regex),
    /// By trying, within a limit.
    Hard(Box<fancy_regex::Regex>),
}

impl Engine {
    pub(super) fn new(pattern: &str, hard: bool) -> Result<Self, String> {
        if hard {
            Self::hard(pattern)
        } else {
            Self::plain(&[pattern])
        }
    }

    /// Matches where one of the patterns does.
    pub(super) fn plain<P: AsRef<str>>(patterns: &[P]) -> Result<Self, String> {
        // Byte-wise `\b` needs it; the text is UTF-8 in any case.
        let syntax = syntax::Config::new().utf8(false).nest_limit(NEST_LIMIT * 2);
        // Of a pattern with groups that begins at the text's start, a first pass by automaton finds only where the match
        // ends, and the groups are looked for all the same: without it they take five sixths of the time.
        let finds_groups_at_start = patterns.iter().all(|pattern| {
            syntax::parse_with(pattern.as_ref(), &syntax).is_ok_and(|parsed| {
                let of = parsed.properties();
                of.look_set_prefix().contains_anchor_haystack() && of.explicit_captures_len() > 0
            })
        });
        meta::Builder::new()
            .configure(
                meta::Config::new()
                    .nfa_size_limit(Some(SIZE_LIMIT))
                    .onepass_size_limit(Some(SIZE_LIMIT))
                    .hybrid(!finds_groups_at_start)
                    .hybrid_cache_capacity(SIZE_LIMIT),
            )
            .syntax(syntax)
            .build_many(patterns)
            .map(Self::Plain)
            .map_err(|error| match (error.size_limit(), error.syntax_error()) {
                (Some(_), _) => TOO_LARGE.to_owned(),
                (None, Some(syntax)) => last_words(&syntax.to_string()),
                (None, None) => last_words(&error.to_string()),
            })
    }

    fn hard(pattern: &str) -> Result<Self, String> {
        let pattern = pattern
            .replace(GO_WORD_EDGE, r"\b")
            .replace(GO_NO_WORD_EDGE, r"\B");
        fancy_regex::RegexBuilder::new(&pattern)
            .oniguruma_mode(true)
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(SIZE_LIMIT)
            .delegate_dfa_size_limit(SIZE_LIMIT)
            .max_prog_size(INSTRUCTIONS)
            .build()
            .map(|regex| Self::Hard(Box::new(regex)))
            .map_err(|error| match &error {
                fancy_regex::Error::CompileError(inner)
                    if matches!(**inner, fancy_regex::CompileError::PatternTooComplex) =>
                {
                    TOO_LARGE.to_owned()
                }
                _ => last_words(&error.to_string()),
            })
    }

    /// The names of the groups, by number.
    pub(super) fn names(&self) -> Vec<Option<String>> {
        let owned = |name: Option<&str>| name.map(str::to_owned);
        match self {
            Self::Plain(regex) => {
                let names = regex.group_info().pattern_names(PatternID::ZERO);
                names.map(owned).collect()
            }
            Self::Hard(regex) => regex.capture_names().map(owned).collect(),
        }
    }

    pub(super) fn is_match(&self, text: &str) -> Result<bool, TooHard> {
        match self {
            Self::Plain(regex) => Ok(regex.is_match(text)),
            Self::Hard(_) if text.len() > LONGEST_TEXT_FOR_HARD => Err(TooHard::Long),
            Self::Hard(regex) => regex.is_match(text).map_err(|_| TooHard::Steps),
        }
    }

    /// Appends the groups of the first match; `slots` is working memory.
    pub(super) fn find_groups(
        &self,
        text: &str,
        slots: &mut Vec<Option<NonMaxUsize>>,
        groups: &mut Vec<Option<(usize, usize)>>,
    ) -> Result<bool, TooHard> {
        match self {
            Self::Plain(regex) => {
                slots.clear();
                slots.resize(regex.group_info().slot_len(), None);
                if regex.search_slots(&Input::new(text), slots).is_none() {
                    return Ok(false);
                }
                let (pairs, _) = slots.as_chunks::<2>();
                groups.extend(
                    pairs
                        .iter()
                        .map(|&[from, to]| Some((from?.get(), to?.get()))),
                );
                Ok(true)
            }
            Self::Hard(_) if text.len() > LONGEST_TEXT_FOR_HARD => Err(TooHard::Long),
            Self::Hard(regex) => {
                let Some(found) = regex.captures(text).map_err(|_| TooHard::Steps)? else {
                    return Ok(false);
                };
                let place = |group| found.get(group).map(|part| (part.start(), part.end()));
                groups.extend((0..found.len()).map(place));
                Ok(true)
            }
        }
    }
}

/// What matters of an engine's error. They draw the pattern over several lines, and it is the translated one: so
/// neither the drawing nor the position helps; the cause is in the last line, after this.
fn last_words(error: &str) -> String {
    let last = error.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.unwrap_or(error).trim();
    let cause = ["error: ", "Error compiling regex: ", "Parsing error"]
        .iter()
        .find_map(|start| last.strip_prefix(start))
        .unwrap_or(last);
    let Some((before, after)) = cause.split_once(" at position ") else {
        return cause.to_owned();
    };
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}{after}")
        .trim_start_matches(": ")
        .to_owned()
}
