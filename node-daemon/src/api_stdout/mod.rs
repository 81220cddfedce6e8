//! Stdout that only the engine's API gives (logging drivers `local`, `journald`, and those that send it elsewhere and
//! keep a copy), copied into files of our own.
//! Place: collect -> **api_stdout** -> the follower. It hears what the follower is told, copies what is meant for it,
//! and passes the rest on; from the copy on, such a stdout is a log file like any other.
//! Invariants: a copy is at most two files of 8 MiB, the older of which goes when all of it is settled:
//! while an output is down nothing more is copied, and the engine keeps its log; a container that ends is let go when
//! the engine has given all it has. A copy needs no position of its own: its last line says what to ask for next.

mod spool;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use ringpilot_shared::follow::WantId;
use tokio::sync::watch;

use crate::collect::Follow;
use crate::declare::StartAt;
use crate::discover::docker::{DockerSocket, connect};
use crate::pipeline::Pipeline;
use crate::problem::{Problem, Problems};
use spool::Spool;

/// Lines that are written at once, at most.
const GATHERED: usize = 1024;
/// Between two attempts, to reach the engine or to write.
const AGAIN: Duration = Duration::from_secs(1);
/// A container that is said to run and has nothing more to say is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long a removed container's engine is given to answer.
const ATTEMPTS_OF_REMOVED: u32 = 5;
/// How often it is looked whether what was copied is settled.
const LOOK: Duration = Duration::from_millis(200);
/// What was there before this start has been seen by the follower after so long: it sweeps each 5 s.
const SEEN_AFTER: Duration = Duration::from_secs(15);
/// A copy that nobody wrote to for so long is of no use to anybody: so long a stream is remembered that nobody sees.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What a copier is told of its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// It runs, or does again.
    Follow,
    /// It has ended: read what it said to the end.
    Ended,
    /// It is removed.
    Gone,
}

/// What copiers share.
#[derive(Debug)]
pub struct Around {
    /// `DATA_DIR/stdout`.
    pub dir: PathBuf,
    /// Where engines listen.
    pub sockets: Vec<DockerSocket>,
    /// Where the host's files are seen.
    pub host_root: PathBuf,
    /// Knows what is settled.
    pub pipeline: Arc<Pipeline>,
    /// Where problems are told.
    pub problems: Arc<Problems>,
    /// The follower's ear.
    pub follower: mpsc::Sender<Follow>,
}

/// Every copy that is being made.
#[derive(Debug)]
pub struct ApiStdout {
    around: Arc<Around>,
    copies: HashMap<Arc<str>, Copying>,
}

#[derive(Debug)]
struct Copying {
    orders: watch::Sender<Order>,
    /// Every declaration of this stdout.
    wants: watch::Sender<Vec<WantId>>,
}

/// Where the copy of a container's stdout is followed.
#[must_use]
pub fn path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.log"))
}

impl ApiStdout {
    /// Nothing is copied yet.
    #[must_use]
    pub fn new(around: Around) -> Self {
        Self {
            around: Arc::new(around),
            copies: HashMap::new(),
        }
    }

    /// Takes what the follower is to be told; gives back what it is told now.
    pub fn follow(&mut self, follow: Follow) -> Option<Follow> {
        match follow {
            Follow::Want(mut wanted) if wanted.pattern.literal_dir() == self.around.dir => {
                let id = Arc::clone(&wanted.owner);
                let start = match wanted.from_start {
                    true => self.around.pipeline.start_of(wanted.want),
                    false => StartAt::Beginning,
                };
                // Of a copy nothing is passed over: what is not wanted is not copied.
                wanted.from_start = false;
                // What was let go by the configuration, and is wanted again, is copied again.
                self.copies.retain(|_, copying| !copying.orders.is_closed());
                let copying = self.copies.entry(Arc::clone(&id)).or_insert_with(|| {
                    let (orders, heard) = watch::channel(Order::Follow);
                    let (wants, told) = watch::channel(vec![wanted.want]);
                    let copier = Copier {
                        around: Arc::clone(&self.around),
                        id,
                        called: self
                            .around
                            .pipeline
                            .spec_of(wanted.want)
                            .map_or_else(String::new, |spec| spec.called()),
                        orders: heard,
                        wants: told,
                        start,
                    };
                    tokio::spawn(copier.run());
                    Copying { orders, wants }
                });
                copying.wants.send_modify(|wants| {
                    if !wants.contains(&wanted.want) {
                        wants.push(wanted.want);
                    }
                });
                copying.orders.send_replace(Order::Follow);
                Some(Follow::Want(wanted))
            }
            Follow::Unwant(want) => {
                let mut copies = self.copies.values();
                let Some(copying) = copies.find(|one| one.wants.borrow().contains(&want)) else {
                    return Some(Follow::Unwant(want));
                };
                copying.orders.send_if_modified(|order| {
                    let is_news = *order == Order::Follow;
                    if is_news {
                        *order = Order::Ended;
                    }
                    is_news
                });
                None
            }
            other => Some(other),
        }
    }

    /// A container is removed: its copy goes when it is settled.
    pub fn gone(&mut self, id: &str) {
        if let Some(copying) = self.copies.remove(id) {
            copying.orders.send_replace(Order::Gone);
        }
    }

    /// Removes what is left of containers that went long ago, while no daemon ran. Not at once: an engine that is down
    /// tells of none, and the copies of its containers are where they go on.
    pub fn forget_old(&self) {
        let Ok(listed) = std::fs::read_dir(&self.around.dir) else {
            return;
        };
        for entry in listed.flatten() {
            let age = entry.metadata().and_then(|stat| stat.modified());
            if age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > FORGOTTEN_AFTER))
                && !self.is_copied(&entry.file_name())
            {
                // What cannot be removed now is found again at the next start.
                drop(std::fs::remove_file(entry.path()));
            }
        }
    }

    fn is_copied(&self, name: &OsStr) -> bool {
        let id = name.to_str().and_then(|name| name.split('.').next());
        id.is_some_and(|id| self.copies.contains_key(id))
    }
}

/// Why a session is over before the container's stdout is.
enum Fault {
    /// No engine knows the container.
    Missing,
    /// No declaration wants it any more.
    Unwanted,
    /// In words.
    Trouble(String),
}

/// Copies one container's stdout.
struct Copier {
    around: Arc<Around>,
    id: Arc<str>,
    /// How people call it.
    called: String,
    orders: watch::Receiver<Order>,
    wants: watch::Receiver<Vec<WantId>>,
    /// Where a copy begins that does not exist yet.
    start: StartAt,
}

impl Copier {
    async fn run(mut self) {
        let mut attempts = 0;
        loop {
            let order = *self.orders.borrow_and_update();
            let wait = match self.session().await {
                Ok(()) => {
                    self.tell(None);
                    match order {
                        Order::Follow => ASK_AGAIN,
                        Order::Ended => {
                            self.let_go();
                            // Until it starts again, or is removed.
                            Duration::MAX
                        }
                        Order::Gone => break,
                    }
                }
                Err(Fault::Unwanted) => break,
                Err(Fault::Missing) if order == Order::Gone => break,
                Err(fault) => {
                    self.tell(Some(match fault {
                        Fault::Trouble(cause) => cause,
                        _ => "no engine knows the container".to_owned(),
                    }));
                    attempts += u32::from(order == Order::Gone);
                    if attempts == ATTEMPTS_OF_REMOVED {
                        break;
                    }
                    AGAIN
                }
            };
            if order == Order::Gone {
                // Nobody gives another order.
                tokio::time::sleep(wait).await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Else the daemon ends: a removed container's last order is heard before its sender goes.
                changed = self.orders.changed() => if changed.is_err() { return }
            }
        }
        self.let_go();
        self.tell(None);
        self.remove_when_settled().await;
    }

    /// Nothing more comes: the follower reads the copy to its end.
    fn let_go(&self) {
        for want in &*self.wants.borrow() {
            // The follower's thread has the other end; without it the daemon ends.
            drop(self.around.follower.send(Follow::Unwant(*want)));
        }
        if let Some(wakes) = self.around.pipeline.follower.get() {
            wakes.wake();
        }
    }

    fn tell(&self, trouble: Option<String>) {
        let problems = trouble.map(|reason| Problem {
            container: self.called.clone(),
            key: String::new(),
            value: "stdout".to_owned(),
            reason: format!("its stdout cannot be had from the engine: {reason}"),
            cure: "mend it, or run the container with the logging driver `json-file`; it is tried again by itself"
                .to_owned(),
        });
        let owner = format!("stdout:{}", self.id);
        self.around
            .problems
            .set(&owner, problems.into_iter().collect());
    }

    /// Copies until the engine has nothing more to give.
    async fn session(&self) -> Result<(), Fault> {
        let mut spool = tokio::task::block_in_place(|| Spool::open(&self.around.dir, &self.id))
            .map_err(|error| Fault::Trouble(format!("its copy cannot be written: {error}")))?;
        let began = tokio::time::Instant::now();
        let since = match (spool.since_ns(), self.start) {
            (Some(ns), _) => ns,
            (None, StartAt::Age(age)) => {
                let now = jiff::Timestamp::now().as_nanosecond();
                i64::try_from(now - age.as_nanos() as i128).unwrap_or_default()
            }
            (None, _) => 0,
        };
        let tail = match self.start {
            StartAt::End if spool.since_ns().is_none() => "0",
            _ => "all",
        };
        let options = LogsOptionsBuilder::default()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            // Whole seconds, inclusive; where they do not fit any more everything is read and compared.
            .since(i32::try_from(since / 1_000_000_000).unwrap_or(0))
            .tail(tail)
            .build();
        let engine = self.engine().await?;
        let lines = engine.logs(&self.id, Some(options)).ready_chunks(GATHERED);
        tokio::pin!(lines);
        let mut text = Vec::new();
        while let Some(chunk) = lines.next().await {
            text.clear();
            let mut failed = None;
            for line in chunk {
                match line {
                    Ok(line) => spool.take(line, &mut text),
                    Err(error) => failed = Some(error),
                }
            }
            if !self.write(&mut spool, &text, began).await {
                return Err(Fault::Unwanted);
            }
            if let Some(error) = failed {
                return Err(fault(error));
            }
        }
        Ok(())
    }

    /// The engine that has the container.
    async fn engine(&self) -> Result<Docker, Fault> {
        let mut last = Fault::Trouble("no socket of the engine is there".to_owned());
        let sockets = self.around.sockets.iter();
        for path in sockets.filter_map(|socket| socket.find(&self.around.host_root)) {
            let engine = match connect(&path).await {
                Ok(engine) => engine,
                Err(cause) => {
                    last = Fault::Trouble(cause);
                    continue;
                }
            };
            let known = engine
                .inspect_container(
                    &self.id,
                    None::<bollard::query_parameters::InspectContainerOptions>,
                )
                .await;
            match known {
                Ok(_) => return Ok(engine),
                Err(error) => last = fault(error),
            }
        }
        Err(last)
    }

    /// Writes, however long that takes: while nothing is taken from the engine, the engine keeps it. Whether the copy is
    /// still wanted.
    async fn write(&self, spool: &mut Spool, text: &[u8], began: tokio::time::Instant) -> bool {
        while let Err(error) = tokio::task::block_in_place(|| spool.append(text)) {
            self.tell(Some(format!("its copy cannot be written: {error}")));
            tokio::time::sleep(AGAIN).await;
        }
        while spool.is_full() && self.is_wanted() {
            let pipeline = &self.around.pipeline;
            // The follower must have seen this one, and need the older no more.
            let is_seen = pipeline.has_inode(&self.id, spool.inode());
            let older = spool.older_inode();
            let is_settled = older.is_none_or(|inode| {
                began.elapsed() > SEEN_AFTER && !pipeline.has_inode(&self.id, inode)
            });
            if is_seen && is_settled {
                match tokio::task::block_in_place(|| spool.rotate()) {
                    Ok(()) => break,
                    Err(error) => {
                        self.tell(Some(format!("its copy cannot be rotated: {error}")));
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        self.is_wanted()
    }

    /// Whether a declaration still wants it: a configuration may have let it go.
    fn is_wanted(&self) -> bool {
        let wants = self.wants.borrow();
        let mut specs = wants.iter().map(|want| self.around.pipeline.spec_of(*want));
        specs.any(|spec| spec.is_some())
    }

    async fn remove_when_settled(&self) {
        let Ok(spool) = tokio::task::block_in_place(|| Spool::open(&self.around.dir, &self.id))
        else {
            return;
        };
        let inodes = [Some(spool.inode()), spool.older_inode()];
        tokio::time::sleep(SEEN_AFTER).await;
        while inodes
            .iter()
            .flatten()
            .any(|inode| self.around.pipeline.has_inode(&self.id, *inode))
        {
            tokio::time::sleep(AGAIN).await;
        }
        // What cannot be removed is found again at the next start.
        drop(spool.remove());
    }
}

fn fault(error: bollard::errors::Error) -> Fault {
    match error {
        bollard::errors::Error::DockerResponseServerError {
            status_code: 404, ..
        } => Fault::Missing,
        error => Fault::Trouble(error.to_string()),
    }
}
