//! Hear of containers from containerd or CRI-O by the CRI, over the runtime's own socket: no API server, no rights in it.
//! Place: within **discover**; four ways at once.
//! - Events make it fast: containerd's own stream, which every version has, else the CRI's (CRI-O).
//! - A watch of the pod log folder: the kubelet makes a container's folder there before the container.
//! - The full list at every connect, after every event, and each 30 s makes it true. What an event says is not read.
//! - Where the socket cannot be had, the names in the log folder alone (`log_folder`), once that is certain.
//!
//! A container is told when it is new, and again when its state is another than when it was last asked about.
//! Invariants: `Here` comes before `Gone` for each id, and `Gone` once; a container is gone only when a whole list does
//! not have it. One that does not answer is asked again at the next list and holds up no other.
//! Source: CRI v1 (`k8s.io/cri-api`); containerd 1.6 to 2.1, CRI-O 1.26 and later.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::cri_facts::{Facts, upper_of};
use super::cri_wire::{self as wire, Container, ContainerState, Nothing, Sandbox};
use super::host_path::beneath;
use super::log_folder::LogFolder;
use super::new_names::NewNames;
use super::{Heard, Runtime, Workload};

/// How long an answer may take; a runtime that starts many containers is slow.
const ANSWER: Duration = Duration::from_secs(30);
/// From one full list to the next while nothing happens.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// The same where nothing tells what happens.
const LIST_EVERY_WITHOUT_EVENTS: Duration = Duration::from_secs(2);
/// What happens together is listed together: a list takes a millisecond or two.
const GATHER: Duration = Duration::from_millis(5);
/// A list is made at most so much of the time, whatever happens: one part in so many.
const REST: u32 = 5;
/// But no longer than this: what happens meanwhile waits.
const LONGEST_REST: Duration = Duration::from_millis(300);
/// Waits between attempts to connect.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long a socket that is not there is waited for before the log folder's names have to do.
const SOCKET_WAIT: Duration = Duration::from_secs(10);
/// Containers asked about at a time.
const QUESTIONS: usize = 16;
/// A list of 10,000 containers has 10 MiB.
const MOST_ANSWER_BYTES: usize = 64 << 20;
/// Pod folders that are watched: far more pods than a node may have.
const MOST_FOLDERS: usize = 4096;
/// The containerd namespace in which the CRI keeps its containers.
const NAMESPACE: &str = "k8s.io";

/// The usual places. cri-dockerd is not among them: its containers are Docker's, and heard of there.
const SOCKETS: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/crio/crio.sock",
];

/// Where the runtime listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriSocket {
    /// Where it is sought, in this order.
    pub paths: Vec<PathBuf>,
    /// Somebody named it: that it is missing is told.
    pub is_named: bool,
}

impl CriSocket {
    /// The one that is named, else the usual places.
    #[must_use]
    pub fn new(named: Option<&Path>, must_be_there: bool) -> Self {
        match named {
            Some(path) => {
                let path = path.strip_prefix("unix:").unwrap_or(path);
                // `unix:///run/x` as the kubelet is told it, and `/run/x`.
                let path = Path::new("/").join(path.strip_prefix("/").unwrap_or(path));
                Self {
                    paths: vec![path],
                    is_named: true,
                }
            }
            None => Self {
                paths: SOCKETS.map(PathBuf::from).to_vec(),
                is_named: must_be_there,
            },
        }
    }

    /// The socket as this process can reach it, if one is there now.
    #[must_use]
    pub fn find(&self, host_root: &Path) -> Option<PathBuf> {
        self.paths
            .iter()
            .find_map(|path| super::find_socket(host_root, path))
    }

    /// Whether one is there and this process is let in.
    #[must_use]
    pub fn is_open(&self, host_root: &Path) -> bool {
        self.find(host_root)
            .is_some_and(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
    }
}

/// Tells `heard` of every container, until its receiver is dropped. Connects again for ever. With `names_may_do` the log
/// folder's names have to do where the socket cannot be had; not so beside Docker, whose containers' logs may be there by
/// cri-dockerd.
pub async fn watch(
    socket: CriSocket,
    pod_logs_dir: PathBuf,
    names_may_do: bool,
    host_root: PathBuf,
    heard: mpsc::Sender<Heard>,
) {
    let mut watcher = Watcher {
        host_root: Arc::from(host_root),
        pod_logs_dir,
        heard,
        known: HashMap::new(),
        trouble: None,
        has_listed: false,
        was_silent: false,
    };
    let mut folder = LogFolder::default();
    let started = Instant::now();
    let mut wait = FIRST_WAIT;
    loop {
        watcher.has_listed = false;
        let (ended, is_refused) = match socket.find(&watcher.host_root) {
            Some(path) => match watcher.session(&path, &mut folder).await {
                Ok(()) => return,
                Err(end) => {
                    let refused = matches!(&end, End::Refused(_));
                    (end, refused)
                }
            },
            None if socket.is_named || !watcher.known.is_empty() || !folder.is_empty() => {
                let first = socket.paths.first().map(|path| path.display().to_string());
                let first = first.unwrap_or_default();
                (End::Trouble(format!("{first}: no socket is there")), false)
            }
            None => (End::Silent, false),
        };
        // On a machine without pods it is nobody's business who may use the socket.
        let ended = match ended {
            End::Refused(_) if !socket.is_named && !watcher.has_pod_logs() => End::Silent,
            ended => ended,
        };
        let must_do = names_may_do
            && watcher.known.is_empty()
            && !watcher.was_silent
            && (is_refused || (!watcher.has_listed && started.elapsed() >= SOCKET_WAIT));
        match ended {
            End::NobodyListens => return,
            End::Trouble(cause) | End::Refused(cause) => {
                if watcher.trouble.as_deref() != Some(cause.as_str()) {
                    tracing::debug!(cause, "the CRI cannot be reached");
                    let told = Heard::Unreachable(Runtime::Cri, cause.clone());
                    if watcher.heard.send(told).await.is_err() {
                        return;
                    }
                    watcher.trouble = Some(cause);
                }
            }
            // A runtime without the CRI has no containers: that, too, is a whole list.
            End::Silent if watcher.was_silent => {
                if watcher
                    .heard
                    .send(Heard::Listed(Runtime::Cri))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            End::Silent => {}
        }
        if must_do || !folder.is_empty() {
            let root = beneath(&watcher.host_root, &watcher.pod_logs_dir);
            let told = match root {
                Ok(seen) => folder.look(&seen, &watcher.pod_logs_dir),
                Err(_) => Vec::new(),
            };
            for told in told {
                if watcher.heard.send(told).await.is_err() {
                    return;
                }
            }
        }
        wait = match watcher.has_listed {
            true => FIRST_WAIT,
            // The folder is looked at as often as the socket.
            false if !folder.is_empty() => Duration::from_secs(1),
            false => (wait * 2).min(LONGEST_WAIT),
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
    /// This process may not use the socket, and that will not change by itself.
    Refused(String),
    /// Nobody ever spoke the CRI here: Docker's own containerd mostly has it switched off.
    Silent,
    /// The receiver is gone.
    NobodyListens,
}

struct Watcher {
    host_root: Arc<Path>,
    pod_logs_dir: PathBuf,
    heard: mpsc::Sender<Heard>,
    known: HashMap<String, Known>,
    /// What was last told as `Unreachable`.
    trouble: Option<String>,
    /// Whether this session got as far as a list.
    has_listed: bool,
    /// Whether the runtime said that it has no CRI.
    was_silent: bool,
}

/// A container in this module's eyes.
struct Known {
    told: Box<Workload>,
    /// Its state when it was asked about.
    state: i32,
    /// It was asked about after that state was listed: everything is known of it.
    is_whole: bool,
}

impl Watcher {
    async fn session(&mut self, socket: &Path, folder: &mut LogFolder) -> Result<(), End> {
        let at = socket.display().to_string();
        let runtime = CriClient::connect(socket).await.map_err(|error| {
            let text = format!("{at}: {error}");
            match error {
                Unconnected::NotPermitted => End::Refused(text),
                Unconnected::Other(_) => End::Trouble(text),
            }
        })?;
        match runtime
            .ask::<_, wire::VersionAnswer>(wire::VERSION, Nothing {})
            .await
        {
            Ok(version) => {
                self.was_silent = false;
                tracing::debug!(
                    "{at} is {} {}",
                    version.runtime_name,
                    version.runtime_version
                );
            }
            Err(status) if status.code() == Code::Unimplemented && self.known.is_empty() => {
                self.was_silent = true;
                return Err(End::Silent);
            }
            Err(status) => return Err(lost(&at, &status)),
        }
        let happened = Arc::new(Happened::default());
        let _listening = Listening(tokio::spawn(listen(runtime.clone(), Arc::clone(&happened))));
        let names = self.watch_folders().await;
        let mut folders = HashSet::new();
        let mut is_first = true;
        loop {
            let began = Instant::now();
            // Wakes from here on are news to this list, or to the next.
            happened.forget();
            if let Some(names) = &names {
                self.watch_pods(names, &mut folders);
            }
            self.list(&runtime, &at).await?;
            if std::mem::take(&mut is_first) {
                // By the list everything is better known: the names alone are let go.
                for told in folder.forget() {
                    self.tell(told).await?;
                }
                (self.trouble, self.has_listed) = (None, true);
                self.tell(Heard::Listed(Runtime::Cri)).await?;
            }
            let took = began.elapsed();
            let every = match happened.is_heard() {
                true => LIST_EVERY,
                false => LIST_EVERY_WITHOUT_EVENTS,
            };
            tokio::select! {
                () = happened.wait() => {}
                () = new_name(names.as_ref()) => {}
                () = tokio::time::sleep(every) => {}
                () = self.heard.closed() => return Err(End::NobodyListens),
            }
            tokio::time::sleep(GATHER.max(took * REST).min(LONGEST_REST)).await;
        }
    }

    fn has_pod_logs(&self) -> bool {
        super::has_names(&self.host_root, &self.pod_logs_dir)
    }

    async fn tell(&self, heard: Heard) -> Result<(), End> {
        self.heard.send(heard).await.map_err(|_| End::NobodyListens)
    }

    /// A watch of the pod log folder, where there is one.
    async fn watch_folders(&self) -> Option<NewNames> {
        let names = NewNames::new().ok()?;
        let folder = beneath(&self.host_root, &self.pod_logs_dir).ok()?;
        names.add(&folder).ok().map(|_| names)
    }

    /// Watches each pod's folder too: a container's folder appears in it.
    fn watch_pods(&self, names: &NewNames, folders: &mut HashSet<std::ffi::OsString>) {
        let Ok(root) = beneath(&self.host_root, &self.pod_logs_dir) else {
            return;
        };
        let mut there = HashSet::new();
        for entry in std::fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if there.len() < MOST_FOLDERS
                && (folders.contains(&name) || names.add(&entry.path()).is_ok())
            {
                there.insert(name);
            }
        }
        *folders = there;
    }

    /// One full list, and a question about each container of which not everything is known.
    async fn list(&mut self, runtime: &CriClient, at: &str) -> Result<(), End> {
        let (sandboxes, containers) = tokio::try_join!(
            runtime.ask::<_, wire::Sandboxes>(wire::LIST_SANDBOXES, Nothing {}),
            runtime.ask::<_, wire::Containers>(wire::LIST_CONTAINERS, Nothing {}),
        )
        .map_err(|status| lost(at, &status))?;
        let sandboxes: HashMap<&str, &Sandbox> = sandboxes
            .items
            .iter()
            .map(|sandbox| (sandbox.id.as_str(), sandbox))
            .collect();
        let listed: HashSet<&str> = containers
            .containers
            .iter()
            .map(|c| c.id.as_str())
            .collect();
        let gone: Vec<String> = self
            .known
            .keys()
            .filter(|id| !listed.contains(id.as_str()))
            .cloned()
            .collect();
        for id in gone {
            self.known.remove(&id);
            let runtime = Runtime::Cri;
            self.tell(Heard::Gone { runtime, id }).await?;
        }
        let mut open: Vec<&Container> = containers
            .containers
            .iter()
            .filter(|container| {
                let known = self.known.get(&container.id);
                !known.is_some_and(|known| known.is_whole && known.state == container.state)
            })
            .collect();
        // What is new and runs is asked about first: it may not live long.
        open.sort_by_key(|c| c.state == i32::from(ContainerState::Exited));
        let mut open = open.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            for container in open.by_ref().take(QUESTIONS - asked.len()) {
                let has_upper = self.known.get(&container.id).and_then(|known| {
                    let first = known.told.roots.first();
                    first.filter(|root| !root.starts_with("/proc")).cloned()
                });
                let sandbox = sandboxes.get(container.sandbox_id.as_str()).copied();
                asked.push(self.about(runtime, container, sandbox, has_upper));
            }
            let Some((container, answer)) = asked.next().await else {
                return Ok(());
            };
            match answer {
                Ok(Some(workload)) => {
                    let workload = Box::new(workload);
                    let known = self.known.get(&container.id);
                    let is_news = known.is_none_or(|known| known.told != workload);
                    let known = Known {
                        told: workload.clone(),
                        state: container.state,
                        is_whole: true,
                    };
                    self.known.insert(container.id.clone(), known);
                    if is_news {
                        self.heard
                            .send(Heard::Here(workload))
                            .await
                            .map_err(|_| End::NobodyListens)?;
                    }
                }
                // Gone since the list: the next one says so.
                Ok(None) => {}
                Err(status) => {
                    tracing::debug!(id = container.id, %status, "the CRI did not answer for a container");
                    if let Some(known) = self.known.get_mut(&container.id) {
                        known.is_whole = false;
                    }
                }
            }
        }
    }

    /// Asks about one container. The future holds nothing of `self`.
    fn about<'list>(
        &self,
        runtime: &CriClient,
        container: &'list Container,
        sandbox: Option<&'list Sandbox>,
        upper: Option<PathBuf>,
    ) -> impl Future<Output = (&'list Container, Result<Option<Workload>, Status>)> + use<'list>
    {
        let (runtime, host_root) = (runtime.clone(), Arc::clone(&self.host_root));
        async move {
            let answer = runtime.about(container, sandbox, upper, &host_root).await;
            (container, answer)
        }
    }
}

fn lost(at: &str, status: &Status) -> End {
    let text = match status.code() {
        Code::Unimplemented => {
            "it does not speak the CRI's version 1, which containerd 1.6 and CRI-O 1.23 are the first to do"
                .to_owned()
        }
        _ => format!("{}: {}", status.code().description(), status.message()),
    };
    End::Trouble(format!("{at}: {text}"))
}

/// Waits for a new name; for ever where nothing is watched.
async fn new_name(names: Option<&NewNames>) {
    match names {
        Some(names) => match names.next().await {
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the pod log folder is not watched any more");
                std::future::pending::<()>().await;
            }
        },
        None => std::future::pending().await,
    }
}

/// That something has happened, and whether anybody tells.
#[derive(Debug, Default)]
struct Happened {
    something: Notify,
    is_heard: std::sync::atomic::AtomicBool,
}

impl Happened {
    async fn wait(&self) {
        self.something.notified().await;
    }

    /// What has happened until now is in the list that is made next.
    fn forget(&self) {
        // A stored permit is taken at once; without one nobody waits.
        let mut waiting = std::pin::pin!(self.something.notified());
        waiting.as_mut().enable();
    }

    fn is_heard(&self) -> bool {
        self.is_heard.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn set_heard(&self, is_heard: bool) {
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        self.is_heard.store(is_heard, relaxed);
    }
}

/// Ends with the session it listens for.
struct Listening(tokio::task::JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Wakes at each thing that the runtime tells, by whichever stream it has.
async fn listen(runtime: CriClient, happened: Arc<Happened>) {
    let mut wait = FIRST_WAIT;
    loop {
        let filters = vec![format!("namespace=={NAMESPACE}")];
        let own = runtime
            .stream(wire::CONTAINERD_EVENTS, wire::Subscription { filters })
            .await;
        let stream = match own {
            Err(status) if status.code() == Code::Unimplemented => {
                runtime.stream(wire::CONTAINER_EVENTS, Nothing {}).await
            }
            own => own,
        };
        match stream {
            Ok(mut stream) => {
                happened.set_heard(true);
                // What happened while nobody listened.
                happened.something.notify_one();
                wait = FIRST_WAIT;
                while let Ok(Some(_)) = stream.message().await {
                    happened.something.notify_one();
                }
                happened.set_heard(false);
                happened.something.notify_one();
            }
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::debug!("the runtime streams no events: it is listed every 2 s");
                return;
            }
            Err(status) => tracing::debug!(%status, "no events from the runtime"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Unconnected {
    #[error("this process may not use the socket")]
    NotPermitted,
    #[error("{0}")]
    Other(String),
}

/// A connection to the runtime.
#[derive(Debug, Clone)]
struct CriClient {
    channel: Channel,
}

impl CriClient {
    async fn connect(socket: &Path) -> Result<Self, Unconnected> {
        // Asked first, for its plain answer.
        if let Err(error) = tokio::net::UnixStream::connect(socket).await {
            return Err(match error.kind() {
                std::io::ErrorKind::PermissionDenied => Unconnected::NotPermitted,
                _ => Unconnected::Other(error.to_string()),
            });
        }
        let Some(path) = socket.to_str() else {
            return Err(Unconnected::Other("the path is not UTF-8".to_owned()));
        };
        let other = |error: tonic::transport::Error| Unconnected::Other(error.to_string());
        let endpoint = Endpoint::from_shared(format!("unix://{path}")).map_err(other)?;
        let channel = endpoint.connect().await.map_err(other)?;
        Ok(Self { channel })
    }

    fn grpc(&self) -> tonic::client::Grpc<Channel> {
        tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MOST_ANSWER_BYTES)
    }

    async fn ask<Q, A>(&self, method: &'static str, question: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let asked = async {
            let mut grpc = self.grpc();
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            let path = PathAndQuery::from_static(method);
            grpc.unary(in_namespace(question), path, codec).await
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer within 30 s")),
        }
    }

    async fn stream<Q>(
        &self,
        method: &'static str,
        question: Q,
    ) -> Result<tonic::Streaming<Nothing>, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = tonic_prost::ProstCodec::<Q, Nothing>::default();
        let path = PathAndQuery::from_static(method);
        let stream = grpc.server_streaming(in_namespace(question), path, codec);
        Ok(stream.await?.into_inner())
    }

    /// All that the runtime knows of one container; `None` if it does not know it any more.
    async fn about(
        &self,
        container: &Container,
        sandbox: Option<&Sandbox>,
        upper: Option<PathBuf>,
        host_root: &Path,
    ) -> Result<Option<Workload>, Status> {
        let question = wire::StatusQuestion {
            container_id: container.id.clone(),
            verbose: true,
        };
        let answer = match self.ask(wire::CONTAINER_STATUS, question).await {
            Ok(answer) => answer,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        let Some(mut facts) = Facts::new(answer) else {
            return Ok(None);
        };
        facts.upper = match upper {
            Some(upper) => Some(upper),
            None if facts.info.snapshot_key.is_empty() => None,
            None => {
                let question = wire::SnapshotQuestion {
                    snapshotter: facts.info.snapshotter.clone(),
                    key: facts.info.snapshot_key.clone(),
                };
                let mounts = self.ask(wire::SNAPSHOT_MOUNTS, question).await;
                // Not said: it is then found by the mount table of its process, while that runs.
                mounts.ok().as_ref().and_then(upper_of)
            }
        };
        Ok(Some(facts.into_workload(host_root, sandbox)))
    }
}

/// containerd's own services answer within a namespace; the CRI does not look at it.
fn in_namespace<Q>(question: Q) -> Request<Q> {
    let mut request = Request::new(question);
    let namespace = tonic::metadata::MetadataValue::from_static(NAMESPACE);
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    request
}
