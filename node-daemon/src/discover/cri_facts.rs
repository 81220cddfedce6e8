//! What is known of one container of the CRI, from its verbose `ContainerStatus` and its sandbox, as a `Workload`.
//! Place: within **discover**, for `cri`.
//! Invariants: the environment is the one its process got (image `ENV` and `valueFrom` resolved), for it is read from
//! the OCI spec that the runtime made; a container that is only created already has its log's path and its upper
//! directory. A runtime whose `info` cannot be read still gives labels, annotations, mounts and the log's path.
//! Sources: CRI v1; `info` as containerd 1.6 to 2.1 (`internal/cri/server/container_status.go`) and CRI-O 1.26 to 1.33
//! (`server/container_status.go`) write it; OCI runtime spec 1.0 (`process.env`, `mounts`, `root`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::cri_wire::{ContainerState, Sandbox, SnapshotMounts, Status, StatusAnswer};
use super::docker_facts::within_process;
use super::{Mount, Pod, Runtime, State, Stdout, Workload};

/// Where containerd mounts a running container's whole root, unless it was told another state folder.
const CONTAINERD_ROOTS: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
    "/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io",
];

/// What a runtime tells under `info`, of it what is read here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Info {
    pid: u32,
    /// containerd's name of the writable layer, and who keeps it.
    pub snapshot_key: String,
    pub snapshotter: String,
    runtime_spec: Option<OciSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OciSpec {
    process: Option<OciProcess>,
    root: Option<OciRoot>,
    mounts: Option<Vec<OciMount>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OciProcess {
    env: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OciRoot {
    path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OciMount {
    destination: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
}

/// One container as the runtime has answered for it.
#[derive(Debug)]
pub(super) struct Facts {
    status: Status,
    /// What `info` said.
    pub info: Info,
    /// The upper directory of its overlay, once it is known.
    pub upper: Option<PathBuf>,
}

impl Facts {
    /// `None` where the runtime answers nothing of the container.
    pub(super) fn new(answer: StatusAnswer) -> Option<Facts> {
        let info = answer.info.get("info").map(String::as_str);
        let info = info.map(serde_json::from_str).transpose();
        let info = info.unwrap_or_else(|error| {
            tracing::debug!("a container's verbose status is not understood: {error}");
            None
        });
        Some(Facts {
            status: answer.status?,
            info: info.unwrap_or_default(),
            upper: None,
        })
    }

    /// In the runtime-neutral form.
    pub(super) fn into_workload(self, host_root: &Path, sandbox: Option<&Sandbox>) -> Workload {
        let Facts {
            status,
            info,
            upper,
        } = self;
        let (state, pid) = match ContainerState::try_from(status.state) {
            Ok(ContainerState::Running) => (State::Running, info.pid),
            Ok(ContainerState::Created) => (State::Created, 0),
            _ => (State::Ended, 0),
        };
        let spec = info.runtime_spec.unwrap_or_default();
        let mut mounts: Vec<Mount> = status
            .mounts
            .iter()
            .filter_map(|mount| mount_of(&mount.container_path, &mount.host_path))
            .collect();
        // After the pod's own: what the runtime adds, such as the volumes that an image declares.
        for mount in spec.mounts.unwrap_or_default() {
            let is_tmpfs = mount.kind == "tmpfs" && pid != 0;
            mounts.extend(match is_tmpfs {
                true => Some(Mount {
                    host: within_process(pid, &mount.destination),
                    container: mount.destination.into(),
                }),
                false => mount_of(&mount.destination, &mount.source)
                    .filter(|_| matches!(mount.kind.as_str(), "bind" | "")),
            });
        }
        super::longest_first(&mut mounts);
        let root = spec.root.map(|root| root.path).unwrap_or_default();
        let roots = roots(host_root, &status.id, pid, upper, Path::new(&root));
        let pod = pod(&status, sandbox);
        let mut labels: BTreeMap<String, String> = status.labels.into_iter().collect();
        let mut annotations: BTreeMap<String, String> = status.annotations.into_iter().collect();
        if let Some(sandbox) = sandbox {
            for (key, value) in &sandbox.labels {
                labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
            for (key, value) in &sandbox.annotations {
                let value = || value.clone();
                annotations.entry(key.clone()).or_insert_with(value);
            }
        }
        Workload {
            runtime: Runtime::Cri,
            name: status.metadata.map(|m| m.name).unwrap_or_default(),
            labels,
            annotations,
            environment: spec
                .process
                .and_then(|process| process.env)
                .unwrap_or_default()
                .into_iter()
                .map(super::split_environment)
                .collect(),
            mounts,
            stdout: match status.log_path.as_str() {
                path if path.starts_with('/') => Stdout::Cri(path.into()),
                _ => {
                    Stdout::None("the runtime was told to keep no log of this container".to_owned())
                }
            },
            roots,
            pid,
            created_ns: status.created_at.max(0),
            state,
            pod: Some(pod),
            id: status.id,
        }
    }
}

/// A mount whose both ends are absolute.
fn mount_of(container: &str, host: &str) -> Option<Mount> {
    (container.starts_with('/') && host.starts_with('/')).then(|| Mount {
        container: container.into(),
        host: host.into(),
    })
}

/// Its pod: as the sandbox was named, else as the kubelet labels its containers.
fn pod(status: &Status, sandbox: Option<&Sandbox>) -> Pod {
    let named = sandbox.and_then(|sandbox| sandbox.metadata.clone());
    let named = named.unwrap_or_default();
    let or_label = |named: String, key: &str| match named.is_empty() {
        false => named,
        true => status.labels.get(key).cloned().unwrap_or_default(),
    };
    let container = status.metadata.as_ref().map(|m| m.name.clone());
    Pod {
        name: or_label(named.name, "io.kubernetes.pod.name"),
        namespace: or_label(named.namespace, "io.kubernetes.pod.namespace"),
        uid: or_label(named.uid, "io.kubernetes.pod.uid"),
        container: or_label(
            container.unwrap_or_default(),
            "io.kubernetes.container.name",
        ),
    }
}

/// The upper directory first: there from creation until removal, and a file keeps its device and inode in it. What
/// only the image has is found in the whole root, which is there while the container runs.
fn roots(
    host_root: &Path,
    id: &str,
    pid: u32,
    upper: Option<PathBuf>,
    merged: &Path,
) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = upper.into_iter().collect();
    if roots.is_empty() && merged.is_absolute() && merged.file_name() == Some("merged".as_ref()) {
        // containers/storage, which CRI-O uses, keeps them side by side.
        roots.push(merged.with_file_name("diff"));
    }
    if pid == 0 {
        return roots;
    }
    if roots.is_empty() {
        roots.extend(super::upper_by_mountinfo(host_root, pid));
    }
    let usual = CONTAINERD_ROOTS.map(|state| Path::new(state).join(id).join("rootfs"));
    let whole = std::iter::once(merged.to_path_buf())
        .filter(|merged| merged.is_absolute())
        .chain(usual)
        // Seen empty where the mount does not reach this process's mount namespace: then it is no root.
        .find(|root| super::has_names(host_root, root));
    roots.push(whole.unwrap_or_else(|| within_process(pid, "/")));
    roots
}

/// The upper directory in what containerd would mount; a layer without parents is one directory.
pub(super) fn upper_of(mounts: &SnapshotMounts) -> Option<PathBuf> {
    let [mount] = mounts.mounts.as_slice() else {
        return None;
    };
    let upper = match mount.kind.as_str() {
        "overlay" => mount
            .options
            .iter()
            .find_map(|option| option.strip_prefix("upperdir="))?,
        "bind" => mount.source.as_str(),
        _ => return None,
    };
    Path::new(upper).is_absolute().then(|| PathBuf::from(upper))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::cri_wire::{ContainerMetadata, SandboxMetadata, SnapshotMount, StatusMount};
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn sandbox() -> Sandbox {
        Sandbox {
            id: "s1".into(),
            metadata: Some(SandboxMetadata {
                name: "web-0".into(),
                uid: "u-1".into(),
                namespace: "shop".into(),
            }),
            labels: pairs(&[("app", "web"), ("io.kubernetes.pod.name", "web-0")]),
            annotations: pairs(&[("aliyun.logs.access", "stdout")]),
        }
    }

    /// As containerd 1.6 answers for a running container, what is not read left out.
    fn running() -> StatusAnswer {
        let info = serde_json::json!({
            "sandboxID": "s1", "pid": 4242, "removing": false, "snapshotKey": "c1", "snapshotter": "overlayfs",
            "runtimeType": "io.containerd.runc.v2",
            "config": {"metadata": {"name": "nginx"}, "envs": [{"key": "ONLY", "value": "declared"}]},
            "runtimeSpec": {
                "ociVersion": "1.0.2-dev",
                "process": {"env": ["PATH=/bin", "aliyun_logs_access=/logs/*.log", "ONLY=declared"]},
                "root": {"path": "rootfs"},
                "mounts": [
                    {"destination": "/proc", "type": "proc", "source": "proc"},
                    {"destination": "/logs", "type": "bind", "source": "/elsewhere"},
                    {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"},
                    {"destination": "/data", "type": "bind",
                        "source": "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/c1/volumes/v"}]}});
        StatusAnswer {
            status: Some(Status {
                id: "c1".into(),
                metadata: Some(ContainerMetadata {
                    name: "nginx".into(),
                    attempt: 2,
                }),
                state: ContainerState::Running.into(),
                created_at: 1_795_488_396_371_824_873,
                labels: pairs(&[("io.kubernetes.container.name", "nginx")]),
                annotations: pairs(&[("io.kubernetes.container.restartCount", "2")]),
                mounts: vec![StatusMount {
                    container_path: "/logs".into(),
                    host_path: "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/logs"
                        .into(),
                }],
                log_path: "/var/log/pods/shop_web-0_u-1/nginx/2.log".into(),
            }),
            info: HashMap::from([("info".to_owned(), info.to_string())]),
        }
    }

    #[test]
    fn a_running_container_has_its_resolved_environment_its_pod_its_mounts_and_its_log() {
        let mut facts = Facts::new(running()).expect("an answer");
        facts.upper = Some("/snapshots/7/fs".into());
        let workload = facts.into_workload(Path::new("/nowhere"), Some(&sandbox()));
        assert_eq!((workload.state, workload.pid), (State::Running, 4242));
        assert_eq!(
            workload.environment[1],
            ("aliyun_logs_access".into(), "/logs/*.log".into())
        );
        assert_eq!(
            workload.stdout,
            Stdout::Cri("/var/log/pods/shop_web-0_u-1/nginx/2.log".into())
        );
        assert_eq!(
            workload.pod,
            Some(Pod {
                name: "web-0".into(),
                namespace: "shop".into(),
                uid: "u-1".into(),
                container: "nginx".into()
            })
        );
        let host = |path: &str| {
            let path = Path::new(path);
            let mount = workload.mounts.iter().find(|m| m.container == path);
            mount.and_then(|mount| mount.host.to_str())
        };
        assert_eq!(
            host("/logs"),
            Some("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/logs"),
            "the pod's own mount, not the runtime's"
        );
        assert_eq!(host("/scratch"), Some("/proc/4242/root/scratch"));
        assert!(host("/data").is_some_and(|path| path.ends_with("/volumes/v")));
        assert_eq!(host("/proc"), None);
        assert_eq!(
            workload.roots,
            [PathBuf::from("/snapshots/7/fs"), "/proc/4242/root/".into()]
        );
        assert_eq!(workload.labels.get("app").map(String::as_str), Some("web"));
        assert!(workload.annotations.contains_key("aliyun.logs.access"));
    }

    #[test]
    fn an_ended_container_keeps_its_log_and_its_upper_directory_and_has_no_process() {
        let mut answer = running();
        answer.status.as_mut().expect("a status").state = ContainerState::Exited.into();
        let mut facts = Facts::new(answer).expect("an answer");
        facts.upper = Some("/snapshots/7/fs".into());
        let workload = facts.into_workload(Path::new("/nowhere"), None);
        assert_eq!((workload.state, workload.pid), (State::Ended, 0));
        assert_eq!(workload.roots, [PathBuf::from("/snapshots/7/fs")]);
        assert!(matches!(workload.stdout, Stdout::Cri(_)));
    }

    #[test]
    fn a_runtime_whose_info_is_not_understood_still_gives_the_log() {
        for info in [
            "",
            "[]",
            "{\"pid\":\"x\"}",
            "{\"runtimeSpec\":{\"process\":null}}",
        ] {
            let mut answer = running();
            answer.info.insert("info".into(), info.into());
            let facts = Facts::new(answer).expect("an answer");
            let workload = facts.into_workload(Path::new("/nowhere"), Some(&sandbox()));
            assert!(matches!(workload.stdout, Stdout::Cri(_)), "{info}");
            assert_eq!(workload.annotations.len(), 2);
        }
        assert!(Facts::new(StatusAnswer::default()).is_none());
    }

    #[test]
    fn cri_o_keeps_the_upper_directory_beside_the_merged_one() {
        let merged = Path::new("/var/lib/containers/storage/overlay/abc/merged");
        assert_eq!(
            roots(Path::new("/nowhere"), "c1", 0, None, merged),
            [PathBuf::from(
                "/var/lib/containers/storage/overlay/abc/diff"
            )]
        );
    }

    #[test]
    fn the_upper_directory_is_what_containerd_would_mount_for_writing() {
        let mount = |kind: &str, source: &str, options: &[&str]| SnapshotMounts {
            mounts: vec![SnapshotMount {
                kind: kind.into(),
                source: source.into(),
                options: options.iter().map(|o| (*o).to_owned()).collect(),
            }],
        };
        let overlay = mount("overlay", "overlay", &["workdir=/w", "upperdir=/s/7/fs"]);
        assert_eq!(upper_of(&overlay), Some("/s/7/fs".into()));
        assert_eq!(
            upper_of(&mount("bind", "/s/7/fs", &["rw"])),
            Some("/s/7/fs".into())
        );
        assert_eq!(upper_of(&mount("zfs", "tank/7", &[])), None);
        assert_eq!(
            upper_of(&mount("overlay", "overlay", &["upperdir=x"])),
            None
        );
        assert_eq!(upper_of(&SnapshotMounts::default()), None);
    }
}
