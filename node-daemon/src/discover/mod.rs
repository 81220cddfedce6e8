//! Discover workloads: containers as their runtime tells them.
//! Place: **discover** -> declare. An event makes it fast, the periodic full list makes it true.
//! Invariant: what a runtime names is told as it was named; nothing here opens a log.

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use ringpilot_shared::follow::Mount;

/// A container as its runtime tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Who runs it.
    pub runtime: Runtime,
    /// The runtime's id.
    pub id: String,
    /// Its name without a leading `/`.
    pub name: String,
    /// Labels (Docker, CRI: the container's and its image's; CRI pods: the pod's labels too).
    pub labels: BTreeMap<String, String>,
    /// Annotations of its pod.
    pub annotations: BTreeMap<String, String>,
    /// Its environment, resolved: image `ENV` and `valueFrom` included, in the runtime's order.
    pub environment: Vec<(String, String)>,
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Where its stdout can be read.
    pub stdout: Stdout,
    /// Its root file system on the host (overlay `MergedDir`, `UpperDir`, or `/proc/PID/root`), best first.
    pub roots: Vec<PathBuf>,
    /// Its first process on the host; 0 when it does not run.
    pub pid: u32,
    /// When it was created, nanoseconds since 1970.
    pub created_ns: i64,
    /// Whether it runs, or is only created, or has ended.
    pub state: State,
    /// Its pod, in Kubernetes.
    pub pod: Option<Pod>,
}

/// Who runs a container.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Docker Engine, or Podman by its Docker API.
    Docker,
    /// containerd or CRI-O by the CRI.
    Cri,
    /// No runtime: the configuration's own `sources`.
    Static,
    /// Known only by a file name in the pod log folder.
    LogFolder,
    /// A shim over its ring.
    Shim,
}

/// The pod a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// The container's name within the pod.
    pub container: String,
}

/// Where a container's stdout can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdout {
    /// Docker's json-file: this file and its rotated siblings `.1`, `.2`... Host path.
    DockerJson(PathBuf),
    /// CRI log file, such as `/var/log/pods/NS_POD_UID/CONTAINER/0.log`: this folder's files. Host path of `N.log`.
    Cri(PathBuf),
    /// Only by the runtime's API (the driver's name).
    Api(String),
    /// Not at all; why, as a sentence.
    None(String),
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Created, not started.
    Created,
    /// Running or paused.
    Running,
    /// Ended; its files may still be there.
    Ended,
}

/// What discovery has heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A container is there, or has changed.
    Here(Box<Workload>),
    /// A container is gone: nothing more will be written to its logs.
    Gone {
        /// Who ran it.
        runtime: Runtime,
        /// Its id.
        id: String,
    },
    /// One full list of this runtime has been told.
    Listed(Runtime),
    /// The runtime cannot be reached, with the cause; told once per change.
    Unreachable(Runtime, String),
}
