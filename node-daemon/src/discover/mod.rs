//! Discover workloads: containers as their runtime tells them.
//! Place: **discover** -> declare. An event makes it fast, the periodic full list makes it true.
//! Invariant: what a runtime names is told as it was named; nothing here opens a log.

pub mod docker;
mod docker_facts;

pub mod cri;
mod cri_facts;
mod cri_wire;
mod log_folder;

pub mod fixed;

mod host_path;
mod new_names;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::BufRead;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

pub use ringpilot_shared::follow::Mount;

use crate::settings::{DockerSettings, Mode, Settings};

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
    /// Its root file system on the host, best first: the overlay's upper directory, which stays the same from
    /// create to removal; while it runs also `MergedDir` or `/proc/PID/root`, which have the image's files too.
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

/// How many things may be heard and not yet taken: enough for a burst, few enough to cost nothing.
const UNHEARD: usize = 256;

/// Starts every way of hearing that `settings` want, each for as long as the receiver lives. `variable` looks up
/// `DOCKER_HOST` and `XDG_RUNTIME_DIR`. Must be called within a tokio runtime.
#[must_use]
pub fn spawn(
    settings: &Settings,
    host_root: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> mpsc::Receiver<Heard> {
    let (heard, receiver) = mpsc::channel(UNHEARD);
    for socket in docker_sockets(&settings.discover.docker, variable) {
        tokio::spawn(docker::watch(
            socket,
            host_root.to_path_buf(),
            heard.clone(),
        ));
    }
    if let Some(socket) = cri_socket(settings) {
        let names_may_do = socket.is_named
            || !docker_sockets(&settings.discover.docker, variable)
                .iter()
                .any(|docker| docker.find(host_root).is_some());
        tokio::spawn(cri::watch(
            socket,
            settings.discover.cri.pod_logs_dir.clone(),
            names_may_do,
            host_root.to_path_buf(),
            heard.clone(),
        ));
    }
    tokio::spawn(fixed::tell(heard));
    receiver
}

/// The runtimes whose first [`Heard::Listed`] is worth waiting for, one entry for each that will come: those that
/// must be there, and those whose socket or folder is there now.
#[must_use]
pub fn expected(
    settings: &Settings,
    host_root: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Vec<Runtime> {
    let mut expected: Vec<Runtime> = docker_sockets(&settings.discover.docker, variable)
        .into_iter()
        .filter(|socket| {
            matches!(socket, docker::DockerSocket::At(_)) || socket.find(host_root).is_some()
        })
        .map(|_| Runtime::Docker)
        .collect();
    if let Some(socket) = cri_socket(settings) {
        let logs = host_path::beneath(host_root, &settings.discover.cri.pod_logs_dir);
        if socket.is_named || socket.is_open(host_root) {
            expected.push(Runtime::Cri);
        } else if socket.find(host_root).is_some() && logs.is_ok_and(|logs| logs.is_dir()) {
            expected.push(Runtime::LogFolder);
        }
    }
    expected.push(Runtime::Static);
    expected
}

/// Where the CRI is sought, if it is.
fn cri_socket(settings: &Settings) -> Option<cri::CriSocket> {
    let cri = &settings.discover.cri;
    (cri.mode != Mode::Off)
        .then(|| cri::CriSocket::new(cri.socket.as_deref(), cri.mode == Mode::On))
}

/// The engines to listen to: the one that is named, or Docker's and Podman's usual places.
#[must_use]
pub fn docker_sockets(
    docker: &DockerSettings,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Vec<docker::DockerSocket> {
    use docker::DockerSocket;
    if docker.mode == Mode::Off {
        return Vec::new();
    }
    let named = docker.socket.clone().or_else(|| {
        let host = variable("DOCKER_HOST")?;
        host.strip_prefix("unix://").map(PathBuf::from)
    });
    if let Some(path) = named {
        let path = match path.to_str().and_then(|path| path.strip_prefix("unix://")) {
            Some(path) => PathBuf::from(path),
            None => path,
        };
        return vec![DockerSocket::At(path)];
    }
    let runtime_dir = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime_dir = runtime_dir.as_deref();
    match docker.mode {
        // It must be there: its usual place is the one that is missed.
        Mode::On => {
            let found = [
                DockerSocket::docker(runtime_dir),
                DockerSocket::podman(runtime_dir),
            ]
            .into_iter()
            .flat_map(DockerSocket::into_paths)
            .find(|path| path.exists());
            let path = found.unwrap_or_else(|| PathBuf::from("/var/run/docker.sock"));
            vec![DockerSocket::At(path)]
        }
        _ => vec![
            DockerSocket::docker(runtime_dir),
            DockerSocket::podman(runtime_dir),
        ],
    }
}

/// The pod that a container's labels name, as the kubelet writes them.
fn pod_of(labels: &BTreeMap<String, String>) -> Option<Pod> {
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    Some(Pod {
        name: labels.get("io.kubernetes.pod.name")?.clone(),
        namespace: label("io.kubernetes.pod.namespace"),
        uid: label("io.kubernetes.pod.uid"),
        container: label("io.kubernetes.container.name"),
    })
}

/// `NAME=VALUE` at its first `=`; a bare name has an empty value.
fn split_environment(entry: String) -> (String, String) {
    match entry.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (entry, String::new()),
    }
}

/// RFC 3339 as Go writes it, in nanoseconds since 1970; `None` for a time that never was.
pub(crate) fn time_ns(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond())
        .ok()
        .filter(|ns| *ns > 0)
}

/// The order in which a path in a container finds its mount.
fn longest_first(mounts: &mut Vec<Mount>) {
    mounts.sort_by(|a, b| {
        let length = |mount: &Mount| mount.container.as_os_str().len();
        length(b)
            .cmp(&length(a))
            .then_with(|| a.container.cmp(&b.container))
    });
    mounts.dedup_by(|later, first| later.container == first.container);
}

/// Where this process can reach the socket that the host has at `path`, if one is there.
fn find_socket(host_root: &Path, path: &Path) -> Option<PathBuf> {
    [
        Some(path.to_path_buf()),
        host_path::beneath(host_root, path).ok(),
    ]
    .into_iter()
    .flatten()
    .find(|path| std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()))
}

/// Whether the host's folder at `path` holds anything, as this process sees it.
fn has_names(host_root: &Path, path: &Path) -> bool {
    host_path::beneath(host_root, path)
        .and_then(std::fs::read_dir)
        .is_ok_and(|mut names| names.next().is_some())
}

/// The overlay's upper directory of a process's root, as its mount table names it.
fn upper_by_mountinfo(host_root: &Path, pid: u32) -> Option<PathBuf> {
    let path = host_path::beneath(host_root, Path::new(&format!("/proc/{pid}/mountinfo"))).ok()?;
    let table = std::io::BufReader::new(std::fs::File::open(path).ok()?);
    table
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| upper_of_root(&line))
        // The last one mounted there is the one that is seen.
        .last()
}

/// From one line of mountinfo (proc(5)): `ID PARENT MAJ:MIN ROOT POINT OPTIONS [FIELDS] - TYPE SOURCE SUPER`.
fn upper_of_root(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(|byte| *byte == b' ');
    if words.nth(4)? != b"/" {
        return None;
    }
    let mut after = words.skip_while(|word| *word != b"-").skip(1);
    if after.next()? != b"overlay" {
        return None;
    }
    after
        .nth(1)?
        .split(|byte| *byte == b',')
        .find_map(|option| option.strip_prefix(b"upperdir="))
        .map(|path| PathBuf::from(unescape(path)))
}

/// mountinfo writes space, tab, newline and backslash as `\040` and so on.
fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_directory_is_found_in_the_mount_table_of_a_process() {
        let line = b"619 585 0:58 / / rw,relatime shared:1 master:2 - overlay overlay \
            rw,lowerdir=/l/1:/l/2,upperdir=/srv/my\\040docker/7/diff,workdir=/w";
        assert_eq!(
            upper_of_root(line),
            Some(PathBuf::from("/srv/my docker/7/diff"))
        );
        let other = b"620 619 0:60 / /proc rw - proc proc rw";
        assert_eq!(upper_of_root(other), None);
        assert_eq!(upper_of_root(b"1 2 3"), None);
        assert_eq!(upper_of_root(b""), None);
    }

    #[test]
    fn the_engine_is_sought_where_the_operator_or_docker_itself_would_look() {
        let docker = |mode, socket: Option<&str>| DockerSettings {
            mode,
            socket: socket.map(PathBuf::from),
        };
        let none = |_: &str| None;
        let host = |name: &str| (name == "DOCKER_HOST").then(|| "unix:///d.sock".to_owned());
        let at = |path: &str| vec![docker::DockerSocket::At(path.into())];
        assert!(docker_sockets(&docker(Mode::Off, Some("/x.sock")), &host).is_empty());
        assert_eq!(
            docker_sockets(&docker(Mode::On, Some("unix:///x.sock")), &host),
            at("/x.sock")
        );
        assert_eq!(
            docker_sockets(&docker(Mode::Auto, None), &host),
            at("/d.sock")
        );
        assert_eq!(docker_sockets(&docker(Mode::Auto, None), &none).len(), 2);
    }

    #[test]
    fn the_mount_that_lies_deepest_is_found_first() {
        let mount = |path: &str| Mount {
            container: path.into(),
            host: "/h".into(),
        };
        let mut mounts = vec![mount("/a"), mount("/a/b/c"), mount("/a/b")];
        longest_first(&mut mounts);
        assert_eq!(mounts, [mount("/a/b/c"), mount("/a/b"), mount("/a")]);
    }

    #[test]
    fn a_time_that_never_was_is_none() {
        assert_eq!(time_ns("0001-01-01T00:00:00Z"), None);
        assert_eq!(
            time_ns("2026-11-24T02:46:36.371824873+01:00"),
            Some(1_795_484_796_371_824_873)
        );
    }
}
