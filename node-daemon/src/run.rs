//! `ringpilot run`: the daemon, or one pass over everything that is there.
//! Place: a command; opens what a daemon is made of, in the order in which one needs the other.
//! Invariant: it always starts: what is damaged, locked, missing or unreachable is told and tried again.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::KnownStream;
use ringpilot_shared::host::{Host, RealHost};

use crate::checkpoint::{
    Checkpoint, Entry, Journal as _, Loaded, LockHeld as Held, SavedFlow, SavedStream, lock,
};
use crate::cli::said;
use crate::control::reload::{self, Reloader};
use crate::control::serve::Control;
use crate::daemon::{Daemon, Parts, host_root};
use crate::ledger::Ledger;
use crate::pipeline::{Known, OutputPlan, Pipeline, Plan};
use crate::problem::Problems;
use crate::rings;
use crate::say::{self, Fault};
use crate::settings::{Settings, show_size};
use crate::ship::{self, dead_letter::DeadLetterFiles, retry::Shipper};
use crate::status;

/// Run the daemon.
///
/// Without a file the environment decides, as log-pilot's did; its default output is stdout.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 stopped in good order; with --once also 1, when something was not delivered.\n\n\
                  Example:\n  ringpilot run -c /etc/ringpilot.yaml\n  ringpilot run --once -c import.yaml"
)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read everything to its end as of now, deliver it, and print where it went
    #[arg(long)]
    once: bool,
    /// Print the ledger of `--once` as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the configuration is bad, or the machine refuses a thread.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let env = |name: &str| std::env::var(name).ok();
    let settings = Settings::load(args.config.as_deref(), &env).map_err(|problems| {
        let mut all = problems.iter().map(ToString::to_string);
        let first = all.next().unwrap_or_default();
        for problem in all {
            say::fault(&Fault::usage(problem.clone(), "mend this as well"));
        }
        Fault::usage(first, "`ringpilot check` tells all that is wrong")
    })?;
    log_to_stderr();
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    raise_descriptor_limit();
    let host = Arc::new(RealHost::new());
    let opened = open(settings, Arc::clone(&host), args.once)?;
    let reload = reload::Opened {
        config: args.config.clone(),
        checkpoint: Arc::clone(&opened.checkpoint),
        host: Arc::clone(&host),
    };
    let daemon = Daemon::start(opened.parts).map_err(|why| Fault::new(why, "see the log"))?;
    let ended = if args.once {
        once(daemon, &*host, args.json, &opened.before)
    } else {
        serve(daemon, &*host, reload)
    };
    drop(opened.lock);
    ended
}

/// As many open files as the machine allows: each followed file is held open, and the soft limit is often 1,024.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}

/// A daemon's parts, and what holds them.
#[derive(Debug)]
pub struct Opened {
    /// To be started.
    pub parts: Parts,
    /// Held while it runs.
    pub lock: Option<crate::checkpoint::Lock>,
    /// What was in the ledger of each output before this run.
    pub before: Vec<Ledger>,
    /// The checkpoint.
    pub checkpoint: Arc<Checkpoint>,
}

/// Opens everything a daemon is made of.
///
/// # Errors
/// When an output's settings are wrong, or the machine refuses.
pub fn open(settings: Settings, host: Arc<RealHost>, once: bool) -> Result<Opened, Fault> {
    let settings = Arc::new(settings);
    let problems = Arc::new(Problems::default());
    let lock = take_lock(&settings, &problems)?;
    let boot = host.boot_id();
    let mut files = ship::file::OwnFiles::new(Arc::clone(&host) as _);
    let opened = Checkpoint::open(
        Arc::clone(&host) as _,
        &settings.data_dir,
        &settings.node_name,
        boot,
        &mut files,
    );
    problems.set("checkpoint", opened.problems);
    let mut loaded = opened.loaded;
    let checkpoint = Arc::new(opened.checkpoint);
    let forgotten = forget_outputs(&mut loaded, host.wall_ns());
    if !forgotten.is_empty() {
        // What cannot be written now is told by the first save.
        drop(checkpoint.append(&forgotten));
    }
    let share = settings.memory_budget / settings.outputs.len().max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("net")
        .enable_all()
        .build()
        .map_err(|error| Fault::new(format!("no threads can be had: {error}"), "free some"))?;
    let dead_letters = Arc::new(DeadLetterFiles::open(
        Arc::clone(&host) as _,
        &settings.data_dir,
        &settings.outputs,
    ));
    let seed = random();
    let mut outputs = Vec::new();
    let inside = runtime.enter();
    for (n, output) in settings.outputs.iter().enumerate() {
        let to = ship::connect(
            output,
            share,
            &settings.node_name,
            &host,
            Arc::clone(&checkpoint) as _,
            &loaded,
        )
        .map_err(|problems| {
            let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Fault::usage(told.join("; "), "`ringpilot check` tells all that is wrong")
        })?;
        let shipper = Shipper::new(
            output,
            settings.batch_wait,
            to,
            share,
            seed.rotate_left(u32::try_from(n).unwrap_or(0)),
        );
        outputs.push(OutputPlan {
            codec: ship::codec_of(output),
            dated: ship::is_dated(output),
            start_at: output.start_at,
            known: loaded.outputs.contains_key(output.name.as_str())
                || output
                    .renamed_from
                    .as_deref()
                    .is_some_and(|old| loaded.outputs.contains_key(old)),
            shipper,
        });
    }
    drop(inside);
    let plan = Plan {
        node: settings.node_name.clone(),
        memory_budget: settings.memory_budget,
        start_at: settings.start_at,
        once,
        outputs,
    };
    let ring_streams = rings::known(&loaded);
    let (known, streams) = known(loaded, &settings);
    let before = settings
        .outputs
        .iter()
        .map(|output| {
            let mut all = Ledger::default();
            for (key, flow) in &known.flows {
                if *key.output == *output.name {
                    all.add(&flow.ledger);
                }
            }
            all
        })
        .collect();
    let pipeline = Pipeline::new(
        Arc::clone(&host) as _,
        Arc::clone(&checkpoint) as _,
        Arc::clone(&dead_letters) as _,
        plan,
        known,
        seed,
    );
    let memory_budget = settings.memory_budget;
    let memory = settings.discover.rings.memory;
    Ok(Opened {
        parts: Parts {
            host_root: host_root(&settings),
            settings,
            host,
            pipeline,
            dead_letters,
            known: streams,
            problems,
            runtime,
            workloads: Vec::new(),
            ring_streams,
            // What a shim reads has no end of its own to be read to once.
            rings: (!once).then(|| rings::Limits {
                held_bytes: memory_budget / 4,
                memory,
                ..rings::Limits::default()
            }),
            variable: |name| std::env::var(name).ok(),
            seed: seed ^ 0x5eed,
        },
        lock,
        before,
        checkpoint,
    })
}

/// An output that the configuration had no more for so long is new when it comes again.
const REMEMBERED_NS: i64 = 7 * 24 * 3_600 * 1_000_000_000;

/// Forgets where outputs stood that were last there more than seven days ago.
fn forget_outputs(loaded: &mut Loaded, wall_ns: i64) -> Vec<Entry> {
    let is_old = |seen: i64| wall_ns.saturating_sub(seen) > REMEMBERED_NS;
    // A daemon that was off for a week has all its outputs still.
    let newest = loaded.outputs.values().copied().max().unwrap_or(wall_ns);
    let old: Vec<Arc<str>> = loaded
        .outputs
        .iter()
        .filter(|(_, seen)| is_old(**seen) && newest.saturating_sub(**seen) > REMEMBERED_NS)
        .map(|(name, _)| Arc::clone(name))
        .collect();
    for name in &old {
        loaded.outputs.remove(name);
    }
    loaded.flows.retain(|key, _| !old.contains(&key.output));
    old.into_iter().map(Entry::ForgetOutput).collect()
}

/// What the checkpoint said, for the pipeline and for the follower. An output's former name is its name now.
#[must_use]
pub fn known(loaded: Loaded, settings: &Settings) -> (Known, Vec<KnownStream>) {
    let streams = loaded
        .streams
        .values()
        .filter(|stream| !rings::is_of_a_pod(stream))
        .map(SavedStream::known)
        .collect();
    let mut known = Known {
        // A first start that ended before its first save was no start.
        fresh: loaded.fresh || loaded.outputs.is_empty(),
        ..Known::default()
    };
    for (mut key, flow) in loaded.flows {
        let renamed = settings
            .outputs
            .iter()
            .find(|output| output.renamed_from.as_deref() == Some(&*key.output));
        if let Some(output) = renamed {
            key.output = output.name.as_str().into();
        }
        // Under its former name and its own: the one that is further has been moved since.
        let is_further = |other: &SavedFlow| other.offset > flow.offset;
        if known.flows.get(&key).is_some_and(is_further) {
            continue;
        }
        let furthest: &mut (u64, u64) = known.furthest.entry(key.stream).or_default();
        *furthest = (*furthest).max((flow.offset, flow.tail));
        known.flows.insert(key, flow);
    }
    known.successors = loaded
        .streams
        .values()
        .filter_map(|stream| Some((stream.key, stream.successor?)))
        .collect();
    known.sources = loaded
        .sources
        .into_iter()
        .map(|source| ((source.stream, Arc::clone(&source.declaration)), source))
        .collect();
    (known, streams)
}

/// Takes the lock of `data_dir`, waiting for another daemon to end; without one where nothing can be locked.
fn take_lock(
    settings: &Settings,
    problems: &Problems,
) -> Result<Option<crate::checkpoint::Lock>, Fault> {
    let mut told = false;
    loop {
        match lock(&settings.data_dir) {
            Ok(lock) => {
                problems.clear("lock");
                return Ok(Some(lock));
            }
            Err(held @ Held::ByAnother { .. }) => {
                if !told {
                    problems.set("lock", vec![held.problem()]);
                    told = true;
                }
                std::thread::park_timeout(Duration::from_millis(500));
            }
            Err(held @ Held::Cannot { .. }) => {
                problems.set("lock", vec![held.problem()]);
                return Ok(None);
            }
        }
    }
}

fn random() -> u64 {
    rand::random()
}

/// The daemon's own log: text on a terminal, JSON otherwise.
pub fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("RINGPILOT_LOG")
        .unwrap_or_else(|_| EnvFilter::new("ringpilot=info,warn"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second daemon in one process (the demo, a test) keeps the first one's log.
    drop(if std::io::stderr().is_terminal() {
        builder.without_time().try_init()
    } else {
        builder.json().try_init()
    });
}

/// Runs until a signal.
fn serve(daemon: Daemon, host: &dyn Host, opened: reload::Opened) -> Result<ExitCode, Fault> {
    let settings = Arc::clone(&daemon.settings);
    let outputs: Vec<&str> = settings
        .outputs
        .iter()
        .map(|output| output.name.as_str())
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = settings.node_name,
        outputs = outputs.join(","),
        "ringpilot collects"
    );
    let reloader = Reloader::of(&daemon, opened);
    let control = Control::of(&daemon, Some(Arc::clone(&reloader)));
    let served = status::serve(&daemon, control);
    let signal = daemon
        .handle()
        .block_on(ended(Some(&reloader)))
        .map_err(|error| Fault::new(format!("no signals can be had: {error}"), "free some"))?;
    tracing::info!("{signal}: what is in flight is delivered, then the daemon ends");
    let grace = reloader.settings().shutdown_grace;
    let clean = daemon.stop(grace, host);
    drop(served);
    if !clean {
        tracing::warn!(
            "not everything in flight was acknowledged within {grace:?}; it is read again at the next start"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or SIGINT; which came. SIGHUP reloads, where there is something to reload.
async fn ended(reloader: Option<&Arc<Reloader>>) -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok("SIGTERM"),
            _ = int.recv() => return Ok("SIGINT"),
            _ = hup.recv() => {
                let Some(reloader) = reloader else { continue };
                let reloader = Arc::clone(reloader);
                // What is wrong is told as a problem.
                tokio::spawn(async move { drop(reloader.reload().await) });
            }
        }
    }
}

/// Where the bytes of one output went in one run.
#[derive(Debug, serde::Serialize)]
struct OnceReport {
    output: String,
    ledger: Ledger,
    in_flight_bytes: u64,
}

/// Reads everything to its end as of now.
fn once(daemon: Daemon, host: &dyn Host, json: bool, before: &[Ledger]) -> Result<ExitCode, Fault> {
    let settings = Arc::clone(&daemon.settings);
    let stop = daemon.handle().spawn(ended(None));
    let pipeline = Arc::clone(&daemon.pipeline);
    let mut has_ended_all = false;
    let mut told_at = host.now();
    let mut behind = None;
    let mut quiet = 0;
    let interrupted = loop {
        std::thread::park_timeout(Duration::from_millis(20));
        if stop.is_finished() {
            break true;
        }
        let now = pipeline.settledness();
        let is_idle = daemon.has_looked() && now.behind == 0 && now.in_flight == 0;
        quiet = if is_idle { quiet + 1 } else { 0 };
        if is_idle && !has_ended_all {
            has_ended_all = true;
            quiet = 0;
            pipeline.end_all();
        } else if has_ended_all && now.open == 0 && quiet >= 3 {
            break false;
        }
        if host.now() >= told_at + Duration::from_secs(5) {
            let since = host.now().saturating_sub(told_at);
            told_at = host.now();
            behind = progress(&pipeline, behind, since);
        }
    };
    let clean = daemon.stop(settings.shutdown_grace, host);
    let mut reports = Vec::new();
    let mut unread: Vec<String> = Vec::new();
    pipeline.look(|view| {
        for (n, output) in view.outputs().enumerate() {
            let (all, in_flight) = view.ledger(n);
            reports.push(OnceReport {
                output: output.name.to_string(),
                ledger: all.since(&before[n]),
                in_flight_bytes: in_flight,
            });
        }
        for source in view.sources() {
            if let Some(trouble) = &source.trouble {
                unread.push(format!("{}: {trouble}", source.path.display()));
            }
        }
    });
    for problem in pipeline_problems(&pipeline) {
        unread.push(problem);
    }
    if json {
        said(say::json(&reports))?;
    } else {
        said(say::line(format_args!(
            "{:12} {:>15} {:>15} {:>15} {:>15} {:>15}",
            "bytes", "delivered", "dead-lettered", "filtered", "lost", "in flight"
        )))?;
        for report in &reports {
            said(say::line(format_args!(
                "{:12} {:>15} {:>15} {:>15} {:>15} {:>15}",
                report.output,
                report.ledger.delivered.bytes,
                report.ledger.dead_lettered.bytes,
                report.ledger.filtered.bytes,
                report.ledger.lost_total().bytes,
                report.in_flight_bytes
            )))?;
            said(say::line(format_args!(
                "{:12} {:>15} records",
                "", report.ledger.delivered.records
            )))?;
        }
        for one in &unread {
            said(say::line(format_args!("not read: {one}")))?;
        }
    }
    let good = clean
        && !interrupted
        && unread.is_empty()
        && reports.iter().all(|report| {
            report.ledger.dead_lettered.is_zero()
                && report.ledger.lost.is_empty()
                && report.in_flight_bytes == 0
        });
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn pipeline_problems(pipeline: &Pipeline) -> Vec<String> {
    pipeline.look(|view| view.troubles().map(ToOwned::to_owned).collect())
}

/// One line of where a long run stands, and when it may be done; how much is left.
fn progress(pipeline: &Pipeline, before: Option<u64>, since: Duration) -> Option<u64> {
    let (behind, waits) = pipeline.look(|view| {
        let behind: u64 = view
            .sources()
            .flat_map(|source| source.flows.iter().map(|flow| source.lag(flow)))
            .sum();
        let waits: HashMap<String, String> = view
            .outputs()
            .filter_map(|output| {
                let cause = output.counts.trouble.as_ref()?;
                Some((output.name.to_string(), cause.to_string()))
            })
            .collect();
        (behind, waits)
    });
    if waits.is_empty() {
        let rate = before.map(|before| before.saturating_sub(behind) as f64 / since.as_secs_f64());
        let eta = match rate {
            Some(rate) if rate > 0.0 => format!(
                ", {}/s, about {:.0} s more",
                show_size(rate as u64),
                behind as f64 / rate
            ),
            _ => String::new(),
        };
        tracing::info!("{} are still to be delivered{eta}", show_size(behind));
    }
    for (output, cause) in waits {
        tracing::warn!("output {output} waits: {cause}");
    }
    Some(behind)
}
