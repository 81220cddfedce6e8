//! A history: writers, rotations, crashes and bad servers in an order that a seed decides, then peace, then judgement.
//!
//! What must be true, whatever happened:
//! - the ledger of every flow closes, at every step;
//! - what is in flight stays within the budget, at every step;
//! - a line that could be read arrives at every output. Could be read: its file has a name still; or it was seen
//!   while it had one, and the daemon lived on; or the daemon had caught up before the line was gone;
//! - no line is twice where the output knows records by their ids, or commits with the checkpoint.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringpilot_shared::follow::Event;
use ringpilot_shared::follow::glob::Pattern;
use ringpilot_shared::host::{Disk, Host};
use ringpilot_shared::sim::workload::{End, Habits, Rotation, Workload};
use ringpilot_shared::sim::{
    Fault, FaultId, InodeNumbers, Machine, Op, PowerLoss, Rng, Settings as MachineSettings,
    Survival,
};

use super::node::{DATA_DIR, FILE, Node, OUT_DIR, OUTPUTS, Setup, count_lines};
use super::server::{Kind, Server};
use crate::ship::dead_letter;

/// No space left on device.
const ENOSPC: i32 = 28;
/// Input/output error.
const EIO: i32 = 5;
/// How likely a log that is cut begins with a head that tells no life from the next, and is cut at the worst moment.
const ALIKE: f64 = 0.4;
/// Bytes of that head: more than what a file is recognised by.
const ALIKE_BYTES: usize = 2_000;
/// So long the follower waits for the copy of a file that was cut.
const COPY_WAITS: Duration = Duration::from_secs(60);

/// Which histories.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Steps before peace.
    pub steps: usize,
    /// The process may be killed.
    pub kills: bool,
    /// The power may go.
    pub power_losses: bool,
    /// Disks may fail for a time.
    pub faults: bool,
    /// Logs may rotate by a copy and a truncation; else such logs are renamed.
    pub copies: bool,
    /// A failure tells everything that happened before it.
    pub traced: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            steps: 150,
            kills: true,
            power_losses: true,
            faults: true,
            copies: true,
            traced: false,
        }
    }
}

/// What a history came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Lines written.
    pub lines: usize,
    /// Lines that had to arrive.
    pub owed: usize,
    /// Lives of the daemon.
    pub lives: usize,
    /// Lines that were twice at the output that does not know records.
    pub repeated: usize,
}

/// What was not true.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Makes it again.
    pub seed: u64,
    /// After how many steps.
    pub step: usize,
    /// What.
    pub what: String,
    /// Everything that happened before, where that was asked for.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {} step {}: {}", self.seed, self.step, self.what)
    }
}

struct History {
    seed: u64,
    rng: Rng,
    machine: Machine,
    setup: Setup,
    workload: Workload,
    logs: usize,
    servers: [Server; 2],
    node: Option<Node>,
    /// Moments of the workload at which the daemon listed everything.
    looks: Vec<u64>,
    /// Moments at which everything that was there had been delivered and saved.
    caught_up: Vec<u64>,
    /// Moments at which a life of the daemon ended.
    deaths: Vec<u64>,
    /// Only a sweep is sure to see what is new.
    loses_wakes: bool,
    habits: Vec<Habits>,
    step: usize,
    lives: usize,
    /// Of each log, by its first look in this life: lines in files that nobody asked for, because they were rotated
    /// before.
    unasked: Vec<Option<HashSet<usize>>>,
    /// The same, once it was saved which files are followed.
    excluded: Vec<Option<HashSet<usize>>>,
    /// `data_dir` cannot be written.
    own_fault: Option<FaultId>,
    /// Some folder of logs cannot be looked into.
    log_fault: Option<FaultId>,
    /// Of which log that is, and since when.
    log_fault_of: (usize, Duration),
    /// Logs whose folder could not be looked into for longer than a copy is waited for.
    was_hidden: Vec<bool>,
    /// It could not be written for a time: what was to be durable first was not.
    had_own_fault: bool,
    /// The log whose lives begin alike, until it was cut at the worst moment.
    alike: Option<usize>,
    trace: Option<Vec<String>>,
}

/// Runs the history of a seed.
///
/// # Errors
/// What was not true.
pub fn run(seed: u64, options: Options) -> Result<Summary, Failure> {
    let mut history = History::begin(seed, options)?;
    for step in 0..options.steps {
        history.step = step;
        history.act(options)?;
    }
    history.peace()?;
    history.judge()
}

impl History {
    fn begin(seed: u64, options: Options) -> Result<Self, Failure> {
        let mut rng = Rng::new(seed);
        let mut machine_settings = MachineSettings::default();
        machine_settings.root.has_birth_times = !rng.chance(0.1);
        machine_settings.root.inode_numbers = *rng.pick(&[
            InodeNumbers::LowestFree,
            InodeNumbers::LowestFree,
            InodeNumbers::LastFreed,
            InodeNumbers::Fresh,
        ]);
        machine_settings.lost_wakes = if rng.chance(0.3) { 0.3 } else { 0.0 };
        machine_settings.short_reads = if rng.chance(0.2) { 0.3 } else { 0.0 };
        let machine = Machine::with(rng.next_u64(), machine_settings);
        let mut workload = Workload::new(&machine, rng.fork());
        let logs = 1 + rng.index(3);
        let mut names = Vec::new();
        let mut groups = false;
        let mut all_habits = Vec::new();
        let mut io = Ok(());
        // Drawn on its own: the other histories stay what they are.
        let may_be_alike = options.kills && Rng::new(!seed).chance(ALIKE);
        let mut alike = None;
        for log in 0..logs {
            let mut habits = Habits::any(&mut rng);
            if habits.rotation == Rotation::CopyTruncate && !options.copies {
                habits.rotation = Rotation::RenameChain;
            }
            if habits.rotation == Rotation::Truncate && may_be_alike && alike.is_none() {
                alike = Some(log);
                habits.header_bytes = ALIKE_BYTES;
                (habits.keeps_position, habits.stops_within_line) = (false, 0.0);
            }
            groups |= habits.groups > 0.0;
            all_habits.push(habits.clone());
            let path = match habits.rotation {
                Rotation::NextNumber => format!("/logs/{log}/*.log"),
                Rotation::SymlinkSwap => format!("/logs/{log}/app.log"),
                _ if rng.chance(0.3) => format!("/logs/{log}/app.log*"),
                _ => format!("/logs/{log}/app.log"),
            };
            io = io.and(
                workload
                    .begin(format!("/logs/{log}/app.log"), habits)
                    .map(drop),
            );
            names.push((format!("log{log}"), path));
        }
        for dir in [DATA_DIR, OUT_DIR] {
            io = io.and(machine.make_dir(dir));
        }
        let setup = Setup {
            logs: names,
            groups,
            budget: *rng.pick(&[1 << 20, 4 << 20]),
            batch_bytes: *rng.pick(&[2_000, 20_000, 1 << 20]),
            max_bytes: *rng.pick(&[4_096, 65_536]),
            at_once: all_habits
                .iter()
                .map(|habits| habits.late == 0.0 && rng.chance(0.3))
                .collect(),
        };
        let mut servers = [Server::new(Kind::ById), Server::new(Kind::Plain)];
        servers[0].refuses = *rng.pick(&[0.0, 0.0, 0.0, 0.03]);
        let history = Self {
            seed,
            rng,
            machine,
            setup,
            workload,
            logs,
            servers,
            node: None,
            looks: Vec::new(),
            caught_up: Vec::new(),
            deaths: Vec::new(),
            loses_wakes: machine_settings.lost_wakes > 0.0,
            habits: all_habits,
            step: 0,
            lives: 0,
            unasked: vec![None; logs],
            excluded: vec![None; logs],
            own_fault: None,
            log_fault: None,
            log_fault_of: (0, Duration::ZERO),
            was_hidden: vec![false; logs],
            had_own_fault: false,
            alike,
            trace: options.traced.then(Vec::new),
        };
        history.fine(io)?;
        Ok(history)
    }

    fn failure(&self, what: impl Into<String>) -> Failure {
        Failure {
            seed: self.seed,
            step: self.step,
            what: what.into(),
            trace: self.trace.clone().unwrap_or_default(),
        }
    }

    /// Notes what happens, for a failure to tell.
    fn note(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!(
                "step {} moment {}: {}",
                self.step,
                self.workload.moment(),
                what(self)
            );
            self.trace.get_or_insert_default().push(line);
        }
    }

    fn fine<T>(&self, result: std::io::Result<T>) -> Result<T, Failure> {
        result.map_err(|error| self.failure(format!("the simulated machine itself: {error}")))
    }

    fn act(&mut self, options: Options) -> Result<(), Failure> {
        let pass = *self.rng.pick(&[0, 1, 20, 300, 1_000, 7_000]);
        self.machine.pass(Duration::from_millis(pass));
        if self.rng.chance(0.004) {
            // Midnight comes.
            self.machine.jump_wall(86_400_000_000_000);
        }
        self.note(|one| format!("{pass} ms, files {}", one.shown_files()));
        match self.rng.below(100) {
            0..45 => {
                let turns = self.rng.between(1, 4);
                for _ in 0..turns {
                    let turned = self.workload.turn();
                    self.fine(turned)?;
                }
            }
            45..50 => {
                // Several rotations before anybody looks.
                for _ in 0..2 {
                    let log = self.rng.index(self.logs);
                    let lines = self.rng.between(1, 5);
                    let done = self
                        .workload
                        .write(log, lines)
                        .and_then(|()| self.workload.rotate(log));
                    self.fine(done)?;
                }
            }
            50..54 => {
                let server = self.rng.index(2);
                self.servers[server].is_down ^= true;
            }
            54..57 => {
                let server = self.rng.index(2);
                self.servers[server].trouble = *self.rng.pick(&[0.0, 0.3, 0.8]);
            }
            57..60 if options.kills || options.power_losses => self.crash(options)?,
            60..62 if options.faults => self.toggle_fault(),
            _ => self.live()?,
        }
        self.check()
    }

    /// Something of the machine fails for the daemon, or works again.
    fn toggle_fault(&mut self) {
        let is_own = self.rng.chance(0.3);
        let fault = if is_own {
            &mut self.own_fault
        } else {
            &mut self.log_fault
        };
        if let Some(fault) = fault.take() {
            self.machine.heal(fault);
            if !is_own {
                self.note_hidden();
            }
            self.note(|_| format!("healed, own: {is_own}"));
            return;
        }
        let (ops, path, errno): (&[Op], _, _) = if is_own {
            (&[Op::Write, Op::Sync], DATA_DIR.to_owned(), ENOSPC)
        } else {
            let log = self.rng.index(self.logs);
            self.log_fault_of = (log, self.machine.now());
            (&[Op::OpenLog, Op::List], format!("/logs/{log}"), EIO)
        };
        *fault = Some(self.machine.fail(Fault::new(ops, path, errno)));
        self.had_own_fault |= is_own;
        self.note(|_| format!("fails, own: {is_own}"));
    }

    /// Takes note of how long a log's folder could not be looked into.
    fn note_hidden(&mut self) {
        let (log, since) = self.log_fault_of;
        self.was_hidden[log] |= self.machine.now() >= since + COPY_WAITS;
    }

    /// The daemon does something of what it does all the time.
    fn live(&mut self) -> Result<(), Failure> {
        if self.node.is_none() {
            self.start()?;
        }
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        match self.rng.below(10) {
            0..3 => {
                let events = node.look();
                self.looked(events)?;
            }
            3..5 => {
                let most = 1 + self.rng.index(8);
                node.read(most, self.trace.as_mut());
            }
            5..7 => {
                let held = self.rng.chance(0.4);
                node.send(&mut self.servers, &mut self.rng, held);
            }
            7 => node.answer(&mut self.rng),
            8 => {
                node.pipeline.tick();
                // A save that fails is tried again at the next.
                if node.save() {
                    self.saved();
                }
            }
            _ => {
                self.catch_up(40)?;
            }
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), Failure> {
        self.lives += 1;
        self.note(|_| "the daemon starts".to_owned());
        let seed = self.rng.next_u64();
        let node = Node::start(&self.machine, &self.setup, seed);
        self.node = Some(node);
        Ok(())
    }

    /// Lets the daemon do all it can; notes when it has caught up.
    fn catch_up(&mut self, rounds: usize) -> Result<bool, Failure> {
        for _ in 0..rounds {
            if self.machine.has_crashed() {
                return Ok(false);
            }
            let Some(node) = &mut self.node else {
                return Ok(false);
            };
            self.machine
                .pass(Duration::from_millis(if self.loses_wakes {
                    5_100
                } else {
                    600
                }));
            let events = node.look();
            self.looked(events)?;
            let Some(node) = &mut self.node else {
                return Ok(false);
            };
            node.read(64, self.trace.as_mut());
            node.send(&mut self.servers, &mut self.rng, false);
            node.answer(&mut self.rng);
            node.pipeline.tick();
            let saved = node.save();
            let is_settled = node.is_settled() && node.has_seen_all();
            let is_waiting = node.waits();
            let is_open = self.setup.groups && node.has_open_groups();
            if saved {
                self.saved();
            }
            self.check()?;
            if saved
                && is_settled
                && self.log_fault.is_none()
                && !self.servers.iter().any(|server| server.is_down)
            {
                self.note(|_| format!("caught up{}", if is_open { ", groups open" } else { "" }));
                // What waits because it may be a copy is not read yet.
                if !is_open && !is_waiting {
                    self.caught_up.push(self.workload.moment());
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The daemon has looked.
    fn looked(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        let has_seen_all = self.node.as_ref().is_some_and(Node::has_seen_all);
        for event in events {
            self.note(|_| shown(&event));
        }
        self.note(|_| format!("looked, has seen all: {has_seen_all}"));
        if has_seen_all && !self.loses_wakes && self.log_fault.is_none() {
            self.looks.push(self.workload.moment());
        }
        for log in 0..self.logs {
            let has_looked = self.node.as_ref().is_some_and(|node| node.has_looked(log));
            if has_looked && self.excluded[log].is_none() && self.unasked[log].is_none() {
                let unasked = self.unasked_lines(log);
                self.unasked[log] = Some(self.fine(unasked)?);
            }
        }
        Ok(())
    }

    /// The daemon has saved.
    fn saved(&mut self) {
        self.note(|_| "saved".to_owned());
        for (excluded, unasked) in self.excluded.iter_mut().zip(&mut self.unasked) {
            if excluded.is_none() {
                *excluded = unasked.take();
            }
        }
    }

    /// Lines of a log that are in no file whose name is declared.
    fn unasked_lines(&self, log: usize) -> std::io::Result<HashSet<usize>> {
        let mut asked: HashSet<Vec<u8>> = HashSet::new();
        let (_, path) = &self.setup.logs[log];
        let pattern = Pattern::new(path).map_err(std::io::Error::other)?;
        let dir = pattern.literal_dir().to_path_buf();
        for name in self.machine.names(&dir)? {
            if !pattern.matches_name(&dir, &name) {
                continue;
            }
            let content = self.machine.content(dir.join(name))?;
            for line in content.split(|byte| *byte == b'\n') {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let from = line.iter().position(|byte| *byte != 0).unwrap_or(0);
                asked.insert(line[from..].to_vec());
            }
        }
        let lines = self.workload.lines().iter().enumerate();
        Ok(lines
            .filter(|(_, line)| line.log == log)
            .filter(|(_, line)| line.written.is_some() && !asked.contains(&line.text))
            .map(|(n, _)| n)
            .collect())
    }

    /// Every log with its size.
    fn shown_files(&self) -> String {
        let mut shown = String::new();
        for log in 0..self.logs {
            let dir = format!("/logs/{log}");
            for name in self.machine.names(&dir).unwrap_or_default() {
                let path = Path::new(&dir).join(name);
                if let Ok(stat) = self.machine.stat(&path) {
                    shown += &format!("{}={}@{} ", path.display(), stat.size, stat.inode);
                }
            }
        }
        shown
    }

    /// One output has a line whose cursor nobody saved, the others have not, and the daemon is killed. Before the next
    /// life its log is cut, and begins as before: at the same place is another line, and nobody can tell. Only its id
    /// does. Whether that could be done.
    fn cut_at_the_worst_moment(&mut self) -> Result<bool, Failure> {
        let Some(log) = self.alike else {
            return Ok(false);
        };
        let is_well = self.own_fault.is_none()
            && self.log_fault.is_none()
            && !self.servers[0].is_down
            && self.servers[0].trouble == 0.0;
        if self.node.is_none() || !is_well {
            return Ok(false);
        }
        let cut = self.workload.rotate(log);
        self.fine(cut)?;
        if !self.catch_up(20)? {
            return Ok(false);
        }
        let written = self.workload.write(log, 1);
        self.fine(written)?;
        self.machine.pass(Duration::from_millis(5_100));
        if let Some(node) = &mut self.node {
            let events = node.look();
            self.looked(events)?;
        }
        if let Some(node) = &mut self.node {
            node.read(64, self.trace.as_mut());
            self.machine.pass(Duration::from_millis(600));
            node.send_to(0, &mut self.servers, &mut self.rng, false);
        }
        self.alike = None;
        self.deaths.push(self.workload.moment());
        self.node = None;
        self.unasked.fill(None);
        self.machine.kill();
        self.note(|_| "the daemon is killed, and a log begins anew".to_owned());
        let cut = self.workload.rotate(log);
        self.fine(cut)?;
        let written = self.workload.write(log, 1);
        self.fine(written)?;
        Ok(true)
    }

    fn crash(&mut self, options: Options) -> Result<(), Failure> {
        if self.cut_at_the_worst_moment()? {
            return Ok(());
        }
        if self.rng.chance(0.5) {
            // It dies within one of its next operations on its own files.
            let more = self.rng.below(60);
            self.machine.crash_at(self.machine.own_ops() + more);
            self.catch_up(3)?;
        }
        self.deaths.push(self.workload.moment());
        self.node = None;
        self.unasked.fill(None);
        let power = options.power_losses && (!options.kills || self.rng.chance(0.4));
        self.note(|_| format!("the daemon dies, power lost: {power}"));
        if power {
            let loss = PowerLoss {
                writes: *self.rng.pick(&[Survival::InOrder, Survival::AnyOrder]),
                names: Survival::InOrder,
                workloads: None,
            };
            let mut rng = self.rng.fork();
            self.machine.power_loss(&mut rng, loss);
            let again = self.workload.start_again();
            self.fine(again)?;
        } else {
            self.machine.kill();
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        let Some(node) = &self.node else {
            return Ok(());
        };
        if let Some(what) = node.pipeline.look(|view| view.unbalanced()) {
            return Err(self.failure(format!("a ledger does not close: {what}")));
        }
        let held = node.pipeline.held_bytes();
        // A slice that was begun within the budget may end beyond it.
        if held > self.setup.budget + 8 * 1024 * 1024 {
            return Err(self.failure(format!("{held} bytes are in flight")));
        }
        Ok(())
    }

    /// Everything works again, and nobody writes: all must arrive.
    fn peace(&mut self) -> Result<(), Failure> {
        for log in 0..self.logs {
            let finished = self.workload.finish_line(log);
            self.fine(finished)?;
        }
        for server in &mut self.servers {
            (server.is_down, server.trouble) = (false, 0.0);
        }
        self.machine.heal_all();
        if self.log_fault.is_some() {
            self.note_hidden();
        }
        (self.own_fault, self.log_fault) = (None, None);
        if self.node.is_none() {
            self.start()?;
        }
        // Groups time out, renamed files are finished, copies wait no more.
        self.catch_up(60)?;
        for _ in 0..4 {
            self.machine.pass(Duration::from_secs(20));
            self.catch_up(20)?;
        }
        self.step = usize::MAX;
        let settled = self.catch_up(40)?;
        if !settled {
            let unsettled = self.node.as_ref().map(Node::unsettled);
            return Err(self.failure(format!(
                "it never settles:\n{}",
                unsettled.unwrap_or_default()
            )));
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<Summary, Failure> {
        let mut outputs: Vec<HashMap<Vec<u8>, u32>> = Vec::new();
        for server in &self.servers {
            outputs.push(count_lines(server.records()).map_err(|what| self.failure(what))?);
        }
        outputs.push(self.written()?);
        let refused = self.dead_letters()?;
        let mut summary = Summary {
            lines: self.workload.lines().len(),
            lives: self.lives,
            ..Summary::default()
        };
        for (number, line) in self.workload.lines().iter().enumerate() {
            let is_excluded = self.excluded[line.log]
                .as_ref()
                .is_none_or(|all| all.contains(&number));
            let owed = !is_excluded && self.is_owed(line);
            summary.owed += usize::from(owed);
            if line.torn || line.text.len() > self.setup.max_bytes {
                continue;
            }
            for (n, counts) in outputs.iter().enumerate() {
                let count = counts.get(&line.text).copied().unwrap_or(0);
                let shown = String::from_utf8_lossy(&line.text[..line.text.len().min(40)]);
                let is_refused = n == 0 && refused.contains_key(&line.text);
                if count == 0 && owed && !is_refused {
                    return Err(self.failure(format!(
                        "lost at {}: `{shown}`, in {:?}, {:?}, deaths {:?}, {:?}",
                        OUTPUTS[n],
                        self.files_with(line.log, &line.text),
                        (line.log, line.written, line.file_since, line.gone),
                        self.deaths,
                        self.habits[line.log],
                    )));
                }
                // Where it could not be made durable first, a crash may bring it again.
                let may_repeat = self.had_own_fault && !self.deaths.is_empty();
                // A copy that could not be seen in time is read as a log of its own: what had been read of the log
                // before it was cut comes again, and nothing is lost.
                let is_copied = self.habits[line.log].rotation == Rotation::CopyTruncate;
                let may_repeat = may_repeat || (is_copied && self.was_hidden[line.log]);
                if count > 1 && n != 1 && !may_repeat {
                    return Err(self.failure(format!(
                        "{count} times at {}: `{shown}`, at {:?}, {:?}, deaths {:?}, {:?}",
                        OUTPUTS[n],
                        self.servers[0].places_of(&line.text),
                        (line.log, line.written, line.file_since, line.gone),
                        self.deaths,
                        self.habits[line.log],
                    )));
                }
                summary.repeated += usize::from(n == 1 && count > 1);
            }
        }
        Ok(summary)
    }

    /// Which files of a log have a text, and where.
    fn files_with(&self, log: usize, text: &[u8]) -> Vec<(PathBuf, usize)> {
        let dir = PathBuf::from(format!("/logs/{log}"));
        let mut found = Vec::new();
        for name in self.machine.names(&dir).unwrap_or_default() {
            let path = dir.join(name);
            let content = self.machine.content(&path).unwrap_or_default();
            let mut parts = content.windows(text.len().max(1));
            found.extend(parts.position(|part| part == text).map(|at| (path, at)));
        }
        found
    }

    /// Whether a line had to arrive.
    fn is_owed(&self, line: &ringpilot_shared::sim::workload::Line) -> bool {
        let Some(written) = line.written else {
            return false;
        };
        if line.torn {
            return false;
        }
        let Some((gone, end)) = line.gone else {
            return true;
        };
        let had_caught_up = self
            .caught_up
            .iter()
            .any(|moment| *moment >= written && *moment < gone);
        // Of a file that was copied and cut, only the copy is held, and nobody knows when that was seen.
        let is_copied = self.habits[line.log].rotation == Rotation::CopyTruncate;
        let was_held = end == End::Unlinked
            && !is_copied
            && self.looks.iter().any(|look| {
                *look >= line.file_since
                    && *look < gone
                    && !self.deaths.iter().any(|death| *death >= *look)
            });
        had_caught_up || was_held
    }

    /// What was refused for good, and kept.
    fn dead_letters(&self) -> Result<HashMap<Vec<u8>, u32>, Failure> {
        let path = dead_letter::path_of(&Path::new(DATA_DIR).join(dead_letter::FOLDER), OUTPUTS[0]);
        let content = self.machine.content(&path).unwrap_or_default();
        let mut records = Vec::new();
        for line in content
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
        {
            let letter: dead_letter::Written<'_> = match serde_json::from_slice(line) {
                Ok(letter) => letter,
                // A death within the write, before the sync: its record is not settled and comes again, or is missed.
                Err(_) if !self.deaths.is_empty() && is_torn(line) => continue,
                Err(error) => {
                    return Err(self.failure(format!("a dead letter is damaged: {error}")));
                }
            };
            records.push(letter.record.get().as_bytes().to_vec());
        }
        count_lines(records.iter().map(Vec::as_slice)).map_err(|what| self.failure(what))
    }

    /// What the file output wrote.
    fn written(&self) -> Result<HashMap<Vec<u8>, u32>, Failure> {
        let mut all = Vec::new();
        for (target, _) in &self.setup.logs {
            let path = PathBuf::from(format!("{OUT_DIR}/{target}.ndjson"));
            let Ok(file) = self
                .machine
                .open(std::path::Path::new(OUT_DIR), &path, None)
            else {
                continue;
            };
            let stat = file.stat();
            let size = self.fine(stat)?.size;
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            let read = file.read_at(&mut bytes, 0);
            self.fine(read)?;
            all.extend_from_slice(&bytes);
        }
        debug_assert!(FILE < OUTPUTS.len());
        // A daemon that dies within a write while `data_dir` cannot be written leaves half a record: without a durable
        // transaction nothing is cut. The next life begins a line of its own behind it.
        let may_tear = self.had_own_fault && !self.deaths.is_empty();
        let records = all.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let records = records.filter(|line| !(may_tear && is_torn(line)));
        count_lines(records).map_err(|what| self.failure(what))
    }
}

/// Whether a line of JSON is what a write that was cut off has left: it ends too early, or, after a power loss, has zeros
/// where its bytes were.
fn is_torn(line: &[u8]) -> bool {
    let read: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(line);
    line.contains(&0) || read.is_err_and(|error| error.is_eof())
}

/// An event in one line.
fn shown(event: &Event) -> String {
    match event {
        Event::Seen(seen) => format!(
            "seen {:?} at {} size {} inode {} after {:?} known {} existed {}",
            seen.stream,
            seen.path.display(),
            seen.stat.size,
            seen.stat.inode,
            seen.after,
            seen.known,
            seen.existed,
        ),
        Event::Changed { stream, stat } => format!("changed {stream:?} size {}", stat.size),
        Event::Truncated {
            old,
            new,
            copy,
            stat,
            ..
        } => {
            let copy = copy.as_ref().map(|copy| (&copy.path, copy.stat.size));
            format!(
                "truncated {old:?} -> {new:?} size {} copy {copy:?}",
                stat.size
            )
        }
        other => format!("{other:?}"),
    }
}
