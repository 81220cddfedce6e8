//! Records to Logstash, or whatever else speaks Lumberjack version 2 (Filebeat's protocol).
//! Place: batch -> **logstash** -> the server. A batch goes in windows; each is acknowledged before the next is sent.
//! Invariants: a record is delivered when an acknowledgement counts it; what is not counted when the connection ends is
//! sent again, and may arrive twice: at least once. Beside the batch an attempt holds one window.
//! Source of the format: elastic/go-lumber `protocol/v2`, logstash-input-beats `PROTOCOL.md`.
//!
//! Each frame begins with `2`. A window: `2W` and the number of its records (all numbers 4 bytes, big-endian); then, for
//! each record, `2J`, its number from 1, its length, its JSON; or all of these together compressed by zlib, as `2C`, the
//! length, the bytes. An acknowledgement: `2A` and how many of the window the server has; 0 says that it is at work.

use std::future::Future;
use std::io::Write;
use std::iter::Peekable;
use std::pin::Pin;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::connection::{Address, TlsSettings, Way};
use super::load::{Records, arrived, text};
use super::pool::{Pool, Taken};
use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::Codec;
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, from_value};

/// The most records of a window: what Logstash is used to.
const WINDOW_RECORDS: u32 = 2_048;
/// Bytes of records at which a window ends.
const WINDOW_BYTES: usize = 512 << 10;

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    hosts: Vec<String>,
    #[serde(default = "balanced")]
    loadbalance: bool,
    #[serde(default = "filebeats_level")]
    compression_level: u32,
    tls: Option<TlsSettings>,
}

fn balanced() -> bool {
    true
}

fn filebeats_level() -> u32 {
    3
}

/// The output.
#[derive(Debug)]
pub struct Logstash {
    pool: Pool,
    /// 0: not compressed.
    level: u32,
}

impl Logstash {
    /// The output that these settings describe. Beside the batches, each attempt holds a window of 512 KiB.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn new(settings: &OutputSettings, _share_bytes: usize) -> Result<Self, Vec<Problem>> {
        let path = settings.path();
        let keys: Keys = from_value(&settings.settings, &path).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        let mut servers = Vec::new();
        let cure = "write HOST:PORT such as `logstash:5044`";
        for host in &keys.hosts {
            match Address::parse(host, Some(5044)) {
                Ok(server) => servers.push(server),
                Err(why) => problems.push(of_operator(format!("{path}.hosts"), host, why, cure)),
            }
        }
        if keys.hosts.is_empty() {
            let why = "it names no server";
            problems.push(of_operator(format!("{path}.hosts"), "", why, cure));
        }
        if keys.compression_level > 9 {
            problems.push(of_operator(
                format!("{path}.compression_level"),
                keys.compression_level.to_string(),
                "it is no level of zlib",
                "write a number from 0 (none) to 9",
            ));
        }
        if let Some(tls) = &keys.tls {
            problems.extend(tls.problems(&path));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let way = Way::new(keys.tls, settings.timeout);
        Ok(Self {
            pool: Pool::new(servers, way, keys.loadbalance),
            level: keys.compression_level,
        })
    }

    /// How records for this output are encoded.
    pub fn codec(&self) -> Codec {
        Codec::Json
    }

    async fn send(&self, load: &Load) -> Verdict {
        if load.is_empty() {
            return Verdict::All(Fate::Delivered);
        }
        let mut taken = match self.pool.take().await {
            Ok(taken) => taken,
            Err(cause) => {
                return Verdict::Failed {
                    cause: cause.into(),
                };
            }
        };
        let (mut records, mut window) = (load.iter().peekable(), Vec::new());
        let mut acknowledged = 0;
        loop {
            let count = encode(&mut records, self.level, &mut window);
            if count == 0 {
                self.pool.give_back(taken);
                return Verdict::All(Fate::Delivered);
            }
            let (of_window, broken) = self.exchange(&mut taken, &window, count).await;
            acknowledged += of_window as usize;
            if let Some(why) = broken {
                let cause: Arc<str> = format!("{}: {why}", self.pool.server(&taken)).into();
                return arrived(acknowledged, load.len(), &cause);
            }
        }
    }

    /// Sends a window of `count` records and waits until all are acknowledged: how many were, and why not all.
    async fn exchange(
        &self,
        taken: &mut Taken,
        window: &[u8],
        count: u32,
    ) -> (u32, Option<String>) {
        let limit = self.pool.way().timeout;
        let stream = &mut taken.connection;
        let write = async {
            stream.write_all(window).await?;
            stream.flush().await
        };
        match timeout(limit, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return (0, Some(format!("the connection was lost: {error}"))),
            Err(_) => {
                let seconds = limit.as_secs_f64();
                return (0, Some(format!("it took no more for {seconds} s")));
            }
        }
        let mut acknowledged = 0;
        while acknowledged < count {
            let mut frame = [0_u8; 6];
            match timeout(limit, stream.read_exact(&mut frame)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return (
                        acknowledged,
                        Some(format!("the connection was lost: {error}")),
                    );
                }
                Err(_) => {
                    let seconds = limit.as_secs_f64();
                    let why = format!("it acknowledged nothing for {seconds} s");
                    return (acknowledged, Some(why));
                }
            }
            match acknowledgement(frame) {
                Some(of_window) if of_window <= count => {
                    acknowledged = acknowledged.max(of_window);
                }
                _ => {
                    let why = "it does not speak Lumberjack version 2".to_owned();
                    return (acknowledged, Some(why));
                }
            }
        }
        (acknowledged, None)
    }

    async fn ask(&self) -> Result<(), String> {
        let taken = self.pool.take().await?;
        self.pool.give_back(taken);
        Ok(())
    }
}

/// Writes the next window into `out`; how many records it has.
fn encode(records: &mut Peekable<Records<'_>>, level: u32, out: &mut Vec<u8>) -> u32 {
    out.clear();
    out.extend_from_slice(b"2W\0\0\0\0");
    let count = match level {
        0 => frames(records, &mut *out),
        level => {
            out.extend_from_slice(b"2C\0\0\0\0");
            let mut zlib = ZlibEncoder::new(&mut *out, Compression::new(level));
            let count = frames(records, &mut zlib);
            // Writing into memory does not fail.
            zlib.finish().ok();
            let length = u32::try_from(out.len() - 12).unwrap_or(u32::MAX);
            out[8..12].copy_from_slice(&length.to_be_bytes());
            count
        }
    };
    out[2..6].copy_from_slice(&count.to_be_bytes());
    count
}

fn frames(records: &mut Peekable<Records<'_>>, out: &mut impl Write) -> u32 {
    let (mut count, mut bytes) = (0, 0);
    while count < WINDOW_RECORDS
        && let Some((_, record)) =
            records.next_if(|(_, record)| bytes == 0 || bytes + record.len() <= WINDOW_BYTES)
    {
        let record = text(record);
        // A record is at most 1 MiB before it is encoded.
        let Ok(length) = u32::try_from(record.len()) else {
            break;
        };
        count += 1;
        bytes += record.len();
        let mut head = *b"2J\0\0\0\0\0\0\0\0";
        head[2..6].copy_from_slice(&count.to_be_bytes());
        head[6..].copy_from_slice(&length.to_be_bytes());
        // Writing into memory does not fail.
        out.write_all(&head)
            .and_then(|()| out.write_all(record))
            .ok();
    }
    count
}

/// How many records of the window the server has.
fn acknowledgement(frame: [u8; 6]) -> Option<u32> {
    match frame {
        [b'2', b'A', a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])),
        _ => None,
    }
}

impl Output for Logstash {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }
    fn ordered(&self) -> bool {
        true
    }
    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(self.send(load))
    }
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.ask())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::ship::load::tests::load;

    fn settings(own: &str) -> OutputSettings {
        let own = serde_yaml_ng::from_str(own).expect("the test's own YAML");
        OutputSettings::of("logstash", own)
    }

    fn number(bytes: &[u8]) -> usize {
        let four = bytes.try_into().expect("4 bytes");
        u32::from_be_bytes(four) as usize
    }

    /// The records of a window, as a server reads them.
    fn decode(window: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(&window[..2], b"2W");
        let count = number(&window[2..6]);
        let mut plain = Vec::new();
        let mut rest = &window[6..];
        if rest.starts_with(b"2C") {
            assert_eq!(number(&rest[2..6]), rest.len() - 6);
            flate2::read::ZlibDecoder::new(&rest[6..])
                .read_to_end(&mut plain)
                .expect("zlib");
            rest = &plain;
        }
        let mut records = Vec::new();
        while !rest.is_empty() {
            assert_eq!(&rest[..2], b"2J");
            assert_eq!(number(&rest[2..6]), records.len() + 1);
            let end = 10 + number(&rest[6..10]);
            records.push(rest[10..end].to_vec());
            rest = &rest[end..];
        }
        assert_eq!(records.len(), count);
        records
    }

    proptest! {
        #[test]
        fn windows_hold_every_record_once_and_in_order(
            texts in prop::collection::vec("[a-z\"\\\\é]{0,40}", 0..40),
            large in prop::collection::vec(0..40_usize, 0..3),
            level in 0..=9_u32,
        ) {
            let texts: Vec<String> = texts
                .into_iter()
                .enumerate()
                .map(|(n, text)| match large.contains(&n) {
                    true => text.repeat(WINDOW_BYTES / 30),
                    false => text,
                })
                .collect();
            let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
            let load = load("web", &[&borrowed], None);
            let (mut records, mut out) = (load.iter().peekable(), Vec::new());
            let mut decoded = Vec::new();
            while encode(&mut records, level, &mut out) > 0 {
                let window = decode(&out);
                let bytes: usize = window.iter().map(Vec::len).sum();
                prop_assert!(bytes <= WINDOW_BYTES || window.iter().filter(|r| !r.is_empty()).count() == 1);
                decoded.extend(window);
            }
            let expected: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(decoded, expected);
        }
    }

    /// Reads one window of a connection.
    async fn window(socket: &mut TcpStream) -> Vec<Vec<u8>> {
        let mut head = [0; 12];
        socket.read_exact(&mut head).await.expect("a window");
        let mut all = head.to_vec();
        all.resize(12 + number(&head[8..12]), 0);
        socket.read_exact(&mut all[12..]).await.expect("its frames");
        decode(&all)
    }

    async fn serve<F, R>(own: &str, script: F) -> (Logstash, tokio::task::JoinHandle<()>)
    where
        F: FnOnce(TcpListener) -> R,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let settings = settings(&format!("{{hosts: ['127.0.0.1:{port}']{own}}}"));
        let script = tokio::spawn(script(listener));
        (Logstash::new(&settings, 0).expect("good settings"), script)
    }

    const FOUR: &[&[&str]] = &[&["{\"n\":1}", "{\"n\":2}"], &["{\"n\":3}", "{\"n\":4}"]];

    #[tokio::test]
    async fn a_window_is_delivered_when_all_of_it_is_acknowledged_and_its_connection_is_kept() {
        let (logstash, script) = serve("", |listener| async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            for _ in 0..2 {
                assert_eq!(window(&mut socket).await.len(), 4);
                // At work; half of it; all of it, in two pieces.
                for piece in [&b"2A\0\0\0\0"[..], b"2A\0\0\0\x02", b"2A\0", b"\0\0\x04"] {
                    socket.write_all(piece).await.expect("a write");
                    tokio::task::yield_now().await;
                }
            }
        })
        .await;
        for _ in 0..2 {
            let verdict = logstash.send(&load("web", FOUR, None)).await;
            assert_eq!(verdict, Verdict::All(Fate::Delivered));
        }
        script.await.expect("the script");
    }

    #[tokio::test]
    async fn what_was_not_acknowledged_when_the_connection_ended_is_sent_again() {
        let (logstash, script) = serve("", |listener| async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            window(&mut socket).await;
            socket.write_all(b"2A\0\0\0\x03").await.expect("a write");
            drop(socket);
            let (mut socket, _) = listener.accept().await.expect("a connection");
            assert_eq!(window(&mut socket).await, [b"{\"n\":4}".to_vec()]);
            drop(socket);
            drop(listener);
        })
        .await;
        let Verdict::Each(fates) = logstash.send(&load("web", FOUR, None)).await else {
            panic!("part of it was acknowledged");
        };
        assert_eq!(
            fates[..3],
            [Fate::Delivered, Fate::Delivered, Fate::Delivered]
        );
        assert!(matches!(&fates[3], Fate::Again { cause } if cause.contains("was lost")));
        let rest = load("web", FOUR, Some(&[3]));
        assert!(matches!(logstash.send(&rest).await, Verdict::Failed { .. }));
        script.await.expect("the script");
        let Verdict::Failed { cause } = logstash.send(&rest).await else {
            panic!("nobody listens");
        };
        assert!(cause.contains("cannot be reached"), "{cause}");
    }

    #[tokio::test]
    async fn a_server_that_speaks_something_else_is_not_believed() {
        for answer in [&b"HTTP/1"[..], b"2A\0\0\0\x05", b"1A\0\0\0\x04"] {
            let (logstash, script) = serve("", move |listener| async move {
                let (mut socket, _) = listener.accept().await.expect("a connection");
                window(&mut socket).await;
                socket.write_all(answer).await.expect("a write");
            })
            .await;
            let Verdict::Failed { cause } = logstash.send(&load("web", FOUR, None)).await else {
                panic!("{answer:?} was believed");
            };
            assert!(cause.contains("does not speak Lumberjack"), "{cause}");
            script.await.expect("the script");
        }
    }

    #[test]
    fn every_wrong_key_is_told_with_its_cure() {
        let mut shown = String::new();
        for own in [
            "{hostz: [a]}",
            "{hosts: []}",
            "{hosts: ['a:x', 'http://b'], compression_level: 11}",
            "{hosts: [a], tls: {certificate: /c}}",
        ] {
            let problems = Logstash::new(&settings(own), 0).expect_err("wrong settings");
            shown.extend(problems.iter().map(|problem| format!("{problem}\n")));
        }
        insta::assert_snapshot!(shown);
    }
}
