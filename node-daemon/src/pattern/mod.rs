//! Patterns that people write: regular expressions of two dialects, compiled within limits, matched on any bytes.
//! Place: used by decode (multi-line), `filter` and parse (regexp); compiled once per declaration.
//! Invariants: a match allocates nothing where the pattern is plain; a match ends (plain: in time linear in the text,
//! hard: within a limit); offsets are the text's own, whatever its bytes; no pattern panics or takes more than a few
//! megabytes when compiled.
//!
//! Two engines: `regex-automata` (the engine of the `regex` crate) for what it can do, `fancy-regex` for look-around,
//! back-references, atomic groups and calls. `regex` itself is not used, as it can only put groups into memory that it
//! allocated for one pattern; here they go into a list that serves all.
//!
//! A text that is not UTF-8 is matched on a copy in which each invalid byte is U+001A SUBSTITUTE. It has one byte, too,
//! so all offsets hold; and it is what U+FFFD is to a pattern: `.` and `\S` take it, `\w` does not.
//!
//! In Ruby `^` and `$` stand at each line of the text. A text of one line, as most are, has its own compiled form, in
//! which they stand at the text's ends: a search that begins at one place only takes half of the time.
//!
//! Source of the dialects: Onigmo `doc/RE` (Ruby, fluentd), `google/re2` syntax (Go, Filebeat).

mod engine;
mod translate;

use std::cell::RefCell;
use std::fmt;
use std::sync::OnceLock;

use engine::Engine;
use regex_automata::util::primitives::NonMaxUsize;

/// Longest pattern, in bytes.
pub const LONGEST: usize = 16 * 1024;

/// Longest text a hard pattern is tried on, in bytes. A look-ahead may run over the rest of the text once per byte,
/// which no count of steps sees: that is 0.2 s here, and was 3 s at four times the length.
pub const LONGEST_TEXT_FOR_HARD: usize = 16 * 1024;

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

/// A compiled regular expression. A clone shares the compiled form and has working memory of its own, which is worth
/// it for each thread that matches often.
#[derive(Clone)]
pub struct Pattern {
    /// For texts of one line, or for all.
    engine: Engine,
    /// For texts of several lines, if that is another.
    of_lines: Option<OfLines>,
    names: Vec<Option<String>>,
    written: String,
}

/// The form in which `^` and `$` stand at each line, compiled when the first text needs it: most never do.
#[derive(Clone)]
struct OfLines {
    pattern: String,
    engine: OnceLock<Option<Engine>>,
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
        let translated = translated(dialect, written).map_err(one_line)?;
        let engine = Engine::new(&translated.pattern, translated.hard).map_err(one_line)?;
        Ok(Self {
            names: engine.names(),
            engine,
            of_lines: translated.of_lines.map(|pattern| OfLines {
                pattern,
                engine: OnceLock::new(),
            }),
            written: written.to_owned(),
        })
    }

    /// Whether it matches somewhere in the text.
    pub fn is_match(&self, text: &[u8]) -> Result<bool, TooHard> {
        with_text(text, |text, _| self.engine_for(text)?.is_match(text))
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
        with_text(text, |text, slots| {
            self.engine_for(text)?.find_groups(text, slots, groups)
        })
    }

    /// Whether it needs the slower engine, which may answer `TooHard`.
    pub fn is_hard(&self) -> bool {
        matches!(self.engine, Engine::Hard(_))
    }

    fn engine_for(&self, text: &str) -> Result<&Engine, TooHard> {
        match &self.of_lines {
            Some(of_lines) if memchr::memchr(b'\n', text.as_bytes()).is_some() => of_lines
                .engine
                .get_or_init(|| Engine::new(&of_lines.pattern, self.is_hard()).ok())
                .as_ref()
                // It is as large as the other and a flag more: what one limit let through, another may not.
                .ok_or(TooHard::Steps),
            _ => Ok(&self.engine),
        }
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

/// Several patterns written for Filebeat, of which one has to match; the plain ones are one automaton.
#[derive(Clone)]
pub struct AnyOf {
    engines: Vec<Engine>,
    written: Vec<String>,
}

impl AnyOf {
    /// Compiles them; the error names the pattern.
    pub fn new(written: &[String]) -> Result<Self, String> {
        let mut easy = Vec::new();
        let mut engines = Vec::new();
        for pattern in written {
            let named = |reason| one_line(format!("`{pattern}`: {reason}"));
            let translated = translated(Dialect::Go, pattern).map_err(named)?;
            // Each alone first, so that the error is of this pattern.
            let engine = Engine::new(&translated.pattern, translated.hard).map_err(named)?;
            match engine {
                Engine::Plain(_) => easy.push(translated.pattern),
                Engine::Hard(_) => engines.push(engine),
            }
        }
        if !easy.is_empty() {
            let all = |reason| format!("all patterns together: {reason}");
            engines.insert(0, Engine::plain(&easy).map_err(all)?);
        }
        Ok(Self {
            engines,
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
            let mut told = Ok(false);
            for engine in &self.engines {
                match engine.is_match(text) {
                    Ok(false) => {}
                    Ok(true) => return Ok(true),
                    undecided => told = undecided,
                }
            }
            told
        })
    }
}

impl fmt::Debug for AnyOf {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("AnyOf").field(&self.written).finish()
    }
}

/// An error names parts of the pattern, and a pattern may hold anything.
pub(crate) fn one_line(told: String) -> String {
    if !told.contains(char::is_control) {
        return told;
    }
    let mut line = String::with_capacity(told.len() + 8);
    for character in told.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

fn translated(dialect: Dialect, written: &str) -> Result<translate::Translated, String> {
    if written.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    translate::translate(dialect, written)
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
                // A rare long line shall not cost a megabyte for ever.
                copy.clear();
                copy.shrink_to(LONGEST_TEXT_FOR_HARD);
                told
            }
        }
    })
}

#[cfg(test)]
mod tests;
