//! Records as newline-delimited JSON to anything that takes them over HTTP.
//! Place: batch -> **http** -> the server. One request a batch, one JSON object a line.
//! Invariants: a batch is delivered when the server answers 2xx, whole: the protocol has no word for a part of it; a
//! batch that the server calls wrong is split until the guilty record is alone, and only that one is refused.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde::Deserialize;

use super::transport::{
    Answer, Body, Compression, Exchange, HeaderMap, HeaderName, HeaderValue, Login, Method,
    Request, Secrets, TlsSettings, Url, Web, foreign, meaning, parse_url, shown,
};
use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::{Codec, Day, target};
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, Secret, from_value};

/// The most of a server's words that are kept.
const MOST_WORDS_BYTES: usize = 300;

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
    username: Option<Secret>,
    password: Option<Secret>,
    bearer_token: Option<Secret>,
    #[serde(default)]
    compression: Compression,
    #[serde(default)]
    tls: TlsSettings,
}

/// The output.
#[derive(Debug)]
pub struct Http {
    /// `{target}` and `{date}` are filled in.
    url: String,
    login: Login,
    header_names: Vec<HeaderName>,
    /// One per name.
    header_values: Secrets,
    exchange: Arc<dyn Exchange>,
}

impl Http {
    /// The output that these settings describe, over the network.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn new(settings: &OutputSettings) -> Result<Self, Vec<Problem>> {
        let keys: Keys = from_value(&settings.settings, &settings.path()).map_err(|p| vec![p])?;
        let web = Web::of(settings, &keys.tls, keys.compression)?;
        Self::over(settings, keys, web)
    }

    /// The same over another way to the server.
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
        let mut named = None;
        let filled = target::render(&keys.url, "t", 0);
        // The URL is not shown: it may hold a password.
        let wrong_url = |why: String| {
            let cure = "write for example `https://logs.example.com/in/{target}`";
            of_operator(format!("{path}.url"), "", why, cure)
        };
        match parse_url(&filled) {
            Ok((_, login)) => named = login,
            Err(why) => problems.push(wrong_url(why)),
        }
        if filled.contains(['{', '}']) {
            let why = "only `{target}` and `{date}` are filled in".to_owned();
            problems.push(wrong_url(why));
        }
        let mut header_names = Vec::new();
        for name in keys.headers.keys() {
            match HeaderName::try_from(name) {
                Ok(name) => header_names.push(name),
                Err(_) => problems.push(of_operator(
                    format!("{path}.headers.{name}"),
                    "",
                    "it is no name for a header",
                    "write letters, digits and `-` alone",
                )),
            }
        }
        let other = keys
            .bearer_token
            .map(|key| Login::Bearer(Secrets::new(vec![key])));
        let pair = (keys.username, keys.password);
        let login = Login::choose(&path, pair, ("bearer_token", other), named);
        let login = login.unwrap_or_else(|problem| {
            problems.push(problem);
            Login::None
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            url: without_login(&keys.url),
            login,
            header_names,
            header_values: Secrets::new(keys.headers.into_values().collect()),
            exchange,
        })
    }

    /// How records for this output are encoded.
    pub fn codec(&self) -> Codec {
        Codec::Json
    }

    async fn request(&self, target: &str, day: Day, body: Body) -> Result<Request, String> {
        let (url, _): (Url, _) = parse_url(&target::render(&self.url, target, day))?;
        let mut headers = HeaderMap::with_capacity(2 + self.header_names.len());
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        );
        if let Some(login) = self.login.header().await? {
            headers.insert(AUTHORIZATION, login);
        }
        // What the operator writes wins.
        if !self.header_names.is_empty() {
            let values = self.header_values.now().await?;
            for (name, value) in self.header_names.iter().zip(values.iter()) {
                let mut value = HeaderValue::try_from(value.trim())
                    .map_err(|_| format!("what header {name} should hold, no header may hold"))?;
                value.set_sensitive(true);
                headers.insert(name, value);
            }
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
        let (target, day) = (&load.batch.target, load.batch.day);
        let request = self.request(target, day, Body::Records(load.clone())).await;
        let answer = match request {
            Ok(request) => self.ask(request).await,
            Err(why) => Err(why),
        };
        let (host, answer) = match answer {
            Ok(answer) => answer,
            Err(cause) => {
                return Verdict::Failed {
                    cause: cause.into(),
                };
            }
        };
        match answer.status {
            200..=299 => Verdict::All(Fate::Delivered),
            400 | 413 | 422 if load.len() > 1 => Verdict::TooLarge,
            status @ (400 | 413 | 422) => Verdict::All(Fate::Refused {
                reason: match status {
                    413 => "too_large".into(),
                    _ => format!("http_{status}").into(),
                },
                detail: words(&answer).into(),
            }),
            _ => Verdict::Failed {
                cause: format!("{host}: {}", words(&answer)).into(),
            },
        }
    }

    /// The answer, and who gave it.
    async fn ask(&self, request: Request) -> Result<(String, Answer), String> {
        let host = shown(&request.url);
        let answer = self.exchange.exchange(request).await;
        let answer = answer.map_err(|failure| failure.to_string())?;
        if matches!(answer.status, 401 | 403) {
            self.login.refused();
            self.header_values.refused();
        }
        Ok((host, answer))
    }

    async fn ask_for_nothing(&self) -> Result<(), String> {
        let request = self.request("ringpilot-check", 0, Body::Empty).await?;
        let (host, answer) = self.ask(request).await?;
        match answer.status {
            // Some call it wrong that there is no record: they would take one.
            200..=299 | 400 | 411 | 415 | 422 => Ok(()),
            _ => Err(format!("{host}: {}", words(&answer))),
        }
    }
}

/// The same URL without user and password, before it is filled in.
fn without_login(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..]
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| start + at);
    match url[start..end].rfind('@') {
        Some(at) => format!("{}{}", &url[..start], &url[start + at + 1..]),
        None => url.to_owned(),
    }
}

/// What an answer says, for an operator: its meaning, and its own words where they are a text and not a page.
fn words(answer: &Answer) -> String {
    let (status, lead) = (answer.status, meaning(answer.status));
    let text = std::str::from_utf8(&answer.body).unwrap_or_default().trim();
    match text {
        "" => format!("{lead} ({status})"),
        page if page.starts_with('<') => format!("{lead} ({status})"),
        text => format!("{lead} ({status}: {})", foreign(text, MOST_WORDS_BYTES)),
    }
}

impl Output for Http {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn ordered(&self) -> bool {
        false
    }

    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(self.send(load))
    }

    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.ask_for_nothing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::transport::scripted::{Scripted, load, says};

    fn output(yaml: &str, scripted: &Arc<Scripted>) -> Http {
        let exchange: Arc<dyn Exchange> = Arc::clone(scripted) as _;
        Http::with_exchange(&settings(yaml), exchange).expect("good settings")
    }

    fn settings(yaml: &str) -> OutputSettings {
        let yaml = serde_yaml_ng::from_str(yaml).expect("the test's own YAML");
        OutputSettings::of("http", yaml)
    }

    #[tokio::test]
    async fn a_batch_is_one_request_of_one_object_a_line() {
        let scripted = Scripted::new(|_| says(204, ""));
        let yaml = "{url: 'https://u:hunter2@h/in/{target}/{date}', headers: {X-Key: hunter2}}";
        let output = output(yaml, &scripted);
        let load = load("Web", &["{\"n\":1}\n", "{\"n\":2}\n"]);
        assert_eq!(output.attempt(&load).await, Verdict::All(Fate::Delivered));
        let asked = scripted.asked();
        assert_eq!(asked[0].0.url.as_str(), "https://h/in/Web/2026.11.24");
        assert_eq!(asked[0].0.headers[CONTENT_TYPE], "application/x-ndjson");
        assert_eq!(asked[0].0.headers[AUTHORIZATION], "Basic dTpodW50ZXIy");
        assert_eq!(asked[0].0.headers["x-key"], "hunter2");
        assert_eq!(asked[0].1, b"{\"n\":1}\n{\"n\":2}\n");
        assert!(!format!("{:?} {output:?}", asked[0].0).contains("hunter2"));
    }

    #[tokio::test]
    async fn a_batch_that_is_called_wrong_is_split_until_the_guilty_record_is_alone() {
        for (status, reason) in [(400, "http_400"), (413, "too_large"), (422, "http_422")] {
            let scripted = Scripted::new(move |_| says(status, "field n is no number\n"));
            let output = output("url: http://h/", &scripted);
            let load = load("web", &["{}\n", "{}\n"]);
            assert_eq!(output.attempt(&load).await, Verdict::TooLarge);
            let alone = Load {
                records: Some([1].into()),
                ..load
            };
            let verdict = output.attempt(&alone).await;
            let Verdict::All(Fate::Refused {
                reason: class,
                detail,
            }) = verdict
            else {
                panic!("{verdict:?}");
            };
            assert_eq!(&*class, reason);
            assert!(detail.contains("field n is no number"));
        }
    }

    #[tokio::test]
    async fn anything_else_fails_as_a_whole_and_says_why() {
        let mut shown = String::new();
        for (status, body) in [
            (301, ""),
            (401, "no such key"),
            (404, "<html>"),
            (429, ""),
            (500, "\u{1b}[2J oops"),
        ] {
            let scripted = Scripted::new(move |_| says(status, body));
            let output = output("{url: 'http://h:8080/', bearer_token: t}", &scripted);
            let verdict = output.attempt(&load("web", &["{}\n"])).await;
            let Verdict::Failed { cause } = verdict else {
                panic!("{status}: {verdict:?}");
            };
            shown.push_str(&format!("{cause}\n"));
            assert!(output.probe().await.is_err(), "{status}");
        }
        insta::assert_snapshot!(shown);
        for status in [200, 400] {
            let scripted = Scripted::new(move |_| says(status, ""));
            assert_eq!(output("url: http://h/", &scripted).probe().await, Ok(()));
            assert_eq!(scripted.asked()[0].1, b"");
        }
    }

    #[test]
    fn every_wrong_key_is_told_with_its_cure() {
        let mut shown = String::new();
        for yaml in [
            "{}",
            "url: h",
            "{url: 'http://h/{day}'}",
            "{url: 'http://h/', headers: {'a b': hunter2}}",
            "{url: 'http://h/', bearer_token: hunter2, username: u}",
            "{url: 'http://h/', username: u}",
            "{url: 'http://h/', method: PUT}",
        ] {
            match Http::new(&settings(yaml)) {
                Ok(_) => panic!("{yaml} is taken"),
                Err(problems) => shown.extend(problems.iter().map(|p| format!("{p}\n"))),
            }
        }
        assert!(!shown.contains("hunter2"), "{shown}");
        insta::assert_snapshot!(shown);
    }
}
