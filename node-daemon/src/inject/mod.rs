//! Put the shim into pods that declare files which nobody may read from the node.
//! Place: `ringpilot inject`, `ringpilot webhook`; both by [`pod`], the one function that knows how.
//! Invariants: what is not understood is kept as it is; a pod that has its shim is left alone, so that it may be asked
//! twice; the shim is let do nothing but read the declared volumes, and passes Pod Security `restricted`; whatever is
//! wrong with one declaration keeps no other, and never the pod, from running.
//!
//! One shim for each container that declares files: it sees the same volumes at the same places, runs as the same user
//! where that is not root, and gets the same variables. It is a native sidecar (an init container with
//! `restartPolicy: Always`, Kubernetes 1.29 and later): it is there before the first container, ends after the last,
//! and a Job still ends.

mod authority;
pub mod command;
pub mod csi;
mod documents;
pub mod webhook;

use std::collections::BTreeSet;

use serde_yaml_ng::{Mapping, Value};

pub use documents::{Injected, manifest};

use crate::declare::key::{self, Declared, Entry, Found};
use crate::manifest::{at, text};
use crate::problem::Problem;

/// The annotation by which a pod says how it is treated.
pub const ANNOTATION: &str = "ringpilot.dev/inject";
/// The annotation by which an injected pod says which of its declared files its shims read.
pub const READS: &str = "ringpilot.dev/shim";
/// What the shim's container is called; of a second declaring container `ringpilot-shim-NAME`.
pub const SHIM: &str = "ringpilot-shim";
/// What the volume with the node's socket is called; of a second declaring container `ringpilot-2`.
const VOLUME: &str = "ringpilot";
/// Where it is in the shim.
const SOCKET_DIR: &str = "/run/ringpilot";
/// Where Kubernetes mounts the pod's token, in each container that has nothing there.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Whom the shim runs as where nobody says.
const NOBODY: u64 = 65_532;

/// When the shim is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mode {
    /// Where the profile says that the node cannot see the pod's files.
    #[default]
    Auto,
    /// Wherever a file is declared.
    Shim,
    /// Never.
    None,
}

/// How the daemon runs, as the chart was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Profile {
    /// The daemon reads all files on the node.
    NodeOnly,
    /// It reads what it can, and has shims in pods of the given runtime classes.
    Hybrid,
    /// It has no folder of logs: all comes through shims.
    #[default]
    Restricted,
}

/// What is not in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// When the shim is added; a pod's own annotation wins.
    pub mode: Mode,
    /// How the daemon runs.
    pub profile: Profile,
    /// With [`Profile::Hybrid`]: pods of these runtime classes get the shim.
    pub runtime_classes: Vec<String>,
    /// The shim's image.
    pub image: String,
    /// Prefixes of declarations; the earlier wins.
    pub prefixes: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            profile: Profile::default(),
            runtime_classes: Vec::new(),
            image: concat!("ringpilot/shim:", env!("CARGO_PKG_VERSION")).to_owned(),
            prefixes: vec!["aliyun".to_owned()],
        }
    }
}

/// Adds what a pod, or a pod template, needs: a mapping with `metadata` and `spec`. Whether it was changed, and what
/// is wrong with what it declares; `who` is how problems name it, such as `shop/web`.
pub fn pod(template: &mut Value, who: &str, options: &Options) -> (bool, Vec<Problem>) {
    let mut problems = Vec::new();
    let annotations = texts(at(template, &["metadata", "annotations"]));
    let own = annotations.iter().find(|(key, _)| key == ANNOTATION);
    let mode = match own.map(|(_, value)| value.as_str()) {
        Some("auto") => Mode::Auto,
        Some("shim") => Mode::Shim,
        Some("none") => Mode::None,
        Some(other) => {
            problems.push(Problem {
                container: who.to_owned(),
                key: ANNOTATION.to_owned(),
                value: other.to_owned(),
                reason: "it is none of its values, and is not looked at".to_owned(),
                cure: "use one of: auto, shim, none".to_owned(),
            });
            options.mode
        }
        None => options.mode,
    };
    let is_wanted = match mode {
        Mode::None => false,
        Mode::Shim => true,
        Mode::Auto => match options.profile {
            Profile::NodeOnly => false,
            Profile::Restricted => true,
            Profile::Hybrid => text(at(template, &["spec", "runtimeClassName"]))
                .is_some_and(|class| options.runtime_classes.contains(&class)),
        },
    };
    let spec = template.get("spec").and_then(Value::as_mapping);
    let Some(spec) = spec.filter(|_| is_wanted) else {
        return (false, problems);
    };
    let containers = ["initContainers", "containers"]
        .into_iter()
        .filter_map(|list| spec.get(list)?.as_sequence())
        .flatten();
    let mut shims: Vec<Value> = Vec::new();
    let mut sockets: Vec<Value> = Vec::new();
    let mut declared_names = BTreeSet::new();
    for container in containers {
        let name = text(container.get("name")).unwrap_or_default();
        if name == SHIM || name.starts_with("ringpilot-shim-") {
            return (false, problems);
        }
        let whose = format!("{who} ({name})");
        let Some(wanted) = wanted(container, &annotations, &whose, options, &mut problems) else {
            continue;
        };
        // An annotation speaks to every container; the first that has the volume follows it.
        let mut news = false;
        for (log, found) in &wanted.logs {
            news |= declared_names.insert(log.clone()) || *found == Found::Environment;
        }
        if news {
            let (shim_name, volume) = match shims.len() {
                0 => (SHIM.to_owned(), VOLUME.to_owned()),
                // A container's name has at most 63 characters.
                n => (
                    format!("{SHIM}-{name}").chars().take(63).collect(),
                    format!("{VOLUME}-{}", n + 1),
                ),
            };
            // The node takes one shim at a socket: each has its own.
            sockets.push(socket_volume(&volume, &name));
            shims.push(shim(&shim_name, &volume, container, spec, wanted, options));
        }
    }
    if shims.is_empty() {
        return (false, problems);
    }
    // So that a daemon that sees the pod's volumes all the same does not read them a second time.
    let names: Vec<String> = declared_names.into_iter().collect();
    annotate(template, READS, &names.join(","));
    let Some(spec) = template.get_mut("spec").and_then(Value::as_mapping_mut) else {
        return (false, problems);
    };
    let mut init = spec
        .get("initContainers")
        .and_then(Value::as_sequence)
        .cloned();
    let init = init.get_or_insert_default();
    // First of all: what other init containers write is read as they write it.
    init.splice(0..0, shims);
    let init = std::mem::take(init);
    spec.insert("initContainers".into(), Value::Sequence(init));
    let mut volumes = spec.get("volumes").and_then(Value::as_sequence).cloned();
    let volumes = volumes.get_or_insert_default();
    let is_ours = |volume: &Value| {
        let name = volume.get("name");
        sockets.iter().any(|socket| socket.get("name") == name)
    };
    volumes.retain(|volume| !is_ours(volume));
    volumes.extend(sockets);
    let volumes = std::mem::take(volumes);
    spec.insert("volumes".into(), Value::Sequence(volumes));
    (true, problems)
}

fn annotate(template: &mut Value, key: &str, value: &str) {
    let Some(template) = template.as_mapping_mut() else {
        return;
    };
    let metadata = template.entry("metadata".into()).or_insert(Value::Null);
    if !metadata.is_mapping() {
        *metadata = Value::Mapping(Mapping::new());
    }
    let Some(metadata) = metadata.as_mapping_mut() else {
        return;
    };
    let annotations = metadata.entry("annotations".into()).or_insert(Value::Null);
    if !annotations.is_mapping() {
        *annotations = Value::Mapping(Mapping::new());
    }
    if let Some(annotations) = annotations.as_mapping_mut() {
        annotations.insert(key.into(), value.into());
    }
}

/// What one container's shim needs.
struct WantedShim {
    /// The declared names, and where they were found.
    logs: Vec<(String, Found)>,
    /// Variables, as the manifest has them, `valueFrom` included.
    environment: Vec<Value>,
    /// Mounts, as the container has them, but for reading only.
    mounts: Vec<Value>,
}

/// What a container declares as files that lie on its volumes.
fn wanted(
    container: &Value,
    annotations: &[(String, String)],
    whose: &str,
    options: &Options,
    problems: &mut Vec<Problem>,
) -> Option<WantedShim> {
    let variables = container.get("env").and_then(Value::as_sequence);
    let variables = variables.map(Vec::as_slice).unwrap_or_default();
    let plain: Vec<(String, String)> = variables
        .iter()
        .filter(|variable| variable.get("valueFrom").is_none())
        .filter_map(|variable| {
            let value = text(variable.get("value")).unwrap_or_default();
            Some((text(variable.get("name"))?, value))
        })
        .collect();
    let entry =
        |found| move |(key, value): &'_ (String, String)| (found, key.clone(), value.clone());
    let all: Vec<(Found, String, String)> = annotations
        .iter()
        .map(entry(Found::Annotation))
        .chain(plain.iter().map(entry(Found::Environment)))
        .collect();
    let entries = all.iter().map(|(found, key, value)| Entry {
        key,
        value,
        found: *found,
    });
    let keys = key::resolve(&options.prefixes, entries);
    let mounts = container.get("volumeMounts").and_then(Value::as_sequence);
    let mounts = mounts.map(Vec::as_slice).unwrap_or_default();
    let mut wanted = WantedShim {
        logs: Vec::new(),
        environment: Vec::new(),
        mounts: Vec::new(),
    };
    for (name, declared) in &keys.declared {
        let path = declared.entry.value.trim();
        if !path.starts_with('/') {
            continue;
        }
        let used = used(mounts, path);
        if used.is_empty() {
            // What an annotation declares may lie on another container's volume.
            if declared.entry.found == Found::Environment {
                problems.push(outside(whose, name, &declared.entry));
            }
            continue;
        }
        wanted.logs.push(((*name).to_owned(), declared.entry.found));
        for mount in used {
            let mount = for_reading(mount);
            if !wanted.mounts.contains(&mount) {
                wanted.mounts.push(mount);
            }
        }
        wanted.environment.extend(variables_of(declared, variables));
    }
    if wanted.logs.is_empty() {
        return None;
    }
    if let Some(custom) = keys.custom {
        wanted.environment.push(variable(custom));
    }
    // What a subPathExpr speaks of must be there for the shim, too.
    let expressions: Vec<String> = wanted
        .mounts
        .iter()
        .filter_map(|mount| text(mount.get("subPathExpr")))
        .collect();
    for other in variables {
        let name = text(other.get("name")).unwrap_or_default();
        let is_named = expressions
            .iter()
            .any(|e| e.contains(&format!("$({name})")));
        if is_named && !wanted.environment.contains(other) {
            wanted.environment.push(other.clone());
        }
    }
    Some(wanted)
}

/// The mounts in which a pattern finds files: the deepest that holds its beginning, and all beneath that.
fn used<'mounts>(mounts: &'mounts [Value], path: &str) -> Vec<&'mounts Value> {
    let literal = path.find(['*', '?', '[', '{']).unwrap_or(path.len());
    let folder = path[..literal].rfind('/').map_or("", |at| &path[..at]);
    let place = |mount: &Value| {
        let place = text(mount.get("mountPath")).unwrap_or_default();
        place.trim_end_matches('/').to_owned()
    };
    let holds = |place: &str, path: &str| {
        path.strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let covering = mounts
        .iter()
        .filter(|mount| {
            let place = place(mount);
            // A mount may be of one file.
            !place.is_empty() && (holds(&place, folder) || place == path)
        })
        .max_by_key(|mount| place(mount).len());
    let beneath = mounts.iter().filter(|mount| {
        literal < path.len() && place(mount).len() > folder.len() && holds(folder, &place(mount))
    });
    covering.into_iter().chain(beneath).collect()
}

fn for_reading(mount: &Value) -> Value {
    let mut mount = mount.clone();
    if let Some(mount) = mount.as_mapping_mut() {
        mount.remove("mountPropagation");
        mount.remove("recursiveReadOnly");
        mount.insert("readOnly".into(), true.into());
    }
    mount
}

/// A declaration's own variable and its attributes, each as the shim knows it.
fn variables_of(declared: &Declared<'_>, variables: &[Value]) -> Vec<Value> {
    let mut taken = vec![variable(declared.entry)];
    taken.extend(declared.attributes.values().map(|entry| variable(*entry)));
    let stem = declared.entry.key;
    // Attributes whose value only the cluster knows.
    let later = variables.iter().filter(|variable| {
        let name = text(variable.get("name")).unwrap_or_default();
        variable.get("valueFrom").is_some()
            && name
                .strip_prefix(stem)
                .is_some_and(|rest| rest.starts_with(['_', '.']))
    });
    taken.extend(later.cloned());
    taken
}

fn variable(entry: Entry<'_>) -> Value {
    let name = match entry.found {
        Found::Environment => entry.key.to_owned(),
        _ => entry.key.replace('.', "_"),
    };
    let mut variable = Mapping::new();
    variable.insert("name".into(), name.into());
    variable.insert("value".into(), entry.value.into());
    Value::Mapping(variable)
}

fn outside(whose: &str, name: &str, entry: &Entry<'_>) -> Problem {
    let path = entry.value.trim();
    let folder = path
        .rfind('/')
        .filter(|at| *at > 0)
        .map_or("/", |at| &path[..at]);
    Problem {
        container: format!("{whose}, log `{name}`"),
        key: entry.key.to_owned(),
        value: entry.value.to_owned(),
        reason: "it lies in no volume, and the shim sees nothing but volumes".to_owned(),
        cure: format!("mount an emptyDir at {folder}"),
    }
}

/// The shim of one container.
fn shim(
    name: &str,
    volume: &str,
    container: &Value,
    spec: &Mapping,
    wanted: WantedShim,
    options: &Options,
) -> Value {
    let mut mounts = wanted.mounts;
    mounts.push(yaml(
        serde_json::json!({"name": volume, "mountPath": SOCKET_DIR}),
    ));
    // In place of the pod's token: a shim holds no credential.
    mounts.push(yaml(
        serde_json::json!({"name": volume, "mountPath": TOKEN_DIR, "readOnly": true}),
    ));
    let mut resources = serde_json::json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "32Mi"}});
    if is_guaranteed(spec) {
        // Anything less would take the pod's Guaranteed class from it.
        resources["requests"]["cpu"] = "100m".into();
        resources["limits"]["cpu"] = "100m".into();
    }
    let mut shim = Mapping::new();
    shim.insert("name".into(), name.into());
    shim.insert("image".into(), options.image.as_str().into());
    shim.insert("restartPolicy".into(), "Always".into());
    shim.insert("env".into(), Value::Sequence(wanted.environment));
    shim.insert("resources".into(), yaml(resources));
    shim.insert("securityContext".into(), security(container, spec));
    shim.insert("volumeMounts".into(), Value::Sequence(mounts));
    Value::Mapping(shim)
}

/// As the container runs, where that is not root; else 65532 with the volumes' group.
fn security(container: &Value, spec: &Mapping) -> Value {
    let pods = spec.get("securityContext");
    let said = |key: &str| {
        let own = container
            .get("securityContext")
            .and_then(|own| own.get(key));
        own.or_else(|| pods?.get(key)).and_then(Value::as_u64)
    };
    let user = said("runAsUser").filter(|user| *user != 0);
    let group = match user {
        Some(_) => said("runAsGroup"),
        None => {
            let volumes = pods
                .and_then(|pods| pods.get("fsGroup"))
                .and_then(Value::as_u64);
            Some(volumes.unwrap_or(NOBODY))
        }
    };
    let mut security = serde_json::json!({
        "runAsNonRoot": true,
        "runAsUser": user.unwrap_or(NOBODY),
    });
    if let Some(group) = group {
        security["runAsGroup"] = group.into();
    }
    security["allowPrivilegeEscalation"] = false.into();
    security["readOnlyRootFilesystem"] = true.into();
    security["capabilities"] = serde_json::json!({"drop": ["ALL"]});
    security["seccompProfile"] = serde_json::json!({"type": "RuntimeDefault"});
    yaml(security)
}

/// Whether every container has limits for both: it may be of the class Guaranteed.
fn is_guaranteed(spec: &Mapping) -> bool {
    let mut containers = ["initContainers", "containers"]
        .into_iter()
        .filter_map(|list| spec.get(list)?.as_sequence())
        .flatten();
    containers.all(|container| {
        let limits = at(container, &["resources", "limits"]);
        limits.is_some_and(|limits| limits.get("cpu").is_some() && limits.get("memory").is_some())
    })
}

/// The folder of the pod's own, with the node's socket; by its name the daemon knows whose logs come this way.
fn socket_volume(name: &str, container: &str) -> Value {
    let attributes = serde_json::json!({csi::CONTAINER: container});
    yaml(serde_json::json!({"name": name, "csi":
        {"driver": csi::DRIVER, "readOnly": true, "volumeAttributes": attributes}}))
}

/// What is written here as JSON, in the manifest's terms.
fn yaml(value: serde_json::Value) -> Value {
    // A JSON value of strings, numbers, lists and objects is always a YAML value, too.
    serde_yaml_ng::to_value(value).unwrap_or_default()
}

fn texts(map: Option<&Value>) -> Vec<(String, String)> {
    map.and_then(Value::as_mapping)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((text(Some(key))?, text(Some(value))?)))
        .collect()
}

#[cfg(test)]
mod tests;
