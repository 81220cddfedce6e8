//! The copy of one container's stdout, on disk.
//! Place: within **api_stdout**: a copier appends, the follower reads.
//! Invariants: a line is in Docker's own `json-file` form, so that nobody needs to know that it is a copy; the file ends
//! with a whole line; what was copied before a lost connection is not copied twice, and nothing is passed over that was
//! not.
//! Source: Docker Engine API 1.41 to 1.51, `GET /containers/ID/logs`: `since` is inclusive and of lines, in the order of
//! writing; with `timestamps` each line, and each part of a line over 16 KiB, begins with its time in RFC 3339.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bollard::container::LogOutput;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::discover::time_ns;

/// Bytes of a copy before it is rotated.
pub(super) const LARGEST: u64 = 8 * 1024 * 1024;
/// How much of a copy's end is looked at for what was copied last: 16 of the longest parts, with all of them escaped.
const TAIL_BYTES: u64 = 1024 * 1024;

/// A line as Docker's `json-file` driver writes it.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'line> {
    #[serde(borrow)]
    log: std::borrow::Cow<'line, str>,
    stream: std::borrow::Cow<'line, str>,
    time: std::borrow::Cow<'line, str>,
}

impl Line<'_> {
    fn hash(&self) -> u64 {
        xxh3_64(self.log.as_bytes()) ^ xxh3_64(self.stream.as_bytes()).rotate_left(1)
    }
}

/// What was copied at the latest time there is.
#[derive(Debug, Default)]
struct Last {
    ns: i64,
    /// Lines at that time, by hash.
    lines: HashMap<u64, u32>,
}

/// One container's copy.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    older: PathBuf,
    file: File,
    size: u64,
    /// What a new connection may give once more; `None` when it has given something later.
    last: Option<Last>,
}

impl Spool {
    /// Opens or makes the copy of a container, and finds out what it had last. A line that was half written is cut off.
    ///
    /// # Errors
    /// As the file system gives them; `InvalidInput` for an id that is none.
    pub(super) fn open(dir: &Path, id: &str) -> io::Result<Self> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no container id",
            ));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let path = dir.join(format!("{id}.log"));
        let older = dir.join(format!("{id}.log.1"));
        let mut file = open(&path)?;
        let (size, last) = match last_of(&mut file)? {
            (0, _) => match File::open(&older) {
                Ok(mut older) => (0, last_of(&mut older)?.1),
                Err(_) => (0, None),
            },
            found => found,
        };
        file.set_len(size)?;
        file.seek(SeekFrom::Start(size))?;
        Ok(Self {
            path,
            older,
            file,
            size,
            last,
        })
    }

    /// From when on the engine must be asked, nanoseconds since 1970; `None` where nothing was copied yet.
    pub(super) fn since_ns(&self) -> Option<i64> {
        self.last.as_ref().map(|last| last.ns)
    }

    /// Writes a line behind `text` as it will stand in the copy, unless it is there.
    pub(super) fn take(&mut self, output: LogOutput, text: &mut Vec<u8>) {
        let stream = match &output {
            LogOutput::StdErr { .. } => "stderr",
            _ => "stdout",
        };
        let message = output.into_bytes();
        let message = String::from_utf8_lossy(&message);
        let (time, log) = match message.split_once(' ') {
            Some((time, log)) if time_ns(time).is_some() => (time, log),
            // No engine sends one without; it is kept all the same.
            _ => ("1970-01-01T00:00:00Z", &*message),
        };
        let line = Line {
            log: log.into(),
            stream: stream.into(),
            time: time.into(),
        };
        if let (Some(last), Some(ns)) = (&mut self.last, time_ns(time)) {
            if ns < last.ns {
                return;
            }
            if ns == last.ns
                && let Some(times) = last.lines.get_mut(&line.hash())
                && *times > 0
            {
                *times -= 1;
                return;
            }
            if ns > last.ns {
                self.last = None;
            }
        }
        let before = text.len();
        match serde_json::to_writer(&mut *text, &line) {
            Ok(()) => text.push(b'\n'),
            // Text to memory: it does not fail, and half a line would be worse than none.
            Err(_) => text.truncate(before),
        }
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// As the file system gives them; then the copy is as before.
    pub(super) fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(text);
        if written.is_err() {
            self.file.set_len(self.size)?;
            self.file.seek(SeekFrom::Start(self.size))?;
            return written;
        }
        self.size += text.len() as u64;
        Ok(())
    }

    /// Whether it must be rotated before more is written.
    pub(super) fn is_full(&self) -> bool {
        self.size >= LARGEST
    }

    /// The inode of the file that is written.
    pub(super) fn inode(&self) -> u64 {
        self.file.metadata().map_or(0, |stat| stat.ino())
    }

    /// The inode of the file before it, where it is still there.
    pub(super) fn older_inode(&self) -> Option<u64> {
        Some(std::fs::metadata(&self.older).ok()?.ino())
    }

    /// Gives the file its older name, in place of the one that had it, and begins another.
    ///
    /// # Errors
    /// As the file system gives them; then it goes on as it was.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        // What the next connection compares with is on disk before it has the name that is looked at second.
        self.file.sync_data()?;
        std::fs::rename(&self.path, &self.older)?;
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }

    /// Removes the copy.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(super) fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)?;
        match std::fs::remove_file(&self.older) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// How far a copy has whole lines, and what its last ones are.
fn last_of(file: &mut File) -> io::Result<(u64, Option<Last>)> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|b| *b == b'\n') else {
        // Less than a line, or none of ours: begun anew, and read anew.
        return Ok((0, None));
    };
    let mut last: Option<Last> = None;
    for line in tail[..end].rsplit(|b| *b == b'\n') {
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else {
            // Cut off at its beginning by the look, or no line of ours.
            continue;
        };
        let Some(ns) = time_ns(&line.time) else {
            continue;
        };
        let known = last.get_or_insert_with(|| Last {
            ns,
            ..Last::default()
        });
        if ns != known.ns {
            break;
        }
        *known.lines.entry(line.hash()).or_default() += 1;
    }
    Ok((from + end as u64 + 1, last))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const ID: &str = "e5a3be7e2cc9";

    fn out(text: &str) -> LogOutput {
        LogOutput::StdOut {
            message: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    fn copy(spool: &mut Spool, lines: &[&str]) {
        let mut text = Vec::new();
        for line in lines {
            spool.take(out(line), &mut text);
        }
        spool.append(&text).expect("written");
    }

    fn logs(dir: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(dir.join(format!("{ID}.log"))).expect("the copy");
        let lines = text.lines().map(|line| {
            let line: Line<'_> = serde_json::from_str(line).expect("a line of json-file");
            line.log.trim_end().to_owned()
        });
        lines.collect()
    }

    #[test]
    fn a_line_is_copied_in_the_form_of_json_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::open(dir.path(), ID).expect("opened");
        assert_eq!(spool.since_ns(), None);
        copy(&mut spool, &["2026-11-24T10:00:00.000000001Z say \"hi\"\n"]);
        let text = std::fs::read_to_string(dir.path().join(format!("{ID}.log"))).expect("read");
        assert_eq!(
            text,
            "{\"log\":\"say \\\"hi\\\"\\n\",\"stream\":\"stdout\",\"time\":\"2026-11-24T10:00:00.000000001Z\"}\n"
        );
    }

    #[test]
    fn what_a_new_connection_gives_again_is_not_copied_again_and_what_is_equal_but_new_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::open(dir.path(), ID).expect("opened");
        let (early, t) = (
            "2026-11-24T10:00:00.100000000Z",
            "2026-11-24T10:00:00.500000000Z",
        );
        let lines = [
            format!("{early} a\n"),
            format!("{t} same\n"),
            format!("{t} same\n"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        copy(&mut spool, &lines);
        drop(spool);
        // The engine is asked from the whole second on, and has one more of the same time and text.
        let mut spool = Spool::open(dir.path(), ID).expect("opened");
        let third = format!("{t} same\n");
        let later = "2026-11-24T10:00:01Z z\n";
        copy(
            &mut spool,
            &[lines[0], lines[1], lines[2], &third, later, later],
        );
        assert_eq!(logs(dir.path()), ["a", "same", "same", "same", "z", "z"]);
    }

    #[test]
    fn a_line_that_was_half_written_is_cut_off_and_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::open(dir.path(), ID).expect("opened");
        copy(&mut spool, &["2026-11-24T10:00:00Z one\n"]);
        spool.append(b"{\"log\":\"tw").expect("written");
        drop(spool);
        let mut spool = Spool::open(dir.path(), ID).expect("opened");
        copy(
            &mut spool,
            &["2026-11-24T10:00:00Z one\n", "2026-11-24T10:00:02Z two\n"],
        );
        assert_eq!(logs(dir.path()), ["one", "two"]);
    }

    #[test]
    fn after_a_rotation_the_older_file_says_what_was_copied_last() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::open(dir.path(), ID).expect("opened");
        copy(&mut spool, &["2026-11-24T10:00:00Z one\n"]);
        let inode = spool.inode();
        spool.rotate().expect("rotated");
        assert_eq!(spool.older_inode(), Some(inode));
        drop(spool);
        let mut spool = Spool::open(dir.path(), ID).expect("opened");
        copy(
            &mut spool,
            &["2026-11-24T10:00:00Z one\n", "2026-11-24T10:00:02Z two\n"],
        );
        assert_eq!(logs(dir.path()), ["two"]);
        spool.remove().expect("removed");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
    }

    #[test]
    fn an_id_that_is_a_path_is_never_opened() {
        let dir = tempfile::tempdir().expect("a folder");
        for id in ["", "../x", "a/b", "a.b"] {
            let refused = Spool::open(dir.path(), id).expect_err("refused");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
