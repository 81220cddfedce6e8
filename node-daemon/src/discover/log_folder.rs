//! Know of containers by the names in the pod log folder alone, where the runtime's socket cannot be had.
//! Place: within **discover**, for `cri`. The one place where names are parsed.
//! Invariants: it gives pod, namespace, container and stdout and nothing else: no declaration can be read this way, so
//! only `collect_stdout: all` collects anything. Each `N.log` is one life of a container and a workload of its own.
//! Source: Kubernetes `pkg/kubelet/kuberuntime/helpers.go`: `NAMESPACE_POD_UID/CONTAINER/N.log`; none of the names may
//! have a `_` in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Heard, Pod, Runtime, State, Stdout, Workload};

/// More files than a node has containers: a folder that is something else is not read without end.
const MOST_FILES: usize = 20_000;

/// What was last seen in it.
#[derive(Debug, Default)]
pub(super) struct LogFolder {
    told: BTreeMap<String, State>,
    has_listed: bool,
}

impl LogFolder {
    /// Whether nothing is known by names alone.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_listed
    }

    /// Looks again: what is new, what has ended, what is gone. `seen` is where this process sees the folder, `named`
    /// what the host calls it.
    pub(super) fn look(&mut self, seen: &Path, named: &Path) -> Vec<Heard> {
        let Ok(pods) = std::fs::read_dir(seen) else {
            return Vec::new();
        };
        let mut there: BTreeMap<String, (Pod, BTreeSet<u32>)> = BTreeMap::new();
        let mut files = 0;
        for pod in pods.flatten() {
            let Some(named) = pod.file_name().to_str().and_then(pod_of_folder) else {
                continue;
            };
            for container in std::fs::read_dir(pod.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let Some(name) = container.file_name().to_str().map(str::to_owned) else {
                    continue;
                };
                let mut lives = BTreeSet::new();
                for log in std::fs::read_dir(container.path())
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    let life = log.file_name().to_str().and_then(life_of_file);
                    files += usize::from(life.is_some());
                    lives.extend(life.filter(|_| files <= MOST_FILES));
                }
                if !lives.is_empty() {
                    let folder = format!("{}/{name}", pod.file_name().to_string_lossy());
                    let container = Pod {
                        container: name,
                        ..named.clone()
                    };
                    there.insert(folder, (container, lives));
                }
            }
        }
        let mut heard = Vec::new();
        let mut now = BTreeMap::new();
        for (folder, (pod, lives)) in there {
            let last = lives.last().copied();
            for life in lives {
                // A container's earlier lives are over once it has a later one.
                let state = match Some(life) == last {
                    true => State::Running,
                    false => State::Ended,
                };
                let id = format!("{folder}/{life}");
                if self.told.get(&id) != Some(&state) {
                    let log = named.join(&folder).join(format!("{life}.log"));
                    heard.push(Heard::Here(Box::new(workload(
                        id.clone(),
                        pod.clone(),
                        Stdout::Cri(log),
                        state,
                    ))));
                }
                now.insert(id, state);
            }
        }
        let gone = self.told.keys().filter(|id| !now.contains_key(*id));
        heard.extend(gone.map(|id| Heard::Gone {
            runtime: Runtime::LogFolder,
            id: id.clone(),
        }));
        self.told = now;
        if !std::mem::replace(&mut self.has_listed, true) {
            heard.push(Heard::Listed(Runtime::LogFolder));
        }
        heard
    }

    /// Everything is known better now.
    pub(super) fn forget(&mut self) -> Vec<Heard> {
        self.has_listed = false;
        std::mem::take(&mut self.told)
            .into_keys()
            .map(|id| Heard::Gone {
                runtime: Runtime::LogFolder,
                id,
            })
            .collect()
    }
}

/// `NAMESPACE_POD_UID`.
fn pod_of_folder(name: &str) -> Option<Pod> {
    let mut parts = name.split('_');
    let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let is_named = parts.next().is_none() && ![namespace, pod, uid].contains(&"");
    is_named.then(|| Pod {
        name: pod.to_owned(),
        namespace: namespace.to_owned(),
        uid: uid.to_owned(),
        container: String::new(),
    })
}

/// `N.log`; rotated files are found beside it by who follows it.
fn life_of_file(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".log")?;
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| number.parse().ok()).flatten()
}

fn workload(id: String, pod: Pod, stdout: Stdout, state: State) -> Workload {
    Workload {
        runtime: Runtime::LogFolder,
        id,
        name: pod.container.clone(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        environment: Vec::new(),
        mounts: Vec::new(),
        stdout,
        roots: Vec::new(),
        pid: 0,
        created_ns: 0,
        state,
        pod: Some(pod),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(heard: Vec<Heard>) -> Vec<String> {
        heard
            .into_iter()
            .map(|heard| match heard {
                Heard::Here(workload) => {
                    let pod = workload.pod.unwrap_or_default();
                    let Stdout::Cri(path) = workload.stdout else {
                        return "no stdout".to_owned();
                    };
                    format!(
                        "{} {} {} {:?} {}",
                        pod.namespace,
                        pod.name,
                        pod.container,
                        workload.state,
                        path.display()
                    )
                }
                Heard::Gone { id, .. } => format!("gone {id}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn each_life_of_a_container_is_its_own_and_what_is_no_log_is_not_looked_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let web = folder.path().join("shop_web-0_u-1/nginx");
        std::fs::create_dir_all(&web).expect("made");
        for other in ["not-a-pod", "a_b_c_d", "__x"] {
            std::fs::create_dir_all(folder.path().join(other).join("c")).expect("made");
            std::fs::write(folder.path().join(other).join("c/0.log"), "").expect("written");
        }
        for name in [
            "0.log",
            "0.log.20261124-103000",
            "0.log.20261124-103000.gz",
            "x.log",
            "+1.log",
        ] {
            std::fs::write(web.join(name), "").expect("written");
        }
        let mut known = LogFolder::default();
        let named = Path::new("/var/log/pods");
        assert!(known.is_empty());
        assert_eq!(
            lines(known.look(folder.path(), named)),
            [
                "shop web-0 nginx Running /var/log/pods/shop_web-0_u-1/nginx/0.log",
                "Listed(LogFolder)"
            ]
        );
        assert!(known.look(folder.path(), named).is_empty());
        std::fs::write(web.join("1.log"), "").expect("written");
        assert_eq!(
            lines(known.look(folder.path(), named)),
            [
                "shop web-0 nginx Ended /var/log/pods/shop_web-0_u-1/nginx/0.log",
                "shop web-0 nginx Running /var/log/pods/shop_web-0_u-1/nginx/1.log"
            ]
        );
        std::fs::remove_file(web.join("0.log")).expect("removed");
        assert_eq!(
            lines(known.look(folder.path(), named)),
            ["gone shop_web-0_u-1/nginx/0"]
        );
        assert_eq!(lines(known.forget()), ["gone shop_web-0_u-1/nginx/1"]);
    }
}
