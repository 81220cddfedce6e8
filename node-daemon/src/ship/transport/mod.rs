//! Requests over HTTP and their answers: what every output that speaks HTTP stands on.
//! Place: an output's codec -> **transport** -> the server, and back.
//! Invariants: a body of several chunks is sent as it lies, without a copy, and is not held twice against the budget; an
//! answer is read no further than its bound; nothing is tried twice; a redirect is an answer, not a way.

mod body;
mod hosts;
mod login;
#[cfg(test)]
pub(crate) mod scripted;
mod tls;
mod web;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
pub use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
pub use reqwest::{Method, Url};

pub use body::{Body, Pieces};
pub use hosts::Hosts;
pub use login::{Login, Secrets};
pub use tls::TlsSettings;
pub use web::{Compression, Web, parse_url};

/// The most bytes of an answer that are read: room for the faults of 20,000 records, each told in 400 bytes.
pub const MOST_ANSWER_BYTES: usize = 8 << 20;

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked.
    pub method: Method,
    /// Of whom; without user or password.
    pub url: Url,
    /// Headers; length and compression are added on the way.
    pub headers: HeaderMap,
    /// What is sent.
    pub body: Body,
}

/// What a server answered, whatever the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Its body, at most [`MOST_ANSWER_BYTES`].
    pub body: Bytes,
}

/// Why there is no answer. What became of the request is not known, but where it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection came about: nothing was sent.
    #[error("{host} cannot be reached: {why}")]
    Unreachable {
        /// Scheme, name and port.
        host: String,
        /// In the system's words.
        why: String,
    },
    /// The connection ended before the answer did.
    #[error("{host} ended the connection before its answer was whole: {why}")]
    Cut {
        /// Scheme, name and port.
        host: String,
        /// In the system's words.
        why: String,
    },
    /// The answer did not come in time.
    #[error("{host} did not answer within {} s", .after.as_secs_f64())]
    TimedOut {
        /// Scheme, name and port.
        host: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The answer is longer than [`MOST_ANSWER_BYTES`].
    #[error("{host} answers with more than {MOST_ANSWER_BYTES} bytes")]
    AnswerTooLong {
        /// Scheme, name and port.
        host: String,
    },
    /// It could not be asked at all.
    #[error("{0}")]
    NotSent(String),
}

/// A way to servers; replaced in tests and in the simulation.
pub trait Exchange: Send + Sync + std::fmt::Debug {
    /// Sends one request, once, and waits for its answer.
    fn exchange(
        &self,
        request: Request,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send + '_>>;
}

/// Scheme, name and port of a server, as shown to people.
pub fn shown(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{}://{name}:{port}", url.scheme()),
        None => format!("{}://{name}", url.scheme()),
    }
}

/// A text from outside, safe to show in one line: its first `most` bytes, without control characters.
pub fn foreign(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace(|c: char| c.is_control(), " ")
}

/// What a failed status means, where it means the same everywhere.
pub fn meaning(status: u16) -> &'static str {
    match status {
        300..=399 => "it sends us elsewhere; do: name the place itself in the configuration",
        401 => "it does not accept who we say we are; do: check user, password or key",
        403 => "we may not do this there; do: give us the right to write",
        404 | 405 => "nothing takes records there; do: check the address and its path",
        408 | 504 => "something behind it did not answer in time",
        413 => "the request is too large for it",
        429 => "it is overloaded and asks us to wait",
        500..=599 => "it is not able to answer now",
        _ => "it does not take the request",
    }
}

#[cfg(test)]
mod tests;
