//! What a new name, inode or size means: the judgements that need nothing but the files themselves.
//! Place: within **follow**; `judge` asks them of every file that no open stream holds.
//! Invariants: nothing is decided by a name alone; a file is taken for a copy only where bytes prove it, and what they
//! prove is said beside each judgement.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::WantId;
use super::glob::{is_numbered_form, is_rotated_sibling};
use super::identity::{HEAD_BYTES, Identity, read_range, tail_at};
use crate::host::{LogFile, Stat};

/// A file that was opened and is no stream yet.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Who found it.
    pub want: WantId,
    /// Where.
    pub path: PathBuf,
    /// The name that it may be a rotated form of; its own where it is none.
    pub base: PathBuf,
    /// Whether the want asks for it by this name; else it is only what a rotation may have left.
    pub matches: bool,
    /// It was there at the first look of a program that has just started.
    pub existed: bool,
    /// It was there before anything of its want was followed, and only rotated: nobody asked for it.
    pub passed_by: bool,
    /// Found at its want's first look.
    pub first: bool,
    /// No file had its number when its want's folders were listed whole before.
    pub came: bool,
    /// Since when it waits for a copied file to be truncated.
    pub waits_since: Option<Duration>,
    /// The open file.
    pub handle: Arc<dyn LogFile>,
    /// What it is now.
    pub stat: Stat,
}

impl Candidate {
    /// Whether it is no longer what it was when it was looked at.
    pub(super) fn has_changed(&self) -> bool {
        self.handle
            .stat()
            .is_ok_and(|now| now.size != self.stat.size)
    }

    /// Device and inode.
    pub(super) fn node(&self) -> (u64, u64) {
        (self.stat.device, self.stat.inode)
    }

    /// When it was last written or, by a copy that keeps times, made; nanoseconds since 1970.
    pub(super) fn made_ns(&self) -> i64 {
        self.stat
            .modified_ns
            .max(self.stat.birth_ns.unwrap_or(i64::MIN))
    }

    /// Its first bytes, at most as many as a head has.
    pub(super) fn head(&self) -> io::Result<Vec<u8>> {
        read_range(&*self.handle, 0, HEAD_BYTES as u64)
    }

    /// Which of two was made first: by birth, else by the last write.
    pub(super) fn by_age(&self, other: &Self) -> Ordering {
        let births = match (self.stat.birth_ns, other.stat.birth_ns) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => Ordering::Equal,
        };
        births
            .then(self.stat.modified_ns.cmp(&other.stat.modified_ns))
            .then_with(|| self.rank().cmp(&other.rank()))
            .then_with(|| self.path.cmp(&other.path))
    }

    /// What its name says of its age, where times say nothing: `app.log.2` is older than `app.log.1`, and that than
    /// `app.log`; but `app-1.log` is older than `app-2.log`, and so it is with dates.
    fn rank(&self) -> (bool, i64, usize) {
        let name = self.path.file_name().unwrap_or_default();
        let base = self.base.file_name().unwrap_or_default();
        let number = name
            .as_bytes()
            .strip_prefix(base.as_bytes())
            .and_then(|mark| mark.strip_prefix(b"."))
            .filter(|digits| digits.len() <= 4)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<i64>().ok());
        match number {
            Some(number) => (false, -number, 0),
            None => (self.path == self.base, 0, name.len()),
        }
    }
}

/// What is compared with a candidate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    /// What the stream is recognised by.
    pub identity: Identity,
    /// The furthest offset that was read of it.
    pub offset: u64,
    /// Hash of the bytes before that.
    pub tail: u64,
}

/// Whether a file holds all that was read of a stream: the same head, and the same 64 bytes before the furthest
/// cursor, if anything was read. `head` are the file's first bytes.
pub(super) fn holds_what_was_read(one: &Candidate, head: &[u8], read: &Read) -> bool {
    let known = read.identity.head_len as usize;
    one.stat.size >= read.offset
        && head
            .get(..known)
            .is_some_and(|head| known == 0 || xxh3_64(head) == read.identity.head)
        && (read.offset == 0
            || tail_at(&*one.handle, read.offset).is_ok_and(|found| found == Some(read.tail)))
}

/// Whether everything in `one` is in `file`, too, at the same place: then it is a copy of it, perhaps one that is still
/// being written, and the file was not truncated since. Proven by its head and its last 64 bytes.
pub(super) fn is_within(one: &Candidate, head: &[u8], file: &dyn LogFile) -> bool {
    let size = one.stat.size;
    if size == 0 {
        return false;
    }
    let is_as_long = file.stat().is_ok_and(|stat| stat.size >= size);
    is_as_long
        && tail_at(&*one.handle, size)
            .and_then(|tail| Ok(tail.is_some() && tail == tail_at(file, size)?))
            .unwrap_or(false)
        && read_range(file, 0, head.len() as u64).is_ok_and(|found| found == head)
}

/// The name that `path` may be a rotated form of, among those that `is_base` knows; the shortest, if there are several.
/// What a link is called may be numbered shortly, too: `app-2.log` for `app.log`.
pub(super) fn base_of(
    path: &Path,
    is_base: &dyn Fn(&Path) -> bool,
    is_link: &dyn Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let name = path.file_name()?;
    let bytes = name.as_bytes();
    let ending = bytes.iter().rposition(|byte| *byte == b'.');
    for at in 1..bytes.len() {
        if !matches!(bytes[at], b'.' | b'-' | b'_') {
            continue;
        }
        let base = OsStr::from_bytes(&bytes[..at]);
        if is_rotated_sibling(base, name) {
            let base = path.with_file_name(base);
            if is_base(&base) {
                return Some(base);
            }
        }
        let Some(ending) = ending.filter(|ending| at < *ending) else {
            continue;
        };
        let base = [&bytes[..at], &bytes[ending..]].concat();
        let base = OsStr::from_bytes(&base);
        let (long, short) = (is_rotated_sibling(base, name), is_numbered_form(base, name));
        if long || short {
            let base = path.with_file_name(base);
            if is_base(&base) && (long || is_link(&base)) {
                return Some(base);
            }
        }
    }
    None
}

/// Whether a name could be a rotated form of any other: it has a digit after a separator.
pub(super) fn may_be_rotated(name: &OsStr) -> bool {
    name.as_bytes()
        .windows(2)
        .any(|pair| matches!(pair[0], b'.' | b'-' | b'_') && pair[1].is_ascii_digit())
}

/// Whether a rotation compressed it: no log that could be read.
pub(super) fn is_compressed(name: &OsStr) -> bool {
    let name = name.as_bytes();
    [".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".Z"]
        .iter()
        .any(|suffix| name.ends_with(suffix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_form_belongs_to_the_shortest_name_that_is_known() {
        let bases = ["/l/app.log", "/l/app.log.1", "/l/0.log", "/l/web.log"];
        let base = |name: &str, link: bool| {
            let is_base = |path: &Path| bases.iter().any(|base| Path::new(base) == path);
            base_of(&Path::new("/l").join(name), &is_base, &|_| link)
                .map(|base| base.file_name().expect("a name").to_owned())
        };
        assert_eq!(base("app.log.1", false), Some("app.log".into()));
        assert_eq!(base("app.log.1.2", false), Some("app.log".into()));
        assert_eq!(base("app.log-1700000000.4", false), Some("app.log".into()));
        assert_eq!(base("app-2026-11-24.log", false), Some("app.log".into()));
        assert_eq!(base("0.log.20261124-103000", false), Some("0.log".into()));
        assert_eq!(base("web-2.log", true), Some("web.log".into()));
        assert_eq!(base("web-2.log", false), None);
        assert_eq!(base("1.log", true), None);
        assert_eq!(base("other.log.1", false), None);
    }
}
