//! What an operator may set for Kafka, and how librdkafka is told.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use serde::Deserialize;

use super::key::Key;
use crate::batch::target;
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, Secret, Size, from_value};
use crate::ship::connection::{Address, Stamps, TlsSettings};

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    brokers: Vec<String>,
    #[serde(default = "whole_target")]
    topic: String,
    allowed_topics: Option<Vec<String>>,
    default_topic: Option<String>,
    client_id: Option<String>,
    #[serde(default)]
    partition: Partition,
    key: Option<String>,
    #[serde(default)]
    acks: Acks,
    #[serde(default)]
    compression: Compression,
    max_message_bytes: Option<Size>,
    username: Option<Secret>,
    password: Option<Secret>,
    #[serde(default)]
    sasl: Mechanism,
    tls: Option<TlsSettings>,
}

fn whole_target() -> String {
    "{target}".to_owned()
}

/// How a partition is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Partition {
    /// By the key, as Kafka's own producer does (murmur2).
    #[default]
    Hash,
    /// Any, a new one every few milliseconds.
    Random,
    /// The next that has a leader, record by record.
    RoundRobin,
}

/// Which replicas confirm a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Acks {
    /// None: what was sent counts as delivered.
    None,
    /// The leader.
    One,
    /// All that are in sync.
    #[default]
    All,
}

impl TryFrom<String> for Acks {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "all" | "-1" => Ok(Self::All),
            "1" => Ok(Self::One),
            "0" => Ok(Self::None),
            other => Err(format!(
                "`{other}` is no number of confirmations that Kafka knows; do: write `all`, `1` or `0`"
            )),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// How user and password are proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
enum Mechanism {
    #[default]
    Plain,
    ScramSha256,
    ScramSha512,
}

impl TryFrom<String> for Mechanism {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "plain" => Ok(Self::Plain),
            "scram-sha-256" => Ok(Self::ScramSha256),
            "scram-sha-512" => Ok(Self::ScramSha512),
            other => Err(format!(
                "`{other}` is no way to log in that is supported; do: write `plain`, `scram-sha-256` or `scram-sha-512`"
            )),
        }
    }
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// What was set, judged.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    brokers: String,
    /// `{target}` and `{date}` are filled in.
    pub(super) topic: String,
    pub(super) allowed_topics: Option<Vec<String>>,
    pub(super) default_topic: Option<String>,
    client_id: String,
    pub(super) partition: Partition,
    pub(super) key: Key,
    pub(super) acks: Acks,
    compression: Compression,
    max_message_bytes: Option<u64>,
    login: Option<(Secret, Secret, Mechanism)>,
    tls: Option<TlsSettings>,
    /// Properties of librdkafka that tests need.
    pub(super) more: Vec<(&'static str, String)>,
}

/// Secrets and certificates as they were when a producer was made of them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Used {
    login: Option<(String, String)>,
    files: Option<Stamps>,
}

impl std::fmt::Debug for Used {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// librdkafka's `message.max.bytes` where nothing is set: what brokers take where nothing is set there, less overhead.
const MAX_MESSAGE_BYTES: u64 = 1_000_000;
/// The most that librdkafka allows.
const MOST_MESSAGE_BYTES: u64 = 1_000_000_000;
/// librdkafka's `batch.size` where nothing is set.
const SET_BYTES: usize = 1_000_000;

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(super) fn read(settings: &OutputSettings) -> Result<Self, Vec<Problem>> {
        let path = settings.path();
        let keys: Keys = from_value(&settings.settings, &path).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        let mut wrong = |key: &str, value: &str, why: String, cure: &str| {
            problems.push(of_operator(format!("{path}.{key}"), value, why, cure));
        };
        if keys.brokers.is_empty() {
            let cure = "write for example `[\"kafka-1:9092\", \"kafka-2:9092\"]`";
            wrong("brokers", "", "it names no broker".to_owned(), cure);
        }
        for broker in &keys.brokers {
            if let Err(why) = Address::parse(broker, Some(9092)) {
                wrong(
                    "brokers",
                    broker,
                    why,
                    "write HOST:PORT such as `kafka-1:9092`",
                );
            }
        }
        let topics = [("topic", target::render(&keys.topic, "t", 0))]
            .into_iter()
            .chain(
                keys.default_topic
                    .iter()
                    .map(|topic| ("default_topic", topic.clone())),
            )
            .chain(
                keys.allowed_topics
                    .iter()
                    .flatten()
                    .map(|topic| ("allowed_topics", topic.clone())),
            );
        for (key, topic) in topics {
            if !is_topic(&topic) {
                let why =
                    "it is no name for a topic: letters, digits, `.`, `_` and `-`, at most 249"
                        .to_owned();
                let cure = match key {
                    "topic" => "write for example `{target}` or `logs-{target}`",
                    _ => "write for example `logs`",
                };
                wrong(key, &topic, why, cure);
            }
        }
        if keys.allowed_topics.is_none() && keys.default_topic.is_some() {
            let why = "it is only used for topics that are not allowed, and all are".to_owned();
            wrong(
                "default_topic",
                "",
                why,
                "add `allowed_topics:`, or remove it",
            );
        }
        let max = keys.max_message_bytes.map(|size| size.0);
        if let Some(bytes) = max.filter(|bytes| !(1_000..=MOST_MESSAGE_BYTES).contains(bytes)) {
            let why = "it may be 1000 to 1000000000 bytes".to_owned();
            wrong(
                "max_message_bytes",
                &bytes.to_string(),
                why,
                "write a size in that range, such as `1MB`",
            );
        }
        let key = match keys.key.as_deref() {
            Some(text) => Key::parse(text).unwrap_or_else(|why| {
                wrong(
                    "key",
                    text,
                    why,
                    "write a text, with `{target}` or `%{[FIELD]}` in it if you like",
                );
                Key::Source
            }),
            None if keys.partition == Partition::Hash => Key::Source,
            None => Key::None,
        };
        let login = match (keys.username, keys.password) {
            (Some(user), Some(password)) => Some((user, password, keys.sasl)),
            (None, None) => None,
            (user, _) => {
                let missing = if user.is_some() {
                    "password"
                } else {
                    "username"
                };
                let why = "user and password belong together and it is not there".to_owned();
                wrong(missing, "", why, &format!("add `{missing}:` there"));
                None
            }
        };
        if let Some(tls) = &keys.tls {
            problems.extend(tls.problems(&path));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            brokers: keys.brokers.join(","),
            topic: keys.topic,
            allowed_topics: keys.allowed_topics,
            default_topic: keys.default_topic,
            client_id: keys.client_id.unwrap_or_else(|| "ringpilot".to_owned()),
            partition: keys.partition,
            key,
            acks: keys.acks,
            compression: keys.compression,
            max_message_bytes: max,
            login,
            tls: keys.tls,
            more: Vec::new(),
        })
    }

    /// The largest message, key and overhead included.
    pub(super) fn max_bytes(&self) -> u64 {
        self.max_message_bytes.unwrap_or(MAX_MESSAGE_BYTES)
    }

    /// The largest message set to begin with.
    pub(super) fn set_bytes(&self) -> usize {
        usize::try_from(self.max_bytes()).map_or(SET_BYTES, |max| max.min(SET_BYTES))
    }

    /// Secrets and certificates as they are now. Blocking.
    ///
    /// # Errors
    /// Which secret cannot be read, and why.
    pub(super) fn used(&self) -> Result<Used, String> {
        let login = match &self.login {
            Some((user, password, _)) => Some((user.read()?, password.read()?)),
            None => None,
        };
        let files = self.tls.as_ref().map(TlsSettings::stamps);
        Ok(Used { login, files })
    }

    /// What librdkafka is told; message sets of at most `set_bytes`, or of one record if that is 0.
    pub(super) fn config(&self, used: &Used, timeout: Duration, set_bytes: usize) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Levels are ours to choose: all of it goes to our own log, at `debug`.
        config.set_log_level(RDKafkaLogLevel::Info);
        let milliseconds = timeout.as_millis().clamp(1_000, 300_000).to_string();
        for (key, value) in [
            ("bootstrap.servers", self.brokers.clone()),
            ("client.id", self.client_id.clone()),
            ("enable.idempotence", (self.acks == Acks::All).to_string()),
            (
                "acks",
                match self.acks {
                    Acks::None => "0".to_owned(),
                    Acks::One => "1".to_owned(),
                    Acks::All => "all".to_owned(),
                },
            ),
            // Whether something is given up is the shipper's to say.
            ("message.timeout.ms", "0".to_owned()),
            ("request.timeout.ms", milliseconds.clone()),
            ("socket.timeout.ms", milliseconds),
            ("socket.keepalive.enable", "true".to_owned()),
            ("reconnect.backoff.max.ms", "2000".to_owned()),
            ("compression.codec", self.compression.name().to_owned()),
            ("message.max.bytes", self.max_bytes().to_string()),
            // `Room` bounds both, exactly; these may not be in its way.
            ("queue.buffering.max.kbytes", "2147483647".to_owned()),
            ("queue.buffering.max.messages", "0".to_owned()),
            (
                "partitioner",
                match self.partition {
                    Partition::Random => "random".to_owned(),
                    Partition::Hash | Partition::RoundRobin => "murmur2_random".to_owned(),
                },
            ),
        ] {
            config.set(key, value);
        }
        match set_bytes {
            0 => config.set("batch.num.messages", "1"),
            bytes => config.set("batch.size", bytes.to_string()),
        };
        if self.partition == Partition::RoundRobin {
            config.set("sticky.partitioning.linger.ms", "0");
        }
        let protocol = match (&self.tls, &used.login) {
            (None, None) => "plaintext",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), None) => "ssl",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let (Some((user, password)), Some((.., mechanism))) = (&used.login, &self.login) {
            config.set("sasl.mechanisms", mechanism.name());
            config.set("sasl.username", user);
            config.set("sasl.password", password);
        }
        if let Some(tls) = &self.tls {
            let path = |path: &PathBuf| path.display().to_string();
            // OpenSSL is our own, and does not know where this machine keeps its authorities.
            let ca = tls.ca.as_ref().map_or_else(|| "probe".to_owned(), path);
            config.set("ssl.ca.location", ca);
            if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
                config.set("ssl.certificate.location", path(certificate));
                config.set("ssl.key.location", path(key));
            }
            if !tls.verify {
                config.set("enable.ssl.certificate.verification", "false");
                config.set("ssl.endpoint.identification.algorithm", "none");
            }
        }
        for (key, value) in &self.more {
            config.set(*key, value);
        }
        config
    }
}

/// Whether Kafka accepts this name for a topic.
fn is_topic(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
