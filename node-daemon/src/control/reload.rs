//! A new configuration for the running daemon: `ringpilot reload`, or SIGHUP.
//! Place: reads the settings as the start does, and tells pipeline, collector and dead letters what is different.
//! Invariants: a wrong configuration is refused whole and the old one goes on; what is the same is not touched, so
//! nothing unchanged pauses; an output's files are never in two hands.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ringpilot_shared::host::RealHost;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::Which;
use crate::checkpoint::{Checkpoint, Loaded};
use crate::cli::said;
use crate::collect;
use crate::daemon::{Daemon, Reconfigure, Shipping};
use crate::pipeline::{MOST_OUTPUTS, OutputPlan, Pipeline};
use crate::problem::{Problem, Problems, of_operator};
use crate::say::{self, Fault};
use crate::settings::{OutputSettings, Settings};
use crate::ship::dead_letter::DeadLetterFiles;
use crate::ship::retry::Shipper;
use crate::ship::{self, Output};

/// How long an output's last writes are waited for before another takes its files over.
const QUIET_WITHIN: Duration = Duration::from_secs(20);

/// Give the daemon its new configuration, with no pause for what is the same.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 done, 1 no daemon answers, 2 the configuration is refused.\n\nExample:\n  \
                  ringpilot reload -c /etc/ringpilot.yaml"
)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
///
/// # Errors
/// When no daemon answers, or it refuses.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let changed: Changed = args.which.order("/control/reload")?;
    if args.json {
        said(say::json(&changed))?;
    } else {
        said(say::line(changed.to_string().trim_end()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a reload has changed, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// What is different from now on.
    pub changed: Vec<String>,
    /// What is written differently and counts only when the daemon is started again.
    pub at_next_start: Vec<String>,
}

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.changed {
            writeln!(f, "{line}")?;
        }
        for key in &self.at_next_start {
            writeln!(f, "{key}: counts when the daemon is started again")?;
        }
        if self.changed.is_empty() && self.at_next_start.is_empty() {
            writeln!(f, "nothing has changed")?;
        }
        Ok(())
    }
}

/// What can only be opened once, for those that are made later.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The daemon's own configuration file, if it has one.
    pub config: Option<PathBuf>,
    /// The checkpoint.
    pub checkpoint: Arc<Checkpoint>,
    /// The machine.
    pub host: Arc<RealHost>,
}

/// Reloads a daemon.
#[derive(Debug)]
pub struct Reloader {
    opened: Opened,
    settings: Mutex<Arc<Settings>>,
    pipeline: Arc<Pipeline>,
    letters: Arc<DeadLetterFiles>,
    problems: Arc<Problems>,
    collector: mpsc::Sender<Reconfigure>,
    shipping: Shipping,
    one: tokio::sync::Mutex<()>,
}

/// What becomes of one output.
enum Step {
    Same,
    Manners(usize),
    Connection(usize, Arc<dyn Output>),
    Replaced(usize, Arc<dyn Output>),
    Added(Arc<dyn Output>),
}

impl Reloader {
    /// A reloader of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon, opened: Opened) -> Arc<Self> {
        Arc::new(Self {
            opened,
            settings: Mutex::new(Arc::clone(&daemon.settings)),
            pipeline: Arc::clone(&daemon.pipeline),
            letters: Arc::clone(&daemon.dead_letters),
            problems: Arc::clone(&daemon.problems),
            collector: daemon.collector(),
            shipping: daemon.shipping(),
            one: tokio::sync::Mutex::default(),
        })
    }

    /// What the daemon runs with now.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.lock())
    }

    /// Reads the configuration again and does what is different in it.
    ///
    /// # Errors
    /// Everything that is wrong with it; then nothing is changed.
    pub async fn reload(&self) -> Result<Changed, Vec<Problem>> {
        let _one = self.one.lock().await;
        let done = self.try_reload().await;
        match &done {
            Ok(changed) => {
                self.problems.clear("reload");
                for line in &changed.changed {
                    tracing::info!("reloaded: {line}");
                }
                for key in &changed.at_next_start {
                    tracing::warn!("{key} has changed: it counts when the daemon is started again");
                }
                if *changed == Changed::default() {
                    tracing::info!("reloaded: nothing has changed");
                }
            }
            Err(problems) => {
                let refused = problems.iter().cloned().map(|mut problem| {
                    problem.reason = format!(
                        "the new configuration is refused, the old one goes on: {}",
                        problem.reason
                    );
                    problem
                });
                self.problems.set("reload", refused.collect());
            }
        }
        done
    }

    async fn try_reload(&self) -> Result<Changed, Vec<Problem>> {
        let env = |name: &str| std::env::var(name).ok();
        let mut new = Settings::load(self.opened.config.as_deref(), &env)?;
        let old = self.settings();
        let mut wrong: Vec<Problem> = Vec::new();
        for source in &new.sources {
            wrong.extend(collect::judge("", source, &new.time_zone).err());
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let mut changed = Changed {
            at_next_start: keep_for_next_start(&mut new, &old),
            ..Changed::default()
        };
        let share = new.memory_budget / new.outputs.len().max(1);
        let mut steps = Vec::new();
        for output in &new.outputs {
            match self.step(output, &old, share, &new.node_name) {
                Ok(step) => steps.push(step),
                Err(problems) => wrong.extend(problems),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let removed: Vec<(&str, usize)> = old
            .outputs
            .iter()
            .filter(|output| {
                let name = output.name.as_str();
                let is_kept = new.outputs.iter().any(|new| {
                    new.name == name
                        || (new.renamed_from.as_deref() == Some(name) && !has(&old, &new.name))
                });
                !is_kept
            })
            .filter_map(|output| Some((output.name.as_str(), self.pipeline.slot_of(&output.name)?)))
            .collect();
        // Whoever writes files ends first: the one that takes them over knows how long they are.
        let mut held = Vec::new();
        for (output, step) in new.outputs.iter().zip(&steps) {
            if let (Step::Connection(slot, _) | Step::Replaced(slot, _), true) =
                (step, is_file(&old, output))
            {
                held.push(*slot);
            }
        }
        for (name, slot) in &removed {
            if self.pipeline.output(*slot).commits() {
                held.push(*slot);
                tracing::debug!("output {name} ends");
            }
        }
        if let Err(problem) = self.quiet(&held).await {
            self.release(&held);
            return Err(vec![problem]);
        }
        self.letters.set_outputs(&new.outputs);
        for (output, step) in new.outputs.iter().zip(steps) {
            match self.take(output, step, &new, &old, share) {
                Ok(line) => changed.changed.extend(line),
                Err(problems) => {
                    self.release(&held);
                    return Err(problems);
                }
            }
        }
        // Those that are removed send nothing more: another may have their files by now.
        held.retain(|slot| removed.iter().all(|(_, gone)| gone != slot));
        self.release(&held);
        self.pipeline.replan(new.start_at);
        let new = Arc::new(new);
        self.tell_collector(&new).await;
        for (name, slot) in removed {
            self.pipeline.retire_output(slot);
            changed.changed.push(format!(
                "output `{name}` is removed; where it stood is known for 7 days"
            ));
        }
        changed.changed.extend(other_changes(&old, &new));
        *self.settings.lock() = new;
        Ok(changed)
    }

    /// What is to become of an output; the new connection is made, and not used yet.
    fn step(
        &self,
        output: &OutputSettings,
        old: &Settings,
        share: usize,
        node: &str,
    ) -> Result<Step, Vec<Problem>> {
        let before = former(old, output);
        let slot = before.and_then(|before| self.pipeline.slot_of(&before.name));
        let connect = || self.connect(output, share, node, &Loaded::default());
        let (Some(before), Some(slot)) = (before, slot) else {
            return connect().map(Step::Added);
        };
        let renamed = OutputSettings {
            name: output.name.clone(),
            renamed_from: output.renamed_from.clone(),
            ..before.clone()
        };
        let same_form = before.kind == output.kind
            && ship::codec_of(before) == ship::codec_of(output)
            && ship::is_dated(before) == ship::is_dated(output);
        let same_way = before.settings == output.settings && before.timeout == output.timeout;
        match (renamed == *output, same_form, same_way) {
            (true, ..) if before.name == output.name => Ok(Step::Same),
            // The file output notes its own name beside each file.
            (_, true, true) if before.name == output.name || output.kind != "file" => {
                connect().map(|_| Step::Manners(slot))
            }
            (_, true, _) => connect().map(|made| Step::Connection(slot, made)),
            (_, false, _) => connect().map(|made| Step::Replaced(slot, made)),
        }
    }

    fn connect(
        &self,
        output: &OutputSettings,
        share: usize,
        node: &str,
        loaded: &Loaded,
    ) -> Result<Arc<dyn Output>, Vec<Problem>> {
        let Opened {
            checkpoint, host, ..
        } = &self.opened;
        ship::connect(
            output,
            share,
            node,
            host,
            Arc::clone(checkpoint) as _,
            loaded,
        )
    }

    /// Waits until these outputs have nothing on its way, and makes durable what they wrote.
    async fn quiet(&self, slots: &[usize]) -> Result<(), Problem> {
        let until = tokio::time::Instant::now() + QUIET_WITHIN;
        for slot in slots {
            while !self.pipeline.hold_output(*slot, true) {
                if tokio::time::Instant::now() >= until {
                    return Err(of_operator(
                        "outputs",
                        "",
                        "a file output did not come to rest, so that another could not take its files over",
                        "see why it is slow in `ringpilot explain`, then reload again",
                    ));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let output = self.pipeline.output(*slot);
            let synced = tokio::task::block_in_place(|| output.sync());
            if let Err(error) = synced {
                return Err(of_operator(
                    "outputs",
                    "",
                    format!("a file output's files cannot be synced: {error}"),
                    "mend the disk, then reload again",
                ));
            }
        }
        Ok(())
    }

    fn release(&self, slots: &[usize]) {
        for slot in slots {
            self.pipeline.hold_output(*slot, false);
        }
    }

    /// Does one step; what to say of it.
    fn take(
        &self,
        output: &OutputSettings,
        step: Step,
        new: &Settings,
        old: &Settings,
        share: usize,
    ) -> Result<Option<String>, Vec<Problem>> {
        let name = &output.name;
        let again = |made: Arc<dyn Output>| match output.kind.as_str() {
            // Now that nobody else writes them it is known how long its files are.
            "file" => {
                let loaded = Loaded {
                    files: self.opened.checkpoint.files(),
                    ..Loaded::default()
                };
                self.connect(output, share, &new.node_name, &loaded)
            }
            _ => Ok(made),
        };
        let renamed = former(old, output).filter(|before| before.name != *name);
        let renamed =
            match renamed.and_then(|before| Some((before, self.pipeline.slot_of(&before.name)?))) {
                Some((before, slot)) => {
                    self.pipeline.rename_output(slot, name);
                    format!(" (it was `{}`, and goes on where that stood)", before.name)
                }
                None => String::new(),
            };
        Ok(match step {
            Step::Same => {
                if let Some(slot) = self.pipeline.slot_of(name) {
                    self.pipeline
                        .change_output(slot, output, new.batch_wait, share, None);
                }
                None
            }
            Step::Manners(slot) => {
                self.pipeline
                    .change_output(slot, output, new.batch_wait, share, None);
                Some(format!("output `{name}` is changed{renamed}"))
            }
            Step::Connection(slot, made) => {
                let made = again(made)?;
                self.pipeline
                    .change_output(slot, output, new.batch_wait, share, Some(made));
                Some(format!("output `{name}` is changed{renamed}"))
            }
            Step::Replaced(slot, made) => {
                let made = again(made)?;
                self.pipeline.retire_output(slot);
                self.add(output, new, share, made, true)?;
                Some(format!(
                    "output `{name}` is of another kind now, and goes on where it stood{renamed}"
                ))
            }
            Step::Added(made) => {
                let made = again(made)?;
                self.add(output, new, share, made, false)?;
                let from = match output.start_at {
                    None => "at the end of what is there".to_owned(),
                    Some(start_at) => format!("at `{start_at:?}`").to_lowercase(),
                };
                Some(format!("output `{name}` is added, and begins {from}"))
            }
        })
    }

    fn add(
        &self,
        output: &OutputSettings,
        settings: &Settings,
        share: usize,
        made: Arc<dyn Output>,
        known: bool,
    ) -> Result<(), Vec<Problem>> {
        let plan = OutputPlan {
            codec: ship::codec_of(output),
            dated: ship::is_dated(output),
            start_at: output.start_at,
            known,
            shipper: Shipper::new(output, settings.batch_wait, made, share, rand::random()),
        };
        match self.pipeline.add_output(plan) {
            Some((slot, is_new)) => {
                self.pipeline
                    .change_output(slot, output, settings.batch_wait, share, None);
                if is_new {
                    self.shipping.begin(slot);
                }
                Ok(())
            }
            None => Err(vec![of_operator(
                output.path(),
                "",
                format!("{MOST_OUTPUTS} outputs were there since the daemon was started"),
                "start it again: it goes on where it stands",
            )]),
        }
    }

    async fn tell_collector(&self, settings: &Arc<Settings>) {
        let (done, told) = oneshot::channel();
        let reconfigure = Reconfigure {
            settings: Arc::clone(settings),
            done,
        };
        // Where nobody collects any more the daemon ends.
        if self.collector.send(reconfigure).await.is_ok() {
            drop(told.await);
        }
    }
}

fn has(settings: &Settings, name: &str) -> bool {
    settings.outputs.iter().any(|output| output.name == name)
}

/// What an output was before: under its name, else under the one it had.
fn former<'old>(old: &'old Settings, output: &OutputSettings) -> Option<&'old OutputSettings> {
    let named = |name: &str| old.outputs.iter().find(|before| before.name == name);
    named(&output.name).or_else(|| named(output.renamed_from.as_deref()?))
}

fn is_file(old: &Settings, output: &OutputSettings) -> bool {
    former(old, output).is_some_and(|before| before.kind == "file")
}

/// What is only read at the start stays as it is; which of it is written differently.
fn keep_for_next_start(new: &mut Settings, old: &Settings) -> Vec<String> {
    let mut keys = Vec::new();
    macro_rules! keep {
        ($($field:ident $key:literal),*) => {$(
            if new.$field != old.$field {
                new.$field.clone_from(&old.$field);
                keys.push($key.to_owned());
            }
        )*};
    }
    keep!(
        node_name "node_name", data_dir "data_dir", http "http", metrics_listen "metrics_listen",
        memory_budget "memory_budget", workers "workers", discover "discover", host_root "host_root",
        per_container_metrics "metrics.per_container"
    );
    keys
}

/// Sources and other keys that are different.
fn other_changes(old: &Settings, new: &Settings) -> Vec<String> {
    let mut lines = Vec::new();
    for source in &new.sources {
        match old.sources.iter().find(|before| before.name == source.name) {
            None => lines.push(format!("source `{}` is added", source.name)),
            Some(before) if before != source => {
                lines.push(format!("source `{}` is changed", source.name));
            }
            Some(_) => {}
        }
    }
    for source in &old.sources {
        if new.sources.iter().all(|after| after.name != source.name) {
            lines.push(format!("source `{}` is removed", source.name));
        }
    }
    for (key, is_changed) in [
        ("policy", old.policy != new.policy),
        ("fields", old.fields != new.fields),
        ("fields_from", old.fields_from != new.fields_from),
        ("label_prefixes", old.label_prefixes != new.label_prefixes),
        ("collect_stdout", old.collect_stdout != new.collect_stdout),
        ("start_at", old.start_at != new.start_at),
        ("time_zone", old.time_zone != new.time_zone),
        ("max_line_bytes", old.max_line_bytes != new.max_line_bytes),
        ("batch_wait", old.batch_wait != new.batch_wait),
        ("shutdown_grace", old.shutdown_grace != new.shutdown_grace),
    ] {
        if is_changed {
            lines.push(format!("{key} is changed"));
        }
    }
    lines
}
