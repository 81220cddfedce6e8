//! Hear of containers from Docker Engine, or from Podman by its Docker API.
//! Place: within **discover**; three ways at once, the same three as for the CRI.
//! - Events (from `create` on) make it fast. They are asked for from a moment before the list, and after a lost
//!   connection from the last event heard, so what happened in between is told too.
//! - A watch of the data-root's `containers` folder makes it faster still, and hears of containers while the
//!   engine is too busy to answer: the folder is there before the first process is.
//! - The full list at every connect and each 30 s after makes it true.
//!
//! A container is told as soon as anything is known of it: from its folder in the data-root at once (`inspect`
//! waits for a lock that the engine holds while it starts the container), then as `inspect` has it, if that
//! differs. One that has gone before either could be read is told from its event: name and labels.
//! Invariant: `Here` comes before `Gone` for each id, and `Gone` once; only what was known before a list was
//! asked for can be found missing in it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use super::docker_facts::{Engine, Facts};
use super::host_path::beneath;
use super::new_names::NewNames;
use super::{Heard, Runtime, Workload};

/// How long an answer may take; `inspect` of a container that is being started waits for it.
const ANSWER_SECONDS: u64 = 30;
/// From one full list to the next.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// Waits between attempts to connect.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How far back events are asked for again after a lost connection: the engine stamps them before it sends them,
/// not always in that order.
const OVERLAP_NS: i64 = 2_000_000_000;
/// How many removed containers are remembered, so that a repeated event does not bring one back.
const REMEMBERED: usize = 512;
/// `inspect`s at a time: enough for a burst of new containers, not so many that the engine feels it.
const INSPECTS: usize = 16;
/// How often, and how many times, a new folder is looked at for its `config.v2.json`.
const FOLDER_LOOKS: [u64; 5] = [0, 2, 10, 50, 200];

/// Where the engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerSocket {
    /// The first of these that is there, looked for anew at each attempt; silent while none is.
    FirstOf(Vec<PathBuf>),
    /// This one; told as unreachable while it is not there.
    At(PathBuf),
}

impl DockerSocket {
    /// Docker's usual places.
    #[must_use]
    pub fn docker(runtime_dir: Option<&Path>) -> DockerSocket {
        let mut paths = vec![
            PathBuf::from("/var/run/docker.sock"),
            PathBuf::from("/run/docker.sock"),
        ];
        paths.extend(runtime_dir.map(|dir| dir.join("docker.sock")));
        DockerSocket::FirstOf(paths)
    }

    /// Podman's usual places.
    #[must_use]
    pub fn podman(runtime_dir: Option<&Path>) -> DockerSocket {
        let mut paths = vec![PathBuf::from("/run/podman/podman.sock")];
        paths.extend(runtime_dir.map(|dir| dir.join("podman/podman.sock")));
        DockerSocket::FirstOf(paths)
    }

    /// Every place it names, in order.
    #[must_use]
    pub fn into_paths(self) -> Vec<PathBuf> {
        match self {
            DockerSocket::FirstOf(paths) => paths,
            DockerSocket::At(path) => vec![path],
        }
    }

    /// The socket as this process can reach it, if one is there now.
    #[must_use]
    pub fn find(&self, host_root: &Path) -> Option<PathBuf> {
        match self {
            DockerSocket::FirstOf(paths) => paths
                .iter()
                .find_map(|path| super::find_socket(host_root, path)),
            DockerSocket::At(path) => super::find_socket(host_root, path),
        }
    }
}

/// Connects to the engine at `socket`; shared with the reader of a container's stdout through the API.
///
/// # Errors
/// What stood in the way, as a sentence.
pub(crate) async fn connect(socket: &Path) -> Result<Docker, String> {
    let told = |error: bollard::errors::Error| format!("{}: {error}", socket.display());
    let Some(path) = socket.to_str() else {
        return Err(format!("{}: the path is not UTF-8", socket.display()));
    };
    Docker::connect_with_unix(path, ANSWER_SECONDS, API_DEFAULT_VERSION)
        .map_err(told)?
        .negotiate_version()
        .await
        .map_err(told)
}

/// Tells `heard` of every container, until its receiver is dropped. Connects again for ever.
pub async fn watch(socket: DockerSocket, host_root: PathBuf, heard: mpsc::Sender<Heard>) {
    let mut watcher = Watcher {
        host_root: Arc::from(host_root),
        heard,
        known: HashMap::new(),
        since_ns: None,
        removed: VecDeque::new(),
        trouble: None,
        has_listed: false,
    };
    let mut wait = FIRST_WAIT;
    loop {
        watcher.has_listed = false;
        let ended = match socket.find(&watcher.host_root) {
            Some(path) => watcher.session(&path).await,
            None => match &socket {
                DockerSocket::FirstOf(_) => match watcher.known.is_empty() {
                    true => Err(End::Silent),
                    false => Err(End::Trouble(
                        "no socket of the engine is there any more".into(),
                    )),
                },
                DockerSocket::At(path) => Err(End::Trouble(format!(
                    "{}: no socket is there",
                    path.display()
                ))),
            },
        };
        match ended {
            Ok(()) | Err(End::NobodyListens) => return,
            Err(End::Trouble(cause)) => {
                if watcher.trouble.as_deref() != Some(cause.as_str()) {
                    tracing::debug!(cause, "docker cannot be reached");
                    let told = Heard::Unreachable(Runtime::Docker, cause.clone());
                    if watcher.heard.send(told).await.is_err() {
                        return;
                    }
                    watcher.trouble = Some(cause);
                }
            }
            Err(End::Silent) => {}
        }
        wait = if watcher.has_listed {
            FIRST_WAIT
        } else {
            (wait * 2).min(LONGEST_WAIT)
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = watcher.heard.closed() => return,
        }
    }
}

/// Why a session is over.
enum End {
    /// It must be told.
    Trouble(String),
    /// There never was an engine.
    Silent,
    /// The receiver is gone.
    NobodyListens,
}

struct Watcher {
    host_root: Arc<Path>,
    heard: mpsc::Sender<Heard>,
    known: HashMap<String, Known>,
    /// The engine's own time up to which everything has been heard.
    since_ns: Option<i64>,
    /// The last containers told as gone; ids are never used twice.
    removed: VecDeque<String>,
    /// Whether this session got as far as a list.
    has_listed: bool,
    /// What was last told as `Unreachable`.
    trouble: Option<String>,
}

/// A container in this module's eyes.
#[derive(Default)]
struct Known {
    /// As last told.
    told: Option<Box<Workload>>,
    /// What its events said, until something better is known.
    event: Option<HashMap<String, String>>,
    /// Whether it is being asked about now.
    busy: bool,
    /// Whether something happened meanwhile, so that it must be asked about again.
    again: bool,
    /// Whether the engine has said that it is removed.
    gone: bool,
    /// Whether the last word on it was the engine's own.
    sure: bool,
    /// Whether the engine has told an event of it: it knows the container.
    evented: bool,
}

/// What asking about one container brought.
struct Answer {
    id: String,
    found: Found,
}

enum Found {
    /// From its folder; the engine's own word follows.
    OnDisk(Box<Workload>),
    /// The engine's word, which is the last one.
    Inspected(Box<Workload>),
    /// The engine does not know it (any more).
    Missing,
    /// The engine did not answer.
    Failed(String),
}

impl Watcher {
    async fn session(&mut self, socket: &Path) -> Result<(), End> {
        let docker = Arc::new(connect(socket).await.map_err(End::Trouble)?);
        let (engine, engine_time_ns) = engine(&docker)
            .await
            .map_err(|cause| End::Trouble(format!("{}: {cause}", socket.display())))?;
        let since_ns = match self.since_ns {
            Some(heard_ns) => heard_ns.saturating_sub(OVERLAP_NS),
            None => engine_time_ns,
        };
        self.since_ns = Some(since_ns.max(self.since_ns.unwrap_or_default()));
        let lost = |cause: String| End::Trouble(format!("{}: {cause}", socket.display()));

        let filters = HashMap::from([("type", vec!["container"])]);
        let options = EventsOptionsBuilder::default()
            .since(&seconds(since_ns))
            .filters(&filters)
            .build();
        let events = docker.events(Some(options));
        tokio::pin!(events);

        let (answer_sender, mut answers) = mpsc::channel(64);
        let ask = Ask {
            docker: docker.clone(),
            engine: Arc::new(engine),
            host_root: self.host_root.clone(),
            answers: answer_sender,
            turns: Arc::new(Semaphore::new(INSPECTS)),
        };
        for known in self.known.values_mut() {
            // Who was asked has gone with the last connection.
            (known.busy, known.again) = (false, false);
        }
        let mut folders = ask.watch_folders();
        let (list_sender, mut lists) = mpsc::channel(1);
        let mut ticks = tokio::time::interval(LIST_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked_for: Option<HashSet<String>> = None;
        // Ids of the last list that have not been answered for yet.
        let mut awaited: Option<HashSet<String>> = None;
        let mut is_first = true;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.event(&ask, event).await?,
                    Some(Err(error)) => return Err(lost(error.to_string())),
                    None => return Err(lost("the engine closed the connection".into())),
                },
                Some(answer) = answers.recv() => {
                    let is_last = !matches!(answer.found, Found::OnDisk(_));
                    let id = answer.id.clone();
                    self.answer(&ask, answer).await?;
                    if let Some(ids) = awaited.as_mut().filter(|_| is_last) {
                        ids.remove(&id);
                    }
                },
                name = new_folder(&mut folders) => self.folder(&ask, name),
                _ = ticks.tick() => {
                    if asked_for.is_none() && awaited.is_none() {
                        asked_for = Some(self.known.keys().cloned().collect());
                        let (docker, sender) = (docker.clone(), list_sender.clone());
                        tokio::spawn(async move {
                            // No receiver: the session is over.
                            drop(sender.send(list(&docker).await).await);
                        });
                    }
                },
                Some(listed) = lists.recv() => {
                    let before = asked_for.take().unwrap_or_default();
                    let listed = listed.map_err(lost)?;
                    (self.trouble, self.has_listed) = (None, true);
                    for id in before.iter().filter(|id| !listed.contains_key(*id)) {
                        self.gone(id).await?;
                    }
                    let mut ids = HashSet::new();
                    for (id, is_running) in listed {
                        if self.removed.contains(&id) {
                            continue;
                        }
                        let known = self.known.entry(id.clone()).or_default();
                        let as_told = known.sure && known.told.as_ref().is_some_and(|told| {
                            (told.state == super::State::Running) == is_running
                        });
                        if is_first || !as_told {
                            ask.about(&id, known);
                            ids.insert(id);
                        }
                    }
                    is_first = false;
                    awaited = Some(ids);
                },
                () = self.heard.closed() => return Err(End::NobodyListens),
            }
            if awaited.as_ref().is_some_and(HashSet::is_empty) {
                awaited = None;
                self.tell(Heard::Listed(Runtime::Docker)).await?;
            }
        }
    }

    async fn tell(&self, heard: Heard) -> Result<(), End> {
        self.heard.send(heard).await.map_err(|_| End::NobodyListens)
    }

    async fn event(&mut self, ask: &Ask, event: EventMessage) -> Result<(), End> {
        if let Some(at) = event.time_nano {
            self.since_ns = self.since_ns.max(Some(at));
        }
        let Some(actor) = event.actor else {
            return Ok(());
        };
        let (Some(id), Some(action)) = (actor.id, event.action) else {
            return Ok(());
        };
        if self.removed.contains(&id) {
            return Ok(());
        }
        match action.as_str() {
            "create" | "start" | "restart" | "die" | "rename" | "update" => {
                let known = self.known.entry(id.clone()).or_default();
                if known.event.is_none() && known.told.is_none() {
                    known.event = actor.attributes;
                }
                known.evented = true;
                ask.about(&id, known);
            }
            "destroy" | "remove" => {
                let known = self.known.entry(id.clone()).or_default();
                if known.event.is_none() && known.told.is_none() {
                    known.event = actor.attributes;
                }
                if known.busy && known.told.is_none() {
                    // Whoever asks may have read more than the event says.
                    known.gone = true;
                } else {
                    self.gone(&id).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn folder(&mut self, ask: &Ask, id: String) {
        if self.removed.contains(&id) {
            return;
        }
        let known = self.known.entry(id.clone()).or_default();
        if known.told.is_none() {
            ask.about(&id, known);
        }
    }

    async fn answer(&mut self, ask: &Ask, answer: Answer) -> Result<(), End> {
        let Some(known) = self.known.get_mut(&answer.id) else {
            // Told as gone while it was being asked about.
            return Ok(());
        };
        let is_last = !matches!(answer.found, Found::OnDisk(_));
        let found = match answer.found {
            // The engine's word is not taken back for the folder's.
            Found::OnDisk(_) if known.sure => None,
            Found::OnDisk(workload) => Some(workload),
            Found::Inspected(workload) => {
                known.sure = true;
                Some(workload)
            }
            Found::Missing => {
                // The folder is there before the engine knows the container: its `create` asks again. One that never
                // becomes a container is missing in the next list.
                known.gone |= known.sure || known.evented;
                None
            }
            Found::Failed(cause) => {
                tracing::debug!(
                    id = answer.id,
                    cause,
                    "docker did not answer for a container"
                );
                known.sure = false;
                None
            }
        };
        if let Some(workload) = found.filter(|found| known.told.as_ref() != Some(found)) {
            known.told = Some(workload.clone());
            known.event = None;
            if !is_hidden(&workload) {
                self.heard
                    .send(Heard::Here(workload))
                    .await
                    .map_err(|_| End::NobodyListens)?;
            }
        }
        if !is_last {
            return Ok(());
        }
        known.busy = false;
        if known.gone {
            return self.gone(&answer.id).await;
        }
        if std::mem::take(&mut known.again) {
            ask.about(&answer.id, known);
        }
        Ok(())
    }

    async fn gone(&mut self, id: &str) -> Result<(), End> {
        let Some(known) = self.known.remove(id) else {
            return Ok(());
        };
        let told = match (known.told, known.event) {
            (Some(told), _) => told,
            // Nobody could look in time: its name and labels at least are told, so that it is not missed silently.
            (None, Some(attributes)) => {
                let engine = Engine::default();
                let mut workload =
                    Facts::from_event(id, attributes).into_workload(&self.host_root, &engine);
                workload.state = super::State::Ended;
                workload.stdout = super::Stdout::None(
                    "the container was removed before the engine could be asked about it".into(),
                );
                let workload = Box::new(workload);
                if !is_hidden(&workload) {
                    self.tell(Heard::Here(workload.clone())).await?;
                }
                workload
            }
            (None, None) => return Ok(()),
        };
        if self.removed.len() == REMEMBERED {
            self.removed.pop_front();
        }
        self.removed.push_back(id.to_owned());
        if is_hidden(&told) {
            return Ok(());
        }
        self.tell(Heard::Gone {
            runtime: Runtime::Docker,
            id: id.to_owned(),
        })
        .await
    }
}

/// A pod's pause container (cri-dockerd): it has no logs of its own and nobody ever named it.
fn is_hidden(workload: &Workload) -> bool {
    workload
        .labels
        .get("io.kubernetes.docker.type")
        .is_some_and(|kind| kind == "podsandbox")
}

/// Asks about single containers, many at once.
#[derive(Clone)]
struct Ask {
    docker: Arc<Docker>,
    engine: Arc<Engine>,
    host_root: Arc<Path>,
    answers: mpsc::Sender<Answer>,
    turns: Arc<Semaphore>,
}

impl Ask {
    /// Asks now, or once more when the answer that is under way has come.
    fn about(&self, id: &str, known: &mut Known) {
        if known.busy {
            known.again = true;
            return;
        }
        known.busy = true;
        let (ask, id, is_new) = (self.clone(), id.to_owned(), known.told.is_none());
        tokio::spawn(async move { ask.look(id, is_new).await });
    }

    async fn look(self, id: String, is_new: bool) {
        let tell = async |found| {
            let id = id.clone();
            // No receiver: the session is over, and the next one asks again.
            drop(self.answers.send(Answer { id, found }).await);
        };
        if is_new && let Some(workload) = self.on_disk(&id).await {
            tell(Found::OnDisk(Box::new(workload))).await;
        }
        let Ok(_turn) = self.turns.acquire().await else {
            return;
        };
        let answer = self
            .docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await;
        let found = match answer {
            Ok(inspect) => {
                let (engine, host_root) = (self.engine.clone(), self.host_root.clone());
                // Reads /proc, and looks whether a root is mounted.
                let workload = tokio::task::spawn_blocking(move || {
                    Facts::from_inspect(inspect).into_workload(&host_root, &engine)
                });
                match workload.await {
                    Ok(workload) => Found::Inspected(Box::new(workload)),
                    Err(stopped) => Found::Failed(stopped.to_string()),
                }
            }
            Err(bollard::errors::Error::DockerResponseServerError {
                status_code: 404, ..
            }) => Found::Missing,
            Err(error) => Found::Failed(error.to_string()),
        };
        tell(found).await;
    }

    async fn on_disk(&self, id: &str) -> Option<Workload> {
        let (engine, host_root, id) = (self.engine.clone(), self.host_root.clone(), id.to_owned());
        if engine.is_podman {
            return None;
        }
        tokio::task::spawn_blocking(move || {
            Facts::from_disk(&host_root, &engine, &id)
                .ok()
                .map(|facts| facts.into_workload(&host_root, &engine))
        })
        .await
        .ok()
        .flatten()
    }

    /// Names of containers whose folders appear, as soon as they can be read. `None` where the data-root cannot
    /// be watched: then events and lists do.
    fn watch_folders(&self) -> Option<mpsc::Receiver<String>> {
        if self.engine.is_podman {
            return None;
        }
        let folder = beneath(&self.host_root, &self.engine.data_root.join("containers")).ok()?;
        let names = NewNames::new().ok()?;
        names
            .add(&folder)
            .map_err(|error| {
                let folder = folder.display();
                tracing::debug!(%folder, %error, "the data-root is not watched; events and lists do");
            })
            .ok()?;
        let (sender, receiver) = mpsc::channel(64);
        let ask = self.clone();
        tokio::spawn(async move {
            loop {
                let appeared = tokio::select! {
                    appeared = names.next() => appeared,
                    () = sender.closed() => return,
                };
                let Ok(appeared) = appeared else { return };
                for name in appeared
                    .into_iter()
                    .filter_map(|a| a.name?.into_string().ok())
                {
                    let (ask, sender) = (ask.clone(), sender.clone());
                    tokio::spawn(async move {
                        for wait_ms in FOLDER_LOOKS {
                            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                            if ask.on_disk(&name).await.is_some() {
                                // No receiver: the session is over.
                                drop(sender.send(name).await);
                                return;
                            }
                        }
                    });
                }
            }
        });
        Some(receiver)
    }
}

/// The next name; for ever without one where nothing is watched (any more).
async fn new_folder(folders: &mut Option<mpsc::Receiver<String>>) -> String {
    if let Some(names) = folders {
        if let Some(name) = names.recv().await {
            return name;
        }
        *folders = None;
    }
    std::future::pending().await
}

/// What is true of the whole engine, and what time it has.
async fn engine(docker: &Docker) -> Result<(Engine, i64), String> {
    let info = docker.info().await.map_err(|error| error.to_string())?;
    let version = docker.version().await.map_err(|error| error.to_string())?;
    let now_ns = info
        .system_time
        .as_deref()
        .and_then(super::time_ns)
        .unwrap_or_default();
    Ok((
        Engine {
            data_root: info
                .docker_root_dir
                .unwrap_or_else(|| "/var/lib/docker".to_owned())
                .into(),
            storage_driver: info.driver.unwrap_or_default(),
            logging_driver: info
                .logging_driver
                .filter(|driver| !driver.is_empty())
                .unwrap_or_else(|| "json-file".to_owned()),
            is_podman: version
                .components
                .unwrap_or_default()
                .iter()
                .any(|component| component.name.starts_with("Podman")),
        },
        now_ns,
    ))
}

/// All containers with whether each runs.
async fn list(docker: &Docker) -> Result<HashMap<String, bool>, String> {
    use bollard::models::ContainerSummaryStateEnum as S;
    let options = ListContainersOptionsBuilder::default().all(true).build();
    let containers = docker
        .list_containers(Some(options))
        .await
        .map_err(|error| error.to_string())?;
    Ok(containers
        .into_iter()
        .filter_map(|container| {
            let is_running = matches!(
                container.state,
                Some(S::RUNNING | S::PAUSED | S::RESTARTING)
            );
            Some((container.id?, is_running))
        })
        .collect())
}

/// As `since` wants it: seconds and nanoseconds since 1970.
fn seconds(ns: i64) -> String {
    let ns = ns.max(0);
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

#[cfg(test)]
mod tests;
