//! Those who write logs, and rotate them in every way that is seen in the wild; and what became of every line.
//! Place: within **sim**; a history lets workloads take turns with the daemon, and asks here what had to arrive.
//! Invariants: every line has a number of its own, so no two are alike; what is told of a line is what is on the
//! disk (checked in `tests`). A moment is a count of the workload's own steps, so that there is no doubt about
//! which came first. Sources: logrotate(8) (`create`, `copytruncate`, `dateext`), log4j, lumberjack, svlogd.

mod again;
mod rotate;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::rng::mix;
use super::{Machine, Rng, Writer};

/// How a log is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// `app.log` becomes `app.log.1`, that `app.log.2`, and so on; a new `app.log` is made.
    RenameChain,
    /// `app.log` becomes `app.log-TIME`; a new `app.log` is made.
    RenameToTime,
    /// `app.log` is copied to `app.log.1` and cut to nothing.
    CopyTruncate,
    /// `app.log` is removed and made again.
    DeleteCreate,
    /// `app.log` is a link to `app-N.log`, and is let point to a new one.
    SymlinkSwap,
    /// `app.log` is cut to nothing. What was not read is lost.
    Truncate,
    /// `N.log` is followed by `N+1.log`.
    NextNumber,
}

impl Rotation {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::RenameChain,
        Self::RenameToTime,
        Self::CopyTruncate,
        Self::DeleteCreate,
        Self::SymlinkSwap,
        Self::Truncate,
        Self::NextNumber,
    ];
}

/// How a log is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Habits {
    /// How it is rotated.
    pub rotation: Rotation,
    /// How many old files are kept.
    pub keep: usize,
    /// Bytes, in lines without a number, with which every new file begins: all heads are equal.
    pub header_bytes: usize,
    /// Whether lines end in CRLF.
    pub crlf: bool,
    /// How likely a line is followed by others of its group, each beginning with a tab.
    pub groups: f64,
    /// How likely a line is as long as `longest`.
    pub long_lines: f64,
    /// Bytes of the longest line; usual ones have at most 120.
    pub longest: usize,
    /// How likely a write stops within a line, which the next one ends.
    pub stops_within_line: f64,
    /// How likely the writer goes on in the old file for some lines after its name was changed.
    pub late: f64,
    /// How likely lines are written between the copy and the truncation.
    pub races_with_copy: f64,
    /// Whether the writer writes where it left off and not at the end, so that a truncation leaves a hole.
    pub keeps_position: bool,
}

impl Default for Habits {
    /// Short lines that end in a line feed, written whole.
    fn default() -> Self {
        Self {
            rotation: Rotation::RenameChain,
            keep: 3,
            header_bytes: 0,
            crlf: false,
            groups: 0.0,
            long_lines: 0.0,
            longest: 4_000,
            stops_within_line: 0.0,
            late: 0.0,
            races_with_copy: 0.0,
            keeps_position: false,
        }
    }
}

impl Habits {
    /// Any.
    pub fn any(rng: &mut Rng) -> Self {
        let mut sometimes = |chance, what| if rng.chance(chance) { what } else { 0.0 };
        Self {
            groups: sometimes(0.3, 0.2),
            long_lines: sometimes(0.3, 0.05),
            stops_within_line: sometimes(0.4, 0.15),
            late: sometimes(0.5, 0.5),
            races_with_copy: sometimes(0.3, 0.3),
            rotation: *rng.pick(&Rotation::ALL),
            keep: 1 + rng.index(4),
            header_bytes: *rng.pick(&[0, 0, 40, 700, 2_000]),
            crlf: rng.chance(0.15),
            longest: *rng.pick(&[1_000, 5_000, 20_000]),
            keeps_position: rng.chance(0.1),
        }
    }
}

/// Why a line can no longer be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its file was cut: gone for everybody.
    Truncated,
    /// The last file that held it has no name any more: only who has it open can read it.
    Unlinked,
    /// A power loss took it.
    PowerLoss,
}

/// One line that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Of which log.
    pub log: usize,
    /// Its bytes without the line's end; the log and the number are in it ([`Workload::name_of`]).
    pub text: Vec<u8>,
    /// Its first line's index, where it is a later one of a group.
    pub group: Option<usize>,
    /// When its last byte was written; `None` while it is not whole.
    pub written: Option<u64>,
    /// Whether a copy or a truncation came while it was not whole: it may arrive in pieces, or not.
    pub torn: bool,
    /// When the file that it was written to was made, or cut: who looked since then could have it open.
    pub file_since: u64,
    /// Since when no file that has a name holds it, and why.
    pub gone: Option<(u64, End)>,
}

impl Line {
    /// Whether it was whole, and in a file with a name, at this moment.
    #[must_use]
    pub fn is_readable_at(&self, moment: u64) -> bool {
        self.written.is_some_and(|written| written <= moment)
            && self.gone.is_none_or(|(gone, _)| moment < gone)
    }
}

/// One file on the disk, whatever its name.
#[derive(Debug, Default)]
struct Body {
    /// The lines in it, those of the log's writer in their order.
    lines: Vec<usize>,
    since: u64,
    has_name: bool,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    habits: Habits,
    writer: Option<Writer>,
    /// Into which file it writes.
    body: usize,
    /// Old names, the oldest first, where they are not numbered.
    old: Vec<PathBuf>,
    /// Which file of its kind the present one is.
    turn: u64,
    next_number: u64,
    /// What is left to write of its last line.
    rest: Vec<u8>,
    unfinished: Option<usize>,
}

/// Writers of logs, and what became of their lines.
#[derive(Debug)]
pub struct Workload {
    machine: Machine,
    rng: Rng,
    logs: Vec<Log>,
    lines: Vec<Line>,
    /// How many named files hold each line.
    copies: Vec<u32>,
    bodies: Vec<Body>,
    named: BTreeMap<PathBuf, usize>,
    moment: u64,
}

impl Workload {
    /// Nobody writes yet.
    #[must_use]
    pub fn new(machine: &Machine, rng: Rng) -> Self {
        Self {
            machine: machine.clone(),
            rng,
            logs: Vec::new(),
            lines: Vec::new(),
            copies: Vec::new(),
            bodies: Vec::new(),
            named: BTreeMap::new(),
            moment: 0,
        }
    }

    /// Begins a log with an empty file. Its number is its place among the logs. With [`Rotation::NextNumber`] the
    /// file is `0.log` beside `path`.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn begin(&mut self, path: impl AsRef<Path>, habits: Habits) -> io::Result<usize> {
        let path = path.as_ref().to_path_buf();
        if let Some(dir) = path.parent() {
            self.machine.make_dir(dir)?;
        }
        self.logs.push(Log {
            path,
            habits,
            writer: None,
            body: 0,
            old: Vec::new(),
            turn: 0,
            next_number: 0,
            rest: Vec::new(),
            unfinished: None,
        });
        let log = self.logs.len() - 1;
        self.new_file(log)?;
        Ok(log)
    }

    /// Every line so far, in the order of their beginnings.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// How many steps were made so far.
    #[must_use]
    pub fn moment(&self) -> u64 {
        self.moment
    }

    /// The log and the number of the line that a text is, or begins with.
    #[must_use]
    pub fn name_of(text: &[u8]) -> Option<(usize, u64)> {
        let text = text.strip_prefix(b"\t").unwrap_or(text);
        let text = std::str::from_utf8(text.get(..text.len().min(24))?).ok()?;
        let mut parts = text.strip_prefix('s')?.split_once(' ')?.0.split('-');
        let log = parts.next()?.parse().ok()?;
        Some((log, parts.next()?.parse().ok()?))
    }

    /// One step of some log: mostly writes, now and then a rotation, or several at once.
    ///
    /// # Errors
    /// As the disk gives them (`StorageFull` among them); what was written is noted.
    pub fn turn(&mut self) -> io::Result<()> {
        if self.logs.is_empty() {
            return Ok(());
        }
        let log = self.rng.index(self.logs.len());
        match self.rng.below(20) {
            0 | 1 => self.rotate(log),
            2 => {
                for _ in 0..self.rng.between(2, 4) {
                    self.rotate(log)?;
                    let lines = self.rng.below(4);
                    self.write(log, lines)?;
                }
                Ok(())
            }
            _ => {
                let lines = self.rng.between(1, 8);
                self.write(log, lines)
            }
        }
    }

    /// Writes so many lines to a log, ending an unfinished one before.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn write(&mut self, log: usize, lines: u64) -> io::Result<()> {
        let habits = self.logs[log].habits.clone();
        let mut bytes = std::mem::take(&mut self.logs[log].rest);
        let mut whole: Vec<(usize, usize)> = Vec::new();
        if let Some(line) = self.logs[log].unfinished.take() {
            whole.push((line, bytes.len()));
        }
        for _ in 0..lines {
            let first = self.new_line(log, None, &habits);
            self.put_line(first, &habits, &mut bytes, &mut whole);
            while self.rng.chance(habits.groups) {
                let next = self.new_line(log, Some(first), &habits);
                self.put_line(next, &habits, &mut bytes, &mut whole);
            }
        }
        let before_last = whole.iter().rev().nth(1).map_or(0, |(_, end)| *end);
        if lines > 0 && bytes.len() > before_last + 1 && self.rng.chance(habits.stops_within_line) {
            let length = bytes.len() - before_last;
            let stop = before_last + 1 + self.rng.index(length - 1);
            self.logs[log].rest = bytes.split_off(stop);
            self.logs[log].unfinished = whole.pop().map(|(line, _)| line);
        }
        self.put(log, &bytes, &whole)
    }

    /// Ends an unfinished line.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn finish_line(&mut self, log: usize) -> io::Result<()> {
        match self.logs[log].unfinished {
            Some(_) => self.write(log, 0),
            None => Ok(()),
        }
    }

    fn new_line(&mut self, log: usize, group: Option<usize>, habits: &Habits) -> usize {
        let number = self.logs[log].next_number;
        self.logs[log].next_number += 1;
        let length = if self.rng.chance(habits.long_lines) {
            habits.longest
        } else {
            self.rng.index(100)
        };
        let mut text = Vec::with_capacity(length + 24);
        if group.is_some() {
            text.push(b'\t');
        }
        text.extend_from_slice(format!("s{log}-{number} ").as_bytes());
        // Another padding for each number: the last bytes of no two lines are alike.
        let mut pad = mix(number << 8 | log as u64);
        let end = text.len() + length;
        while text.len() < end {
            pad = mix(pad.wrapping_add(1));
            let letters = pad.to_le_bytes().map(|byte| b'a' + byte % 26);
            let wanted = (end - text.len()).min(letters.len());
            text.extend_from_slice(&letters[..wanted]);
        }
        self.lines.push(Line {
            log,
            text,
            group,
            written: None,
            torn: false,
            file_since: 0,
            gone: None,
        });
        self.copies.push(0);
        self.lines.len() - 1
    }

    fn put_line(
        &self,
        line: usize,
        habits: &Habits,
        bytes: &mut Vec<u8>,
        whole: &mut Vec<(usize, usize)>,
    ) {
        bytes.extend_from_slice(&self.lines[line].text);
        bytes.extend_from_slice(if habits.crlf { b"\r\n" } else { b"\n" });
        whole.push((line, bytes.len()));
    }

    /// Writes bytes of which these lines become whole.
    fn put(&mut self, log: usize, bytes: &[u8], whole: &[(usize, usize)]) -> io::Result<()> {
        let written = self.append(log, bytes);
        self.moment += 1;
        let body = self.logs[log].body;
        if written.is_err() {
            // Nobody knows how much of it is there: the writer gives these lines up, and begins a new one.
            for line in whole
                .iter()
                .map(|(line, _)| *line)
                .chain(self.logs[log].unfinished.take())
            {
                self.lines[line].torn = true;
                self.lines[line].gone = Some((self.moment, End::Unlinked));
            }
            self.logs[log].rest.clear();
            let _ended = self.append(log, b"\n");
            return written;
        }
        for (line, _) in whole {
            self.hold(body, *line);
            self.lines[*line].written = Some(self.moment);
            self.lines[*line].file_since = self.bodies[body].since;
            if !self.bodies[body].has_name {
                self.lines[*line].gone = Some((self.moment, End::Unlinked));
            }
        }
        Ok(())
    }

    fn append(&mut self, log: usize, bytes: &[u8]) -> io::Result<()> {
        let log = &mut self.logs[log];
        match &mut log.writer {
            Some(writer) => writer.write(bytes),
            None => Ok(()),
        }
    }

    fn hold(&mut self, body: usize, line: usize) {
        self.bodies[body].lines.push(line);
        self.copies[line] += u32::from(self.bodies[body].has_name);
    }

    /// What a file held is no longer in it, or it is no longer named.
    fn lose(&mut self, body: usize, end: End) {
        for at in 0..self.bodies[body].lines.len() {
            let line = self.bodies[body].lines[at];
            self.copies[line] -= 1;
            if self.copies[line] == 0 {
                self.lines[line].gone = Some((self.moment, end));
            }
        }
        if end == End::Truncated {
            self.bodies[body].lines.clear();
            self.bodies[body].since = self.moment;
        } else {
            self.bodies[body].has_name = false;
        }
    }
}
