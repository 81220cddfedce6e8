//! How logs are rotated: what is renamed, copied, cut and removed, and in which order.
//! Place: within **workload**.
//! Invariant: each step on the disk is one moment, and is noted before the next.

use std::io;
use std::path::{Path, PathBuf};

use super::{Body, End, Log, Rotation, Workload};

impl Workload {
    /// Rotates a log as it is its habit.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn rotate(&mut self, log: usize) -> io::Result<()> {
        let habits = self.logs[log].habits.clone();
        let path = self.logs[log].path.clone();
        match habits.rotation {
            Rotation::RenameChain => {
                self.shift(&path, habits.keep)?;
                self.rename(&path, &numbered(&path, 1))?;
                self.write_late(log)?;
                self.new_file(log)
            }
            Rotation::RenameToTime => {
                self.logs[log].turn += 1;
                let to = timed(
                    &path,
                    self.machine.stat(&path)?.modified_ns,
                    self.logs[log].turn,
                );
                self.rename(&path, &to)?;
                self.logs[log].old.push(to);
                self.write_late(log)?;
                self.new_file(log)?;
                self.forget_old(log)
            }
            Rotation::CopyTruncate => {
                self.shift(&path, habits.keep)?;
                self.copy(log, &path, &numbered(&path, 1))?;
                if self.rng.chance(habits.races_with_copy) {
                    let lines = self.rng.between(1, 3);
                    self.write(log, lines)?;
                }
                self.truncate(log, &path)
            }
            Rotation::DeleteCreate => {
                self.delete(&path)?;
                self.write_late(log)?;
                self.new_file(log)
            }
            Rotation::SymlinkSwap | Rotation::NextNumber => {
                let old = self.real_path(log);
                self.logs[log].old.push(old);
                self.logs[log].turn += 1;
                if self.rng.chance(0.5) {
                    self.finish_line(log)?;
                }
                self.new_file(log)?;
                self.forget_old(log)
            }
            Rotation::Truncate => self.truncate(log, &path),
        }
    }

    /// Where the present file of a log is, links followed.
    #[must_use]
    pub fn real_path(&self, log: usize) -> PathBuf {
        let Log {
            path, habits, turn, ..
        } = &self.logs[log];
        match habits.rotation {
            Rotation::SymlinkSwap => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                path.with_file_name(format!("{stem}-{turn}.log"))
            }
            Rotation::NextNumber => path.with_file_name(format!("{turn}.log")),
            _ => path.clone(),
        }
    }

    /// The writer makes its file anew and goes on there; what it had not ended of a line is given up, or was ended.
    pub(super) fn new_file(&mut self, log: usize) -> io::Result<()> {
        self.tear(log);
        let path = self.real_path(log);
        let habits = self.logs[log].habits.clone();
        self.moment += 1;
        let body = self.name_body(&path);
        let writer = self.machine.writer(&path)?;
        self.logs[log].body = body;
        self.logs[log].writer = Some(if habits.keeps_position {
            writer.keeping_its_position()
        } else {
            writer
        });
        self.put_header(log)?;
        if habits.rotation == Rotation::SymlinkSwap {
            let target = path.file_name().unwrap_or_default().to_os_string();
            let link = self.logs[log].path.clone();
            self.machine.replace_symlink(target, link)?;
        }
        Ok(())
    }

    fn put_header(&mut self, log: usize) -> io::Result<()> {
        let length = self.logs[log].habits.header_bytes;
        if length == 0 {
            return Ok(());
        }
        let mut header = Vec::with_capacity(length + 32);
        while header.len() < length {
            header.extend_from_slice(b"# the head of every file\n");
        }
        self.append(log, &header)
    }

    /// A line that is not whole never will be.
    pub(super) fn tear(&mut self, log: usize) {
        self.logs[log].rest.clear();
        if let Some(line) = self.logs[log].unfinished.take() {
            self.lines[line].torn = true;
        }
    }

    /// The writer has not yet noticed that its file has another name, or none.
    fn write_late(&mut self, log: usize) -> io::Result<()> {
        let late = self.logs[log].habits.late;
        if self.rng.chance(late) {
            let lines = self.rng.between(1, 4);
            self.write(log, lines)?;
        }
        self.finish_line(log)
    }

    /// `.1` becomes `.2`, and so on; what would be more than `keep` is removed.
    fn shift(&mut self, path: &Path, keep: usize) -> io::Result<()> {
        let last = numbered(path, keep);
        if self.machine.kind(&last).is_some() {
            self.delete(&last)?;
        }
        for n in (1..keep).rev() {
            let from = numbered(path, n);
            if self.machine.kind(&from).is_some() {
                self.rename(&from, &numbered(path, n + 1))?;
            }
        }
        Ok(())
    }

    fn forget_old(&mut self, log: usize) -> io::Result<()> {
        while self.logs[log].old.len() > self.logs[log].habits.keep {
            let oldest = self.logs[log].old.remove(0);
            self.delete(&oldest)?;
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.machine.rename(from, to)?;
        self.moment += 1;
        if let Some(replaced) = self.named.remove(to) {
            self.lose(replaced, End::Unlinked);
        }
        if let Some(body) = self.named.remove(from) {
            self.named.insert(to.to_path_buf(), body);
        }
        Ok(())
    }

    fn delete(&mut self, path: &Path) -> io::Result<()> {
        self.machine.delete(path)?;
        self.moment += 1;
        if let Some(body) = self.named.remove(path) {
            self.lose(body, End::Unlinked);
        }
        Ok(())
    }

    fn copy(&mut self, log: usize, from: &Path, to: &Path) -> io::Result<()> {
        self.machine.copy(from, to)?;
        self.moment += 1;
        let copy = self.name_body(to);
        if let Some(body) = self.named.get(from) {
            for line in self.bodies[*body].lines.clone() {
                self.hold(copy, line);
            }
        }
        if let Some(line) = self.logs[log].unfinished {
            self.lines[line].torn = true;
        }
        Ok(())
    }

    fn truncate(&mut self, log: usize, path: &Path) -> io::Result<()> {
        self.machine.truncate(path, 0)?;
        self.moment += 1;
        if let Some(body) = self.named.get(path) {
            self.lose(*body, End::Truncated);
        }
        if let Some(line) = self.logs[log].unfinished {
            self.lines[line].torn = true;
        }
        self.put_header(log)
    }

    /// A file that is new under this name.
    pub(super) fn name_body(&mut self, path: &Path) -> usize {
        self.bodies.push(Body {
            lines: Vec::new(),
            since: self.moment,
            has_name: true,
        });
        let body = self.bodies.len() - 1;
        if let Some(replaced) = self.named.insert(path.to_path_buf(), body) {
            self.lose(replaced, End::Unlinked);
        }
        body
    }
}

fn numbered(path: &Path, n: usize) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

/// As logrotate's `dateext`, but by the second; a number where that second had one.
fn timed(path: &Path, time_ns: i64, turn: u64) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!("-{}.{turn}", time_ns / 1_000_000_000));
    PathBuf::from(name)
}
