//! `ringpilot dead-letters`: what outputs refused for good, why, and how it is sent again.
//! Place: a command; `list` and `show` read the files in `data_dir`, also while no daemon runs; `retry` asks the daemon.
//! Invariants: foreign text is escaped; a file of any length is read a line at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Which, quoted};
use crate::cli::said;
use crate::problem::{Escaped, use_instead};
use crate::say::{self, Fault};
use crate::ship::dead_letter::{FOLDER, Resent, Summary, Written};

/// Look at the records that outputs refused for good, and send them again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 done, 1 something is left that was not delivered, or no daemon answers.\n\nExample:\n  \
                  ringpilot dead-letters show es --limit 5\n  ringpilot dead-letters retry es"
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    List(List),
    Show(Show),
    Retry(Retry),
}

/// How many each output has, why, and since when.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ringpilot dead-letters list --json")]
struct List {
    /// Only of this output
    output: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// The records themselves, oldest first: reason, index, position, text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ringpilot dead-letters show es --limit 5")]
struct Show {
    /// Only of this output
    output: Option<String>,
    /// At most so many of each output
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// Send them again through the running daemon; each keeps its id, so that none is doubled.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 all are delivered, 1 some are left, or no daemon answers.\n\nExample:\n  \
                  ringpilot dead-letters retry es"
)]
struct Retry {
    /// Only of this output
    output: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
///
/// # Errors
/// When the letters cannot be read, or no daemon answers.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    match &args.what {
        What::List(list) => list.run(),
        What::Show(show) => show.run(),
        What::Retry(retry) => retry.run(),
    }
}

impl List {
    fn run(&self) -> Result<ExitCode, Fault> {
        let dir = self.which.data_dir()?;
        let mut all: BTreeMap<String, Summary> = BTreeMap::new();
        for name in outputs(&dir, self.output.as_deref())? {
            let mut summary = Summary::default();
            each_line(&dir, &name, |line| {
                summary.bytes += line.len() as u64 + 1;
                summary.add(line);
                Ok(true)
            })?;
            if summary.letters + summary.unreadable > 0 {
                all.insert(name, summary);
            }
        }
        if self.json {
            said(say::json(&all))?;
            return Ok(ExitCode::SUCCESS);
        }
        if all.is_empty() {
            said(say::line("no output has dead letters"))?;
        }
        for (name, summary) in &all {
            said(say::line(format_args!(
                "output {name}: {} letters, {}, refused from {} to {}",
                summary.letters,
                crate::settings::show_size(summary.bytes),
                when(summary.oldest_ns.unwrap_or_default()),
                when(summary.newest_ns.unwrap_or_default()),
            )))?;
            for (reason, count) in &summary.reasons {
                said(say::line(format_args!("  {count:>9}  {}", Escaped(reason))))?;
            }
            if summary.unreadable > 0 {
                said(say::line(format_args!(
                    "  {:>9}  lines that are no letters",
                    summary.unreadable
                )))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A letter as `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    output: &'a str,
    id: &'a str,
    refused_at: String,
    reason: &'a str,
    detail: &'a str,
    target: &'a str,
    date: String,
    log: &'a str,
    path: &'a str,
    generation: Option<u16>,
    offset: Option<u64>,
    record: &'a RawValue,
}

impl Show {
    fn run(&self) -> Result<ExitCode, Fault> {
        let dir = self.which.data_dir()?;
        let mut shown = 0;
        for name in outputs(&dir, self.output.as_deref())? {
            let mut left = self.limit;
            each_line(&dir, &name, |line| {
                let Ok(letter) = serde_json::from_slice::<Written<'_>>(line) else {
                    return Ok(true);
                };
                if left == 0 {
                    return Ok(false);
                }
                left -= 1;
                shown += 1;
                self.tell(&name, &letter)?;
                Ok(true)
            })?;
        }
        if shown == 0 && !self.json {
            said(say::line("no output has dead letters"))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn tell(&self, output: &str, letter: &Written<'_>) -> Result<(), Fault> {
        let position = letter.position();
        let date = jiff::civil::date(1970, 1, 1)
            .checked_add(jiff::Span::new().days(letter.day))
            .map_or_else(|_| String::new(), |date| date.to_string());
        if self.json {
            let shown = Shown {
                output,
                id: &letter.id,
                refused_at: when(letter.refused_ns),
                reason: &letter.reason,
                detail: &letter.detail,
                target: &letter.target,
                date,
                log: &letter.log,
                path: &letter.path,
                generation: position.map(|(generation, _)| generation),
                offset: position.map(|(_, offset)| offset),
                record: letter.record,
            };
            // One object a line, also on a terminal.
            let text = serde_json::to_string(&shown).map_err(|error| unreadable(output, &error))?;
            return said(say::line(text));
        }
        said(say::line(format_args!(
            "{} output {output}, target {} of {date}: {}: {}",
            when(letter.refused_ns),
            Escaped(&letter.target),
            Escaped(&letter.reason),
            Escaped(&letter.detail),
        )))?;
        let (generation, offset) = position.unwrap_or_default();
        let of = match generation {
            0 => String::new(),
            again => format!(" (begun anew {again} times)"),
        };
        said(say::line(format_args!(
            "  from {} {} at byte {offset}{of}",
            Escaped(&letter.log),
            Escaped(&letter.path),
        )))?;
        said(say::line(format_args!(
            "  {}",
            Escaped(letter.record.get())
        )))
    }
}

impl Retry {
    fn run(&self) -> Result<ExitCode, Fault> {
        let dir = self.which.data_dir()?;
        let mut all = BTreeMap::new();
        for name in outputs(&dir, self.output.as_deref())? {
            let path = format!("/control/dead-letters/{}/retry", quoted(&name));
            let resent: Resent = self.which.order(&path).map_err(|fault| Fault {
                cure: match fault.cause.starts_with("no daemon answers") {
                    true => {
                        "they are sent by the daemon: start it, then call this again".to_owned()
                    }
                    false => fault.cure.clone(),
                },
                ..fault
            })?;
            all.insert(name, resent);
        }
        let is_clean = all
            .values()
            .all(|resent| resent.left == 0 && resent.stopped.is_none());
        if self.json {
            said(say::json(&all))?;
        } else if all.is_empty() {
            said(say::line("no output has dead letters"))?;
        } else {
            for (name, resent) in &all {
                said(say::line(format_args!(
                    "output {name}: {} delivered, {} left",
                    resent.delivered, resent.left
                )))?;
                for (reason, count) in &resent.refused {
                    said(say::line(format_args!(
                        "  {count:>9}  refused again: {}",
                        Escaped(reason)
                    )))?;
                }
                if let Some(cause) = &resent.stopped {
                    said(say::line(format_args!("  stopped: {}", Escaped(cause))))?;
                }
            }
        }
        Ok(match is_clean {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(1),
        })
    }
}

/// The outputs that have letters: the one that is named, or all.
fn outputs(data_dir: &Path, named: Option<&str>) -> Result<Vec<String>, Fault> {
    let dir = data_dir.join(FOLDER);
    let mut names = Vec::new();
    match std::fs::read_dir(&dir) {
        Ok(entries) => {
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                names.extend(name.strip_suffix(".ndjson").map(str::to_owned));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(&dir.display().to_string(), &error)),
    }
    names.sort();
    match named {
        None => Ok(names),
        Some(name) if names.iter().any(|known| known == name) => Ok(vec![name.to_owned()]),
        // An output that never refused anything has no file.
        Some(_) if names.is_empty() => Ok(names),
        Some(name) => {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            Err(Fault::new(
                format!("no output called `{}` has dead letters", Escaped(name)),
                use_instead(name, &known),
            ))
        }
    }
}

/// Goes through an output's file until `each` has had enough.
fn each_line(
    data_dir: &Path,
    output: &str,
    mut each: impl FnMut(&[u8]) -> Result<bool, Fault>,
) -> Result<(), Fault> {
    let path = crate::ship::dead_letter::path_of(&data_dir.join(FOLDER), output);
    let file =
        File::open(&path).map_err(|error| unreadable(&path.display().to_string(), &error))?;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|error| unreadable(&path.display().to_string(), &error))?;
        if !line.is_empty() && !each(&line)? {
            break;
        }
    }
    Ok(())
}

fn unreadable(what: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        format!("dead letters cannot be read: {what}: {error}"),
        "run this as the daemon's user, or name its folder with `--data-dir` or `-c`",
    )
}

/// A time as people read it, in UTC.
fn when(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map_or_else(
        |_| "?".to_owned(),
        |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}
