//! The configuration file as an operator writes it, and how it is settled: defaults filled in, every value judged.
//! Place: within **settings**; YAML (expanded) -> **written** -> [`Settings`].
//! Invariants: names and defaults are the documented ones; everything that is wrong is told, not only the first.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_yaml_ng::Value;

use super::{
    CollectStdout, CriSettings, DeadLetterSettings, Discover, DockerSettings, FieldShape,
    FieldsFrom, HumanDuration, MOST_OUTPUTS, Mode, OUTPUT_TYPES, OnExcess, OutputSettings,
    PolicyRule, PolicySettings, RetrySettings, RingSettings, Settings, Size, WhenFull, environment,
    parse_duration, parse_rate, show_size, sources, value,
};
use crate::declare::StartAt;
use crate::problem::{Problem, of_operator, use_instead};

/// The configuration file as written; names and defaults are the documented ones.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    node_name: Option<String>,
    data_dir: PathBuf,
    http: String,
    metrics_listen: Option<String>,
    memory_budget: Size,
    shutdown_grace: HumanDuration,
    label_prefixes: Option<Vec<String>>,
    collect_stdout: CollectStdout,
    host_root: String,
    start_at: StartAtWritten,
    time_zone: String,
    max_line_bytes: Size,
    batch_wait: HumanDuration,
    workers: String,
    fields: FieldShape,
    fields_from: FieldsFrom,
    metrics: MetricsWritten,
    discover: DiscoverWritten,
    policy: PolicyWritten,
    sources: Vec<Value>,
    outputs: serde_yaml_ng::Mapping,
}

impl Default for File {
    fn default() -> Self {
        Self {
            node_name: None,
            data_dir: "/var/lib/ringpilot".into(),
            http: "127.0.0.1:9210".to_owned(),
            metrics_listen: None,
            memory_budget: Size(32 << 20),
            shutdown_grace: HumanDuration(Duration::from_secs(10)),
            label_prefixes: None,
            collect_stdout: CollectStdout::Declared,
            host_root: "auto".to_owned(),
            start_at: StartAtWritten(StartAt::Beginning),
            time_zone: "UTC".to_owned(),
            max_line_bytes: Size(256 << 10),
            batch_wait: HumanDuration(Duration::from_millis(500)),
            workers: "auto".to_owned(),
            fields: FieldShape::LogPilot,
            fields_from: FieldsFrom::default(),
            metrics: MetricsWritten::default(),
            discover: DiscoverWritten::default(),
            policy: PolicyWritten::default(),
            sources: Vec::new(),
            outputs: serde_yaml_ng::Mapping::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MetricsWritten {
    per_container: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DiscoverWritten {
    docker: Switch<DockerWritten>,
    cri: Switch<CriWritten>,
    rings: Switch<RingsWritten>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DockerWritten {
    socket: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CriWritten {
    socket: Option<String>,
    kubelet_dir: Option<PathBuf>,
    pod_logs_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RingsWritten {
    dir: Option<PathBuf>,
    memory: Option<crate::rings::Memory>,
}

/// `auto`, `true`, `false`, or settings.
#[derive(Debug, Default)]
enum Switch<T> {
    #[default]
    Auto,
    Off,
    On,
    With(T),
}

impl<T: Default> Switch<T> {
    /// The mode it says, and the settings. What names its socket or folder is meant to be used.
    fn split(self, names_place: impl Fn(&T) -> bool) -> (Mode, T) {
        match self {
            Self::Auto => (Mode::Auto, T::default()),
            Self::Off => (Mode::Off, T::default()),
            Self::On => (Mode::On, T::default()),
            Self::With(settings) if names_place(&settings) => (Mode::On, settings),
            Self::With(settings) => (Mode::Auto, settings),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
            type Value = Switch<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto`, `true`, `false` or settings")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Switch<T>, E> {
                Ok(if on { Switch::On } else { Switch::Off })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Switch<T>, E> {
                match text {
                    "auto" => Ok(Switch::Auto),
                    "true" | "on" => Ok(Switch::On),
                    "false" | "off" => Ok(Switch::Off),
                    _ => Err(E::unknown_variant(text, &["auto", "true", "false"])),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Switch<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Switch::With)
            }
        }
        deserializer.deserialize_any(Read(PhantomData))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyWritten {
    default: RuleWritten,
    namespaces: BTreeMap<String, RuleWritten>,
    containers: BTreeMap<String, RuleWritten>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RuleWritten {
    targets: Option<Vec<String>>,
    rate: Option<RateOrNone>,
    on_excess: Option<OnExcess>,
    pinned_bytes: Option<Size>,
}

impl RuleWritten {
    fn over(self, base: &PolicyRule) -> PolicyRule {
        PolicyRule {
            targets: self.targets.unwrap_or_else(|| base.targets.clone()),
            rate: self.rate.map_or(base.rate, |rate| rate.0),
            on_excess: self.on_excess.unwrap_or(base.on_excess),
            pinned_bytes: self.pinned_bytes.map_or(base.pinned_bytes, |size| size.0),
        }
    }
}

/// A rate, or `none`.
#[derive(Debug, Clone, Copy)]
struct RateOrNone(Option<u64>);

impl<'de> Deserialize<'de> for RateOrNone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "none" {
            return Ok(Self(None));
        }
        parse_rate(&text)
            .map(|rate| Self(Some(rate)))
            .map_err(de::Error::custom)
    }
}

/// `beginning`, `end`, or an age.
#[derive(Debug, Clone, Copy)]
pub(super) struct StartAtWritten(pub(super) StartAt);

impl<'de> Deserialize<'de> for StartAtWritten {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "beginning" => Ok(Self(StartAt::Beginning)),
            "end" => Ok(Self(StartAt::End)),
            age => parse_duration(age).map(|age| Self(StartAt::Age(age))).map_err(|_| {
                de::Error::custom(format!(
                    "`{text}` is no place to start at; do: write `beginning`, `end`, or an age such as `1h`"
                ))
            }),
        }
    }
}

/// What all outputs share.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Manners {
    pub(super) batch_bytes: Size,
    pub(super) concurrency: usize,
    pub(super) timeout: HumanDuration,
    #[serde(deserialize_with = "read_retry")]
    pub(super) retry: RetrySettings,
    start_at: Option<StartAtWritten>,
    renamed_from: Option<String>,
    #[serde(deserialize_with = "read_dead_letters")]
    pub(super) dead_letters: DeadLetterSettings,
    batch_wait: Option<HumanDuration>,
}

/// The keys of [`Manners`]: what else stands in an output is its type's own.
const MANNERS: &[&str] = &[
    "batch_bytes",
    "concurrency",
    "timeout",
    "retry",
    "start_at",
    "renamed_from",
    "dead_letters",
    "batch_wait",
];

impl Default for Manners {
    fn default() -> Self {
        Self {
            batch_bytes: Size(4 << 20),
            concurrency: 4,
            timeout: HumanDuration(Duration::from_secs(60)),
            retry: RetrySettings::default(),
            start_at: None,
            renamed_from: None,
            dead_letters: DeadLetterSettings::default(),
            batch_wait: None,
        }
    }
}

fn read_retry<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RetrySettings, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        min_backoff: Option<HumanDuration>,
        max_backoff: Option<HumanDuration>,
    }
    let (written, default) = (
        Written::deserialize(deserializer)?,
        RetrySettings::default(),
    );
    let max_backoff = written
        .max_backoff
        .map_or(default.max_backoff, |wait| wait.0);
    let min_backoff = written
        .min_backoff
        .map_or(default.min_backoff, |wait| wait.0)
        .min(max_backoff);
    if min_backoff.is_zero() {
        return Err(de::Error::custom(
            "a pause of 0 would flood the server; do: write at least `1ms`",
        ));
    }
    Ok(RetrySettings {
        min_backoff,
        max_backoff,
    })
}

fn read_dead_letters<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<DeadLetterSettings, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        when_full: Option<WhenFull>,
        max_bytes: Option<Size>,
    }
    let (written, default) = (
        Written::deserialize(deserializer)?,
        DeadLetterSettings::default(),
    );
    Ok(DeadLetterSettings {
        when_full: written.when_full.unwrap_or(default.when_full),
        max_bytes: written.max_bytes.map_or(default.max_bytes, |size| size.0),
    })
}

impl File {
    /// Fills in what was left out, and judges what was written.
    pub(super) fn settle(
        self,
        env: &dyn Fn(&str) -> Option<String>,
        problems: &mut Vec<Problem>,
    ) -> Settings {
        let mut warnings = Vec::new();
        let prefixes = self.label_prefixes.or_else(|| environment::prefixes(env));
        let label_prefixes = prefixes.unwrap_or_else(|| vec!["aliyun".to_owned()]);
        if label_prefixes.is_empty() || label_prefixes.iter().any(|prefix| !is_prefix(prefix)) {
            problems.push(of_operator(
                "label_prefixes",
                label_prefixes.join(","),
                "a prefix is made of letters, digits, `_`, `-` and `.`, and there is at least one",
                "write for example `[aliyun]`",
            ));
        }
        let workers = match self.workers.as_str() {
            "auto" => None,
            number => match number.parse::<usize>() {
                Ok(workers @ 1..=256) => Some(workers),
                _ => {
                    problems.push(of_operator(
                        "workers",
                        number,
                        "it is no number of threads from 1 to 256",
                        "write `auto`, or a number such as `2`",
                    ));
                    None
                }
            },
        };
        check_range(
            problems,
            "memory_budget",
            self.memory_budget,
            4 << 20,
            1 << 40,
        );
        check_range(
            problems,
            "max_line_bytes",
            self.max_line_bytes,
            1 << 10,
            1 << 20,
        );
        check_zone(problems, "time_zone", &self.time_zone);
        for (key, path) in [("data_dir", Some(&self.data_dir)), ("host_root", None)] {
            let text = path.map_or(self.host_root.clone(), |path| path.display().to_string());
            if !text.starts_with('/') && (key, text.as_str()) != ("host_root", "auto") {
                problems.push(of_operator(
                    key,
                    text,
                    "it is no absolute path",
                    "write a path that starts with `/`",
                ));
            }
        }
        let outputs = if self.outputs.is_empty() {
            environment::outputs(env, problems, &mut warnings)
        } else {
            outputs(&self.outputs, problems, &mut warnings)
        };
        if outputs.len() > MOST_OUTPUTS {
            problems.push(of_operator(
                "outputs",
                outputs.len().to_string(),
                format!("there may be at most {MOST_OUTPUTS}"),
                "send to fewer, or run a second daemon with a data_dir of its own",
            ));
        }
        problems.extend(crate::ship::file::collisions(&outputs));
        // Also those that are wrong themselves: one mistake is told once.
        let written = self.outputs.keys().filter_map(Value::as_str);
        let names: Vec<&str> = written
            .chain(outputs.iter().map(|output| output.name.as_str()))
            .collect();
        let sources = sources::read(&self.sources, &names, problems);
        let default = self.policy.default.over(&PolicyRule::default());
        let rules = |rules: BTreeMap<String, RuleWritten>| {
            rules
                .into_iter()
                .map(|(name, rule)| (name, rule.over(&default)))
                .collect()
        };
        let policy = PolicySettings {
            namespaces: rules(self.policy.namespaces),
            containers: rules(self.policy.containers),
            default,
        };
        if let Err(problem) = crate::policy::Policy::new(&policy) {
            problems.push(problem);
        }
        Settings {
            node_name: self
                .node_name
                .or_else(|| environment::node_name(env))
                .unwrap_or_default(),
            data_dir: self.data_dir,
            http: address(problems, "http", Some(self.http)),
            metrics_listen: address(problems, "metrics_listen", self.metrics_listen),
            memory_budget: self.memory_budget.bytes(),
            shutdown_grace: self.shutdown_grace.0,
            label_prefixes,
            collect_stdout: self.collect_stdout,
            host_root: (self.host_root != "auto").then(|| PathBuf::from(self.host_root)),
            start_at: self.start_at.0,
            time_zone: self.time_zone,
            max_line_bytes: self.max_line_bytes.bytes(),
            batch_wait: self.batch_wait.0,
            workers,
            fields: self.fields,
            fields_from: self.fields_from,
            per_container_metrics: self.metrics.per_container,
            discover: self.discover.settle(),
            policy,
            sources,
            outputs,
            warnings,
        }
    }
}

impl DiscoverWritten {
    pub(super) fn settle(self) -> Discover {
        let socket = |socket: Option<String>| socket.filter(|s| s != "auto").map(PathBuf::from);
        let named = |socket: &Option<String>| socket.as_deref().is_some_and(|s| s != "auto");
        let (docker_mode, docker) = self.docker.split(|docker| named(&docker.socket));
        let (cri_mode, cri) = self.cri.split(|cri| named(&cri.socket));
        let (rings_mode, rings) = self.rings.split(|rings| rings.dir.is_some());
        let (default_cri, default_rings) = (CriSettings::default(), RingSettings::default());
        Discover {
            docker: DockerSettings {
                mode: docker_mode,
                socket: socket(docker.socket),
            },
            cri: CriSettings {
                mode: cri_mode,
                socket: socket(cri.socket),
                kubelet_dir: cri.kubelet_dir.unwrap_or(default_cri.kubelet_dir),
                pod_logs_dir: cri.pod_logs_dir.unwrap_or(default_cri.pod_logs_dir),
            },
            rings: RingSettings {
                mode: rings_mode,
                dir: rings.dir.unwrap_or(default_rings.dir),
                memory: rings.memory.unwrap_or(default_rings.memory),
            },
        }
    }
}

/// Reads `outputs`: the shared manners here, the rest is left to the output's type.
fn outputs(
    written: &serde_yaml_ng::Mapping,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Vec<OutputSettings> {
    let mut outputs = Vec::new();
    for (name, value) in written {
        let Some(name) = name.as_str().filter(|name| is_name(name)) else {
            problems.push(of_operator(
                "outputs",
                name.as_str().unwrap_or_default(),
                "an output's name is made of letters, digits, `_` and `-`",
                "write for example `es:`",
            ));
            continue;
        };
        let path = format!("outputs.{name}");
        let Value::Mapping(keys) = value else {
            problems.push(of_operator(
                path,
                "",
                "it is no mapping",
                "write for example `{type: console}`",
            ));
            continue;
        };
        let mut own = keys.clone();
        let kind = match own.remove("type") {
            // What YAML reads as nothing is the type `null` here; one left empty by mistake must not go unseen.
            Some(Value::Null) => {
                warnings.push(of_operator(
                    format!("{path}.type"),
                    "null",
                    "every record sent here is thrown away",
                    "if that is meant, write `type: \"null\"`; else name another type",
                ));
                Some(Value::from("null"))
            }
            kind => kind,
        };
        let written_kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
        let Some(kind) = OUTPUT_TYPES.iter().find(|kind| **kind == written_kind) else {
            let reason = match kind {
                None => "its type is required and not there".to_owned(),
                Some(_) => format!("no output type is called `{written_kind}`"),
            };
            let cure = use_instead(written_kind, OUTPUT_TYPES);
            problems.push(of_operator(
                format!("{path}.type"),
                written_kind,
                reason,
                cure,
            ));
            continue;
        };
        let shared: serde_yaml_ng::Mapping = MANNERS
            .iter()
            .filter_map(|key| own.remove(*key).map(|value| (Value::from(*key), value)))
            .collect();
        let Some(manners) = value::read::<Manners>(&Value::Mapping(shared), &path, problems) else {
            continue;
        };
        check_range(
            problems,
            &format!("{path}.batch_bytes"),
            manners.batch_bytes,
            1 << 10,
            1 << 30,
        );
        if !(1..=256).contains(&manners.concurrency) {
            problems.push(of_operator(
                format!("{path}.concurrency"),
                manners.concurrency.to_string(),
                "it is no number of requests from 1 to 256",
                "write for example `4`",
            ));
        }
        outputs.push(OutputSettings {
            name: name.to_owned(),
            kind: (*kind).to_owned(),
            batch_bytes: manners.batch_bytes.bytes(),
            concurrency: manners.concurrency,
            timeout: manners.timeout.0,
            retry: manners.retry,
            start_at: manners.start_at.map(|start| start.0),
            renamed_from: manners.renamed_from,
            dead_letters: manners.dead_letters,
            batch_wait: manners.batch_wait.map(|wait| wait.0),
            settings: Value::Mapping(own),
        });
    }
    for output in &outputs {
        if let Some(old) = &output.renamed_from
            && outputs.iter().any(|other| other.name == *old)
        {
            problems.push(of_operator(
                format!("{}.renamed_from", output.path()),
                old.clone(),
                "an output of that name is still there",
                "remove the old output, or leave `renamed_from` out",
            ));
        }
    }
    outputs
}

/// Whether this names an output or a source.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_prefix(prefix: &str) -> bool {
    !prefix.is_empty()
        && prefix
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

fn check_range(problems: &mut Vec<Problem>, key: &str, size: Size, least: u64, most: u64) {
    if !(least..=most).contains(&size.0) {
        problems.push(of_operator(
            key,
            size.to_string(),
            format!("it may be {} to {}", show_size(least), show_size(most)),
            format!(
                "write a size in that range, such as `{}`",
                show_size(size.0.clamp(least, most))
            ),
        ));
    }
}

/// Whether `zone` is an IANA name this machine knows, or an offset such as `+08:00`.
pub(crate) fn is_zone(zone: &str) -> bool {
    jiff::fmt::temporal::DateTimeParser::new()
        .parse_time_zone(zone)
        .is_ok()
}

fn check_zone(problems: &mut Vec<Problem>, key: &str, zone: &str) {
    if !is_zone(zone) {
        problems.push(of_operator(
            key,
            zone,
            "no time zone is called so",
            "write an IANA name such as `Asia/Shanghai`, or an offset such as `+08:00`",
        ));
    }
}

/// Reads `HOST:PORT`; `none`, `off` and `false` are nowhere.
fn address(problems: &mut Vec<Problem>, key: &str, written: Option<String>) -> Option<String> {
    let text = written.filter(|text| !matches!(text.as_str(), "none" | "off" | "false" | ""))?;
    let good = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !good {
        problems.push(of_operator(
            key,
            text.clone(),
            "it is no address to listen on",
            "write HOST:PORT such as `127.0.0.1:9210`, or `none`",
        ));
    }
    Some(text)
}
