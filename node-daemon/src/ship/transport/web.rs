//! The way over the network: one client of an output, by `reqwest` on rustls.
//! Invariants: a request is sent once, to whom it says, not on to where an answer points; a certificate that changed on
//! disk counts within [`LOOK_AGAIN_AFTER`], and at once after a connection failed. The environment's proxies
//! (`HTTPS_PROXY`, `NO_PROXY`, …) are used as they say.

use std::error::Error;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue};
use reqwest::{Client, Url, redirect};
use tokio::time::Instant;

use super::tls::Fingerprint;
use super::{Answer, Body, Exchange, Failure, MOST_ANSWER_BYTES, Request, TlsSettings, shown};
use crate::problem::{Problem, of_operator};
use crate::settings::OutputSettings;

/// How long the files of TLS are believed to be as they were.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long a connection may take: shorter than a request, so that the next server is asked soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept: less than the 60 s after which load balancers forget one without a word.
const KEEP_IDLE: Duration = Duration::from_secs(50);
/// How often the system asks whether the other end is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: right for a server nearby.
    #[default]
    None,
    /// By gzip at its fastest level, and answers may be compressed, too.
    Gzip,
}

/// The network.
#[derive(Debug)]
pub struct Web {
    tls: TlsSettings,
    compression: Compression,
    timeout: Duration,
    connections: usize,
    client: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    client: Client,
    files: Fingerprint,
    /// When the files were last looked at; `None`: they must be.
    looked: Option<Instant>,
}

impl Web {
    /// The way that an output's settings describe, as far as they are shared; `tls` and `compression` are keys of its
    /// own.
    ///
    /// # Errors
    /// Everything that is wrong with the files of TLS.
    pub fn of(
        settings: &OutputSettings,
        tls: &TlsSettings,
        compression: Compression,
    ) -> Result<Arc<Self>, Vec<Problem>> {
        let problems = tls.problems(&settings.path());
        if !problems.is_empty() {
            return Err(problems);
        }
        Self::new(
            tls.clone(),
            compression,
            settings.timeout,
            settings.concurrency,
        )
        .map(Arc::new)
        .map_err(|why| {
            let path = format!("{}.tls", settings.path());
            vec![of_operator(path, "", why, "check the files it names")]
        })
    }

    /// A way for `connections` requests at once, each of which may take `timeout`.
    ///
    /// # Errors
    /// Why TLS cannot be set up.
    pub fn new(
        tls: TlsSettings,
        compression: Compression,
        timeout: Duration,
        connections: usize,
    ) -> Result<Self, String> {
        let (client, files) = client(&tls, compression, timeout, connections)?;
        let kept = Kept {
            client,
            files,
            looked: Some(Instant::now()),
        };
        Ok(Self {
            client: Mutex::new(kept),
            tls,
            compression,
            timeout,
            connections,
        })
    }

    /// The client, made anew if the files of TLS have changed. While they cannot be read the old one goes on.
    async fn client(&self) -> Client {
        let (now, files) = {
            let mut kept = self.client.lock();
            let fresh = |at: Instant| at.elapsed() < LOOK_AGAIN_AFTER;
            if !self.tls.has_files() || kept.looked.is_some_and(fresh) {
                return kept.client.clone();
            }
            // Others go on with the old client meanwhile.
            kept.looked = Some(Instant::now());
            (kept.client.clone(), kept.files.clone())
        };
        let (tls, compression) = (self.tls.clone(), self.compression);
        let (timeout, connections) = (self.timeout, self.connections);
        let made = tokio::task::spawn_blocking(move || {
            (tls.fingerprint() != files)
                .then(|| client(&tls, compression, timeout, connections).ok())
                .flatten()
        });
        match made.await {
            Ok(Some((client, files))) => {
                let mut kept = self.client.lock();
                kept.client = client.clone();
                kept.files = files;
                client
            }
            _ => now,
        }
    }

    async fn send(&self, request: Request) -> Result<Answer, Failure> {
        let host = shown(&request.url);
        let mut headers = request.headers;
        let body = match (&request.body, self.compression) {
            (body, _) if body.pieces().left() == 0 => {
                // A POST of nothing has a length, too; not every server or proxy takes one without.
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                reqwest::Body::from(Bytes::new())
            }
            (Body::Whole(bytes), Compression::None) => bytes.clone().into(),
            (body, Compression::None) => reqwest::Body::wrap(body.pieces()),
            (body, Compression::Gzip) => {
                let body = body.clone();
                let packed = tokio::task::spawn_blocking(move || gzip(&body)).await;
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                packed
                    .map_err(|_| Failure::NotSent("compressing was given up".to_owned()))?
                    .into()
            }
        };
        let client = self.client().await;
        let sent = client
            .request(request.method, request.url)
            .headers(headers)
            .body(body)
            .send()
            .await;
        let failure = |error: reqwest::Error| self.failure(host.clone(), &error);
        let mut answer = sent.map_err(failure)?;
        let status = answer.status().as_u16();
        let Some(first) = answer.chunk().await.map_err(failure)? else {
            return Ok(Answer {
                status,
                body: Bytes::new(),
            });
        };
        // Most answers come in one piece.
        let mut body = BytesMut::new();
        let mut next = Some(first);
        while let Some(piece) = next {
            if body.len() + piece.len() > MOST_ANSWER_BYTES {
                return Err(Failure::AnswerTooLong { host });
            }
            next = answer.chunk().await.map_err(failure)?;
            if next.is_none() && body.is_empty() {
                return Ok(Answer {
                    status,
                    body: piece,
                });
            }
            body.extend_from_slice(&piece);
        }
        Ok(Answer {
            status,
            body: body.freeze(),
        })
    }

    fn failure(&self, host: String, error: &reqwest::Error) -> Failure {
        if error.is_connect() {
            self.client.lock().looked = None;
        }
        let why = innermost(error);
        match error {
            // A connection that took too long is one that could not be reached.
            _ if error.is_connect() => Failure::Unreachable { host, why },
            _ if error.is_timeout() => Failure::TimedOut {
                host,
                after: self.timeout,
            },
            _ if error.is_builder() => Failure::NotSent(format!("{host} cannot be asked: {why}")),
            _ => Failure::Cut { host, why },
        }
    }
}

impl Exchange for Web {
    fn exchange(
        &self,
        request: Request,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send + '_>> {
        Box::pin(self.send(request))
    }
}

fn client(
    tls: &TlsSettings,
    compression: Compression,
    timeout: Duration,
    connections: usize,
) -> Result<(Client, Fingerprint), String> {
    // First the fingerprint: files that change in between are then read once more.
    let files = tls.fingerprint();
    let builder = Client::builder()
        .user_agent(concat!("ringpilot/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(redirect::Policy::none())
        // An answer that is not compressed costs neither end anything; on a thin line it is worth it.
        .gzip(compression == Compression::Gzip)
        .timeout(timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .pool_idle_timeout(KEEP_IDLE)
        .pool_max_idle_per_host(connections)
        .tcp_keepalive(KEEPALIVE);
    let client = tls.apply(builder)?.build();
    Ok((client.map_err(|error| innermost(&error))?, files))
}

/// Compressed as one member; what it is in memory is less than the body by far.
fn gzip(body: &Body) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Level::fast());
    for piece in body.pieces() {
        // Memory takes every write.
        drop(packed.write_all(&piece));
    }
    packed.finish().unwrap_or_default()
}

/// The last cause, which is the one that says something: `connection refused` rather than `error sending request`.
fn innermost(error: &dyn Error) -> String {
    let mut last: &dyn Error = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// Reads the text of a URL that an operator wrote; user and password in it are taken out and given back.
///
/// # Errors
/// Why it is none of a server.
pub fn parse_url(text: &str) -> Result<(Url, Option<(String, String)>), String> {
    let mut url = Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("it is no URL of http or https".to_owned());
    }
    if url.username().is_empty() && url.password().is_none() {
        return Ok((url, None));
    }
    let plain = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    let login = (
        plain(url.username()),
        plain(url.password().unwrap_or_default()),
    );
    // Both are refused only for URLs without a host.
    url.set_username("").unwrap_or_default();
    url.set_password(None).unwrap_or_default();
    Ok((url, Some(login)))
}
