//! Records to Graylog, or whatever else takes GELF 1.1.
//! Place: batch -> **graylog** -> the server: by datagrams, in chunks and compressed, or by a stream, each ended by a NUL.
//! Invariants: what is sent is valid GELF whatever the record holds; a record that 128 chunks cannot hold is refused.
//! Nothing is acknowledged: what the kernel took counts as delivered. By UDP anything may be lost on the way; a
//! stream's server has read all of a batch before it counts, unless `confirm: false`.
//! Source of the format: Graylog's "GELF" reference.
//!
//! `message` becomes `short_message` (its first line; the whole is `full_message` if there are more), `host` or the
//! node's name `host`, `@timestamp` the time, `level` or `severity` the level if it is one (else 6, informational: what
//! is missing would be an alert); every other field an additional one, its name begun by `_`.
//! Cost: each record is parsed and written anew.

use std::borrow::Cow;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;

use super::connection::{Address, TlsSettings, Way};
use super::fields::{self, Field};
use super::load::text;
use super::unacknowledged::{Carrier, Encode};
use super::{Guarantee, Load, Output, Verdict};
use crate::batch::Codec;
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, Size, from_value};

/// The most chunks of a message.
const MOST_CHUNKS: usize = 128;
/// Before each chunk: two magic bytes, the message's id (8), the chunk's number and how many there are.
const CHUNK_HEAD: usize = 12;
/// The largest datagram that Graylog takes.
const MOST_DATAGRAM: usize = 8_192;
/// Informational.
const LEVEL: u8 = 6;

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    host: String,
    port: Option<u16>,
    #[serde(default)]
    protocol: Protocol,
    compression: Option<Packing>,
    chunk_bytes: Option<Size>,
    confirm: Option<bool>,
    tls: Option<TlsSettings>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    #[default]
    Udp,
    Tcp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Packing {
    None,
    Gzip,
}

/// The output.
#[derive(Debug)]
pub struct Graylog {
    carrier: Carrier,
    gelf: Gelf,
}

#[derive(Debug)]
struct Gelf {
    gzip: bool,
    /// The largest datagram, if a message fits into 128 of them.
    datagram_bytes: usize,
}

impl Graylog {
    /// The output that these settings describe. Beside the batches, each attempt holds a message, or 64 KiB of them.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn new(settings: &OutputSettings, _share_bytes: usize) -> Result<Self, Vec<Problem>> {
        let path = settings.path();
        let keys: Keys = from_value(&settings.settings, &path).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        let mut wrong = |key: &str, value: &str, why: &str, cure: &str| {
            problems.push(of_operator(format!("{path}.{key}"), value, why, cure));
        };
        let address = Address::parse(&keys.host, keys.port.or(Some(12_201)));
        if let Err(why) = &address {
            wrong(
                "host",
                &keys.host,
                why,
                "write a name or an address such as `graylog.local`",
            );
        }
        if keys.protocol == Protocol::Tcp && keys.compression == Some(Packing::Gzip) {
            let why = "a stream cannot be compressed: a NUL ends each message";
            wrong(
                "compression",
                "gzip",
                why,
                "remove it, or write `protocol: udp`",
            );
        }
        if keys.protocol == Protocol::Udp && keys.tls.is_some() {
            wrong(
                "tls",
                "",
                "datagrams cannot be encrypted",
                "write `protocol: tcp`, too",
            );
        }
        let datagram_bytes = keys.chunk_bytes.map_or(1_420, Size::bytes);
        if !(100..=MOST_DATAGRAM).contains(&datagram_bytes) {
            let value = datagram_bytes.to_string();
            let cure = "write 1420, which fits anywhere, or up to 8192 on a good network";
            wrong("chunk_bytes", &value, "it may be 100 to 8192 bytes", cure);
        }
        if keys.protocol == Protocol::Udp && keys.confirm == Some(true) {
            let why = "datagrams have no end that a server could confirm";
            wrong(
                "confirm",
                "true",
                why,
                "write `protocol: tcp`, or remove it",
            );
        }
        if let Some(tls) = &keys.tls {
            problems.extend(tls.problems(&path));
        }
        let way = Way::new(keys.tls, settings.timeout);
        match address {
            Ok(address) if problems.is_empty() => Ok(Self {
                carrier: match keys.protocol {
                    Protocol::Udp => Carrier::datagrams(address, way),
                    Protocol::Tcp => Carrier::stream(address, way, keys.confirm.unwrap_or(true)),
                },
                gelf: Gelf {
                    gzip: keys.compression != Some(Packing::None),
                    datagram_bytes,
                },
            }),
            _ => Err(problems),
        }
    }

    /// How records for this output are encoded.
    pub fn codec(&self) -> Codec {
        Codec::Json
    }
}

impl Encode for Gelf {
    fn frame(&self, _: &str, record: &[u8], out: &mut Vec<u8>) {
        message(text(record), out);
        out.push(0);
    }

    fn datagrams(
        &self,
        _: &str,
        record: &[u8],
        out: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) -> Result<(), (&'static str, String)> {
        let mut whole = Vec::new();
        message(text(record), &mut whole);
        // A message that fits into one datagram is not worth it.
        if self.gzip && whole.len() > self.datagram_bytes {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            // Writing into memory does not fail.
            if gzip.write_all(&whole).is_ok()
                && let Ok(packed) = gzip.finish()
            {
                whole = packed;
            }
        }
        chunks(&whole, self.datagram_bytes, rand::random(), out, ends).ok_or_else(|| {
            let most = MOST_CHUNKS * (MOST_DATAGRAM - CHUNK_HEAD);
            let detail = format!("{} bytes, where GELF by UDP allows {most}", whole.len());
            ("too_large", detail)
        })
    }
}

/// Splits a message into datagrams; `None` if there would be more than 128 of the largest.
fn chunks(
    message: &[u8],
    datagram_bytes: usize,
    id: u64,
    out: &mut Vec<u8>,
    ends: &mut Vec<usize>,
) -> Option<()> {
    out.clear();
    ends.clear();
    if message.len() <= datagram_bytes {
        out.extend_from_slice(message);
        ends.push(out.len());
        return Some(());
    }
    let least = message.len().div_ceil(MOST_CHUNKS) + CHUNK_HEAD;
    let datagram_bytes = datagram_bytes.max(least);
    if datagram_bytes > MOST_DATAGRAM {
        return None;
    }
    let parts = message.chunks(datagram_bytes - CHUNK_HEAD);
    let count = u8::try_from(parts.len()).ok()?;
    for (n, part) in (0_u8..).zip(parts) {
        out.extend_from_slice(&[0x1e, 0x0f]);
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&[n, count]);
        out.extend_from_slice(part);
        ends.push(out.len());
    }
    Some(())
}

/// Appends the GELF of a record.
fn message(record: &[u8], out: &mut Vec<u8>) {
    let mut known = Known::default();
    let mut names: Vec<Cow<'_, str>> = Vec::new();
    let start = out.len();
    out.extend_from_slice(br#"{"version":"1.1""#);
    let whole = fields::each(record, |name, field| {
        if known.take(&name, &field) || field == Field::Json("null") {
            return;
        }
        let name = additional(name, &names);
        out.extend_from_slice(b",\"_");
        // Letters, digits, `_`, `-` and `.` need no escape.
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        names.push(name);
        match &field {
            Field::Json(number) if !number.starts_with(['{', '[', 't', 'f', '"']) => {
                out.extend_from_slice(number.as_bytes());
            }
            // GELF has texts and numbers alone.
            other => string(other.as_str(), out),
        }
    });
    let fallback;
    if !whole {
        // What is no record is sent as the text it is.
        out.truncate(start);
        out.extend_from_slice(br#"{"version":"1.1""#);
        fallback = String::from_utf8_lossy(record);
        known = Known {
            message: Some(Cow::Borrowed(&*fallback)),
            ..Known::default()
        };
    }
    known.write(record, out);
}

/// What GELF has names of its own for.
#[derive(Debug, Default)]
struct Known<'record> {
    message: Option<Cow<'record, str>>,
    host: Option<Cow<'record, str>>,
    node: Option<Cow<'record, str>>,
    time: Option<jiff::Timestamp>,
    level: Option<u8>,
}

impl<'record> Known<'record> {
    /// Keeps a field that has another name there; whether it is to be written by that name only.
    fn take(&mut self, name: &str, field: &Field<'record>) -> bool {
        match (name, field) {
            ("message", Field::Text(text)) => self.message = Some(text.clone()),
            ("host" | "host.name", Field::Text(text)) if !text.is_empty() => {
                self.host = Some(text.clone());
            }
            ("k8s_node_name" | "kubernetes.node.name", Field::Text(text)) => {
                self.node = Some(text.clone());
                return false;
            }
            ("@timestamp", Field::Text(text)) => match text.parse() {
                Ok(time) => self.time = Some(time),
                Err(_) => return false,
            },
            ("level" | "severity" | "log.level", field) => {
                self.level = self.level.or(level(field.as_str()));
                return false;
            }
            _ => return false,
        }
        true
    }

    fn write(&self, record: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(br#","host":"#);
        let host = self.host.as_ref().or(self.node.as_ref());
        string(host.map_or("unknown", |host| host), out);
        let whole;
        let message = match &self.message {
            Some(message) => message.trim_end(),
            None => {
                whole = String::from_utf8_lossy(record);
                &whole
            }
        };
        let first = message.lines().find(|line| !line.trim().is_empty());
        out.extend_from_slice(br#","short_message":"#);
        string(first.unwrap_or("-"), out);
        if first.is_some_and(|first| first.len() < message.len()) {
            out.extend_from_slice(br#","full_message":"#);
            string(message, out);
        }
        if let Some(time) = self.time {
            let milliseconds = time.as_millisecond();
            let (seconds, rest) = (
                milliseconds.div_euclid(1_000),
                milliseconds.rem_euclid(1_000),
            );
            // Writing into memory does not fail.
            write!(out, ",\"timestamp\":{seconds}.{rest:03}").ok();
        }
        write!(out, ",\"level\":{}}}", self.level.unwrap_or(LEVEL)).ok();
    }
}

/// A severity as syslog counts it.
pub(super) fn level(text: &str) -> Option<u8> {
    if let Ok(number @ 0..=7) = text.parse() {
        return Some(number);
    }
    if text.len() > 13 {
        return None;
    }
    Some(match text.to_ascii_lowercase().as_str() {
        "emerg" | "emergency" | "panic" => 0,
        "alert" => 1,
        "crit" | "critical" | "fatal" => 2,
        "err" | "error" => 3,
        "warn" | "warning" => 4,
        "notice" => 5,
        "info" | "informational" => 6,
        "debug" | "trace" => 7,
        _ => return None,
    })
}

/// The name of an additional field, without the `_` before it: other characters than GELF allows become `_`, `id` (which
/// is reserved) `id_`, and one that is there already gets a number.
fn additional<'record>(name: Cow<'record, str>, names: &[Cow<'_, str>]) -> Cow<'record, str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut good = match name.as_ref() {
        "id" => Cow::Borrowed("id_"),
        "" => Cow::Borrowed("_"),
        text if text.chars().all(allowed) => name,
        text => Cow::Owned(text.replace(|c| !allowed(c), "_")),
    };
    let mut number = 1;
    let stem = good.len();
    while names.contains(&good) {
        number += 1;
        let numbered = format!("{}_{number}", &good[..stem]);
        good = Cow::Owned(numbered);
    }
    good
}

fn string(text: &str, out: &mut Vec<u8>) {
    // Writing into memory does not fail, and a text is always JSON.
    serde_json::to_writer(out, text).ok();
}

impl Output for Graylog {
    fn guarantee(&self) -> Guarantee {
        Guarantee::NotAcknowledged
    }
    fn ordered(&self) -> bool {
        true
    }
    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(self.carrier.send(load, &self.gelf))
    }
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.carrier.ask())
    }
}

#[cfg(test)]
mod tests;
