//! Records to a syslog server, by RFC 5424 or the older RFC 3164: by datagrams, by a stream, or by a stream in TLS.
//! Place: batch -> **syslog** -> the server.
//! Invariants: a header holds no other characters than its RFC allows, whatever the record holds; a stream framed by line
//! ends has none within a message. Nothing is acknowledged: what the kernel took counts as delivered, and what lies
//! between it and the server when one of them dies is lost; by UDP anything may be lost on the way. By a stream only what
//! the server had read and not kept is lost, as each batch has its own that the server closes, unless `confirm: false`.
//! Source of the format: RFC 5424, RFC 3164, RFC 6587 (framing), RFC 5425 (TLS).
//! Cost: each record is parsed for its time, host and text.

use std::borrow::Cow;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;

use serde::Deserialize;

use super::connection::{Address, TlsSettings, Way};
use super::fields::{self, Field};
use super::graylog::level;
use super::load::text;
use super::unacknowledged::{Carrier, Encode};
use super::{Guarantee, Load, Output, Verdict};
use crate::batch::Codec;
use crate::problem::{Problem, of_operator, use_instead};
use crate::settings::{OutputSettings, from_value};

/// The most bytes that a datagram can hold.
const MOST_DATAGRAM: usize = 65_507;

/// Facilities in the order of their numbers.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
];

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    host: String,
    port: Option<u16>,
    protocol: Option<Protocol>,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    framing: Framing,
    #[serde(default = "user")]
    facility: String,
    #[serde(default = "info")]
    severity: String,
    #[serde(default = "whole_target")]
    tag: String,
    #[serde(default)]
    codec: Content,
    confirm: Option<bool>,
    tls: Option<TlsSettings>,
}

fn user() -> String {
    "user".to_owned()
}
fn info() -> String {
    "info".to_owned()
}
fn whole_target() -> String {
    "{target}".to_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Udp,
    Tcp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Rfc5424,
    Rfc3164,
}

/// How a stream tells where a message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Framing {
    /// Its length stands before it.
    #[default]
    OctetCounting,
    /// A line end; one within the message is written `#012`, as rsyslog does.
    Newline,
}

/// What of a record is the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    /// Its text alone.
    #[default]
    Raw,
    /// All of it, as JSON.
    Json,
}

/// The output.
#[derive(Debug)]
pub struct Syslog {
    carrier: Carrier,
    lines: Lines,
}

#[derive(Debug)]
struct Lines {
    format: Format,
    framing: Framing,
    content: Content,
    /// Facility and severity in one number.
    priority: u8,
    /// `{target}` is filled in.
    tag: String,
}

impl Syslog {
    /// The output that these settings describe. Beside the batches, each attempt holds 64 KiB and one message.
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
        let usual = if keys.tls.is_some() { 6_514 } else { 514 };
        let address = Address::parse(&keys.host, keys.port.or(Some(usual)));
        if let Err(why) = &address {
            wrong(
                "host",
                &keys.host,
                why,
                "write a name or an address such as `syslog.local`",
            );
        }
        let facility = number(&keys.facility, &FACILITIES);
        if facility.is_none() {
            let cure = use_instead(&keys.facility, &FACILITIES);
            wrong(
                "facility",
                &keys.facility,
                "no facility is called so",
                &cure,
            );
        }
        let severity = level(&keys.severity);
        if severity.is_none() {
            let cure = use_instead(&keys.severity, &SEVERITIES);
            wrong(
                "severity",
                &keys.severity,
                "no severity is called so",
                &cure,
            );
        }
        if keys.tls.is_some() && keys.protocol == Some(Protocol::Udp) {
            wrong(
                "tls",
                "",
                "datagrams cannot be encrypted",
                "write `protocol: tcp`",
            );
        }
        let stream = keys.protocol == Some(Protocol::Tcp) || keys.tls.is_some();
        if !stream && keys.confirm == Some(true) {
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
        match (address, facility, severity) {
            (Ok(address), Some(facility), Some(severity)) if problems.is_empty() => Ok(Self {
                carrier: match stream {
                    true => Carrier::stream(address, way, keys.confirm.unwrap_or(true)),
                    false => Carrier::datagrams(address, way),
                },
                lines: Lines {
                    format: keys.format,
                    framing: keys.framing,
                    content: keys.codec,
                    priority: facility * 8 + severity,
                    tag: keys.tag,
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

/// The number of a name, or of a number.
fn number(text: &str, names: &[&str]) -> Option<u8> {
    let text = text.to_ascii_lowercase();
    let at = names.iter().position(|name| *name == text);
    let number = at.or_else(|| text.parse().ok().filter(|number| *number < names.len()))?;
    u8::try_from(number).ok()
}

impl Encode for Lines {
    fn frame(&self, target: &str, record: &[u8], out: &mut Vec<u8>) {
        match self.framing {
            Framing::Newline => {
                let start = out.len();
                self.line(target, record, out);
                escape_line_ends(out, start);
                out.push(b'\n');
            }
            Framing::OctetCounting => {
                let start = out.len();
                self.line(target, record, out);
                let mut length = itoa::Buffer::new();
                let length = length.format(out.len() - start);
                // The length is known last and stands first: the message moves up by a few bytes.
                out.splice(start..start, length.bytes().chain([b' ']));
            }
        }
    }

    fn datagrams(
        &self,
        target: &str,
        record: &[u8],
        out: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) -> Result<(), (&'static str, String)> {
        out.clear();
        ends.clear();
        self.line(target, record, out);
        ends.push(out.len());
        match out.len() {
            0..=MOST_DATAGRAM => Ok(()),
            bytes => {
                let detail = format!("{bytes} bytes, where a datagram holds {MOST_DATAGRAM}");
                Err(("too_large", detail))
            }
        }
    }
}

impl Lines {
    /// Appends a record's message without any framing.
    fn line(&self, target: &str, record: &[u8], out: &mut Vec<u8>) {
        let record = text(record);
        let (mut message, mut host, mut node, mut time) = (None, None, None, None);
        let whole = fields::each(record, |name, field| {
            let Field::Text(text) = field else {
                return;
            };
            match &*name {
                "message" => message = Some(text),
                "host" | "host.name" => host = Some(text),
                "k8s_node_name" | "kubernetes.node.name" => node = Some(text),
                "@timestamp" => time = text.parse::<jiff::Timestamp>().ok(),
                _ => {}
            }
        });
        let time = time.filter(|_| whole);
        let host = host.filter(|host: &Cow<'_, str>| !host.is_empty()).or(node);
        let host = host.as_deref().unwrap_or_default();
        let tag = self.tag.replace("{target}", target);
        // Writing into memory does not fail.
        write!(out, "<{}>", self.priority).ok();
        match self.format {
            Format::Rfc5424 => {
                out.extend_from_slice(b"1 ");
                match time.filter(has_four_digits) {
                    Some(time) => {
                        // At most six digits of a second.
                        let time = time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ");
                        write!(out, "{time}").ok();
                    }
                    None => out.push(b'-'),
                }
                out.push(b' ');
                word(host, 255, out);
                out.push(b' ');
                word(&tag, 48, out);
                out.extend_from_slice(b" - - - ");
            }
            Format::Rfc3164 => {
                // Every record of ours has one.
                let time = time.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
                write!(out, "{} ", time.strftime("%b %e %H:%M:%S")).ok();
                word(host, 255, out);
                out.push(b' ');
                word(&tag, 32, out);
                out.extend_from_slice(b": ");
            }
        }
        match (self.content, message) {
            (Content::Raw, Some(message)) if whole => out.extend_from_slice(message.as_bytes()),
            _ => out.extend_from_slice(record),
        }
    }
}

/// Whether its year is one that RFC 3339 can write.
fn has_four_digits(time: &jiff::Timestamp) -> bool {
    (0..253_402_300_800).contains(&time.as_second())
}

/// Appends a word of the header: visible ASCII, at most so long; `-` if it is empty.
fn word(text: &str, most: usize, out: &mut Vec<u8>) {
    if text.is_empty() {
        out.push(b'-');
    }
    let visible = |c: char| match c {
        '!'..='~' => c as u8,
        _ => b'_',
    };
    out.extend(text.chars().take(most).map(visible));
}

/// Writes line ends and NULs from `start` on as `#012`, `#015` and `#000`.
fn escape_line_ends(out: &mut Vec<u8>, start: usize) {
    let code = |byte| match byte {
        b'\n' => Some(b"#012"),
        b'\r' => Some(b"#015"),
        0 => Some(b"#000"),
        _ => None,
    };
    if out[start..].iter().all(|byte| code(*byte).is_none()) {
        return;
    }
    let line = out.split_off(start);
    for byte in line {
        match code(byte) {
            Some(code) => out.extend_from_slice(code),
            None => out.push(byte),
        }
    }
}

impl Output for Syslog {
    fn guarantee(&self) -> Guarantee {
        Guarantee::NotAcknowledged
    }
    fn ordered(&self) -> bool {
        true
    }
    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(self.carrier.send(load, &self.lines))
    }
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.carrier.ask())
    }
}

#[cfg(test)]
mod tests;
