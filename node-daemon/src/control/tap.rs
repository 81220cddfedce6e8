//! `ringpilot tap`: a live copy of records as they leave; the command, and the daemon's end of it.
//! Place: whoever sends a load offers it here once the output has it.
//! Invariants: without a tap it costs one read of a counter; a tap that does not keep up misses records and is told how
//! many, it never makes anybody wait; so many records a second are copied at most, whatever flows by.

use std::io::{BufRead, BufReader};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ringpilot_shared::host::Host;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::{SOCKET, Which, quoted};
use crate::cli::said;
use crate::pipeline::Pipeline;
use crate::problem::Escaped;
use crate::say::{self, Fault};
use crate::ship::{Fate, Load, Verdict};
use crate::status::explain::Wanted;

/// Records a second that a tap shows unless told otherwise.
const RATE: u32 = 100;
/// The most it may be told.
const MOST: u32 = 10_000;
/// Records that wait for a reader.
const WAITING: usize = 512;
/// Taps at a time.
const TAPS: usize = 8;

/// Show records as they leave, live; what is above the rate is left out and counted.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  ringpilot tap shop/web --to es\n  ringpilot tap 'access' --json | jq .record"
)]
pub struct Args {
    /// A part of a container's, pod's, log's or target's name; all if left out
    pattern: Option<String>,
    /// Only what goes to this output
    #[arg(long, value_name = "OUTPUT")]
    to: Option<String>,
    /// Most records a second
    #[arg(long, value_name = "N", default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    rate: u32,
    /// Print one JSON object a record
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// One line of what a tap shows.
#[derive(Debug, Serialize, Deserialize)]
struct Shown<'a> {
    output: &'a str,
    target: String,
    log: String,
    /// Records left out before this one, those that were not looked at among them.
    left_out: u64,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// Runs the command until it is interrupted, or the daemon ends.
///
/// # Errors
/// When no daemon answers.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let dir = args.which.data_dir()?;
    let path = format!(
        "/control/tap?rate={}&pattern={}&output={}",
        args.rate,
        quoted(args.pattern.as_deref().unwrap_or_default()),
        quoted(args.to.as_deref().unwrap_or_default()),
    );
    let stream = super::say(
        &dir.join(SOCKET),
        "GET",
        &path,
        Duration::from_secs(3600 * 24),
    )
    .map_err(|error| super::nobody(&dir, &error))?;
    let mut lines = BufReader::new(stream).split(b'\n').map_while(Result::ok);
    let status = lines.next().unwrap_or_default();
    let is_good = String::from_utf8_lossy(&status).contains(" 200 ");
    // The head ends with an empty line.
    let body = lines.by_ref().skip_while(|line| line.len() > 1).skip(1);
    for line in body {
        if !is_good {
            let refused: super::Refused = super::understand(&line)?;
            return Err(Fault {
                cause: refused.cause,
                cure: refused.cure,
                exit: refused.exit,
            });
        }
        let text = String::from_utf8_lossy(&line);
        match serde_json::from_str::<Shown<'_>>(&text) {
            Ok(shown) if !args.json => {
                if shown.left_out > 0 {
                    said(say::line(format_args!(
                        "… {} records left out",
                        shown.left_out
                    )))?;
                }
                said(say::line(format_args!(
                    "{} {} <- {}: {}",
                    shown.output,
                    Escaped(&shown.target),
                    Escaped(&shown.log),
                    Escaped(shown.record.get())
                )))?;
            }
            Ok(_) => said(say::line(&text))?,
            // A chunk that the daemon's end cut off.
            Err(_) => {}
        }
    }
    Err(Fault::new(
        "the daemon has ended",
        "start it, then tap again",
    ))
}

/// Everybody who looks on.
#[derive(Debug, Default)]
pub struct Taps {
    /// How many: read before each load is offered.
    count: AtomicUsize,
    taps: Mutex<Vec<Tap>>,
}

#[derive(Debug)]
struct Tap {
    wanted: Option<Wanted>,
    output: String,
    rate: u32,
    /// Records it may still show in this second, and when that began.
    left: u32,
    since: Duration,
    left_out: u64,
    to: mpsc::Sender<Vec<u8>>,
}

/// What somebody wants to see.
#[derive(Debug, Deserialize)]
pub struct Asked {
    /// A part of a name; empty for all.
    #[serde(default)]
    pub pattern: String,
    /// An output's name; empty for all.
    #[serde(default)]
    pub output: String,
    /// Records a second.
    pub rate: Option<u32>,
}

impl Taps {
    /// One more looks on; where it reads. `None` when there are too many.
    pub fn open(&self, asked: Asked) -> Option<mpsc::Receiver<Vec<u8>>> {
        let mut taps = self.taps.lock();
        taps.retain(|tap| !tap.to.is_closed());
        if taps.len() >= TAPS {
            return None;
        }
        let (to, reads) = mpsc::channel(WAITING);
        taps.push(Tap {
            wanted: (!asked.pattern.is_empty()).then(|| Wanted::new(&asked.pattern)),
            output: asked.output,
            rate: asked.rate.unwrap_or(RATE).clamp(1, MOST),
            left: 0,
            since: Duration::ZERO,
            left_out: 0,
            to,
        });
        self.count.store(taps.len(), Ordering::Relaxed);
        Some(reads)
    }

    /// Shows what of a load has been delivered to who looks on.
    pub fn offer(
        &self,
        pipeline: &Pipeline,
        host: &dyn Host,
        output: usize,
        load: &Load,
        verdict: &Verdict,
    ) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let is_delivered = |n: usize| match verdict {
            Verdict::All(fate) => *fate == Fate::Delivered,
            Verdict::Each(fates) => fates.get(n) == Some(&Fate::Delivered),
            Verdict::Failed { .. } | Verdict::TooLarge => false,
        };
        if load.is_empty() || !(0..load.len()).any(is_delivered) {
            return;
        }
        let now = host.now();
        let mut taps = self.taps.lock();
        let before = taps.len();
        taps.retain(|tap| !tap.to.is_closed());
        if taps.len() != before {
            self.count.store(taps.len(), Ordering::Relaxed);
        }
        // Whose the records are is asked only where one of them can still be shown in this second.
        let mut asked = None;
        for tap in taps.iter_mut() {
            if now >= tap.since + Duration::from_secs(1) {
                (tap.since, tap.left) = (now, tap.rate);
            }
            if tap.left == 0 {
                tap.left_out += load.len() as u64;
                continue;
            }
            let Some((name, logs)) =
                asked.get_or_insert_with(|| pipeline.logs_of(output, &load.batch.spans))
            else {
                return;
            };
            if tap.output.is_empty() || *tap.output == **name {
                tap.show(name, load, logs, &is_delivered);
            }
        }
    }
}

impl Tap {
    fn show(
        &mut self,
        output: &str,
        load: &Load,
        logs: &[Option<Whose>],
        is_delivered: &dyn Fn(usize) -> bool,
    ) {
        let target = &load.batch.target;
        let chunks = load.batch.chunks.iter().zip(logs);
        let wanted: Vec<Option<&str>> = chunks
            .map(|(_, whose)| {
                let whose = whose.as_ref()?;
                let fits = self.wanted.as_ref().is_none_or(|wanted| {
                    wanted.fits(target) || whose.names.iter().any(|name| wanted.fits(name))
                });
                fits.then_some(whose.called.as_str())
            })
            .collect();
        for (n, (chunk, record)) in load.iter().enumerate() {
            let of = load
                .batch
                .chunks
                .iter()
                .position(|one| Arc::ptr_eq(one, chunk));
            let Some(log) = of.and_then(|of| wanted.get(of).copied().flatten()) else {
                continue;
            };
            if !is_delivered(n) {
                continue;
            }
            if self.left == 0 {
                // The rest of the load is more of the same; what is not looked at is not counted one by one.
                self.left_out += (load.len() - n) as u64;
                return;
            }
            let record = record.strip_suffix(b"\n").unwrap_or(record);
            // A bulk record has its action line before it.
            let record = memchr::memrchr(b'\n', record).map_or(record, |at| &record[at + 1..]);
            let text = String::from_utf8_lossy(record);
            let plain;
            let record = match serde_json::from_str::<&RawValue>(&text) {
                Ok(record) => record,
                Err(_) => {
                    plain = serde_json::value::to_raw_value(&text).unwrap_or_default();
                    &plain
                }
            };
            let shown = Shown {
                output,
                target: target.to_string(),
                log: log.to_owned(),
                left_out: self.left_out,
                record,
            };
            let Ok(mut line) = serde_json::to_vec(&shown) else {
                continue;
            };
            line.push(b'\n');
            self.left -= 1;
            match self.to.try_send(line) {
                Ok(()) => self.left_out = 0,
                Err(_) => self.left_out += 1,
            }
        }
    }
}

/// Whose records a chunk has.
#[derive(Debug, Clone)]
pub struct Whose {
    /// As problems name it.
    pub called: String,
    /// What it may be asked for by.
    pub names: Vec<String>,
}
