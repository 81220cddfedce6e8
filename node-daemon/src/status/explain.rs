//! `ringpilot explain`: why a log is collected or not, and how far, in the words of who asks.
//! Place: a command; asks the running daemon's control socket for the same snapshot that the page shows.
//! Invariants: foreign text is escaped; what the daemon answers is bounded; every problem comes with its cure.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use super::{Container, Output, Snapshot, Source, State, Waiting};
use crate::cli::said;
use crate::control::Which;
use crate::problem::{Escaped, Problem};
use crate::say::{self, Fault};

/// Say of each declared log whether it is collected, how far, and if not, why.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 told, 1 nothing of that name is known, or no daemon answers.\n\nExample:\n  \
                  ringpilot explain shop/web-7d4f\n  ringpilot explain '/var/log/nginx/*' --json"
)]
pub struct Args {
    /// A part of a container's, pod's, log's or file's name; all if left out
    pattern: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
///
/// # Errors
/// When no daemon answers.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let snapshot: Snapshot = args.which.ask("/api/status")?;
    let found = find(&snapshot, args.pattern.as_deref().unwrap_or("*"));
    if args.json {
        said(say::json(&found))?;
    } else if !found.is_empty() {
        said(say::line(found.to_string().trim_end()))?;
    }
    if !found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if args.json {
        return Ok(ExitCode::from(1));
    }
    let (cause, cure) = match &args.pattern {
        Some(pattern) => (
            format!("nothing called `{}` is known", Escaped(pattern)),
            "see `ringpilot explain` for all; a container without a declaration is not collected: set \
             `aliyun_logs_NAME=stdout` or a path in its environment or labels",
        ),
        None => (
            "no log is declared".to_owned(),
            "declare one: `aliyun_logs_NAME=stdout` or a path in a container's environment or labels, or `sources` \
             in the configuration",
        ),
    };
    Err(Fault::new(cause, cure))
}

/// What is known of what was asked for.
#[derive(Debug, Serialize)]
pub struct Found<'snapshot> {
    /// One for each declaration of each container.
    pub logs: Vec<Log<'snapshot>>,
    /// Problems that keep a declared log from being collected at all.
    pub uncollected: Vec<&'snapshot Problem>,
    /// Other problems: of the daemon, or of logs that are collected and were not asked for.
    pub problems: Vec<&'snapshot Problem>,
    /// The outputs, whose guarantee and trouble concern every log.
    pub outputs: BTreeMap<&'snapshot str, OutputFacts<'snapshot>>,
}

/// One declaration of one container.
#[derive(Debug, Serialize)]
pub struct Log<'snapshot> {
    /// Whose it is.
    pub container: &'snapshot Container,
    /// The declaration's name.
    pub name: &'snapshot str,
    /// Whether any file of it is read.
    pub collected: bool,
    /// `file`, `stdout` or `ring`.
    pub via: &'snapshot str,
    /// Which way it is read, and why; empty where `via` says all.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub way: &'snapshot str,
    /// Its files.
    pub sources: Vec<&'snapshot Source>,
    /// What is wrong with it.
    pub problems: Vec<&'snapshot Problem>,
}

/// What an output promises and how it is.
#[derive(Debug, Serialize)]
pub struct OutputFacts<'snapshot> {
    /// What it promises.
    pub guarantee: &'snapshot str,
    /// Whether the last attempt went well.
    pub up: bool,
    /// Why it is not going well now.
    pub trouble: Option<&'snapshot str>,
}

impl Found<'_> {
    fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.uncollected.is_empty() && self.problems.is_empty()
    }
}

/// Everything that concerns what is called `pattern`.
#[must_use]
pub fn find<'s>(snapshot: &'s Snapshot, pattern: &str) -> Found<'s> {
    let wanted = Wanted::new(pattern);
    let mut logs: BTreeMap<(&str, &str, &str), Log<'s>> = BTreeMap::new();
    let mut claimed = vec![false; snapshot.problems.len()];
    let mut log = |container: &'s Container, name: &'s str, (via, way): (&'s str, &'s str)| {
        let key = (container.who.as_str(), container.id.as_str(), name);
        // A problem is of this log if it names it as the daemon does.
        logs.entry(key).or_insert_with(|| {
            let called = called(container, name);
            let mut problems = Vec::new();
            for (problem, claimed) in snapshot.problems.iter().zip(&mut claimed) {
                if problem.container == called {
                    *claimed = true;
                    problems.push(problem);
                }
            }
            Log {
                container,
                name,
                collected: false,
                via,
                way,
                sources: Vec::new(),
                problems,
            }
        });
        key
    };
    let mut of_source = Vec::new();
    for source in &snapshot.sources {
        if wanted.fits_log(&source.container, &source.name) || wanted.fits(&source.path) {
            let way = (source.via.as_str(), source.way.as_str());
            of_source.push((log(&source.container, &source.name, way), source));
        }
    }
    for Waiting {
        name,
        container,
        via,
        way,
        ..
    } in &snapshot.waiting
    {
        if wanted.fits_log(container, name) {
            log(container, name, (via, way));
        }
    }
    for (key, source) in of_source {
        if let Some(log) = logs.get_mut(&key) {
            log.collected |= source.state != State::Unreadable;
            log.sources.push(source);
        }
    }
    let known: HashSet<String> = snapshot
        .sources
        .iter()
        .map(|source| called(&source.container, &source.name))
        .chain(
            snapshot
                .waiting
                .iter()
                .map(|w| called(&w.container, &w.name)),
        )
        .collect();
    let (uncollected, problems) = snapshot
        .problems
        .iter()
        .zip(claimed)
        .filter(|(problem, claimed)| !claimed && wanted.fits_problem(problem))
        .map(|(problem, _)| problem)
        .partition(|problem| {
            let whose = &problem.container;
            let is_of_log = whose.ends_with('`');
            is_of_log && !known.contains(whose)
        });
    Found {
        logs: logs.into_values().collect(),
        uncollected,
        problems,
        outputs: snapshot.outputs.iter().map(facts).collect(),
    }
}

fn facts(output: &Output) -> (&str, OutputFacts<'_>) {
    let facts = OutputFacts {
        guarantee: &output.guarantee,
        up: output.up,
        trouble: output.trouble.as_deref(),
    };
    (&output.name, facts)
}

/// How problems name a log.
fn called(container: &Container, name: &str) -> String {
    match container.who.as_str() {
        "" => format!("source `{name}`"),
        who => format!("{who}, log `{name}`"),
    }
}

/// What somebody asks for: a part of a name, or a whole one with stars.
#[derive(Debug)]
pub(crate) struct Wanted {
    parts: Vec<String>,
}

impl Wanted {
    pub(crate) fn new(pattern: &str) -> Self {
        let parts = pattern.to_lowercase();
        Self {
            parts: parts.split('*').map(str::to_owned).collect(),
        }
    }

    pub(crate) fn fits(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let (Some(first), Some(last)) = (self.parts.first(), self.parts.last()) else {
            return true;
        };
        if self.parts.len() == 1 {
            return text.contains(first.as_str());
        }
        let Some(mut rest) = text.strip_prefix(first.as_str()) else {
            return false;
        };
        for part in &self.parts[1..self.parts.len() - 1] {
            match rest.find(part.as_str()) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last.as_str())
    }

    fn fits_log(&self, container: &Container, name: &str) -> bool {
        let pod = format!("{}/{}", container.namespace, container.pod);
        [
            name,
            &container.name,
            &container.who,
            &container.id,
            &container.pod,
            &pod,
        ]
        .iter()
        .any(|text| !text.is_empty() && self.fits(text))
    }

    fn fits_problem(&self, problem: &Problem) -> bool {
        [&problem.container, &problem.key, &problem.value]
            .iter()
            .any(|text| !text.is_empty() && self.fits(text))
    }
}

/// What was found, as people read it.
impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for log in &self.logs {
            write_log(f, log, &self.outputs)?;
        }
        for problem in &self.uncollected {
            let whose = Escaped(&problem.container);
            match problem.container.starts_with("source ") {
                true => writeln!(f, "{whose}: not collected")?,
                false => writeln!(f, "container {whose}: not collected")?,
            }
            write_problem(f, problem)?;
        }
        for problem in &self.problems {
            match problem.container.as_str() {
                "" => writeln!(f, "the daemon: a problem")?,
                whose => writeln!(f, "{}: a problem", Escaped(whose))?,
            }
            write_problem(f, problem)?;
        }
        Ok(())
    }
}

fn write_log(
    text: &mut fmt::Formatter<'_>,
    log: &Log<'_>,
    outputs: &BTreeMap<&str, OutputFacts<'_>>,
) -> fmt::Result {
    let name = Escaped(log.name);
    match log.container.who.as_str() {
        "" => write!(text, "source `{name}`")?,
        who => write!(text, "container {}, log `{name}`", Escaped(who))?,
    }
    match (
        log.collected,
        log.sources.is_empty(),
        log.problems.is_empty(),
    ) {
        (true, _, true) => writeln!(text, ": collected")?,
        (true, _, false) => writeln!(text, ": collected, with a problem")?,
        (false, true, true) => writeln!(
            text,
            ": not collected yet\n  reason: no file that it names is there   \
             do: nothing, if the workload has not written yet; else declare the path where it writes"
        )?,
        (false, ..) => writeln!(text, ": not collected")?,
    }
    if !log.way.is_empty() {
        writeln!(text, "  way: {}", Escaped(log.way))?;
    }
    for problem in &log.problems {
        write_problem(text, problem)?;
    }
    for source in &log.sources {
        write_source(text, source, outputs)?;
    }
    Ok(())
}

fn write_problem(text: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
    text.write_str("  ")?;
    if !problem.key.is_empty() {
        write!(text, "key: {}", Escaped(&problem.key))?;
        if !problem.value.is_empty() {
            write!(text, "={}", Escaped(&problem.value))?;
        }
        text.write_str("   ")?;
    }
    writeln!(
        text,
        "reason: {}   do: {}",
        Escaped(&problem.reason),
        Escaped(&problem.cure)
    )
}

fn write_source(
    text: &mut fmt::Formatter<'_>,
    source: &Source,
    outputs: &BTreeMap<&str, OutputFacts<'_>>,
) -> fmt::Result {
    let state = match source.state {
        State::Following => "followed",
        State::Draining => "nothing more is written to it; read to its end",
        State::Done => "all of it is settled",
        State::Unreadable => "cannot be read",
    };
    writeln!(
        text,
        "  {} {} (inode {}): {} of {} bytes read; {state}; format {}, target {}",
        Escaped(&source.via),
        Escaped(&source.path),
        source.inode,
        source.read_bytes,
        source.size_bytes,
        Escaped(&source.format),
        Escaped(&source.target),
    )?;
    if let Some(trouble) = &source.trouble {
        writeln!(
            text,
            "    reason: {}   do: mend the storage, or its rights; it is tried again by itself",
            Escaped(trouble)
        )?;
    }
    for flow in &source.flows {
        let facts = outputs.get(flow.output.as_str());
        let guarantee = facts.map_or("", |facts| facts.guarantee);
        write!(
            text,
            "    -> {} ({guarantee}): settled to byte {}",
            Escaped(&flow.output),
            flow.acked_bytes
        )?;
        match flow.lag_bytes {
            0 => text.write_str(", nothing behind")?,
            lag => write!(
                text,
                ", {lag} bytes behind (the oldest at least {:.0} s old)",
                flow.lag_seconds
            )?,
        }
        if let Some(error) = &flow.last_error
            && source.trouble.as_ref() != Some(error)
        {
            write!(text, "; last error: {}", Escaped(error))?;
        }
        text.write_str("\n")?;
    }
    Ok(())
}
