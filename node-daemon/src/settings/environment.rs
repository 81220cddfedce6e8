//! log-pilot's operator environment: what its DaemonSet sets decides where there is no configuration file.
//! Place: settings. Source: log-pilot 0.9.7, `assets/filebeat/config.filebeat` and `assets/fluentd/config.fluentd`.
//! Invariant: every variable of [`VARIABLES`] is honoured, or reported as not needed; the docs are printed from it.

use std::path::Path;
use std::time::Duration;

use serde_yaml_ng::{Mapping, Value};

use super::{OUTPUT_TYPES, OutputSettings, parse_seconds};
use crate::problem::{Problem, of_operator, use_instead};

/// One variable that an operator may set on the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// The output it belongs to; empty for the daemon.
    pub output: &'static str,
    /// Its unit or form.
    pub unit: &'static str,
    /// What holds when it is not set; empty if nothing.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Whether it is read only to say that it is not needed here.
    pub obsolete: bool,
}

const fn of(
    output: &'static str,
    name: &'static str,
    unit: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Variable {
    Variable {
        name,
        output,
        unit,
        default,
        meaning,
        obsolete: false,
    }
}

const fn obsolete(output: &'static str, name: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        output,
        unit: "",
        default: "",
        meaning,
        obsolete: true,
    }
}

/// Why a number of records per request does nothing here.
const BY_BYTES: &str = "batches are measured in bytes: `batch_bytes` in a configuration file";

/// Every variable that an operator may set on the daemon.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    of("", "NODE_NAME", "name", "the host's name", "this node's name, in every record as k8s_node_name"),
    of("", "PILOT_LOG_PREFIX", "names, comma separated", "aliyun", "prefixes of declarations"),
    of("", "PILOT_TYPE", "filebeat or fluentd", "fluentd", "whose file name FILE_PATH gets when FILE_NAME is not set"),
    of("", "LOGGING_OUTPUT", "output type", "console", "where records go"),
    of("", "FILEBEAT_OUTPUT", "output type", "", "the same; wins over LOGGING_OUTPUT"),
    of("", "FLUENTD_OUTPUT", "output type", "", "the same; wins over LOGGING_OUTPUT"),
    obsolete("", "PILOT_CREATE_SYMLINK", "files are followed where they are: no links are made"),
    of("elasticsearch", "ELASTICSEARCH_HOSTS", "HOST:PORT, comma separated", "", "servers; may carry a scheme"),
    of("elasticsearch", "ELASTICSEARCH_HOST", "host name", "", "one server, with ELASTICSEARCH_PORT"),
    of("elasticsearch", "ELASTICSEARCH_PORT", "port", "", "its port"),
    of("elasticsearch", "ELASTICSEARCH_SCHEME", "http or https", "http", "scheme of hosts that carry none"),
    of("elasticsearch", "ELASTICSEARCH_USER", "name", "", "user; /run/secrets/es_credential (`user:password`) wins"),
    of("elasticsearch", "ELASTICSEARCH_PASSWORD", "secret", "", "password; /run/secrets/es_credential wins"),
    of("elasticsearch", "ELASTICSEARCH_PATH", "URL path", "", "path before `_bulk`"),
    of("elasticsearch", "ELASTICSEARCH_SSL_VERIFY", "true or false", "true", "whether certificates are verified"),
    of("elasticsearch", "ELASTICSEARCH_INDEX", "name", "", "one index NAME-YYYY.MM.DD for all; else TARGET-YYYY.MM.DD"),
    of("elasticsearch", "ELASTICSEARCH_WORKER", "number", "4", "requests in flight"),
    obsolete("elasticsearch", "ELASTICSEARCH_BULK_MAX_SIZE", BY_BYTES),
    of("kafka", "KAFKA_BROKERS", "HOST:PORT, comma separated", "", "servers to begin with"),
    of("kafka", "KAFKA_USERNAME", "name", "", "SASL user"),
    of("kafka", "KAFKA_PASSWORD", "secret", "", "SASL password"),
    of("kafka", "KAFKA_CLIENT_ID", "name", "", "how the brokers see us"),
    of("kafka", "KAFKA_PARTITION", "hash, random or round_robin", "", "how a partition is chosen"),
    of("kafka", "KAFKA_PARTITION_KEY", "text", "the source", "key of every record"),
    of("kafka", "KAFKA_REQUIRE_ACKS", "0, 1 or -1", "-1", "replicas that confirm a record"),
    of("kafka", "KAFKA_REQUIRED_ACKS", "0, 1 or -1", "-1", "the same, as the fluentd flavour calls it"),
    of("kafka", "KAFKA_COMPRESSION_CODEC", "none, gzip, snappy, lz4 or zstd", "", "compression"),
    of("kafka", "KAFKA_MAX_MESSAGE_BYTES", "bytes", "", "largest record"),
    of("kafka", "KAFKA_BROKER_TIMEOUT", "seconds, or a duration", "60s", "how long a broker may take to answer"),
    obsolete("kafka", "KAFKA_VERSION", "the brokers' version is found out"),
    obsolete("kafka", "KAFKA_DEFAULT_TOPIC", "every record has a topic: its declaration's target or name"),
    obsolete("kafka", "KAFKA_BULK_MAX_SIZE", BY_BYTES),
    obsolete("kafka", "KAFKA_KEEP_ALIVE", "connections are kept alive"),
    of("aliyun_sls", "ALIYUNSLS_PROJECT", "name", "", "project"),
    of("aliyun_sls", "ALIYUNSLS_REGION_ENDPOINT", "host name", "", "the region's endpoint"),
    of("aliyun_sls", "ALIYUNSLS_ACCESS_KEY_ID", "secret", "", "access key; /run/secrets/aliyun_access_key (`id:secret`) wins"),
    of("aliyun_sls", "ALIYUNSLS_ACCESS_KEY_SECRET", "secret", "", "its secret; /run/secrets/aliyun_access_key wins"),
    of("aliyun_sls", "SSL_VERIFY", "true or false", "true", "whether certificates are verified"),
    of("aliyun_sls", "ALIYUNSLS_NEED_CREATE_LOGSTORE", "true or false", "false", "whether a missing logstore is created"),
    of("aliyun_sls", "ALIYUNSLS_CREATE_LOGSTORE_TTL", "days", "1", "how long it keeps records"),
    of("aliyun_sls", "ALIYUNSLS_CREATE_LOGSTORE_SHARD_COUNT", "number", "2", "its shards"),
    of("file", "FILE_PATH", "folder", "", "where files are written"),
    of("file", "FILE_NAME", "file name", "filebeat, or {target}.ndjson", "one file for all; the second default is the fluentd flavour's"),
    of("file", "FILE_ROTATE_SIZE", "KB", "10240", "length at which a file is rotated"),
    of("file", "FILE_NUMBER_OF_FILES", "number", "7", "rotated files kept"),
    of("file", "FILE_PERMISSIONS", "octal", "0600", "permissions of new files"),
    of("file", "FILE_FORMAT", "json or single_value", "json", "records, or the line alone"),
    of("file", "FILE_COMPRESS", "gzip or text", "text", "whether rotated files are compressed"),
    of("logstash", "LOGSTASH_HOST", "host name", "", "server"),
    of("logstash", "LOGSTASH_PORT", "port", "", "its port"),
    of("logstash", "LOGSTASH_WORKER", "number", "4", "requests in flight"),
    obsolete("logstash", "LOGSTASH_LOADBALANCE", "there is one server"),
    obsolete("logstash", "LOGSTASH_BULK_MAX_SIZE", BY_BYTES),
    of("redis", "REDIS_HOST", "host name", "", "server"),
    of("redis", "REDIS_PORT", "port", "", "its port"),
    of("redis", "REDIS_PASSWORD", "secret", "", "password"),
    of("redis", "REDIS_DATATYPE", "list or channel", "list", "what the key, which is the target, holds"),
    of("redis", "REDIS_TIMEOUT", "seconds, or a duration", "5s", "how long the server may take to answer"),
    of("redis", "REDIS_WORKER", "number", "4", "requests in flight"),
    obsolete("redis", "REDIS_BULK_MAX_SIZE", BY_BYTES),
    of("graylog", "GRAYLOG_HOST", "host name", "", "server"),
    of("graylog", "GRAYLOG_PORT", "port", "", "its port"),
    of("graylog", "GRAYLOG_PROTOCOL", "udp or tcp", "udp", "how GELF is sent"),
    of("syslog", "SYSLOG_HOST", "host name", "", "server"),
    of("syslog", "SYSLOG_PORT", "port", "", "its port"),
    of("syslog", "SYSLOG_FACILITY", "name", "", "facility of every record"),
    of("syslog", "SYSLOG_SEVERITY", "name", "", "severity of every record"),
    of("syslog", "SYSLOG_TAG", "text", "", "application name of every record"),
    of("console", "CONSOLE_PRETTY", "true or false", "false", "whether records are spread over lines"),
];

/// Where log-pilot's containers mount what they are given.
const ES_CREDENTIAL: &str = "/run/secrets/es_credential";
const ALIYUN_ACCESS_KEY: &str = "/run/secrets/aliyun_access_key";
const KAFKA_TOPICS: &str = "/etc/filebeat/config/kafka_topics";

/// The declarations' prefixes, if the environment names any.
pub(super) fn prefixes(env: &dyn Fn(&str) -> Option<String>) -> Option<Vec<String>> {
    let prefixes: Vec<String> = list(&env("PILOT_LOG_PREFIX")?);
    (!prefixes.is_empty()).then_some(prefixes)
}

/// This node's name.
pub(super) fn node_name(env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    env("NODE_NAME")
        .filter(|name| !name.is_empty())
        .or_else(|| {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
            Some(name.trim().to_owned())
        })
}

fn list(text: &str) -> Vec<String> {
    let items = text.split([',', '\n']).map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The output that the environment names: `console` if none.
pub(super) fn outputs(
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Vec<OutputSettings> {
    outputs_with(env, Path::new("/"), problems, warnings)
}

/// As [`outputs`], with the container's files beneath `root`.
fn outputs_with(
    env: &dyn Fn(&str) -> Option<String>,
    root: &Path,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Vec<OutputSettings> {
    let set = |name: &str| {
        env(name)
            .map(|v| v.trim().to_owned())
            .filter(|v| !v.is_empty())
    };
    let (variable, kind) = ["FILEBEAT_OUTPUT", "FLUENTD_OUTPUT", "LOGGING_OUTPUT"]
        .into_iter()
        .find_map(|name| Some((name, set(name)?)))
        .unwrap_or_else(|| ("LOGGING_OUTPUT", "console".to_owned()));
    let kind = if kind == "flowcounter" {
        "count".to_owned()
    } else {
        kind
    };
    if !OUTPUT_TYPES.contains(&kind.as_str()) {
        let reason = format!("no output type is called `{kind}`");
        problems.push(of_operator(
            variable,
            kind.clone(),
            reason,
            use_instead(&kind, OUTPUT_TYPES),
        ));
        return Vec::new();
    }
    for variable in VARIABLES.iter().filter(|v| v.obsolete) {
        let concerns_us = variable.output.is_empty() || variable.output == kind;
        if let Some(value) = set(variable.name).filter(|value| concerns_us && value != "false") {
            let reason = format!("it is not needed: {}", variable.meaning);
            warnings.push(of_operator(variable.name, value, reason, "remove it"));
        }
    }
    let mut asked = Asked {
        set: &set,
        root,
        own: Mapping::new(),
        problems,
    };
    let mut output = OutputSettings::of(&kind, Value::Null);
    match kind.as_str() {
        "elasticsearch" => asked.elasticsearch(&mut output),
        "kafka" => asked.kafka(&mut output),
        "aliyun_sls" => asked.aliyun_sls(),
        "file" => asked.file(),
        "logstash" => asked.logstash(&mut output),
        "redis" => asked.redis(&mut output),
        "graylog" => {
            asked.host_and_port("GRAYLOG");
            asked.text("GRAYLOG_PROTOCOL", "protocol");
        }
        "syslog" => {
            asked.host_and_port("SYSLOG");
            asked.text("SYSLOG_FACILITY", "facility");
            asked.text("SYSLOG_SEVERITY", "severity");
            asked.text("SYSLOG_TAG", "tag");
        }
        "http" => {
            asked.problems.push(of_operator(
                variable,
                "http",
                "no variable says where to",
                "write a configuration file with `outputs: {http: {type: http, url: …}}`",
            ));
        }
        "console" => {
            if let Some(pretty) = asked.flag("CONSOLE_PRETTY") {
                asked.put("pretty", pretty);
            }
        }
        _ => {}
    }
    output.settings = Value::Mapping(asked.own);
    vec![output]
}

/// One output's keys as they are gathered from the environment.
struct Asked<'a> {
    set: &'a dyn Fn(&str) -> Option<String>,
    root: &'a Path,
    own: Mapping,
    problems: &'a mut Vec<Problem>,
}

impl Asked<'_> {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.own.insert(Value::from(key), value.into());
    }

    fn text(&mut self, variable: &str, key: &str) {
        if let Some(text) = (self.set)(variable) {
            self.put(key, text);
        }
    }

    fn required(&mut self, variable: &str) -> Option<String> {
        let value = (self.set)(variable);
        if value.is_none() {
            self.problems.push(of_operator(
                variable,
                "",
                "it is required for this output and not set",
                format!("set {variable}"),
            ));
        }
        value
    }

    fn number(&mut self, variable: &str) -> Option<u64> {
        let text = (self.set)(variable)?;
        let number = text.parse::<u64>().ok();
        if number.is_none() {
            self.wrong(variable, &text, "it is no number", "write digits alone");
        }
        number
    }

    fn flag(&mut self, variable: &str) -> Option<bool> {
        let text = (self.set)(variable)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => {
                self.wrong(
                    variable,
                    &text,
                    "it is neither true nor false",
                    "write `true` or `false`",
                );
                None
            }
        }
    }

    fn duration(&mut self, variable: &str) -> Option<Duration> {
        let text = (self.set)(variable)?;
        match parse_seconds(&text) {
            Ok(duration) if !duration.is_zero() => Some(duration),
            _ => {
                self.wrong(
                    variable,
                    &text,
                    "it is no duration",
                    "write seconds, or for example `500ms`",
                );
                None
            }
        }
    }

    fn wrong(&mut self, variable: &str, value: &str, reason: &str, cure: &str) {
        self.problems
            .push(of_operator(variable, value, reason, cure));
    }

    fn port(&mut self, variable: &str) -> Option<u16> {
        let text = self.required(variable)?;
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        if port.is_none() {
            self.wrong(
                variable,
                &text,
                "it is no port",
                "write a number from 1 to 65535",
            );
        }
        port
    }

    fn host_and_port(&mut self, prefix: &str) -> Option<(String, u16)> {
        let host = self.required(&format!("{prefix}_HOST"));
        let port = self.port(&format!("{prefix}_PORT"));
        let (host, port) = (host?, port?);
        self.put("host", host.clone());
        self.put("port", u64::from(port));
        Some((host, port))
    }

    fn workers(&mut self, variable: &str, output: &mut OutputSettings) {
        match self.number(variable) {
            Some(0) => self.wrong(variable, "0", "nothing would be sent", "write 1 or more"),
            Some(workers) => output.concurrency = usize::try_from(workers).unwrap_or(256).min(256),
            None => {}
        }
    }

    /// A pair of secrets that one file holds as `first:second`, or two variables.
    fn pair(&mut self, file: &str, keys: [&str; 2], variables: [&str; 2]) -> bool {
        let path = self.root.join(file.trim_start_matches('/'));
        if path.is_file() {
            for (key, part) in keys.into_iter().zip(["user", "password"]) {
                let mut place = Mapping::new();
                place.insert("file".into(), path.display().to_string().into());
                place.insert("part".into(), part.into());
                self.put(key, Value::Mapping(place));
            }
            return true;
        }
        for (key, variable) in keys.into_iter().zip(variables) {
            self.text(variable, key);
        }
        self.own.contains_key(keys[0]) && self.own.contains_key(keys[1])
    }

    fn tls_verify(&mut self, variable: &str) {
        if let Some(verify) = self.flag(variable) {
            let mut tls = Mapping::new();
            tls.insert("verify".into(), verify.into());
            self.put("tls", Value::Mapping(tls));
        }
    }

    fn elasticsearch(&mut self, output: &mut OutputSettings) {
        let hosts = match (self.set)("ELASTICSEARCH_HOSTS") {
            Some(hosts) => list(&hosts),
            None => {
                let host = self.required("ELASTICSEARCH_HOST");
                let port = self.port("ELASTICSEARCH_PORT");
                host.zip(port)
                    .map(|(host, port)| format!("{host}:{port}"))
                    .into_iter()
                    .collect()
            }
        };
        let scheme = (self.set)("ELASTICSEARCH_SCHEME").unwrap_or_else(|| "http".to_owned());
        if !matches!(scheme.as_str(), "http" | "https") {
            let reason = "it is no scheme of Elasticsearch";
            self.wrong(
                "ELASTICSEARCH_SCHEME",
                &scheme,
                reason,
                "write `http` or `https`",
            );
        }
        let hosts: Vec<Value> = hosts
            .into_iter()
            .map(|host| {
                if host.contains("://") {
                    host
                } else {
                    format!("{scheme}://{host}")
                }
            })
            .map(Value::from)
            .collect();
        self.put("hosts", hosts);
        let variables = ["ELASTICSEARCH_USER", "ELASTICSEARCH_PASSWORD"];
        self.pair(ES_CREDENTIAL, ["username", "password"], variables);
        self.text("ELASTICSEARCH_PATH", "path");
        self.tls_verify("ELASTICSEARCH_SSL_VERIFY");
        if let Some(index) = (self.set)("ELASTICSEARCH_INDEX") {
            self.put("index", format!("{index}-{{date}}"));
        }
        self.workers("ELASTICSEARCH_WORKER", output);
    }

    fn kafka(&mut self, output: &mut OutputSettings) {
        if let Some(brokers) = self.required("KAFKA_BROKERS") {
            self.put(
                "brokers",
                list(&brokers)
                    .into_iter()
                    .map(Value::from)
                    .collect::<Vec<_>>(),
            );
        }
        self.text("KAFKA_USERNAME", "username");
        self.text("KAFKA_PASSWORD", "password");
        self.text("KAFKA_CLIENT_ID", "client_id");
        self.text("KAFKA_PARTITION", "partition");
        self.text("KAFKA_PARTITION_KEY", "key");
        for variable in ["KAFKA_REQUIRED_ACKS", "KAFKA_REQUIRE_ACKS"] {
            match (self.set)(variable).as_deref() {
                None => {}
                Some("-1" | "all") => self.put("acks", "all"),
                Some(acks @ ("0" | "1")) => self.put("acks", acks),
                Some(other) => {
                    let reason = "it is no number of confirmations that Kafka knows";
                    self.wrong(variable, other, reason, "write `-1` (all), `1` or `0`");
                }
            }
        }
        if let Some(codec) = (self.set)("KAFKA_COMPRESSION_CODEC") {
            let known = ["none", "gzip", "snappy", "lz4", "zstd"];
            if known.contains(&codec.as_str()) {
                self.put("compression", codec);
            } else {
                let cure = use_instead(&codec, &known);
                self.wrong(
                    "KAFKA_COMPRESSION_CODEC",
                    &codec,
                    "no compression is called so",
                    &cure,
                );
            }
        }
        if let Some(bytes) = self.number("KAFKA_MAX_MESSAGE_BYTES") {
            self.put("max_message_bytes", bytes);
        }
        if let Some(timeout) = self.duration("KAFKA_BROKER_TIMEOUT") {
            output.timeout = timeout;
        }
        let topics = self.root.join(KAFKA_TOPICS.trim_start_matches('/'));
        if let Ok(topics) = std::fs::read_to_string(topics) {
            let topics: Vec<Value> = list(&topics).into_iter().map(Value::from).collect();
            if !topics.is_empty() {
                self.put("allowed_topics", topics);
            }
        }
    }

    fn aliyun_sls(&mut self) {
        if let Some(project) = self.required("ALIYUNSLS_PROJECT") {
            self.put("project", project);
        }
        if let Some(endpoint) = self.required("ALIYUNSLS_REGION_ENDPOINT") {
            self.put("endpoint", endpoint);
        }
        let variables = ["ALIYUNSLS_ACCESS_KEY_ID", "ALIYUNSLS_ACCESS_KEY_SECRET"];
        if !self.pair(
            ALIYUN_ACCESS_KEY,
            ["access_key_id", "access_key_secret"],
            variables,
        ) {
            for variable in variables {
                self.required(variable);
            }
        }
        self.tls_verify("SSL_VERIFY");
        if let Some(create) = self.flag("ALIYUNSLS_NEED_CREATE_LOGSTORE") {
            self.put("create_logstore", create);
        }
        if let Some(days) = self.number("ALIYUNSLS_CREATE_LOGSTORE_TTL") {
            self.put("ttl_days", days);
        }
        if let Some(shards) = self.number("ALIYUNSLS_CREATE_LOGSTORE_SHARD_COUNT") {
            self.put("shards", shards);
        }
    }

    fn file(&mut self) {
        let folder = self.required("FILE_PATH");
        let flavour = (self.set)("PILOT_TYPE");
        let name = (self.set)("FILE_NAME").unwrap_or_else(|| match flavour.as_deref() {
            Some("filebeat") => "filebeat".to_owned(),
            _ => "{target}.ndjson".to_owned(),
        });
        if let Some(folder) = folder {
            self.put("path", format!("{}/{name}", folder.trim_end_matches('/')));
        }
        let kilobytes = self.number("FILE_ROTATE_SIZE").unwrap_or(10_240);
        self.put("rotate_size", kilobytes.saturating_mul(1024));
        let keep = self.number("FILE_NUMBER_OF_FILES").unwrap_or(7);
        self.put("rotate_keep", keep);
        let permissions = (self.set)("FILE_PERMISSIONS").unwrap_or_else(|| "0600".to_owned());
        self.put("permissions", permissions);
        match (self.set)("FILE_FORMAT").as_deref() {
            None | Some("json") => {}
            Some("single_value") => self.put("codec", "raw"),
            Some(other) => {
                let reason = "it is no format that is written here";
                self.wrong(
                    "FILE_FORMAT",
                    other,
                    reason,
                    "write `json`, or `single_value` for the line alone",
                );
            }
        }
        match (self.set)("FILE_COMPRESS").as_deref() {
            None | Some("text" | "false") => {}
            Some("gzip" | "gz" | "true") => self.put("compress", true),
            Some(other) => {
                let reason = "it is no compression that is written here";
                self.wrong("FILE_COMPRESS", other, reason, "write `gzip` or `text`");
            }
        }
    }

    fn logstash(&mut self, output: &mut OutputSettings) {
        let host = self.required("LOGSTASH_HOST");
        let port = self.port("LOGSTASH_PORT");
        if let Some((host, port)) = host.zip(port) {
            self.put("hosts", vec![Value::from(format!("{host}:{port}"))]);
        }
        self.workers("LOGSTASH_WORKER", output);
    }

    fn redis(&mut self, output: &mut OutputSettings) {
        self.host_and_port("REDIS");
        self.text("REDIS_PASSWORD", "password");
        self.text("REDIS_DATATYPE", "datatype");
        output.timeout = self
            .duration("REDIS_TIMEOUT")
            .unwrap_or(Duration::from_secs(5));
        self.workers("REDIS_WORKER", output);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    type Said = (Vec<OutputSettings>, Vec<Problem>, Vec<Problem>);

    fn said(root: &Path, variables: &[(&str, &str)]) -> Said {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let env = |name: &str| variables.get(name).map(|value| (*value).to_owned());
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let outputs = outputs_with(&env, root, &mut problems, &mut warnings);
        (outputs, problems, warnings)
    }

    /// Least that each output must be given.
    fn least(kind: &str) -> Vec<(&'static str, &'static str)> {
        match kind {
            "elasticsearch" => vec![("ELASTICSEARCH_HOST", "es"), ("ELASTICSEARCH_PORT", "9200")],
            "kafka" => vec![("KAFKA_BROKERS", "a:9092, b:9092")],
            "aliyun_sls" => vec![
                ("ALIYUNSLS_PROJECT", "p"),
                ("ALIYUNSLS_REGION_ENDPOINT", "cn-hangzhou.log.aliyuncs.com"),
                ("ALIYUNSLS_ACCESS_KEY_ID", "hunter2id"),
                ("ALIYUNSLS_ACCESS_KEY_SECRET", "hunter2"),
            ],
            "file" => vec![("FILE_PATH", "/data/")],
            "logstash" => vec![("LOGSTASH_HOST", "ls"), ("LOGSTASH_PORT", "5044")],
            "redis" => vec![("REDIS_HOST", "r"), ("REDIS_PORT", "6379")],
            "graylog" => vec![("GRAYLOG_HOST", "g"), ("GRAYLOG_PORT", "12201")],
            "syslog" => vec![("SYSLOG_HOST", "s"), ("SYSLOG_PORT", "514")],
            _ => vec![],
        }
    }

    const KINDS: [&str; 11] = [
        "elasticsearch",
        "kafka",
        "aliyun_sls",
        "file",
        "logstash",
        "redis",
        "graylog",
        "syslog",
        "console",
        "null",
        "flowcounter",
    ];

    #[test]
    fn every_output_of_log_pilot_is_made_from_its_variables() {
        let none = Path::new("/nonexistent");
        let mut shown = String::new();
        for kind in KINDS {
            let mut variables = least(kind);
            variables.push(("LOGGING_OUTPUT", kind));
            let (outputs, problems, warnings) = said(none, &variables);
            assert_eq!((problems, warnings), (vec![], vec![]), "{kind}");
            let own = serde_yaml_ng::to_string(&outputs[0].settings).expect("YAML");
            shown += &format!("{kind} -> {}\n{own}\n", outputs[0].kind);
        }
        insta::assert_snapshot!(shown);
    }

    /// Nothing that a log-pilot DaemonSet sets is passed over in silence.
    #[test]
    fn every_documented_variable_changes_something_or_is_told_not_to_be_needed() {
        let none = Path::new("/nonexistent");
        for variable in VARIABLES
            .iter()
            .filter(|v| !v.output.is_empty() || v.obsolete)
        {
            let kind = if variable.output.is_empty() {
                "console"
            } else {
                variable.output
            };
            let mut variables = least(kind);
            variables.retain(|(name, _)| *name != variable.name);
            if variable.name == "ELASTICSEARCH_HOSTS" {
                variables.clear();
            }
            variables.push(("LOGGING_OUTPUT", kind));
            let without = said(none, &variables);
            let value = match variable.unit {
                "true or false" if variable.default == "true" => "false",
                "true or false" => "true",
                unit if unit.contains("seconds") => "7",
                "0, 1 or -1" => "1",
                "gzip or text" => "gzip",
                "json or single_value" => "single_value",
                "http or https" => "https",
                unit if unit.starts_with("none, gzip") => "lz4",
                "number" | "port" | "KB" | "bytes" | "days" => "3",
                "octal" => "0640",
                _ => "xyz",
            };
            variables.push((variable.name, value));
            assert_ne!(
                said(none, &variables),
                without,
                "{} is ignored",
                variable.name
            );
        }
    }

    #[test]
    fn every_variable_that_is_read_is_documented() {
        let documented: BTreeSet<&str> = VARIABLES.iter().map(|v| v.name).collect();
        assert_eq!(documented.len(), VARIABLES.len(), "one is listed twice");
        for kind in KINDS {
            let asked = RefCell::new(BTreeSet::new());
            let env = |name: &str| {
                asked.borrow_mut().insert(name.to_owned());
                (name == "LOGGING_OUTPUT").then(|| kind.to_owned())
            };
            outputs_with(
                &env,
                Path::new("/nonexistent"),
                &mut Vec::new(),
                &mut Vec::new(),
            );
            prefixes(&env);
            node_name(&env);
            for name in asked.borrow().iter() {
                assert!(
                    documented.contains(name.as_str()),
                    "{name} is not documented"
                );
            }
        }
    }

    #[test]
    fn secret_files_of_log_pilot_win_and_no_secret_is_shown() {
        let root = tempfile::tempdir().expect("a folder");
        let dir = root.path().join("run/secrets");
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::write(dir.join("es_credential"), "elastic:hunter2\n").expect("a write");
        let mut variables = least("elasticsearch");
        variables.extend([
            ("LOGGING_OUTPUT", "elasticsearch"),
            ("ELASTICSEARCH_USER", "other"),
            ("ELASTICSEARCH_PASSWORD", "wrong"),
        ]);
        let (outputs, problems, _) = said(root.path(), &variables);
        assert_eq!(problems, []);
        let read = |key: &str| {
            let secret: super::super::Secret =
                super::super::from_value(&outputs[0].settings[key], key).expect("a secret");
            secret.read()
        };
        assert_eq!(read("username").as_deref(), Ok("elastic"));
        assert_eq!(read("password").as_deref(), Ok("hunter2"));

        let mut variables = least("aliyun_sls");
        variables.push(("LOGGING_OUTPUT", "aliyun_sls"));
        let said = said(Path::new("/nonexistent"), &variables);
        assert!(!format!("{said:?}").contains("hunter2"));
    }

    #[test]
    fn allowed_topics_are_read_from_the_mounted_list() {
        let root = tempfile::tempdir().expect("a folder");
        let dir = root.path().join("etc/filebeat/config");
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::write(dir.join("kafka_topics"), "topic1,topic2").expect("a write");
        let variables = [("FILEBEAT_OUTPUT", "kafka"), ("KAFKA_BROKERS", "k:9092")];
        let (outputs, problems, _) = said(root.path(), &variables);
        assert_eq!(problems, []);
        assert_eq!(
            outputs[0].settings["allowed_topics"][1],
            Value::from("topic2")
        );
    }

    #[test]
    fn a_wrong_environment_is_told_variable_by_variable() {
        let none = Path::new("/nonexistent");
        let mut shown = String::new();
        for variables in [
            &[("LOGGING_OUTPUT", "elasticsaerch")][..],
            &[("LOGGING_OUTPUT", "elasticsearch")],
            &[("LOGGING_OUTPUT", "aliyun_sls")],
            &[
                ("FLUENTD_OUTPUT", "redis"),
                ("REDIS_HOST", "r"),
                ("REDIS_PORT", "x"),
                ("REDIS_TIMEOUT", "soon"),
            ],
            &[
                ("LOGGING_OUTPUT", "kafka"),
                ("KAFKA_BROKERS", "k"),
                ("KAFKA_REQUIRE_ACKS", "7"),
                ("KAFKA_VERSION", "0.10"),
            ],
            &[("PILOT_CREATE_SYMLINK", "true"), ("CONSOLE_PRETTY", "very")],
        ] {
            let (_, problems, warnings) = said(none, variables);
            for (kind, list) in [("problem", problems), ("warning", warnings)] {
                shown.extend(list.iter().map(|p| format!("{kind}: {p}\n")));
            }
            shown.push('\n');
        }
        insta::assert_snapshot!(shown);
    }
}
