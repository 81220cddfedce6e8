//! The daemon: the pipeline's steps on threads of their own.
//! Place: `run`, `demo` and the benches start one; everything it does is in the modules of the flow.
//! Invariants: no thread blocks another but at the pipeline's lock; a stop reads no more, delivers what is in flight
//! within the grace, and saves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ringpilot_shared::follow::{Event, Follower, KnownStream, Positions, WantId};
use ringpilot_shared::host::{Host, Wakes, Woken};

use crate::api_stdout::{self, ApiStdout};
use crate::collect::{Collector, Follow};
use crate::control::tap::Taps;
use crate::discover::{self, Heard, Runtime, Workload};
use crate::pipeline::{Pipeline, Turn};
use crate::problem::{Problem, Problems};
use crate::rings::{self, Rings};
use crate::settings::{Mode, Settings};
use crate::ship::Verdict;
use crate::ship::dead_letter::DeadLetterFiles;

/// Between two saves at most.
const SAVE_EVERY: Duration = Duration::from_millis(900);
/// Time's own work is done this often.
const TICK_EVERY: Duration = Duration::from_millis(100);
/// Writes to followed files are gathered for so long before they are looked at.
const GATHER: Duration = Duration::from_millis(150);
/// While writes are gathered, a new name is looked for this often: a container may live no longer.
const GLANCE: Duration = Duration::from_millis(8);
/// The longest that an idle thread sleeps.
const NAP: Duration = Duration::from_secs(1);
/// How many times its own time an attempt may take: what is slow but moving is not cut off.
const PATIENCE: u32 = 10;
/// How long the first full list of a runtime is waited for before the daemon counts as started.
const FIRST_LISTS: Duration = Duration::from_secs(20);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its data path.
    pub pipeline: Arc<Pipeline>,
    /// What is wrong.
    pub problems: Arc<Problems>,
    /// What it runs with.
    pub settings: Arc<Settings>,
    /// What outputs refused.
    pub dead_letters: Arc<DeadLetterFiles>,
    reconfigure: tokio::sync::mpsc::Sender<Reconfigure>,
    shipping: Shipping,
    stop: Arc<AtomicBool>,
    ready: Arc<AtomicBool>,
    looked: Arc<AtomicBool>,
    /// The rings of shims, where they are used.
    pub rings: Option<Rings>,
    threads: Vec<JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
}

/// Another configuration for who collects.
#[derive(Debug)]
pub struct Reconfigure {
    /// What counts from now on.
    pub settings: Arc<Settings>,
    /// Told when it does.
    pub done: tokio::sync::oneshot::Sender<()>,
}

/// Sends what outputs have to send.
#[derive(Debug, Clone)]
pub struct Shipping {
    pipeline: Arc<Pipeline>,
    host: Arc<dyn Host>,
    stop: Arc<AtomicBool>,
    taps: Arc<Taps>,
    runtime: tokio::runtime::Handle,
}

impl Shipping {
    /// Sends what one output has to send from now on, until the daemon ends.
    pub fn begin(&self, output: usize) {
        self.runtime.spawn(ship(
            Arc::clone(&self.pipeline),
            Arc::clone(&self.host),
            output,
            Arc::clone(&self.stop),
            Arc::clone(&self.taps),
        ));
    }

    /// Who looks on.
    #[must_use]
    pub fn taps(&self) -> Arc<Taps> {
        Arc::clone(&self.taps)
    }
}

/// What a daemon is made of, once everything is opened.
#[derive(Debug)]
pub struct Parts {
    /// Settings.
    pub settings: Arc<Settings>,
    /// Clock and files.
    pub host: Arc<dyn Host>,
    /// Where the host's files are seen.
    pub host_root: PathBuf,
    /// The data path.
    pub pipeline: Arc<Pipeline>,
    /// What outputs refused.
    pub dead_letters: Arc<DeadLetterFiles>,
    /// Streams that the checkpoint knows.
    pub known: Vec<KnownStream>,
    /// Where problems are told.
    pub problems: Arc<Problems>,
    /// The network's and control's threads.
    pub runtime: tokio::runtime::Runtime,
    /// Workloads that no runtime tells of.
    pub workloads: Vec<Workload>,
    /// Streams of shims' files that the checkpoint knows, by owner.
    pub ring_streams: Vec<(String, KnownStream)>,
    /// How rings are kept; none are where `None`.
    pub rings: Option<rings::Limits>,
    /// Looks up the environment.
    pub variable: fn(&str) -> Option<String>,
    /// Random: stream ids.
    pub seed: u64,
}

impl Daemon {
    /// Starts every thread.
    ///
    /// # Errors
    /// When a thread cannot be started, or the policy is wrong.
    pub fn start(parts: Parts) -> Result<Self, String> {
        let Parts {
            settings,
            host,
            host_root,
            pipeline,
            dead_letters,
            known,
            problems,
            runtime,
            workloads,
            ring_streams,
            rings: limits,
            variable,
            seed,
        } = parts;
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, looked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let mut threads = Vec::new();
        let (mut rings, mut told_by_rings) = (None, None);
        if let Some(limits) = limits.filter(|_| settings.discover.rings.mode != Mode::Off) {
            let parts = rings::Parts {
                dir: settings.discover.rings.dir.clone(),
                limits,
                host: Arc::clone(&host),
                pipeline: Arc::clone(&pipeline),
                problems: Arc::clone(&problems),
                known: ring_streams,
                prefix: settings.label_prefixes.first().cloned().unwrap_or_default(),
            };
            let (started, heard, thread) =
                Rings::start(parts).map_err(|error| format!("rings cannot be drained: {error}"))?;
            threads.push(thread);
            (rings, told_by_rings) = (Some(started), Some(heard));
        }
        let mut spawn = |name: &str, body: Box<dyn FnOnce() + Send>| -> Result<(), String> {
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(body)
                .map_err(|error| format!("a thread cannot be started: {error}"))?;
            threads.push(thread);
            Ok(())
        };
        let workers = settings.workers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
        });
        for n in 0..workers {
            let (pipeline, stop) = (Arc::clone(&pipeline), Arc::clone(&stop));
            spawn(
                &format!("worker-{n}"),
                Box::new(move || work(&pipeline, &stop)),
            )?;
        }
        {
            let (pipeline, stop, host) =
                (Arc::clone(&pipeline), Arc::clone(&stop), Arc::clone(&host));
            let problems = Arc::clone(&problems);
            spawn(
                "save",
                Box::new(move || save(&pipeline, &stop, &*host, &problems)),
            )?;
        }
        let follower = Follower::new(Arc::clone(&host), known, seed);
        let wakes = follower.wakes();
        if let Some(wakes) = &wakes {
            // Set once: a pipeline has one follower.
            drop(pipeline.follower.set(Arc::clone(wakes)));
        }
        let (commands, told) = mpsc::channel();
        {
            let (pipeline, stop, host) =
                (Arc::clone(&pipeline), Arc::clone(&stop), Arc::clone(&host));
            let (looked, problems) = (Arc::clone(&looked), Arc::clone(&problems));
            let (wakes, ready) = (wakes.clone(), Arc::clone(&ready));
            let rings = rings.clone();
            spawn(
                "follow",
                Box::new(move || {
                    let follow = FollowThread {
                        follower,
                        pipeline,
                        told,
                        host,
                        wakes,
                        stop,
                        ready,
                        looked,
                        problems,
                        rings,
                    };
                    follow.run();
                }),
            )?;
        }
        let shipping = Shipping {
            pipeline: Arc::clone(&pipeline),
            host: Arc::clone(&host),
            stop: Arc::clone(&stop),
            taps: Arc::default(),
            runtime: runtime.handle().clone(),
        };
        for output in 0..settings.outputs.len() {
            shipping.begin(output);
        }
        let mut collector = Collector::new(
            Arc::clone(&settings),
            host_root.clone(),
            Arc::clone(&pipeline),
            Arc::clone(&problems),
        )
        .map_err(|problem| problem.to_string())?;
        let api = (!pipeline.is_once()).then(|| {
            let dir = settings.data_dir.join("stdout");
            // As the follower names it: a relative data_dir is found where the daemon was started.
            let dir = std::path::absolute(&dir).unwrap_or(dir);
            collector.copies(dir.clone());
            ApiStdout::new(api_stdout::Around {
                dir,
                sockets: discover::docker_sockets(&settings.discover.docker, &variable),
                host_root: host_root.clone(),
                pipeline: Arc::clone(&pipeline),
                problems: Arc::clone(&problems),
                follower: commands.clone(),
            })
        });
        for workload in workloads {
            for follow in collector.heard(Heard::Here(Box::new(workload))) {
                // The follower's thread has the other end, and runs.
                drop(commands.send(follow));
            }
        }
        let expected = discover::expected(&settings, &host_root, &variable);
        let heard = {
            let _inside = runtime.enter();
            discover::spawn(&settings, &host_root, &variable)
        };
        let (reconfigure, reconfigured) = tokio::sync::mpsc::channel(1);
        runtime.spawn(collect(
            collector,
            heard,
            reconfigured,
            told_by_rings,
            Ways {
                rings: rings.clone(),
                api,
                commands,
                wakes,
            },
            expected,
            Arc::clone(&ready),
        ));
        Ok(Self {
            rings,
            pipeline,
            problems,
            settings,
            dead_letters,
            reconfigure,
            shipping,
            stop,
            ready,
            looked,
            threads,
            runtime,
        })
    }

    /// Whether discovery has completed one full list of every runtime that is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The same, for those that outlive a borrow of the daemon.
    #[must_use]
    pub fn readiness(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ready)
    }

    /// Whether everything that was there at the start has been looked at once.
    #[must_use]
    pub fn has_looked(&self) -> bool {
        self.looked.load(Ordering::Acquire)
    }

    /// Where another configuration is told.
    #[must_use]
    pub fn collector(&self) -> tokio::sync::mpsc::Sender<Reconfigure> {
        self.reconfigure.clone()
    }

    /// Who sends.
    #[must_use]
    pub fn shipping(&self) -> Shipping {
        self.shipping.clone()
    }

    /// Where the daemon's network tasks run.
    #[must_use]
    pub fn handle(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }

    /// Stops: reads no more, delivers what is in flight within `grace`, saves. Whether nothing was left in flight.
    pub fn stop(self, grace: Duration, host: &dyn Host) -> bool {
        self.pipeline.stop_reading();
        let until = host.now() + grace;
        let mut is_clean = false;
        while host.now() < until {
            if self.pipeline.settledness().in_flight == 0 {
                is_clean = true;
                break;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.stop.store(true, Ordering::Release);
        if let Some(rings) = &self.rings {
            rings.stop();
        }
        if let Some(wakes) = self.pipeline.follower.get() {
            wakes.wake();
        }
        self.pipeline.wake_all();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the daemon has panicked");
            }
        }
        // The last word: what was acknowledged until now is what the next start goes on from.
        if let Err(error) = self.pipeline.save() {
            tracing::error!("the checkpoint could not be saved at the end: {error}");
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        is_clean
    }
}

fn work(pipeline: &Pipeline, stop: &AtomicBool) {
    let mut worker = pipeline.worker();
    while !stop.load(Ordering::Acquire) {
        if pipeline.turn(&mut worker) == Turn::Idle {
            pipeline.wait_for_work(NAP);
        }
    }
}

fn save(pipeline: &Pipeline, stop: &AtomicBool, host: &dyn Host, problems: &Problems) {
    let mut saved_at = host.now();
    let mut is_failing = false;
    while !stop.load(Ordering::Acquire) {
        let asked = pipeline.wait_to_save(TICK_EVERY);
        pipeline.tick();
        if !asked && host.now() < saved_at + SAVE_EVERY {
            continue;
        }
        saved_at = host.now();
        problems.set("rates", pipeline.held_back());
        match pipeline.save() {
            Ok(()) if is_failing => {
                is_failing = false;
                tracing::info!("the checkpoint is saved again");
            }
            Ok(()) => {}
            Err(error) => {
                if !is_failing {
                    tracing::error!(
                        "the checkpoint cannot be saved: {error}; delivery goes on, and a restart now may repeat \
                         records; make room or mend the rights of data_dir"
                    );
                }
                is_failing = true;
            }
        }
    }
}

struct FollowThread {
    follower: Follower,
    pipeline: Arc<Pipeline>,
    told: mpsc::Receiver<Follow>,
    host: Arc<dyn Host>,
    wakes: Option<Arc<dyn Wakes>>,
    stop: Arc<AtomicBool>,
    ready: Arc<AtomicBool>,
    looked: Arc<AtomicBool>,
    problems: Arc<Problems>,
    rings: Option<Rings>,
}

impl FollowThread {
    fn run(mut self) {
        let mut woken = Woken::default();
        let mut troubles = BTreeMap::new();
        while !self.stop.load(Ordering::Acquire) {
            // Whoever has heard everything has sent everything: the look after that has seen it all.
            let is_ready = self.ready.load(Ordering::Acquire);
            for follow in self.told.try_iter() {
                match follow {
                    Follow::Want(wanted) => self.follower.want(wanted),
                    Follow::Unwant(want) => self.follower.unwant(want),
                }
            }
            let (mut suspects, mut released) = self.pipeline.for_follower();
            if let Some(rings) = &self.rings {
                rings.take(&mut suspects, &mut released);
            }
            let positions: &dyn Positions = &*self.pipeline;
            let events = self.follower.look(woken, &suspects, &released, positions);
            for event in &events {
                tracing::debug!("{event}");
            }
            self.tell(&events, &mut troubles);
            self.pipeline.apply(events);
            if is_ready {
                self.looked.store(true, Ordering::Release);
            }
            woken = self.wait();
        }
    }

    /// Makes problems of what cannot be read, in the words of whom it concerns.
    fn tell(&self, events: &[Event], troubles: &mut BTreeMap<(WantId, PathBuf), Problem>) {
        let mut news = false;
        for event in events {
            let Event::Trouble {
                want,
                path,
                trouble,
            } = event
            else {
                continue;
            };
            news = true;
            let key = (*want, path.clone());
            let Some((kind, reason)) = trouble else {
                troubles.remove(&key);
                continue;
            };
            let Some(spec) = self.pipeline.spec_of(*want) else {
                continue;
            };
            let problem = Problem {
                container: spec.called(),
                key: path.display().to_string(),
                value: String::new(),
                reason: reason.clone(),
                cure: cure(*kind, reason).to_owned(),
            };
            troubles.insert(key, problem);
        }
        if news {
            self.problems
                .set("files", troubles.values().cloned().collect());
        }
    }

    fn wait(&self) -> Woken {
        let now = self.host.now();
        let due = self.follower.due_at(now).saturating_sub(now).min(NAP);
        let Some(wakes) = &self.wakes else {
            std::thread::park_timeout(due.max(GATHER));
            return Woken::default();
        };
        let mut woken = wakes.wait(due);
        // What is only written to is gathered; a new name is looked at now.
        let until = self.host.now() + GATHER;
        while !woken.written.is_empty() && !woken.is_urgent() {
            let left = until.saturating_sub(self.host.now());
            if left.is_zero() {
                break;
            }
            std::thread::park_timeout(left.min(GLANCE));
            woken.extend(wakes.wait(Duration::ZERO));
        }
        woken
    }
}

/// What to do about a file that cannot be read.
fn cure(kind: std::io::ErrorKind, reason: &str) -> &'static str {
    use std::io::ErrorKind;
    match kind {
        _ if reason.contains("stdout") => "declare it as `NAME=stdout`",
        ErrorKind::PermissionDenied => {
            "give the daemon the right to read it, or let the workload write it readable"
        }
        ErrorKind::InvalidInput => "let the path name regular files within the container",
        ErrorKind::TimedOut => "mend the mount; it is tried again by itself",
        ErrorKind::NotFound => {
            "let the workload make the folder, or declare the path where it writes"
        }
        _ => "mend what the reason names; it is tried again by itself",
    }
}

/// Sends what one output has to send, as many requests at a time as it allows.
async fn ship(
    pipeline: Arc<Pipeline>,
    host: Arc<dyn Host>,
    output: usize,
    stop: Arc<AtomicBool>,
    taps: Arc<Taps>,
) {
    while !stop.load(Ordering::Acquire) {
        while let Some(attempt) = pipeline.next_load(output) {
            let (pipeline, host) = (Arc::clone(&pipeline), Arc::clone(&host));
            let taps = Arc::clone(&taps);
            let (to, timeout) = pipeline.way_of(output);
            tokio::spawn(async move {
                // An output gives up by itself within its time; this is for one that does not.
                let guard = timeout * PATIENCE;
                let verdict = match tokio::time::timeout(guard, to.attempt(&attempt.load)).await {
                    Ok(verdict) => verdict,
                    Err(_) => Verdict::Failed {
                        cause: format!("no answer within {guard:?}").into(),
                    },
                };
                taps.offer(&pipeline, &*host, output, &attempt.load, &verdict);
                // Dead letters are written before the verdict counts: that blocks.
                tokio::task::block_in_place(|| pipeline.finish(output, attempt.number, verdict));
            });
        }
        let nap = match pipeline.wakes_at(output) {
            Some(at) => at.saturating_sub(host.now()).max(Duration::from_millis(1)),
            None => NAP,
        };
        drop(tokio::time::timeout(nap.min(NAP), pipeline.shipping[output].notified()).await);
    }
}

/// Who reads what is wanted: shims, the engine's API first, or the follower alone.
struct Ways {
    rings: Option<Rings>,
    api: Option<ApiStdout>,
    commands: mpsc::Sender<Follow>,
    wakes: Option<Arc<dyn Wakes>>,
}

impl Ways {
    /// Tells each who reads. Whether the thread that follows still hears.
    fn tell(&mut self, told: Vec<Follow>, collector: &Collector) -> bool {
        let mut is_news = false;
        for follow in told {
            tracing::debug!("{follow}");
            let mut follow = Some(follow);
            if let Some(rings) = &self.rings {
                follow = follow.and_then(|follow| {
                    rings.follow(follow, |wanted| collector.name_of(wanted.want))
                });
            }
            if let Some(api) = &mut self.api {
                follow = follow.and_then(|follow| api.follow(follow));
            }
            let Some(follow) = follow else { continue };
            is_news = true;
            if self.commands.send(follow).is_err() {
                return false;
            }
        }
        if is_news {
            self.wake();
        }
        true
    }

    fn wake(&self) {
        if let Some(wakes) = &self.wakes {
            wakes.wake();
        }
    }
}

/// Takes what is heard to who reads.
async fn collect(
    mut collector: Collector,
    mut heard: tokio::sync::mpsc::Receiver<Heard>,
    mut reconfigured: tokio::sync::mpsc::Receiver<Reconfigure>,
    mut told_by_rings: Option<tokio::sync::mpsc::UnboundedReceiver<Heard>>,
    mut ways: Ways,
    mut expected: Vec<Runtime>,
    ready: Arc<AtomicBool>,
) {
    let late = tokio::time::sleep(FIRST_LISTS);
    tokio::pin!(late);
    let mut is_started = false;
    loop {
        if !is_started && expected.is_empty() {
            is_started = true;
            collector.started();
            if let Some(api) = &ways.api {
                api.forget_old();
            }
            ready.store(true, Ordering::Release);
            ways.wake();
        }
        let by_ring = async {
            match &mut told_by_rings {
                Some(told) => told.recv().await,
                None => None,
            }
        };
        let one = tokio::select! {
            Some(one) = heard.recv() => one,
            Some(one) = by_ring => one,
            () = &mut late, if !is_started => {
                // A runtime that does not answer keeps nobody from collecting the others.
                expected.clear();
                continue;
            }
            reconfigure = reconfigured.recv() => {
                let Some(Reconfigure { settings, done }) = reconfigure else {
                    // The daemon ends.
                    return;
                };
                match collector.reload(settings) {
                    Ok(told) => if !ways.tell(told, &collector) { return },
                    Err(problem) => tracing::error!("{problem}"),
                }
                ways.wake();
                // Who asked may have gone.
                done.send(()).ok();
                continue;
            }
        };
        if let Heard::Listed(runtime) = one
            && let Some(at) = expected.iter().position(|expected| *expected == runtime)
        {
            expected.swap_remove(at);
        }
        let (mut shim, mut gone) = (None, None);
        match &one {
            Heard::Here(workload) if workload.runtime == Runtime::Shim => {
                shim = Some(workload.id.clone());
            }
            Heard::Gone { id, .. } => gone = Some(id.clone()),
            _ => {}
        }
        let told = collector.heard(one);
        if !ways.tell(told, &collector) {
            return;
        }
        if let (Some(id), Some(api)) = (gone, &mut ways.api) {
            api.gone(&id);
        }
        if let (Some(owner), Some(rings)) = (shim, &ways.rings) {
            rings.declared(&owner);
        }
    }
}

/// Where the host's files are seen: as told, else `/host` where it is mounted, else `/`.
#[must_use]
pub fn host_root(settings: &Settings) -> PathBuf {
    let mounted = || Path::new("/host/proc").exists() && Path::new("/host/etc").exists();
    match &settings.host_root {
        Some(root) => root.clone(),
        None if mounted() => PathBuf::from("/host"),
        None => PathBuf::from("/"),
    }
}
