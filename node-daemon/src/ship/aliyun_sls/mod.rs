//! Alibaba Cloud Simple Log Service, by `PutLogs`.
//! Place: batch -> **aliyun_sls** -> the service. A batch is as many requests as its limits ask for.
//! Invariants: a request is taken or refused whole, so the fate of its records is one; one that is called wrong is
//! split until the guilty record is alone, and only that one is refused; nothing is sent to a logstore whose name the
//! service could not have.

mod answer;
mod log_group;
#[cfg(test)]
mod schema;
mod sign;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use md5::{Digest, Md5};
use reqwest::header::{CONTENT_TYPE, HOST};
use serde::Deserialize;

use super::transport::{
    Body, Compression, Exchange, HeaderMap, HeaderName, HeaderValue, Method, Request, Secrets,
    TlsSettings, Url, Web, parse_url,
};
use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::{Codec, target};
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, Secret, from_value};

use answer::Word;
use log_group::LogGroup;
use sign::{Key, Signature, Signed, sign};

/// Most logs of one request.
const MOST_LOGS: usize = 4_096;
/// Bytes of a group, uncompressed, at which no more is added: the oldest limit that is documented, of 3 MB, so that a
/// private deployment takes it, too.
const MOST_BYTES: usize = 2_900_000;
/// The version of the API.
const API_VERSION: &str = "0.6.0";
/// What a record is refused for that is no JSON object.
const NO_RECORD: &str = "not_a_record";

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    project: String,
    endpoint: String,
    access_key_id: Secret,
    access_key_secret: Secret,
    security_token: Option<Secret>,
    #[serde(default = "target_alone")]
    logstore: String,
    #[serde(default)]
    topic: String,
    signature: Option<Version>,
    region: Option<String>,
    #[serde(default)]
    shard_by: ShardBy,
    #[serde(default)]
    create_logstore: bool,
    #[serde(default = "one")]
    ttl_days: u32,
    #[serde(default = "two")]
    shards: u32,
    #[serde(default)]
    tls: TlsSettings,
}

fn target_alone() -> String {
    "{target}".to_owned()
}
// log-pilot's defaults.
fn one() -> u32 {
    1
}
fn two() -> u32 {
    2
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Version {
    V1,
    V4,
}

/// By what the shard of a record is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShardBy {
    /// By the service: whichever is free.
    #[default]
    None,
    /// By the node: all its records are in one shard.
    Node,
    /// By the source, whose records so keep their order.
    Source,
}

/// The output.
#[derive(Debug)]
pub struct AliyunSls {
    /// Scheme, name and port that are connected to.
    base: Url,
    host: HeaderValue,
    logstore: String,
    topic: String,
    node: String,
    signature: Signature,
    shard_by: ShardBy,
    /// What a new logstore is asked for, if it may be made: TTL in days, and shards.
    create: Option<(u32, u32)>,
    /// Key, its secret, and a token if there is one.
    secrets: Secrets,
    clock: fn() -> Timestamp,
    exchange: Arc<dyn Exchange>,
}

impl AliyunSls {
    /// The output that these settings describe, over the network; `node` is this node's name, the source of its logs.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn new(settings: &OutputSettings, node: &str) -> Result<Self, Vec<Problem>> {
        let keys: Keys = from_value(&settings.settings, &settings.path()).map_err(|p| vec![p])?;
        // Bodies are compressed already.
        let web = Web::of(settings, &keys.tls, Compression::None)?;
        Self::over(settings, keys, node, web, Timestamp::now)
    }

    /// The same over another way to the service, and by another clock.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn with_exchange(
        settings: &OutputSettings,
        node: &str,
        exchange: Arc<dyn Exchange>,
        clock: fn() -> Timestamp,
    ) -> Result<Self, Vec<Problem>> {
        let keys = from_value(&settings.settings, &settings.path()).map_err(|p| vec![p])?;
        Self::over(settings, keys, node, exchange, clock)
    }

    fn over(
        settings: &OutputSettings,
        keys: Keys,
        node: &str,
        exchange: Arc<dyn Exchange>,
        clock: fn() -> Timestamp,
    ) -> Result<Self, Vec<Problem>> {
        let path = settings.path();
        let mut problems = Vec::new();
        let mut wrong = |key: &str, value: &str, reason: &str, cure: &str| {
            problems.push(of_operator(format!("{path}.{key}"), value, reason, cure));
        };
        if !is_name(&keys.project) {
            wrong(
                "project",
                &keys.project,
                "no project is called so",
                "write its name: lower-case letters, digits and `-`",
            );
        }
        let place = place(&keys.project, &keys.endpoint);
        if let Err(why) = &place {
            // The endpoint is not shown: it may hold a password.
            let cure = "write the host alone, for example `cn-hangzhou.log.aliyuncs.com`";
            wrong("endpoint", "", why, cure);
        }
        if !is_name(&target::render(&keys.logstore, "target", 0)) {
            wrong(
                "logstore",
                &keys.logstore,
                "no logstore is called so, and only `{target}` is filled in",
                "write for example `{target}`",
            );
        }
        let signature = match (keys.signature, keys.region) {
            (None | Some(Version::V4), Some(region)) if is_name(&region) => {
                Signature::V4 { region }
            }
            (None | Some(Version::V1), None) => Signature::V1,
            (Some(Version::V1), Some(region)) => {
                let cure = "remove `region`, or write `signature: v4`";
                wrong("region", &region, "signature v1 has no region", cure);
                Signature::V1
            }
            (_, region) => {
                wrong(
                    "region",
                    region.as_deref().unwrap_or_default(),
                    "signature v4 needs the region",
                    "write for example `region: cn-hangzhou`",
                );
                Signature::V1
            }
        };
        if keys.ttl_days == 0 || keys.shards == 0 {
            let key = if keys.ttl_days == 0 {
                "ttl_days"
            } else {
                "shards"
            };
            wrong(key, "0", "a logstore would hold nothing", "write 1 or more");
        }
        let Ok((base, host)) = place else {
            return Err(problems);
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut secrets = vec![keys.access_key_id, keys.access_key_secret];
        secrets.extend(keys.security_token);
        Ok(Self {
            base,
            host,
            logstore: keys.logstore,
            topic: keys.topic,
            node: node.to_owned(),
            signature,
            shard_by: keys.shard_by,
            create: keys.create_logstore.then_some((keys.ttl_days, keys.shards)),
            secrets: Secrets::new(secrets),
            clock,
            exchange,
        })
    }

    /// How records for this output are encoded.
    pub fn codec(&self) -> Codec {
        Codec::Json
    }

    /// Asks the service, once.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        parameter: Option<(&str, &str)>,
        content: Content,
    ) -> Result<Word, String> {
        let secrets = self.secrets.now().await?;
        let (Some(id), Some(secret)) = (secrets.first(), secrets.get(1)) else {
            return Err("there is no access key".to_owned());
        };
        let bad = |_| "the access key holds characters that no header may have".to_owned();
        let compressed = matches!(content, Content::Logs { .. });
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content.kind()));
        headers.insert(
            HeaderName::from_static("x-log-apiversion"),
            HeaderValue::from_static(API_VERSION),
        );
        let (raw, body) = match content {
            Content::Logs { raw, body } => (raw, body),
            Content::Json(body) => (body.len(), body),
        };
        headers.insert(HeaderName::from_static("x-log-bodyrawsize"), raw.into());
        if raw > 0 && compressed {
            headers.insert(
                HeaderName::from_static("x-log-compresstype"),
                HeaderValue::from_static("lz4"),
            );
        }
        if let Some(token) = secrets.get(2) {
            let mut token = HeaderValue::try_from(token.trim()).map_err(bad)?;
            token.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-acs-security-token"), token);
        }
        let key = Key {
            id: id.trim(),
            secret: secret.trim(),
        };
        let signed = Signed {
            method: method.as_str(),
            path,
            parameter,
            body: &body,
        };
        sign(&self.signature, &key, &signed, (self.clock)(), &mut headers).map_err(bad)?;
        let mut url = self.base.clone();
        url.set_path(path);
        url.set_query(
            parameter
                .map(|(name, value)| format!("{name}={value}"))
                .as_deref(),
        );
        let request = Request {
            method,
            url,
            headers,
            body: Body::Whole(body),
        };
        let answer = self.exchange.exchange(request).await;
        let word = answer::read(&answer.map_err(|failure| failure.to_string())?);
        if matches!(word, Word::NotUs { .. }) {
            self.secrets.refused();
        }
        Ok(word)
    }

    /// Sends one group of logs.
    async fn put(&self, logstore: &str, group: Packed) -> Result<Word, String> {
        let path = match group.shard {
            None => format!("/logstores/{logstore}/shards/lb"),
            Some(_) => format!("/logstores/{logstore}/shards/route"),
        };
        let parameter = group.shard.as_deref().map(|key| ("key", key));
        let content = Content::Logs {
            raw: group.raw,
            body: group.body,
        };
        self.ask(Method::POST, &path, parameter, content).await
    }

    /// Makes a logstore that is not there; why its records wait meanwhile.
    async fn create(&self, logstore: &str, ttl: u32, shards: u32) -> String {
        let body = serde_json::json!({"logstoreName": logstore, "ttl": ttl, "shardCount": shards});
        let content = Content::Json(body.to_string().into());
        match self.ask(Method::POST, "/logstores", None, content).await {
            Ok(Word::Taken | Word::AlreadyThere) => {
                format!(
                    "logstore `{logstore}` has just been made and takes records within a minute"
                )
            }
            Ok(other) => format!("logstore `{logstore}` cannot be made: {}", other.cause()),
            Err(cause) => format!("logstore `{logstore}` cannot be made: {cause}"),
        }
    }

    async fn send(&self, load: &Load) -> Verdict {
        let count = load.len();
        let logstore = target::render(&self.logstore, &load.batch.target, load.batch.day);
        if !is_name(&logstore) {
            let cause = format!(
                "no logstore can be called `{logstore}`; do: choose a target of 2 to 63 lower-case letters, digits, `-` and `_`"
            );
            return Verdict::All(Fate::Again {
                cause: cause.into(),
            });
        }
        let mut fates: Vec<Option<Fate>> = vec![None; count];
        // Positions in the load that are yet to be sent, the next last.
        let mut open: Vec<Range<usize>> = std::iter::once(0..count).collect();
        while let Some(range) = open.pop() {
            let Ok(group) = self.pack(load, range.clone()).await else {
                break;
            };
            let sent = range.start..group.end;
            if group.end < range.end {
                open.push(group.end..range.end);
            }
            for position in &group.refused {
                fates[*position] = Some(Fate::Refused {
                    reason: NO_RECORD.into(),
                    detail: "it is no JSON object".into(),
                });
            }
            if group.logs == 0 {
                continue;
            }
            let logs = group.logs;
            let word = match self.put(&logstore, group).await {
                Ok(word) => word,
                Err(cause) => return Self::rest(fates, cause, true),
            };
            match word {
                Word::Taken => settle(&mut fates, sent, &Fate::Delivered),
                Word::Wrong { .. } if logs > 1 => {
                    let middle = sent.start + sent.len() / 2;
                    open.push(middle..sent.end);
                    open.push(sent.start..middle);
                }
                Word::Wrong { class, detail } => settle(
                    &mut fates,
                    sent,
                    &Fate::Refused {
                        reason: class.into(),
                        detail: detail.into(),
                    },
                ),
                Word::NoLogstore { cause } => {
                    let cause = match self.create {
                        Some((ttl, shards)) => self.create(&logstore, ttl, shards).await,
                        None => cause,
                    };
                    return Self::rest(fates, cause, false);
                }
                Word::Later { cause } => return Self::rest(fates, cause, false),
                Word::NotUs { cause } | Word::Failed { cause } => {
                    return Self::rest(fates, cause, true);
                }
                Word::AlreadyThere => {
                    return Self::rest(fates, "the service contradicts itself".to_owned(), true);
                }
            }
        }
        if fates.iter().all(|fate| *fate == Some(Fate::Delivered)) {
            return Verdict::All(Fate::Delivered);
        }
        Self::rest(fates, "packing was given up".to_owned(), true)
    }

    /// The verdict when no more is sent: what has no fate yet waits. A failure of all is told as such.
    fn rest(fates: Vec<Option<Fate>>, cause: String, failed: bool) -> Verdict {
        let cause: Arc<str> = cause.into();
        match (fates.iter().all(Option::is_none), failed) {
            (true, true) => Verdict::Failed { cause },
            (true, false) => Verdict::All(Fate::Again { cause }),
            (false, _) => Verdict::Each(
                fates
                    .into_iter()
                    .map(|fate| {
                        fate.unwrap_or_else(|| Fate::Again {
                            cause: Arc::clone(&cause),
                        })
                    })
                    .collect(),
            ),
        }
    }

    /// Packs as many records from the beginning of `range`, positions in the load, as one request may have.
    async fn pack(&self, load: &Load, range: Range<usize>) -> Result<Packed, ()> {
        let (load, topic, node) = (load.clone(), self.topic.clone(), self.node.clone());
        let (shard_by, now) = (self.shard_by, (self.clock)());
        // Work for a processor, which must not keep the network waiting.
        let packed = tokio::task::spawn_blocking(move || {
            let topic = target::render(&topic, &load.batch.target, load.batch.day);
            pack(&load, range, shard_by, now, &topic, &node)
        });
        packed.await.map_err(drop)
    }

    async fn look(&self) -> Result<(), String> {
        // A group of nothing, to a logstore that need not be there: what counts is whether we are known.
        let group = Packed {
            end: 0,
            refused: Vec::new(),
            logs: 0,
            raw: 0,
            body: Bytes::new(),
            shard: None,
        };
        match self.put("ringpilot-check", group).await? {
            Word::Failed { cause } | Word::NotUs { cause } => Err(cause),
            _ => Ok(()),
        }
    }
}

/// What a request carries.
enum Content {
    /// A group of logs, compressed; `raw` bytes before that. Nothing is not compressed.
    Logs { raw: usize, body: Bytes },
    /// A description of what should be made.
    Json(Bytes),
}

impl Content {
    fn kind(&self) -> &'static str {
        match self {
            Self::Logs { .. } => "application/x-protobuf",
            Self::Json(_) => "application/json",
        }
    }
}

/// Records packed for one request.
struct Packed {
    /// The position after the last.
    end: usize,
    /// Positions of those that are no records.
    refused: Vec<usize>,
    logs: usize,
    /// Bytes before compression.
    raw: usize,
    body: Bytes,
    /// By what hash the shard is chosen.
    shard: Option<String>,
}

fn pack(
    load: &Load,
    range: Range<usize>,
    shard_by: ShardBy,
    now: Timestamp,
    topic: &str,
    node: &str,
) -> Packed {
    let mut group = LogGroup::default();
    let mut refused = Vec::new();
    let mut source = None;
    let mut end = range.start;
    for (chunk, record) in records(load).skip(range.start).take(range.len()) {
        let full = group.len() == MOST_LOGS || group.bytes() + record.len() > MOST_BYTES;
        let other = shard_by == ShardBy::Source && source.is_some_and(|hash| hash != chunk);
        if group.len() > 0 && (full || other) {
            break;
        }
        source = Some(chunk);
        if group.push(record, now).is_err() {
            refused.push(end);
        }
        end += 1;
    }
    let shard = match shard_by {
        ShardBy::None => None,
        ShardBy::Node => Some(hex::encode(Md5::digest(node))),
        ShardBy::Source => source.map(|hash| hex::encode(Md5::digest(hash.to_be_bytes()))),
    };
    let logs = group.len();
    let raw = group.finish(topic, node);
    let body = lz4_flex::block::compress(&raw);
    Packed {
        end,
        refused,
        logs,
        raw: raw.len(),
        body: body.into(),
        shard,
    }
}

/// The records of a load, each with its source's hash.
fn records(load: &Load) -> impl Iterator<Item = (u64, &[u8])> {
    let mut chosen = load
        .records
        .as_deref()
        .map(|chosen| chosen.iter().peekable());
    load.batch.iter().filter_map(move |(number, chunk, bytes)| {
        if let Some(chosen) = &mut chosen {
            chosen.next_if(|next| **next as usize == number)?;
        }
        Some((chunk.source_hash, bytes))
    })
}

/// Gives every record of these positions that has no fate yet this one.
fn settle(fates: &mut [Option<Fate>], positions: Range<usize>, fate: &Fate) {
    for position in positions {
        fates[position].get_or_insert_with(|| fate.clone());
    }
}

/// Whether a project, logstore or region may be called so.
fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    (2..=63).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with(['-', '_'])
        && !text.ends_with(['-', '_'])
}

/// Whom to connect to, and whom to ask for: the project is the first label of the name. An address has no labels.
fn place(project: &str, endpoint: &str) -> Result<(Url, HeaderValue), String> {
    let endpoint = endpoint.trim();
    let text = match endpoint.contains("://") {
        true => endpoint.to_owned(),
        false => format!("https://{endpoint}"),
    };
    let (mut url, login) = parse_url(&text)?;
    if login.is_some() || url.path() != "/" || url.query().is_some() {
        return Err("it is more than a host".to_owned());
    }
    let name = url.host_str().unwrap_or_default().to_owned();
    let host = format!("{project}.{name}");
    if url.domain().is_some_and(|name| name != "localhost") {
        url.set_host(Some(&host))
            .map_err(|error| error.to_string())?;
    }
    let host = HeaderValue::try_from(host).map_err(|_| "it is no host".to_owned())?;
    Ok((url, host))
}

impl Output for AliyunSls {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn ordered(&self) -> bool {
        self.shard_by == ShardBy::Source
    }

    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(self.send(load))
    }

    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.look())
    }
}

#[cfg(test)]
mod tests;
