//! Make outputs of their settings.
//! Place: at the start and at each reload; the only place that knows every type of output.

use std::sync::Arc;

use ringpilot_shared::host::{Host, RealHost};

use super::Output;
use super::aliyun_sls::AliyunSls;
use super::console::ConsoleOutput;
use super::elasticsearch::Elasticsearch;
use super::file::FileOutput;
use super::graylog::Graylog;
use super::http::Http;
use super::kafka::Kafka;
use super::logstash::Logstash;
use super::null::NullOutput;
use super::redis::Redis;
use super::syslog::Syslog;
use crate::batch::Codec;
use crate::checkpoint::{Journal, Loaded};
use crate::problem::{Problem, of_operator};
use crate::settings::OutputSettings;

/// Makes the output that settings describe. `share` is how many encoded bytes it may hold.
///
/// # Errors
/// Everything that is wrong with its keys.
pub fn connect(
    settings: &OutputSettings,
    share: usize,
    node: &str,
    host: &Arc<RealHost>,
    journal: Arc<dyn Journal>,
    loaded: &Loaded,
) -> Result<Arc<dyn Output>, Vec<Problem>> {
    match settings.kind.as_str() {
        "null" | "count" => Ok(Arc::new(NullOutput::new(settings)?)),
        "elasticsearch" => Ok(Arc::new(Elasticsearch::new(settings)?)),
        "http" => Ok(Arc::new(Http::new(settings)?)),
        "aliyun_sls" => Ok(Arc::new(AliyunSls::new(settings, node)?)),
        "kafka" => Ok(Arc::new(Kafka::new(settings, share)?)),
        "logstash" => Ok(Arc::new(Logstash::new(settings, share)?)),
        "redis" => Ok(Arc::new(Redis::new(settings, share)?)),
        "graylog" => Ok(Arc::new(Graylog::new(settings, share)?)),
        "syslog" => Ok(Arc::new(Syslog::new(settings, share)?)),
        "console" => Ok(Arc::new(ConsoleOutput::new(settings)?)),
        "file" => {
            let clock = Arc::clone(host);
            Ok(Arc::new(FileOutput::new(
                settings,
                Arc::clone(host) as _,
                journal,
                &loaded.files,
                Arc::new(move || clock.wall_ns()),
            )?))
        }
        other => Err(vec![of_operator(
            format!("{}.type", settings.path()),
            other,
            "no output of this type can be made",
            "name one of the types that `ringpilot check` lists",
        )]),
    }
}

/// How an output's records are written.
#[must_use]
pub fn codec_of(settings: &OutputSettings) -> Codec {
    match settings.kind.as_str() {
        "elasticsearch" => Codec::Bulk,
        _ if settings
            .settings
            .get("codec")
            .and_then(|codec| codec.as_str())
            == Some("raw") =>
        {
            Codec::Raw
        }
        _ => Codec::Json,
    }
}

/// Whether the day of a record decides where it goes: then the read day must be durable before it is used.
#[must_use]
pub fn is_dated(settings: &OutputSettings) -> bool {
    let names = |key: &str| {
        settings
            .settings
            .get(key)
            .and_then(|value| value.as_str())
            .is_some_and(|pattern| pattern.contains("{date}"))
    };
    match settings.kind.as_str() {
        "elasticsearch" => settings.settings.get("index").is_none() || names("index"),
        _ => names("path") || names("topic"),
    }
}
