//! Elasticsearch 7 to 9 and OpenSearch 2, by `_bulk`.
//! Place: batch -> **elasticsearch** -> the server; the answer's word on each record goes back.
//! Invariants: `create` with an `_id` of our own, so that a replay meets its own 409; a record is delivered only if its
//! item says so; only a fault of the document itself refuses it; what works without `GET /` works behind any proxy.
//!
//! The index stands in the URL and an action line names only `_id`, but where a record's day is not its chunk's. Of the
//! crate `elasticsearch` the requests are not sent: its `Transport` takes one contiguous `Bytes`, for which every batch
//! of several chunks would be copied and held twice (`transport::body` has the numbers), reads an answer without a
//! bound and follows redirects. Its types read what a server says of a request that failed as a whole.

mod answer;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use serde::Deserialize;

use super::transport::{
    Answer, Body, Compression, Exchange, HeaderMap, HeaderValue, Hosts, Login, Method, Request,
    Secrets, TlsSettings, Url, Web, parse_url, shown,
};
use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::{Codec, Day, target};
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, Secret, from_value};

/// What is asked of an answer: its size is what a server spends its time on.
const QUERY: &str = "filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason,\
                     items.*.error.caused_by.reason";
/// Of hosts that name neither scheme nor port.
const DEFAULT_PORT: u16 = 9200;
/// The longest name an index may have, in bytes.
const MOST_INDEX_BYTES: usize = 255;
/// The longest date and target that a pattern is filled in with.
const MOST_TARGET_BYTES: usize = 200;
/// Why a record that is too large for the server is refused.
const TOO_LARGE: &str = "too_large";

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(deserialize_with = "one_or_several")]
    hosts: Vec<String>,
    path: Option<String>,
    index: Option<String>,
    #[serde(default)]
    data_stream: bool,
    username: Option<Secret>,
    password: Option<Secret>,
    api_key: Option<Secret>,
    #[serde(default)]
    compression: Compression,
    #[serde(default)]
    tls: TlsSettings,
}

/// `hosts: a` is meant as `hosts: [a]`.
fn one_or_several<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "it is no list of servers; do: write for example `[\"http://127.0.0.1:9200\"]`"
    )]
    enum Hosts {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Hosts::deserialize(from)? {
        Hosts::One(host) => vec![host],
        Hosts::Several(hosts) => hosts,
    })
}

/// The output.
#[derive(Debug)]
pub struct Elasticsearch {
    hosts: Hosts,
    index: Arc<str>,
    data_stream: bool,
    query: String,
    login: Login,
    exchange: Arc<dyn Exchange>,
}

/// The index that records of this target and day go to: the pattern filled in, in lower case as Elasticsearch wants it.
pub fn index_name(pattern: &str, target: &str, day: Day) -> String {
    let mut name = target::render(pattern, target, day);
    name.make_ascii_lowercase();
    name
}

impl Elasticsearch {
    /// The output that these settings describe, over the network.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn new(settings: &OutputSettings) -> Result<Self, Vec<Problem>> {
        let keys: Keys = from_value(&settings.settings, &settings.path()).map_err(|p| vec![p])?;
        let web = Web::of(settings, &keys.tls, keys.compression)?;
        Self::over(settings, keys, web)
    }

    /// The same over another way to the servers.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn with_exchange(
        settings: &OutputSettings,
        exchange: Arc<dyn Exchange>,
    ) -> Result<Self, Vec<Problem>> {
        let keys = from_value(&settings.settings, &settings.path()).map_err(|p| vec![p])?;
        Self::over(settings, keys, exchange)
    }

    fn over(
        settings: &OutputSettings,
        keys: Keys,
        exchange: Arc<dyn Exchange>,
    ) -> Result<Self, Vec<Problem>> {
        let path = settings.path();
        let mut problems = Vec::new();
        let mut urls = Vec::new();
        let mut named = None;
        if keys.hosts.is_empty() {
            problems.push(of_operator(
                format!("{path}.hosts"),
                "[]",
                "no server is named",
                "write for example `hosts: [\"http://127.0.0.1:9200\"]`",
            ));
        }
        for (n, host) in keys.hosts.iter().enumerate() {
            match base_url(host, keys.path.as_deref()) {
                Ok((url, login)) => {
                    urls.push(url);
                    named = named.or(login);
                }
                // The host is not shown: it may hold a password.
                Err(why) => problems.push(of_operator(
                    format!("{path}.hosts[{n}]"),
                    "",
                    why,
                    "write for example `http://es.example.com:9200`",
                )),
            }
        }
        let default = if keys.data_stream {
            "{target}"
        } else {
            "{target}-{date}"
        };
        let index = keys.index.unwrap_or_else(|| default.to_owned());
        if let Some((reason, cure)) = wrong_index(&index, keys.data_stream) {
            problems.push(of_operator(format!("{path}.index"), &index, reason, cure));
        }
        let other = keys
            .api_key
            .map(|key| Login::ApiKey(Secrets::new(vec![key])));
        let pair = (keys.username, keys.password);
        let login = Login::choose(&path, pair, ("api_key", other), named);
        let login = login.unwrap_or_else(|problem| {
            problems.push(problem);
            Login::None
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            hosts: Hosts::new(urls, settings.retry),
            index: index.into(),
            data_stream: keys.data_stream,
            // A server that waits for a shard gives up, and names the records, before we give up on the server.
            query: format!("{QUERY}&timeout={}ms", settings.timeout.as_millis() / 2),
            login,
            exchange,
        })
    }

    /// How records for this output are encoded.
    pub fn codec(&self) -> Codec {
        Codec::Bulk
    }

    async fn request(&self, url: Url, body: Body) -> Result<Request, String> {
        let mut headers = HeaderMap::with_capacity(4);
        // The plain types: those with a version, which clients of a version send, are refused by others.
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        );
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(login) = self.login.header().await? {
            headers.insert(AUTHORIZATION, login);
        }
        Ok(Request {
            method: Method::POST,
            url,
            headers,
            body,
        })
    }

    async fn send(&self, load: &Load) -> Verdict {
        if load.is_empty() {
            return Verdict::All(Fate::Delivered);
        }
        let failed = |cause: String| Verdict::Failed {
            cause: cause.into(),
        };
        let Some((number, base)) = self.hosts.pick() else {
            return failed("no server is named".to_owned());
        };
        let index = index_name(&self.index, &load.batch.target, load.batch.day);
        let Ok(url) = base.join(&format!("{index}/_bulk?{}", self.query)) else {
            return failed(format!("`{index}` is no name for an index"));
        };
        let request = match self.request(url, Body::Records(load.clone())).await {
            Ok(request) => request,
            Err(cause) => return failed(cause),
        };
        let answer = match self.exchange.exchange(request).await {
            Ok(answer) => answer,
            Err(super::transport::Failure::AnswerTooLong { .. }) if load.len() > 1 => {
                return Verdict::TooLarge;
            }
            Err(failure) => {
                self.hosts.failed(number);
                return failed(failure.to_string());
            }
        };
        match answer.status {
            429 | 500.. => self.hosts.failed(number),
            _ => self.hosts.answered(number),
        }
        match answer.status {
            200 => answer::outcomes(&answer.body, load.len())
                .unwrap_or_else(|why| failed(format!("{} {why}", shown(base)))),
            413 if load.len() > 1 => Verdict::TooLarge,
            413 => Verdict::All(Fate::Refused {
                reason: TOO_LARGE.into(),
                detail: answer::words(&answer).into(),
            }),
            status => {
                if matches!(status, 401 | 403) {
                    self.login.refused();
                }
                failed(format!("{}: {}", shown(base), answer::words(&answer)))
            }
        }
    }

    async fn ask(&self) -> Result<(), String> {
        for base in self.hosts.urls() {
            // A bulk of nothing: the path that records take, with the rights they need, and none is sent.
            let url = base.join("_bulk").map_err(|error| error.to_string())?;
            let request = self.request(url, Body::Empty).await?;
            let answer = self.exchange.exchange(request).await;
            let answer = answer.map_err(|failure| failure.to_string())?;
            if !takes_bulks(&answer) {
                let words = answer::words(&answer);
                return Err(format!("{}: {words}", shown(base)));
            }
        }
        Ok(())
    }
}

/// Whether this is how a server that takes bulks answers one of nothing.
fn takes_bulks(answer: &Answer) -> bool {
    answer.status == 400
        && answer::fault(&answer.body).is_some_and(|fault| {
            fault.ty() == Some("parse_exception")
                || fault.ty() == Some("action_request_validation_exception")
        })
}

impl Output for Elasticsearch {
    fn guarantee(&self) -> Guarantee {
        // A data stream knows an `_id` only within the backing index it is in: a replay after a rollover is a second
        // document.
        match self.data_stream {
            true => Guarantee::AtLeastOnce,
            false => Guarantee::EffectivelyOnce,
        }
    }

    fn ordered(&self) -> bool {
        false
    }

    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(self.send(load))
    }

    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.ask())
    }
}

/// A server's URL as it is asked: its path ends in `/`; and user and password, if it named them.
fn base_url(host: &str, path: Option<&str>) -> Result<(Url, Option<(String, String)>), String> {
    let host = host.trim();
    let (mut url, login) = match host.contains("://") {
        true => parse_url(host)?,
        false => {
            let (mut url, login) = parse_url(&format!("http://{host}"))?;
            if !names_port(host) {
                // Not refused: the URL has a host.
                url.set_port(Some(DEFAULT_PORT)).unwrap_or_default();
            }
            (url, login)
        }
    };
    let whole = format!(
        "{}/{}/",
        url.path().trim_matches('/'),
        path.unwrap_or_default().trim_matches('/')
    );
    url.set_path(&format!("{}/", whole.trim_matches('/')));
    url.set_query(None);
    url.set_fragment(None);
    Ok((url, login))
}

/// Whether `USER:PASSWORD@HOST:PORT/PATH` has its port; a `:` may belong to the user or be part of an IPv6 address.
fn names_port(host: &str) -> bool {
    let authority = host.split('/').next().unwrap_or_default();
    let address = authority.rsplit('@').next().unwrap_or_default();
    address.rsplit(']').next().unwrap_or_default().contains(':')
}

/// What is wrong with an index pattern, and what to write.
fn wrong_index(pattern: &str, data_stream: bool) -> Option<(String, String)> {
    let literal = pattern.replace("{target}", "").replace("{date}", "");
    let filled = pattern.replace("{target}", "t").replace("{date}", "1");
    if data_stream && pattern.contains("{date}") {
        return Some((
            "a data stream turns by itself: its name has no date".to_owned(),
            "leave `{date}` out, or remove `data_stream: true`".to_owned(),
        ));
    }
    let longest = literal.len() + pattern.matches("{target}").count() * MOST_TARGET_BYTES + 10;
    let reason = if filled.is_empty() || filled == "." || filled == ".." {
        "it is no name".to_owned()
    } else if let Some(wrong) = literal
        .chars()
        .find(|c| !c.is_ascii_graphic() || "\\/*?\"<>|,#:{}%".contains(*c))
    {
        format!(
            "no index may have {wrong:?} in its name, and only `{{target}}` and `{{date}}` are filled in"
        )
    } else if filled.starts_with(['-', '_', '+']) {
        "no index may begin with `-`, `_` or `+`".to_owned()
    } else if longest > MOST_INDEX_BYTES {
        format!(
            "with the longest target it has {longest} bytes, and an index at most {MOST_INDEX_BYTES}"
        )
    } else {
        return None;
    };
    Some((reason, "write for example `{target}-{date}`".to_owned()))
}

#[cfg(test)]
mod tests;
