//! What is known of one Docker container, from its `inspect` or from its folder in the data-root, as a `Workload`.
//! Place: within **discover**, for `docker`.
//! Invariants: both ways give the same `Workload` for the same container; a container that is only created
//! already has its log's path and its upper directory, so a follower stands ready before its first line.
//! Sources: Docker Engine API 1.41 to 1.51 (`GET /containers/ID/json`); the data-root's layout as Docker Engine
//! 20.10 to 28 write it (`containers/ID/config.v2.json`, `hostconfig.json`, `image/DRIVER/layerdb/mounts/ID/mount-id`).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use bollard::models::{ContainerInspectResponse, MountType};
use serde::Deserialize;

use super::host_path::beneath;
use super::{Mount, Runtime, State, Stdout, Workload, pod_of};

/// What is true of the whole engine and not said for each container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Engine {
    /// Where the engine keeps its containers, on the host.
    pub data_root: PathBuf,
    /// Its storage driver.
    pub storage_driver: String,
    /// The logging driver of containers that name none.
    pub logging_driver: String,
    /// Whether it is Podman, whose files have the CRI's form.
    pub is_podman: bool,
}

/// One container, before it is put in the runtime-neutral form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    pub id: String,
    pub name: String,
    pub created: String,
    pub running: bool,
    pub was_started: bool,
    pub pid: u32,
    pub environment: Vec<String>,
    pub labels: HashMap<String, String>,
    pub annotations: HashMap<String, String>,
    pub log_driver: String,
    pub log_options: HashMap<String, String>,
    pub log_path: String,
    /// Container path and host path; an empty host path is a file system that only the container has (tmpfs).
    pub mounts: Vec<(String, String)>,
    pub upper: Option<PathBuf>,
    pub merged: Option<PathBuf>,
}

/// What Go writes for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Facts {
    /// From the engine's own answer.
    pub(super) fn from_inspect(inspect: ContainerInspectResponse) -> Facts {
        let state = inspect.state.unwrap_or_default();
        let config = inspect.config.unwrap_or_default();
        let host = inspect.host_config.unwrap_or_default();
        let log = host.log_config.unwrap_or_default();
        let mut layers = inspect.graph_driver.map(|d| d.data).unwrap_or_default();
        let asked = host.mounts.unwrap_or_default();
        let mut mounts = Vec::new();
        for mount in inspect.mounts.unwrap_or_default() {
            let Some(destination) = mount.destination else {
                continue;
            };
            let mut source = mount.source.unwrap_or_default();
            let subpath = asked
                .iter()
                .filter(|asked| {
                    asked.typ == Some(MountType::VOLUME)
                        && asked.target.as_deref() == Some(destination.as_str())
                })
                .find_map(|asked| asked.volume_options.as_ref()?.subpath.as_deref());
            if let Some(subpath) = subpath.filter(|_| !source.is_empty()) {
                source = format!("{source}/{subpath}");
            }
            mounts.push((destination, source));
        }
        for destination in host.tmpfs.unwrap_or_default().into_keys() {
            mounts.push((destination, String::new()));
        }
        Facts {
            id: inspect.id.unwrap_or_default(),
            name: inspect.name.unwrap_or_default(),
            created: inspect.created.unwrap_or_default(),
            running: state.running.unwrap_or_default(),
            was_started: state.started_at.is_some_and(|at| at != NEVER),
            pid: state
                .pid
                .and_then(|pid| u32::try_from(pid).ok())
                .unwrap_or_default(),
            environment: config.env.unwrap_or_default(),
            labels: config.labels.unwrap_or_default(),
            annotations: host.annotations.unwrap_or_default(),
            log_driver: log.typ.unwrap_or_default(),
            log_options: log.config.unwrap_or_default(),
            log_path: inspect.log_path.unwrap_or_default(),
            mounts,
            upper: layers.remove("UpperDir").map(PathBuf::from),
            merged: layers.remove("MergedDir").map(PathBuf::from),
        }
    }

    /// From the container's folder in the data-root: a few microseconds, and there even while the engine holds
    /// the container's lock because it is starting it (`inspect` waits for that lock).
    ///
    /// # Errors
    /// As reading gives them; `InvalidData` when a file is not what Docker writes.
    pub(super) fn from_disk(host_root: &Path, engine: &Engine, id: &str) -> io::Result<Facts> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no container id",
            ));
        }
        let data_root = beneath(host_root, &engine.data_root)?;
        let folder = data_root.join("containers").join(id);
        let config: OnDisk = read_json(&folder.join("config.v2.json"))?;
        let host: HostOnDisk = read_json(&folder.join("hostconfig.json")).unwrap_or_default();
        let driver = if config.driver.is_empty() {
            &engine.storage_driver
        } else {
            &config.driver
        };
        let layer = read_small(
            &data_root
                .join("image")
                .join(driver)
                .join("layerdb/mounts")
                .join(id)
                .join("mount-id"),
        )
        .ok()
        .filter(|layer| !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_alphanumeric()))
        .filter(|_| matches!(driver.as_str(), "overlay2" | "fuse-overlayfs"))
        .map(|layer| engine.data_root.join(driver).join(layer));
        let mut mounts: Vec<_> = config
            .mount_points
            .unwrap_or_default()
            .into_values()
            .map(|mount| {
                let subpath = mount
                    .spec
                    .volume_options
                    .unwrap_or_default()
                    .subpath
                    .filter(|subpath| !subpath.is_empty() && !mount.source.is_empty());
                let source = match subpath {
                    Some(subpath) => format!("{}/{subpath}", mount.source),
                    None => mount.source,
                };
                (mount.destination, source)
            })
            .collect();
        mounts.extend(
            host.tmpfs
                .unwrap_or_default()
                .into_keys()
                .map(|destination| (destination, String::new())),
        );
        Ok(Facts {
            id: id.to_owned(),
            name: config.name,
            created: config.created,
            running: config.state.running,
            was_started: !config.state.started_at.is_empty() && config.state.started_at != NEVER,
            pid: config.state.pid,
            environment: config.config.env.unwrap_or_default(),
            labels: config.config.labels.unwrap_or_default(),
            annotations: host.annotations.unwrap_or_default(),
            log_driver: host.log_config.driver,
            log_options: host.log_config.config.unwrap_or_default(),
            log_path: config.log_path,
            mounts,
            upper: layer.as_ref().map(|layer| layer.join("diff")),
            merged: layer.map(|layer| layer.join("merged")),
        })
    }

    /// From an event alone, when the container has gone before anything else could be asked: its name and labels.
    pub(super) fn from_event(id: &str, attributes: HashMap<String, String>) -> Facts {
        let mut labels = attributes;
        let name = labels.remove("name").unwrap_or_default();
        labels.remove("image");
        labels.remove("exitCode");
        Facts {
            id: id.to_owned(),
            name,
            labels,
            ..Facts::default()
        }
    }

    /// The container in the form that all runtimes share.
    pub(super) fn into_workload(self, host_root: &Path, engine: &Engine) -> Workload {
        let state = match (self.running, self.was_started) {
            (true, _) => State::Running,
            (false, true) => State::Ended,
            (false, false) => State::Created,
        };
        let pid = if self.running { self.pid } else { 0 };
        let stdout = self.stdout(engine);
        let roots = self.roots(host_root, pid);
        let mut mounts: Vec<Mount> = self
            .mounts
            .into_iter()
            .filter_map(|(container, host)| {
                let host = match (host.is_empty(), pid) {
                    (false, _) => PathBuf::from(host),
                    // Only the container's own mount namespace has it, and only while it runs.
                    (true, 0) => return None,
                    (true, pid) => within_process(pid, &container),
                };
                Some(Mount {
                    container: PathBuf::from(container),
                    host,
                })
            })
            .collect();
        super::longest_first(&mut mounts);
        let labels: BTreeMap<_, _> = self.labels.into_iter().collect();
        Workload {
            runtime: Runtime::Docker,
            name: self.name.trim_start_matches('/').to_owned(),
            pod: pod_of(&labels),
            labels,
            annotations: self.annotations.into_iter().collect(),
            environment: self
                .environment
                .into_iter()
                .map(super::split_environment)
                .collect(),
            mounts,
            stdout,
            roots,
            pid,
            created_ns: super::time_ns(&self.created).unwrap_or_default(),
            state,
            id: self.id,
        }
    }

    fn stdout(&self, engine: &Engine) -> Stdout {
        let driver = if self.log_driver.is_empty() {
            engine.logging_driver.as_str()
        } else {
            self.log_driver.as_str()
        };
        let cache_disabled = self
            .log_options
            .get("cache-disabled")
            .is_some_and(|value| matches!(value.as_str(), "true" | "1" | "t" | "T" | "TRUE"));
        match driver {
            // Podman writes the CRI's form under either name.
            "k8s-file" | "json-file" if engine.is_podman => match self.podman_log_path() {
                Some(path) => Stdout::Cri(path),
                None => Stdout::Api(driver.to_owned()),
            },
            "json-file" => {
                Stdout::DockerJson(if self.log_path.is_empty() {
                    // Docker names it only at the first start, but always so.
                    engine
                        .data_root
                        .join("containers")
                        .join(&self.id)
                        .join(format!("{}-json.log", self.id))
                } else {
                    PathBuf::from(&self.log_path)
                })
            }
            "none" => Stdout::None(
                "the container's logging driver is `none`, so nobody keeps its stdout".to_owned(),
            ),
            "local" | "journald" => Stdout::Api(driver.to_owned()),
            "passthrough" | "passthrough-tty" => Stdout::None(format!(
                "the container's logging driver is `{driver}`: its stdout goes to the terminal it was started from"
            )),
            // Since 20.10 Docker keeps a local copy of what it sends elsewhere, unless told not to.
            _ if cache_disabled => Stdout::None(format!(
                "the container's logging driver `{driver}` has its local copy switched off (log option `cache-disabled`)"
            )),
            _ => Stdout::Api(driver.to_owned()),
        }
    }

    fn podman_log_path(&self) -> Option<PathBuf> {
        let path = match self.log_path.as_str() {
            "" => self.log_options.get("path")?.as_str(),
            path => path,
        };
        (!path.is_empty()).then(|| PathBuf::from(path))
    }

    /// The upper directory first, in every state: it is there from create until removal, and a file's device
    /// and inode stay the same in it, while the merged directory is another device and comes and goes with the
    /// first process. What only the image has (a link, mostly) is found in the second.
    fn roots(&self, host_root: &Path, pid: u32) -> Vec<PathBuf> {
        let mut roots = Vec::new();
        match &self.upper {
            Some(upper) => roots.push(upper.clone()),
            None if pid != 0 => roots.extend(super::upper_by_mountinfo(host_root, pid)),
            None => {}
        }
        if pid != 0 {
            match &self.merged {
                // Seen empty where the mount does not reach this process's mount namespace: then it is no root.
                Some(merged) if super::has_names(host_root, merged) => roots.push(merged.clone()),
                _ => roots.push(within_process(pid, "/")),
            }
        }
        roots
    }
}

/// A path of a process's own mount namespace, on the host.
pub(super) fn within_process(pid: u32, container_path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root")).join(container_path.trim_start_matches('/'))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct OnDisk {
    name: String,
    created: String,
    driver: String,
    log_path: String,
    state: StateOnDisk,
    config: ConfigOnDisk,
    mount_points: Option<BTreeMap<String, MountOnDisk>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StateOnDisk {
    running: bool,
    pid: u32,
    started_at: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigOnDisk {
    env: Option<Vec<String>>,
    labels: Option<HashMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct MountOnDisk {
    source: String,
    destination: String,
    spec: MountSpecOnDisk,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct MountSpecOnDisk {
    volume_options: Option<VolumeOptionsOnDisk>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct VolumeOptionsOnDisk {
    subpath: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostOnDisk {
    log_config: LogOnDisk,
    tmpfs: Option<HashMap<String, String>>,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct LogOnDisk {
    #[serde(rename = "Type")]
    driver: String,
    config: Option<HashMap<String, String>>,
}

/// Far more than Docker writes for one container.
const LONGEST_FILE_BYTES: u64 = 4 << 20;

fn read_small(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(LONGEST_FILE_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_str(&read_small(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::super::Pod;
    use super::*;

    const ID: &str = "e5a3be7e2cc98c819ca14d3b4ab71a36017b5e8e76885b561a87157650f9aabb";
    const LAYER: &str = "f13dd001fb8a843ad2b7362448186e544b27fe59208131b8ca0c5ab96e4111ad";

    fn engine() -> Engine {
        Engine {
            data_root: "/var/lib/docker".into(),
            storage_driver: "overlay2".into(),
            logging_driver: "json-file".into(),
            is_podman: false,
        }
    }

    /// As Docker Engine 20.10 answers for a created container, what is not read left out.
    fn created() -> serde_json::Value {
        serde_json::json!({
            "Id": ID,
            "Created": "2026-11-24T02:46:36.371824873Z",
            "State": {"Status": "created", "Running": false, "Pid": 0,
                "StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"},
            "LogPath": "",
            "Name": "/c1",
            "HostConfig": {
                "LogConfig": {"Type": "json-file", "Config": {}},
                "Tmpfs": {"/scratch": ""},
                "Mounts": [{"Type": "tmpfs", "Target": "/t2"}]},
            "GraphDriver": {"Name": "overlay2", "Data": {
                "MergedDir": format!("/var/lib/docker/overlay2/{LAYER}/merged"),
                "UpperDir": format!("/var/lib/docker/overlay2/{LAYER}/diff")}},
            "Mounts": [
                {"Type": "bind", "Source": "/srv/logs", "Destination": "/logs", "Mode": "", "RW": true},
                {"Type": "volume", "Name": "vol", "Source": "/var/lib/docker/volumes/vol/_data",
                    "Destination": "/logs/deeper", "Driver": "local", "Mode": "z", "RW": true},
                {"Type": "tmpfs", "Source": "", "Destination": "/t2", "Mode": "", "RW": true}],
            "Config": {"Env": ["A=b=c", "EMPTY="], "Labels": {"aliyun.logs.x": "stdout"}},
        })
    }

    fn workload(inspect: &serde_json::Value) -> Workload {
        let inspect = serde_json::from_value(inspect.clone()).expect("an answer of Docker's");
        Facts::from_inspect(inspect).into_workload(Path::new("/nowhere"), &engine())
    }

    /// The same container as Docker leaves it in its data-root.
    fn on_disk(host: &Path) {
        let folder = host.join("var/lib/docker/containers").join(ID);
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::write(
            folder.join("config.v2.json"),
            serde_json::json!({
                "ID": ID, "Name": "/c1", "Created": "2026-11-24T02:46:36.371824873Z",
                "Driver": "overlay2", "LogPath": "",
                "State": {"Running": false, "Pid": 0, "StartedAt": "0001-01-01T00:00:00Z"},
                "Config": {"Env": ["A=b=c", "EMPTY="], "Labels": {"aliyun.logs.x": "stdout"}},
                "MountPoints": {
                    "/logs": {"Source": "/srv/logs", "Destination": "/logs", "Type": "bind",
                        "Spec": {"Type": "bind", "Source": "/srv/logs", "Target": "/logs"}},
                    "/logs/deeper": {"Source": "/var/lib/docker/volumes/vol/_data",
                        "Destination": "/logs/deeper", "Type": "volume", "Spec": {"Type": "volume"}},
                    "/t2": {"Source": "", "Destination": "/t2", "Type": "tmpfs"}},
            })
            .to_string(),
        )
        .expect("written");
        std::fs::write(
            folder.join("hostconfig.json"),
            r#"{"LogConfig":{"Type":"json-file","Config":{}},"Tmpfs":{"/scratch":""}}"#,
        )
        .expect("written");
        let layer = host
            .join("var/lib/docker/image/overlay2/layerdb/mounts")
            .join(ID);
        std::fs::create_dir_all(&layer).expect("made");
        std::fs::write(layer.join("mount-id"), LAYER).expect("written");
    }

    #[test]
    fn a_created_container_already_has_its_log_path_and_its_upper_directory() {
        let workload = workload(&created());
        assert_eq!(workload.state, State::Created);
        assert_eq!(
            workload.stdout,
            Stdout::DockerJson(format!("/var/lib/docker/containers/{ID}/{ID}-json.log").into())
        );
        assert_eq!(
            workload.roots,
            [PathBuf::from(format!(
                "/var/lib/docker/overlay2/{LAYER}/diff"
            ))]
        );
        assert_eq!(
            workload.environment,
            [("A".into(), "b=c".into()), ("EMPTY".into(), String::new())]
        );
        assert_eq!(workload.name, "c1");
        assert_eq!(workload.created_ns, 1_795_488_396_371_824_873);
        let mounts: Vec<_> = workload
            .mounts
            .iter()
            .map(|m| (m.container.to_str(), m.host.to_str()))
            .collect();
        assert_eq!(
            mounts,
            [
                (
                    Some("/logs/deeper"),
                    Some("/var/lib/docker/volumes/vol/_data")
                ),
                (Some("/logs"), Some("/srv/logs")),
            ]
        );
    }

    #[test]
    fn the_data_root_tells_the_same_as_inspect_does() {
        let host = tempfile::tempdir().expect("a folder");
        on_disk(host.path());
        let from_disk = Facts::from_disk(host.path(), &engine(), ID).expect("read");
        assert_eq!(
            from_disk.into_workload(host.path(), &engine()),
            workload(&created())
        );
    }

    #[test]
    fn an_id_that_is_a_path_is_never_looked_up() {
        for id in ["../../etc", "", "a/b"] {
            let error = Facts::from_disk(Path::new("/"), &engine(), id).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_running_containers_tmpfs_is_reached_through_its_process() {
        let mut inspect = created();
        inspect["State"] = serde_json::json!({"Status": "running", "Running": true, "Pid": 4242,
            "StartedAt": "2026-11-24T02:46:37Z"});
        let workload = workload(&inspect);
        assert_eq!((workload.state, workload.pid), (State::Running, 4242));
        let tmpfs = workload
            .mounts
            .iter()
            .find(|mount| mount.container == Path::new("/scratch"))
            .expect("the tmpfs");
        assert_eq!(tmpfs.host, Path::new("/proc/4242/root/scratch"));
        let upper = PathBuf::from(format!("/var/lib/docker/overlay2/{LAYER}/diff"));
        assert_eq!(workload.roots, [upper, "/proc/4242/root/".into()]);
    }

    #[test]
    fn an_ended_container_keeps_its_log_and_its_upper_directory_and_has_no_process() {
        let mut inspect = created();
        inspect["State"] = serde_json::json!({"Status": "exited", "Running": false, "Pid": 7,
            "StartedAt": "2026-11-24T02:46:37Z", "FinishedAt": "2026-11-24T02:46:38Z"});
        let workload = workload(&inspect);
        assert_eq!((workload.state, workload.pid), (State::Ended, 0));
        assert!(matches!(workload.stdout, Stdout::DockerJson(_)));
        assert_eq!(workload.roots.len(), 1);
    }

    #[test]
    fn each_logging_driver_says_how_its_stdout_is_read_or_why_it_is_not() {
        let stdout = |driver: &str, options: serde_json::Value| {
            let mut inspect = created();
            inspect["HostConfig"]["LogConfig"] =
                serde_json::json!({"Type": driver, "Config": options});
            workload(&inspect).stdout
        };
        let none = serde_json::json!({});
        assert!(matches!(stdout("", none.clone()), Stdout::DockerJson(_)));
        for driver in ["local", "journald", "syslog", "awslogs"] {
            assert_eq!(stdout(driver, none.clone()), Stdout::Api(driver.into()));
        }
        assert!(matches!(stdout("none", none), Stdout::None(why) if why.contains("`none`")));
        assert!(matches!(
            stdout("syslog", serde_json::json!({"cache-disabled": "true"})),
            Stdout::None(why) if why.contains("cache-disabled")
        ));
    }

    #[test]
    fn podman_writes_the_cri_form_whatever_it_calls_it() {
        let mut inspect = created();
        inspect["HostConfig"]["LogConfig"] = serde_json::json!({"Type": "k8s-file", "Config": {}});
        inspect["LogPath"] = "/var/lib/containers/storage/c1/userdata/ctr.log".into();
        let inspect = serde_json::from_value(inspect).expect("an answer of Podman's");
        let engine = Engine {
            is_podman: true,
            ..engine()
        };
        assert_eq!(
            Facts::from_inspect(inspect)
                .into_workload(Path::new("/nowhere"), &engine)
                .stdout,
            Stdout::Cri("/var/lib/containers/storage/c1/userdata/ctr.log".into())
        );
    }

    #[test]
    fn a_container_of_cri_dockerd_knows_its_pod() {
        let mut inspect = created();
        inspect["Config"]["Labels"] = serde_json::json!({
            "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop",
            "io.kubernetes.pod.uid": "u-1", "io.kubernetes.container.name": "nginx"});
        assert_eq!(
            workload(&inspect).pod,
            Some(Pod {
                name: "web-0".into(),
                namespace: "shop".into(),
                uid: "u-1".into(),
                container: "nginx".into()
            })
        );
    }
}
