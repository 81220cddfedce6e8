//! Patterns that people write: regular expressions of two dialects, compiled within limits, matched on any bytes.
//! Place: used by decode (multi-line), `filter` and parse (regexp); compiled once per declaration.
//! Invariants: a match allocates nothing where the pattern is plain; a match ends (plain: in time linear in the text,
//! hard: within a limit); offsets are the text's own, whatever its bytes; no pattern panics or takes over about a
//! megabyte when compiled.
//!
//! Two engines: `regex-automata` (the engine of the `regex` crate) for what it can do, `fancy-regex` for look-around,
//! back-references, atomic groups and calls. `regex` itself is not used, as it can only put groups into memory that it
//! allocated for one pattern; here they go into a list that serves all.
//!
//! A text that is not UTF-8 is matched on a copy in which each invalid byte is U+001A SUBSTITUTE. It has one byte, too,
//! so all offsets hold; and it is what U+FFFD is to a pattern: `.` and `\S` take it, `\w` does not.
//!
//! Source of the dialects: Onigmo `doc/RE` (Ruby, fluentd), `google/re2` syntax (Go, Filebeat).

mod translate;

use std::cell::RefCell;
use std::fmt;

use regex_automata::meta;
use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::util::syntax;

/// Longest pattern, in bytes.
pub const LONGEST: usize = 16 * 1024;

/// Longest text a hard pattern is tried on, in bytes: a look-ahead may run over the rest of the text once per byte.
pub const LONGEST_TEXT_FOR_HARD: usize = 64 * 1024;

/// Most steps back of a hard pattern on one text; about 2 ms.
const BACKTRACK_LIMIT: usize = 100_000;

/// Most bytes of a compiled pattern, and of each cache its lazy automaton may fill.
const SIZE_LIMIT: usize = 1024 * 1024;

/// Most instructions of a hard pattern.
const INSTRUCTIONS: usize = 20_000;

/// How deep groups may nest.
const NEST_LIMIT: u32 = 60;

/// Stands for a byte that is not UTF-8.
const SUBSTITUTE: char = '\u{1a}';

/// Who the pattern was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Ruby's (Onigmo), as fluentd takes it: maybe in `/…/flags`, `^` and `$` at each line of the text.
    Ruby,
    /// Go's (RE2), as Filebeat takes it: `^` and `$` at the ends of the text.
    Go,
}

/// A compiled regular expression. A clone shares the compiled form and has working memory of its own.
#[derive(Clone)]
pub struct Pattern {
    engine: Engine,
    names: Vec<Option<String>>,
    written: String,
}

#[derive(Clone)]
enum Engine {
    Plain(meta::Regex),
    Hard(Box<fancy_regex::Regex>),
}

/// The pattern could not be decided on this text within its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooHard {
    /// It had to try too many ways.
    #[error("the pattern needs too many steps on this text")]
    Steps,
    /// The text is longer than `LONGEST_TEXT_FOR_HARD`.
    #[error("the text is too long for a pattern with look-around or back-references")]
    Long,
}

/// What a match needs besides the pattern; one for each thread, so that none is made per line.
#[derive(Default)]
struct Scratch {
    text: String,
    slots: Vec<Option<NonMaxUsize>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Pattern {
    /// Compiles a pattern written for Ruby (formats). The error is one line, without the pattern.
    pub fn new(written: &str) -> Result<Self, String> {
        Self::of(Dialect::Ruby, written)
    }

    /// Compiles a pattern written for Filebeat (multi-line, include, exclude).
    pub fn filebeat(written: &str) -> Result<Self, String> {
        Self::of(Dialect::Go, written)
    }

    /// Compiles a pattern of a dialect.
    pub fn of(dialect: Dialect, written: &str) -> Result<Self, String> {
        let translated = translated(dialect, written)?;
        let engine = if translated.hard {
            Engine::Hard(Box::new(hard(&translated.pattern)?))
        } else {
            Engine::Plain(plain(&[&translated.pattern])?)
        };
        let names = match &engine {
            Engine::Plain(regex) => (0..regex.captures_len())
                .map(|group| {
                    let info = regex.group_info();
                    let name = info.to_name(regex_automata::PatternID::ZERO, group);
                    name.map(str::to_owned)
                })
                .collect(),
            Engine::Hard(regex) => regex
                .capture_names()
                .map(|name| name.map(str::to_owned))
                .collect(),
        };
        Ok(Self {
            engine,
            names,
            written: written.to_owned(),
        })
    }

    /// Whether it matches somewhere in the text.
    pub fn is_match(&self, text: &[u8]) -> Result<bool, TooHard> {
        with_text(text, |text, _| match &self.engine {
            Engine::Plain(regex) => Ok(regex.is_match(text)),
            Engine::Hard(regex) => hard_is_match(regex, text),
        })
    }

    /// The names of all groups, by number; the first is the whole match, groups without a name have `None`.
    /// A name may stand more than once.
    pub fn names(&self) -> Vec<Option<String>> {
        self.names.clone()
    }

    /// Finds the first match and puts where each group stands in the text, by number; a group that took no part has
    /// `None`. Without a match `groups` is left empty.
    pub fn find_groups(
        &self,
        text: &[u8],
        groups: &mut Vec<Option<(usize, usize)>>,
    ) -> Result<bool, TooHard> {
        groups.clear();
        with_text(text, |text, slots| match &self.engine {
            Engine::Plain(regex) => {
                slots.clear();
                slots.resize(self.names.len() * 2, None);
                let input = regex_automata::Input::new(text);
                if regex.search_slots(&input, slots).is_none() {
                    return Ok(false);
                }
                groups.extend(
                    slots
                        .as_chunks::<2>()
                        .0
                        .iter()
                        .map(|&[start, end]| Some((start?.get(), end?.get()))),
                );
                Ok(true)
            }
            Engine::Hard(regex) => {
                if text.len() > LONGEST_TEXT_FOR_HARD {
                    return Err(TooHard::Long);
                }
                let Some(found) = regex.captures(text).map_err(|_| TooHard::Steps)? else {
                    return Ok(false);
                };
                groups.extend(
                    (0..found.len())
                        .map(|group| found.get(group).map(|part| (part.start(), part.end()))),
                );
                Ok(true)
            }
        })
    }

    /// Whether it needs the slower engine, which may answer `TooHard`.
    pub fn is_hard(&self) -> bool {
        matches!(self.engine, Engine::Hard(_))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Pattern")
            .field("written", &self.written)
            .field("hard", &self.is_hard())
            .finish_non_exhaustive()
    }
}

/// Several patterns, of which one has to match; the plain ones are one automaton.
#[derive(Clone)]
pub struct AnyOf {
    plain: Option<meta::Regex>,
    hard: Vec<fancy_regex::Regex>,
    written: Vec<String>,
}

impl AnyOf {
    /// Compiles them; the error names the pattern.
    pub fn new(dialect: Dialect, written: &[String]) -> Result<Self, String> {
        let mut easy = Vec::new();
        let mut difficult = Vec::new();
        for pattern in written {
            let named = |reason: String| format!("`{pattern}`: {reason}");
            // Each alone first: so that the error is of this pattern, and to know which engine it needs.
            match Pattern::of(dialect, pattern).map_err(named)?.engine {
                Engine::Plain(_) => {
                    easy.push(translated(dialect, pattern).map_err(named)?.pattern);
                }
                Engine::Hard(regex) => difficult.push(*regex),
            }
        }
        let plain = match easy.as_slice() {
            [] => None,
            some => Some(plain(some).map_err(|reason| format!("all together: {reason}"))?),
        };
        Ok(Self {
            plain,
            hard: difficult,
            written: written.to_vec(),
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// Whether one matches somewhere in the text. `TooHard` if one could not be decided and no other matches.
    pub fn is_match(&self, text: &[u8]) -> Result<bool, TooHard> {
        if self.is_empty() {
            return Ok(false);
        }
        with_text(text, |text, _| {
            if self
                .plain
                .as_ref()
                .is_some_and(|regex| regex.is_match(text))
            {
                return Ok(true);
            }
            let mut undecided = None;
            for regex in &self.hard {
                match hard_is_match(regex, text) {
                    Ok(true) => return Ok(true),
                    Ok(false) => {}
                    Err(reason) => undecided = Some(reason),
                }
            }
            undecided.map_or(Ok(false), Err)
        })
    }
}

impl fmt::Debug for AnyOf {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("AnyOf").field(&self.written).finish()
    }
}

/// Calls with the text as UTF-8 (the same offsets) and with room for slots.
fn with_text<T>(text: &[u8], act: impl FnOnce(&str, &mut Vec<Option<NonMaxUsize>>) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { text: copy, slots } = scratch;
        match str::from_utf8(text) {
            Ok(text) => act(text, slots),
            Err(_) => {
                copy.clear();
                for chunk in text.utf8_chunks() {
                    copy.push_str(chunk.valid());
                    copy.extend(chunk.invalid().iter().map(|_| SUBSTITUTE));
                }
                let told = act(copy, slots);
                copy.shrink_to(LONGEST_TEXT_FOR_HARD); // a rare long line shall not cost a megabyte for ever
                told
            }
        }
    })
}

fn hard_is_match(regex: &fancy_regex::Regex, text: &str) -> Result<bool, TooHard> {
    if text.len() > LONGEST_TEXT_FOR_HARD {
        return Err(TooHard::Long);
    }
    regex.is_match(text).map_err(|_| TooHard::Steps)
}

fn translated(dialect: Dialect, written: &str) -> Result<translate::Translated, String> {
    if written.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    translate::translate(dialect, written)
}

fn plain<P: AsRef<str>>(patterns: &[P]) -> Result<meta::Regex, String> {
    meta::Builder::new()
        .configure(
            meta::Config::new()
                .nfa_size_limit(Some(SIZE_LIMIT))
                .onepass_size_limit(Some(SIZE_LIMIT))
                .hybrid_cache_capacity(SIZE_LIMIT),
        )
        // Byte-wise `\b` needs it; the text is UTF-8 in any case.
        .syntax(syntax::Config::new().utf8(false).nest_limit(NEST_LIMIT * 2))
        .build_many(patterns)
        .map_err(|error| match (error.size_limit(), error.syntax_error()) {
            (Some(_), _) => TOO_LARGE.to_owned(),
            (None, Some(syntax)) => last_words(&syntax.to_string()),
            (None, None) => last_words(&error.to_string()),
        })
}

fn hard(pattern: &str) -> Result<fancy_regex::Regex, String> {
    let pattern = pattern
        .replace(translate::GO_WORD_EDGE, r"\b")
        .replace(translate::GO_NO_WORD_EDGE, r"\B");
    fancy_regex::RegexBuilder::new(&pattern)
        .oniguruma_mode(true)
        .backtrack_limit(BACKTRACK_LIMIT)
        .delegate_size_limit(SIZE_LIMIT)
        .delegate_dfa_size_limit(SIZE_LIMIT)
        .max_prog_size(INSTRUCTIONS)
        .build()
        .map_err(|error| {
            let too_large = matches!(
                &error,
                fancy_regex::Error::CompileError(inner)
                    if matches!(**inner, fancy_regex::CompileError::PatternTooComplex)
            );
            if too_large {
                return TOO_LARGE.to_owned();
            }
            last_words(&error.to_string())
        })
}

const TOO_LARGE: &str = "it becomes too large (smaller counts in `{…}` help)";

/// What matters of an engine's error. They draw the pattern over several lines, and it is the translated one: so
/// neither the drawing nor the position helps; the cause is in the last line, after this.
fn last_words(error: &str) -> String {
    let last = error.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.unwrap_or(error).trim();
    for start in ["error: ", "Error compiling regex: "] {
        if let Some(cause) = last.strip_prefix(start) {
            return cause.to_owned();
        }
    }
    match last.strip_prefix("Parsing error at position ") {
        Some(rest) => rest
            .split_once(": ")
            .map_or(rest, |(_, cause)| cause)
            .to_owned(),
        None => last.to_owned(),
    }
}

#[cfg(test)]
mod tests;
