//! What an operator may set: the configuration file, and log-pilot's environment where there is none.
//! Place: read once at the start and at each reload; every stage takes its part of it.
//! Invariants: an unknown key is an error that names its place and the nearest known key; every problem is told, not
//! only the first; no secret is printed.

mod environment;
mod expand;
mod human;
mod secret;
mod sources;
mod value;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_yaml_ng::Value;

pub use environment::{VARIABLES, Variable};
pub use human::{
    HumanDuration, Permissions, Rate, Size, parse_duration, parse_rate, parse_seconds, parse_size,
    show_size,
};
pub use secret::Secret;
pub use value::from_value;
use written::{File, Manners, StartAtWritten};
pub(crate) use written::{is_name, is_zone};

use crate::declare::{Declaration, StartAt};
use crate::problem::{Problem, of_operator};

/// Everything an operator has set, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// This node's name, in every record as `k8s_node_name`.
    pub node_name: String,
    /// Where checkpoint, dead letters and control socket are.
    pub data_dir: PathBuf,
    /// Where status page, API and metrics are served; `None`: nowhere.
    pub http: Option<String>,
    /// Where `/metrics` and the probes are served as well.
    pub metrics_listen: Option<String>,
    /// Most bytes in flight, over all outputs.
    pub memory_budget: usize,
    /// How long what is in flight may take at SIGTERM.
    pub shutdown_grace: Duration,
    /// Prefixes of declarations; where two name one log, the earlier wins.
    pub label_prefixes: Vec<String>,
    /// Whose stdout is collected.
    pub collect_stdout: CollectStdout,
    /// Where the host's files are seen; `None`: `/host` when mounted, else `/`.
    pub host_root: Option<PathBuf>,
    /// Where files that exist at the first start on a fresh `data_dir` are begun.
    pub start_at: StartAt,
    /// For times without a zone: an IANA name or an offset.
    pub time_zone: String,
    /// Longest record.
    pub max_line_bytes: usize,
    /// How long a record may wait for others before its batch is sent.
    pub batch_wait: Duration,
    /// Worker threads; `None`: as many as the cores we may use.
    pub workers: Option<usize>,
    /// What fields are called.
    pub fields: FieldShape,
    /// Labels and annotations of the workload that become fields.
    pub fields_from: FieldsFrom,
    /// Whether lag and lines are exported for each container.
    pub per_container_metrics: bool,
    /// How workloads are discovered.
    pub discover: Discover,
    /// What a workload may ask for.
    pub policy: PolicySettings,
    /// What is read besides what is discovered; paths are the host's.
    pub sources: Vec<Declaration>,
    /// Where records go; at least one.
    pub outputs: Vec<OutputSettings>,
    /// What is odd, but stops nothing.
    pub warnings: Vec<Problem>,
}

/// Whose stdout is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CollectStdout {
    /// That of containers which declare it.
    #[default]
    Declared,
    /// Also that of each container that declares no stdout, as declaration `_stdout`.
    All,
}

/// What a record's fields are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FieldShape {
    /// As log-pilot calls them.
    #[default]
    LogPilot,
    /// As the Elastic Common Schema does.
    Ecs,
}

/// Labels and annotations that become fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FieldsFrom {
    /// Label keys.
    pub labels: Vec<String>,
    /// Annotation keys.
    pub annotations: Vec<String>,
}

/// Whether a way of discovery is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// When its socket or folder exists, also when it appears later.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always: what is missing is a problem.
    On,
}

/// How workloads are discovered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discover {
    /// Docker Engine, or Podman by its Docker API.
    pub docker: DockerSettings,
    /// containerd or CRI-O.
    pub cri: CriSettings,
    /// Shims over their rings.
    pub rings: RingSettings,
}

/// Discovery by the Docker API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DockerSettings {
    /// Whether it is used.
    pub mode: Mode,
    /// Its socket; `None`: the usual places, by `$DOCKER_HOST` first.
    pub socket: Option<PathBuf>,
}

/// Discovery by the CRI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriSettings {
    /// Whether it is used.
    pub mode: Mode,
    /// Its socket; `None`: the usual places of containerd, k3s and CRI-O.
    pub socket: Option<PathBuf>,
    /// The kubelet's folder, where the volumes of pods are.
    pub kubelet_dir: PathBuf,
    /// Where the runtime writes the stdout of pods.
    pub pod_logs_dir: PathBuf,
}

impl Default for CriSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            socket: None,
            kubelet_dir: "/var/lib/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
        }
    }
}

/// Discovery by the sockets that shims connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingSettings {
    /// Whether it is used.
    pub mode: Mode,
    /// Where each pod's socket is made.
    pub dir: PathBuf,
    /// Which memory rings are made of.
    pub memory: crate::rings::Memory,
}

impl Default for RingSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            dir: "/var/lib/ringpilot/rings".into(),
            memory: crate::rings::Memory::Auto,
        }
    }
}

/// What workloads may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicySettings {
    /// For every workload that nothing else is said of.
    pub default: PolicyRule,
    /// By namespace; what a rule does not say, the default says.
    pub namespaces: BTreeMap<String, PolicyRule>,
    /// By container name (glob); stronger than the namespace.
    pub containers: BTreeMap<String, PolicyRule>,
}

/// What one group of workloads may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Targets they may name, as globs.
    pub targets: Vec<String>,
    /// Most bytes per second of a container; `None`: any.
    pub rate: Option<u64>,
    /// What happens above it.
    pub on_excess: OnExcess,
    /// Most bytes of deleted or rotated files that are held open for a container.
    pub pinned_bytes: u64,
}

impl Default for PolicyRule {
    fn default() -> Self {
        Self {
            targets: vec!["*".to_owned()],
            rate: None,
            on_excess: OnExcess::Wait,
            pinned_bytes: 1 << 30,
        }
    }
}

/// What happens to lines above a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExcess {
    /// They are read later.
    #[default]
    Wait,
    /// They are dropped, counted.
    Drop,
}

/// One output: the manners all share, and its type's own keys.
#[derive(Clone, PartialEq)]
pub struct OutputSettings {
    /// Its name: the key under `outputs`.
    pub name: String,
    /// Its type, one of [`OUTPUT_TYPES`].
    pub kind: String,
    /// Encoded bytes of a batch at which it is sent.
    pub batch_bytes: usize,
    /// Requests in flight.
    pub concurrency: usize,
    /// How long one request may take.
    pub timeout: Duration,
    /// When what failed is tried again.
    pub retry: RetrySettings,
    /// Where an output that is added later begins; `None`: now.
    pub start_at: Option<StartAt>,
    /// The name it had; its cursors are kept.
    pub renamed_from: Option<String>,
    /// What becomes of records it refuses.
    pub dead_letters: DeadLetterSettings,
    /// How long a record may wait for others; the daemon's `batch_wait` if none.
    pub batch_wait: Option<Duration>,
    /// Its type's own keys, variables expanded: may hold secrets. Read by [`from_value`] at path `outputs.NAME`.
    pub settings: Value,
}

impl OutputSettings {
    /// Where its keys stand in the configuration.
    pub fn path(&self) -> String {
        format!("outputs.{}", self.name)
    }

    /// An output of this type under its own name with every default.
    pub fn of(kind: &str, settings: Value) -> Self {
        let manners = Manners::default();
        Self {
            name: kind.to_owned(),
            kind: kind.to_owned(),
            batch_bytes: manners.batch_bytes.bytes(),
            concurrency: manners.concurrency,
            timeout: manners.timeout.0,
            retry: manners.retry,
            start_at: None,
            renamed_from: None,
            dead_letters: manners.dead_letters,
            batch_wait: None,
            settings,
        }
    }
}

impl fmt::Debug for OutputSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of the type's own keys only the names: a value may be a secret whatever its key is called.
        let own: Vec<&str> = self
            .settings
            .as_mapping()
            .map(|map| map.keys().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        f.debug_struct("OutputSettings")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("batch_bytes", &self.batch_bytes)
            .field("concurrency", &self.concurrency)
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .field("start_at", &self.start_at)
            .field("renamed_from", &self.renamed_from)
            .field("dead_letters", &self.dead_letters)
            .field("batch_wait", &self.batch_wait)
            .field("settings", &own)
            .finish()
    }
}

/// When what failed is tried again: endless, with full jitter, unless told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrySettings {
    /// The longest the first pause may be; each next may be twice as long.
    pub min_backoff: Duration,
    /// The longest any pause may be.
    pub max_backoff: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            min_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(30),
        }
    }
}

/// What becomes of records an output refuses for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterSettings {
    /// What happens when there is no more room.
    pub when_full: WhenFull,
    /// Most bytes kept on disk.
    pub max_bytes: u64,
}

impl Default for DeadLetterSettings {
    fn default() -> Self {
        Self {
            when_full: WhenFull::Wait,
            max_bytes: 256 << 20,
        }
    }
}

/// What happens to a refused record when there is no more room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// Its target waits until there is room.
    #[default]
    Wait,
    /// It is dropped, counted as lost.
    Drop,
}

/// Every type of output.
pub const OUTPUT_TYPES: &[&str] = &[
    "elasticsearch",
    "kafka",
    "aliyun_sls",
    "file",
    "console",
    "logstash",
    "redis",
    "graylog",
    "syslog",
    "http",
    "null",
    "count",
];

/// How many outputs there may be.
const MOST_OUTPUTS: usize = 64;

impl Settings {
    /// Reads the configuration file, or without one what log-pilot's environment says. `env` looks up a variable.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load(
        file: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<Problem>> {
        let Some(path) = file else {
            return Self::from_environment(env);
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            vec![of_operator(
                path.display().to_string(),
                "",
                format!("the configuration cannot be read: {error}"),
                "name a file that exists and is readable, or leave `-c` out to use the environment",
            )]
        })?;
        Self::from_yaml(&text, env).map_err(|mut problems| {
            for problem in &mut problems {
                if problem.key.is_empty() {
                    problem.key = path.display().to_string();
                }
            }
            problems
        })
    }

    /// Reads a configuration as [`Settings::load`] does, from its text.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn from_yaml(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<Problem>> {
        let mut value: Value = serde_yaml_ng::from_str(text).map_err(|error| {
            vec![of_operator(
                "",
                "",
                format!("it is not YAML: {}", value::hide_credentials(&error.to_string())),
                "mend the YAML at that place; indent with spaces, and quote values that hold `: ` or ` #`",
            )]
        })?;
        let mut problems = Vec::new();
        if value.is_null() {
            value = Value::Mapping(serde_yaml_ng::Mapping::new());
        }
        if let Err(error) = value.apply_merge() {
            problems.push(of_operator(
                "<<",
                "",
                error.to_string(),
                "merge mappings only",
            ));
        }
        expand::expand(&mut value, "", env, &mut |path, name| {
            problems.push(of_operator(
                path,
                format!("${{{name}}}"),
                format!("the environment variable {name} is not set"),
                format!("set {name}, or give a default: ${{{name}:-VALUE}}"),
            ));
        });
        let file: Option<File> = value::read(&value, "", &mut problems);
        let settings = file.map(|file| file.settle(env, &mut problems));
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(problems),
        }
    }

    /// What log-pilot's environment says; records go to the console if it names no output.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn from_environment(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let settings = File::default().settle(env, &mut problems);
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(problems)
        }
    }
}

#[cfg(test)]
mod tests;
