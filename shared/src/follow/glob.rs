//! Patterns: which files a declared path means, and in which directories they may turn up.
//! Place: the follower asks it which directories to watch and which names in them to open; a new name is judged by
//! the same rules without a walk.
//! Invariants: a pattern is walked in the container's view by listing alone and opens nothing; `*` and `?` match any name,
//! those with a dot first too, as Go's `filepath.Glob` does for log-pilot; names are any bytes, `?` and `[..]` take one
//! character, or one byte where there is none; below `**` no link to a directory is followed, so nothing goes in circles.
//!
//! Written by hand, because a first globset pattern costs a megabyte of resident pages, the whole of what the shim may
//! use, and takes bytes for characters. The tests hold it against globset where both mean the same.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::View;
use crate::host::{EntryKind, Host};

/// Levels of directories that `**` goes down.
pub const MOST_DEPTH: usize = 16;

/// Directories that one walk looks into.
pub const MOST_DIRECTORIES: usize = 10_000;

/// Parts of a path that a pattern may have: one bit each.
const MOST_PARTS: usize = 63;

/// Alternatives that braces may make in one part.
const MOST_ALTERNATIVES: usize = 64;

/// What is wrong with a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// Relative.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// It ends with `/`, or is `/`.
    #[error("the path names a directory")]
    Directory,
    /// It has `..`.
    #[error("the path goes through `..`")]
    Parent,
    /// `[` or `{` without its end in the same part of the path.
    #[error("`{0}` is not closed before the next `/`")]
    Unclosed(char),
    /// `[b-a]`, or `[]`.
    #[error("`[...]` holds no character that could match")]
    EmptyClass,
    /// A `\` at the end of a part.
    #[error("a `\\` has nothing after it")]
    Escape,
    /// Braces that make too many alternatives.
    #[error("the braces make more than {MOST_ALTERNATIVES} alternatives")]
    TooMany,
    /// More than 63 parts.
    #[error("the path has more than {MOST_PARTS} parts")]
    TooLong,
}

impl GlobError {
    /// What the user can do.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::NotAbsolute => "write the path from `/` on, such as `/logs/*.log`",
            Self::Directory => {
                "name the files in it, such as `/logs/*.log`, or `/logs/**/*.log` with all below"
            }
            Self::Parent => "write the path without `..`",
            Self::Unclosed(_) => "close it, or write `\\` before it where the name has it",
            Self::EmptyClass => "write the lower character first, such as `[a-z]`",
            Self::Escape => "write `\\\\` where the name has a `\\`",
            Self::TooMany | Self::TooLong => "declare several paths, each under its own name",
        }
    }
}

/// A directory that could not be listed. All others were looked into all the same, but what it holds is not known: a
/// file in it that was not told is not gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot look into `{}`: {source}", dir.display())]
pub struct WalkError {
    /// The first of them, as the container names it.
    pub dir: PathBuf,
    /// Why.
    pub source: io::Error,
    /// How many more there were.
    pub others: usize,
}

/// A declared path: from `/` on, with `*`, `?`, `[a-z]`, `[!a-z]`, `{a,b}` in any part, and `**` for any depth. `\`
/// takes the meaning from what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: std::sync::Arc<str>,
    parts: Vec<Part>,
    literal_dir: PathBuf,
    /// How many parts that has.
    literal: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(OsString),
    /// Any of these.
    Glob(Vec<Vec<Token>>),
    AnyDepth,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    One,
    Many,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A name that a walk found.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The directory, as the container names it.
    pub dir: &'a Path,
    /// The name in it.
    pub name: &'a OsStr,
    /// What the listing says it is; never a directory. A link may turn out to lead to one.
    pub kind: EntryKind,
    /// The inode that the listing tells.
    pub inode: u64,
    /// Whether the pattern means it. The others are told because they may be what a rotation left.
    pub matches: bool,
}

impl Pattern {
    /// Reads a declared path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, GlobError> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(GlobError::NotAbsolute);
        };
        let mut parts = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(GlobError::Parent),
                // Twice is no deeper than once.
                "**" if parts.last() == Some(&Part::AnyDepth) => {}
                "**" => parts.push(Part::AnyDepth),
                part => parts.push(Part::new(part)?),
            }
        }
        if parts.is_empty() || path.ends_with('/') || path.ends_with("/.") {
            return Err(GlobError::Directory);
        }
        if parts.last() == Some(&Part::AnyDepth) {
            // All files below.
            parts.push(Part::Glob(vec![vec![Token::Many]]));
        }
        if parts.len() > MOST_PARTS {
            return Err(GlobError::TooLong);
        }
        let mut literal_dir = PathBuf::from("/");
        let mut literal = 0;
        for part in &parts[..parts.len() - 1] {
            let Part::Literal(name) = part else { break };
            literal_dir.push(name);
            literal += 1;
        }
        Ok(Self {
            text: text.into(),
            parts,
            literal_dir,
            literal,
        })
    }

    /// The path as it was declared.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The longest directory above everything that it means: it has no wildcard.
    #[must_use]
    pub fn literal_dir(&self) -> &Path {
        &self.literal_dir
    }

    /// The one name that it means in its [`literal_dir`](Self::literal_dir), where it has no wildcard at all.
    #[must_use]
    pub fn literal_name(&self) -> Option<&OsStr> {
        match self.parts.last() {
            Some(Part::Literal(name)) if self.literal + 1 == self.parts.len() => Some(name),
            _ => None,
        }
    }

    /// Whether it means the file `name` in `dir`, if neither is behind a link.
    #[must_use]
    pub fn matches_name(&self, dir: &Path, name: &OsStr) -> bool {
        self.is_file(self.at(dir), name)
    }

    /// Whether files that it means may lie in `dir` or below, so that it must be watched.
    #[must_use]
    pub fn enters(&self, dir: &Path) -> bool {
        self.at(dir) != 0
    }

    /// The states after the parts of `dir`.
    fn at(&self, dir: &Path) -> u64 {
        let Ok(inner) = dir.strip_prefix(&self.literal_dir) else {
            return 0;
        };
        let mut states = self.start();
        for (depth, part) in inner.components().enumerate() {
            let Component::Normal(name) = part else {
                return 0;
            };
            if depth >= self.most_depth() {
                return 0;
            }
            states = self.step(states, name, false);
        }
        states
    }

    // A state is how many parts are matched so far, and a set of them is one bit each.

    fn start(&self) -> u64 {
        self.close(1 << self.literal)
    }

    /// Adds what `**` reaches by matching nothing.
    fn close(&self, states: u64) -> u64 {
        let mut closed = states;
        for (at, part) in self.parts.iter().enumerate() {
            if closed >> at & 1 == 1 && *part == Part::AnyDepth {
                closed |= 1 << (at + 1);
            }
        }
        closed
    }

    /// The states within a directory of that name; none where there is nothing to look for in it.
    fn step(&self, states: u64, name: &OsStr, is_link: bool) -> u64 {
        let mut next = 0;
        for (at, part) in self.parts[..self.parts.len() - 1].iter().enumerate() {
            if states >> at & 1 == 0 {
                continue;
            }
            match part {
                Part::AnyDepth if is_link => {}
                Part::AnyDepth => next |= 1 << at,
                part if part.matches(name) => next |= 1 << (at + 1),
                _ => {}
            }
        }
        self.close(next)
    }

    /// Whether a file may lie right here.
    fn has_files(&self, states: u64) -> bool {
        states >> (self.parts.len() - 1) & 1 == 1
    }

    fn is_file(&self, states: u64, name: &OsStr) -> bool {
        self.has_files(states) && self.parts.last().is_some_and(|part| part.matches(name))
    }

    /// Directories that may lie between the literal one and a file.
    fn most_depth(&self) -> usize {
        let parts = self.parts.len() - 1 - self.literal;
        if self.parts.contains(&Part::AnyDepth) {
            parts - 1 + MOST_DEPTH
        } else {
            parts
        }
    }
}

impl Part {
    fn new(text: &str) -> Result<Self, GlobError> {
        let globs = expand(text)?
            .iter()
            .map(|text| tokens(text))
            .collect::<Result<Vec<_>, _>>()?;
        if let [only] = globs.as_slice() {
            let plain = only.iter().map(|token| match token {
                Token::Char(char) => Some(*char),
                _ => None,
            });
            if let Some(plain) = plain.collect::<Option<String>>() {
                return Ok(Self::Literal(plain.into()));
            }
        }
        Ok(Self::Glob(globs))
    }

    fn matches(&self, name: &OsStr) -> bool {
        match self {
            Self::Literal(literal) => literal == name,
            Self::Glob(globs) => globs.iter().any(|glob| matches(glob, name.as_bytes())),
            Self::AnyDepth => true,
        }
    }
}

/// Writes braces out: each alternative of the first, then of what follows it.
fn expand(text: &str) -> Result<Vec<String>, GlobError> {
    let mut whole = Vec::new();
    let mut ahead = vec![text.to_owned()];
    while let Some(text) = ahead.pop() {
        let Some((from, commas, to)) = first_braces(&text)? else {
            whole.push(text);
            continue;
        };
        // Each that waits makes at least one.
        if whole.len() + ahead.len() + commas.len() + 1 > MOST_ALTERNATIVES {
            return Err(GlobError::TooMany);
        }
        let ends = commas.iter().copied().chain([to]);
        let starts = [from].into_iter().chain(commas.iter().copied());
        let chosen = starts.zip(ends).map(|(start, end)| {
            format!(
                "{}{}{}",
                &text[..from],
                &text[start + 1..end],
                &text[to + 1..]
            )
        });
        let from = ahead.len();
        ahead.extend(chosen);
        ahead[from..].reverse();
    }
    Ok(whole)
}

/// Where the first braces with a comma begin, have their commas, and end. Without a comma they mean themselves, as in
/// Go's globs.
fn first_braces(text: &str) -> Result<Option<(usize, Vec<usize>, usize)>, GlobError> {
    let mut open = 0;
    let mut depth = 0;
    let mut commas = Vec::new();
    let mut in_class = false;
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => {
                chars.next();
            }
            '[' => in_class = true,
            ']' => in_class = false,
            _ if in_class => {}
            '{' => {
                depth += 1;
                if depth == 1 {
                    open = at;
                }
            }
            ',' if depth == 1 => commas.push(at),
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 && !commas.is_empty() {
                    return Ok(Some((open, commas, at)));
                }
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(GlobError::Unclosed('{'));
    }
    Ok(None)
}

fn tokens(text: &str) -> Result<Vec<Token>, GlobError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        tokens.push(match char {
            '*' => {
                if tokens.last() == Some(&Token::Many) {
                    continue;
                }
                Token::Many
            }
            '?' => Token::One,
            '\\' => Token::Char(chars.next().ok_or(GlobError::Escape)?),
            '[' => {
                let negated = chars.next_if(|char| matches!(char, '!' | '^')).is_some();
                let mut ranges = Vec::new();
                let mut is_first = true;
                loop {
                    let from = match chars.next().ok_or(GlobError::Unclosed('['))? {
                        ']' if !is_first => break,
                        '\\' => chars.next().ok_or(GlobError::Escape)?,
                        char => char,
                    };
                    is_first = false;
                    let mut to = from;
                    let mut ahead = chars.clone();
                    if ahead.next() == Some('-') && ahead.next().is_some_and(|char| char != ']') {
                        chars.next();
                        to = match chars.next().ok_or(GlobError::Unclosed('['))? {
                            '\\' => chars.next().ok_or(GlobError::Escape)?,
                            char => char,
                        };
                    }
                    if from > to {
                        return Err(GlobError::EmptyClass);
                    }
                    ranges.push((from, to));
                }
                Token::Class { negated, ranges }
            }
            char => Token::Char(char),
        });
    }
    Ok(tokens)
}

impl Token {
    /// How many bytes of the beginning it takes; `None` where it does not match.
    fn take(&self, text: &[u8]) -> Option<usize> {
        let (char, len) = first_char(text)?;
        let matches = match self {
            Self::Char(wanted) => char == Some(*wanted),
            Self::One => true,
            Self::Class { negated, ranges } => {
                let is_in = char.is_some_and(|char| {
                    ranges
                        .iter()
                        .any(|(from, to)| (*from..=*to).contains(&char))
                });
                is_in != *negated
            }
            Self::Many => false,
        };
        matches.then_some(len)
    }
}

/// The first character and its length; a byte that begins none counts alone.
fn first_char(text: &[u8]) -> Option<(Option<char>, usize)> {
    let first = *text.first()?;
    let len = match first {
        0x00..0x80 => return Some((Some(char::from(first)), 1)),
        0xC2..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0..0xF5 => 4,
        _ => return Some((None, 1)),
    };
    let char = text
        .get(..len)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| text.chars().next());
    Some((char, if char.is_some() { len } else { 1 }))
}

/// Whether all of `name` matches. A later `*` makes up for whatever an earlier one took, so only the last is tried again.
fn matches(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        match tokens.get(token) {
            None if at == name.len() => return true,
            Some(Token::Many) => {
                token += 1;
                star = Some((token, at));
                continue;
            }
            Some(one) => {
                if let Some(len) = one.take(&name[at..]) {
                    token += 1;
                    at += len;
                    continue;
                }
            }
            None => {}
        }
        let Some((after, begun)) = star else {
            return false;
        };
        let Some((_, len)) = first_char(&name[begun..]) else {
            return false;
        };
        at = begun + len;
        token = after;
        star = Some((after, at));
    }
}

/// Walks a pattern: calls `each_dir` with every directory that must be watched, before it is listed, and `each_name`
/// with every name in those that may hold a file of the pattern, until it breaks.
///
/// Where the pattern's literal directory is not there, the nearest one above it is told, where it may be made.
/// Directories that vanish meanwhile, and links that lead to none, are passed over.
///
/// # Errors
/// The first directory that could not be listed, after all the others.
pub fn walk(
    host: &dyn Host,
    view: &View,
    pattern: &Pattern,
    each_dir: &mut dyn FnMut(&Path),
    each_name: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<(), WalkError> {
    let mut failed: Option<WalkError> = None;
    let mut fail = |dir: &Path, source: io::Error| match &mut failed {
        Some(failed) => failed.others += 1,
        None => {
            failed = Some(WalkError {
                dir: dir.to_owned(),
                source,
                others: 0,
            });
        }
    };
    let exists = |dir: &Path| host.list(view, dir, &mut |_, _, _| ControlFlow::Break(()));
    let mut ahead = Vec::new();
    for dir in pattern.literal_dir.ancestors() {
        match exists(dir) {
            Ok(()) if dir == pattern.literal_dir => {
                ahead.push((dir.to_owned(), pattern.start(), 0));
                break;
            }
            Ok(()) => {
                each_dir(dir);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                fail(dir, error);
                break;
            }
        }
    }
    let mut seen = ahead.len();
    let mut broke = false;
    while let Some((dir, states, depth)) = ahead.pop() {
        each_dir(&dir);
        let goes_on = depth < pattern.most_depth();
        let has_files = pattern.has_files(states);
        let mut deeper = Vec::new();
        let mut too_many = false;
        let listed = host.list(view, &dir, &mut |name, kind, inode| {
            let is_link = kind == EntryKind::Link;
            if goes_on && (is_link || kind == EntryKind::Directory) {
                let states = pattern.step(states, name, is_link);
                if states != 0 && seen + deeper.len() >= MOST_DIRECTORIES {
                    too_many = true;
                } else if states != 0 {
                    deeper.push((dir.join(name), states, depth + 1, is_link));
                }
            }
            if has_files && kind != EntryKind::Directory {
                let found = Found {
                    dir: &dir,
                    name,
                    kind,
                    inode,
                    matches: pattern.is_file(states, name),
                };
                if each_name(found).is_break() {
                    broke = true;
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        match listed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => fail(&dir, error),
            _ if broke => break,
            _ if too_many => fail(
                &dir,
                io::Error::other(format!(
                    "the pattern covers more than {MOST_DIRECTORIES} directories"
                )),
            ),
            _ => {}
        }
        for (dir, states, depth, is_link) in deeper {
            // A link is no directory's name until it is known to lead to one.
            match if is_link { exists(&dir) } else { Ok(()) } {
                Ok(()) => {
                    seen += 1;
                    ahead.push((dir, states, depth));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidInput => {}
                    _ => fail(&dir, error),
                },
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Endings of files that a rotation has packed.
const PACKED: [&[u8]; 8] = [
    b".gz", b".bz2", b".xz", b".zst", b".lz4", b".lzma", b".zip", b".Z",
];

/// Whether `name` may be what a rotation made of `base`: that name followed by numbers and times (`app.log.1`,
/// `app.log-20261124.gz`, `0.log.20261124-103000`), or with them before its ending (`app.1.log`, `app-2026-11-24.log`).
/// Only identity can tell whether it is; what is no sibling by its name is never taken for one. A short number after
/// `-` or `_` before the ending (`worker-1.log`) is rather another program's own log.
#[must_use]
pub fn is_rotated_sibling(base: &OsStr, name: &OsStr) -> bool {
    let (base, name) = (base.as_bytes(), name.as_bytes());
    if base.is_empty() || base == name {
        return false;
    }
    let packed = PACKED.iter().find_map(|ending| name.strip_suffix(*ending));
    let name = packed.unwrap_or(name);
    if packed.is_some() && name == base {
        return true;
    }
    if let Some(mark) = name.strip_prefix(base) {
        return is_mark(mark);
    }
    let Some(dot) = base
        .iter()
        .rposition(|byte| *byte == b'.')
        .filter(|dot| *dot > 0)
    else {
        return false;
    };
    let (stem, ending) = base.split_at(dot);
    let mark = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(ending));
    mark.is_some_and(|mark| {
        let digits = mark.iter().filter(|byte| byte.is_ascii_digit()).count();
        is_mark(mark) && (mark.starts_with(b".") || digits >= DATE_DIGITS)
    })
}

/// Whether `name` differs from `base` only by a number or time before its ending, however short (`app-2.log` for
/// `app.log`): what a link called `base` may have pointed to.
#[must_use]
pub fn is_numbered_form(base: &OsStr, name: &OsStr) -> bool {
    let (base, name) = (base.as_bytes(), name.as_bytes());
    let dot = base
        .iter()
        .rposition(|byte| *byte == b'.')
        .unwrap_or(base.len());
    let (stem, ending) = base.split_at(dot);
    name.strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(ending))
        .is_some_and(is_mark)
}

/// As many as a date has at least.
const DATE_DIGITS: usize = 6;

/// A separator, then numbers and times: digits with separators between them, `T` between date and time, `Z` or an offset
/// after it.
fn is_mark(mark: &[u8]) -> bool {
    let Some((b'.' | b'-' | b'_', rest)) = mark.split_first() else {
        return false;
    };
    let rest = rest.strip_suffix(b"Z").unwrap_or(rest);
    let is_digit = |at: Option<&u8>| at.is_some_and(u8::is_ascii_digit);
    if !is_digit(rest.first()) || !is_digit(rest.last()) {
        return false;
    }
    rest.windows(2).all(|pair| {
        pair[1].is_ascii_digit()
            || (pair[0].is_ascii_digit()
                && matches!(pair[1], b'.' | b'-' | b'_' | b':' | b'+' | b'T'))
    })
}
