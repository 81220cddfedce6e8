//! Records to Redis: appended to a list, or published to a channel.
//! Place: batch -> **redis** -> the server. A batch goes in pieces, each a pipeline of commands.
//! Invariants: a record's fate is the server's answer to the command it was in; never more than a piece is held beside
//! the batch for each attempt.
//!
//! A list holds what was answered, as safely as the server keeps it (`appendfsync`); what was cut off before its answer
//! is sent again and may be there twice: at least once. A channel keeps nothing: who does not listen at that moment never
//! gets the record, so nothing is acknowledged that matters.

use std::future::Future;
use std::iter::Peekable;
use std::pin::Pin;
use std::sync::Arc;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisError, Value};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::connection::{Address, TlsSettings, Way};
use super::load::{Records, text};
use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::{Codec, target};
use crate::problem::{Problem, of_operator};
use crate::settings::{OutputSettings, Secret, from_value};

/// Bytes of records that are sent before their answers are waited for.
const PIECE_BYTES: usize = 256 << 10;
/// Records that one command appends.
const COMMAND_RECORDS: usize = 256;

/// The keys of this type.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    host: String,
    port: Option<u16>,
    username: Option<Secret>,
    password: Option<Secret>,
    #[serde(default)]
    db: i64,
    #[serde(default)]
    datatype: Datatype,
    #[serde(default = "whole_target")]
    key: String,
    tls: Option<TlsSettings>,
}

fn whole_target() -> String {
    "{target}".to_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Datatype {
    #[default]
    List,
    Channel,
}

/// The output.
#[derive(Debug)]
pub struct Redis {
    address: Address,
    way: Way,
    username: Option<Secret>,
    password: Option<Secret>,
    db: i64,
    datatype: Datatype,
    /// `{target}` and `{date}` are filled in.
    key: String,
    /// All attempts share one connection; the number tells one from the next.
    open: Mutex<(u64, Option<MultiplexedConnection>)>,
}

impl Redis {
    /// The output that these settings describe. Beside the batches, each attempt holds at most 1 MiB.
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
        let address = Address::parse(&keys.host, keys.port.or(Some(6379)));
        if let Err(why) = &address {
            wrong(
                "host",
                &keys.host,
                why,
                "write a name or an address such as `redis.local`",
            );
        }
        let filled = target::render(&keys.key, "t", 0);
        if filled.is_empty() || filled.contains(['{', '}']) {
            let why = "only `{target}` and `{date}` are filled in, and it may not be empty";
            wrong("key", &keys.key, why, "write for example `logs:{target}`");
        }
        if keys.db < 0 {
            let why = "it is no number of a database";
            wrong(
                "db",
                &keys.db.to_string(),
                why,
                "write a number such as `0`",
            );
        }
        if keys.username.is_some() && keys.password.is_none() {
            let why = "a user needs a password and it is not there";
            wrong("password", "", why, "add `password:` there");
        }
        if let Some(tls) = &keys.tls {
            problems.extend(tls.problems(&path));
        }
        match address {
            Ok(address) if problems.is_empty() => Ok(Self {
                address,
                way: Way::new(keys.tls, settings.timeout),
                username: keys.username,
                password: keys.password,
                db: keys.db,
                datatype: keys.datatype,
                key: keys.key,
                open: Mutex::default(),
            }),
            _ => Err(problems),
        }
    }

    /// How records for this output are encoded.
    pub fn codec(&self) -> Codec {
        Codec::Json
    }

    /// The connection, a new one if need be, and its number.
    async fn connection(&self) -> Result<(u64, MultiplexedConnection), String> {
        let mut open = self.open.lock().await;
        if let (number, Some(connection)) = &*open {
            return Ok((*number, connection.clone()));
        }
        let stream = self.way.connect(&self.address).await?;
        let info = self.login().await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.way.timeout))
            .set_response_timeout(Some(self.way.timeout));
        let made = MultiplexedConnection::new_with_config(&info, stream, config);
        // The handshake has no limit of its own here.
        let made = tokio::time::timeout(self.way.timeout, async {
            let (connection, drive) = made.await.map_err(|error| self.words(&error))?;
            tokio::spawn(drive);
            Ok::<_, String>(connection)
        });
        let connection = made.await.map_err(|_| {
            let seconds = self.way.timeout.as_secs_f64();
            format!("{} did not answer within {seconds} s", self.address)
        })??;
        open.0 += 1;
        open.1 = Some(connection.clone());
        Ok((open.0, connection))
    }

    /// Who we say we are: read for each connection, so that a changed secret counts with the next one.
    async fn login(&self) -> Result<RedisConnectionInfo, String> {
        let (username, password) = (self.username.clone(), self.password.clone());
        let read = tokio::task::spawn_blocking(move || {
            let read = |secret: Option<Secret>| secret.map(|secret| secret.read()).transpose();
            Ok::<_, String>((read(username)?, read(password)?))
        });
        let (username, password) = read
            .await
            .unwrap_or_else(|_| Err("reading a secret was given up".to_owned()))?;
        let mut info = RedisConnectionInfo::default()
            .set_db(self.db)
            .set_skip_set_lib_name();
        if let Some(username) = username {
            info = info.set_username(username);
        }
        if let Some(password) = password {
            info = info.set_password(password);
        }
        Ok(info)
    }

    /// Forgets a connection that failed, unless another has taken its place.
    async fn forget(&self, number: u64) {
        let mut open = self.open.lock().await;
        if open.0 == number {
            open.1 = None;
        }
    }

    fn words(&self, error: &RedisError) -> String {
        let words = error.to_string();
        if error.is_timeout() {
            let seconds = self.way.timeout.as_secs_f64();
            return format!("{} did not answer within {seconds} s", self.address);
        }
        if error.is_io_error() {
            return format!("the connection to {} was lost: {words}", self.address);
        }
        format!("{}: {words}", self.address)
    }

    async fn send(&self, load: &Load) -> Verdict {
        if load.is_empty() {
            return Verdict::All(Fate::Delivered);
        }
        let (number, mut connection) = match self.connection().await {
            Ok(connection) => connection,
            Err(cause) => {
                return Verdict::Failed {
                    cause: cause.into(),
                };
            }
        };
        let key = target::render(&self.key, &load.batch.target, load.batch.day);
        let mut fates: Vec<Fate> = Vec::with_capacity(load.len());
        let mut records = load.iter().peekable();
        let mut broken: Option<Arc<str>> = None;
        while broken.is_none() && records.peek().is_some() {
            let (pipeline, counts) = self.piece(&key, &mut records);
            let asked = connection.req_packed_commands(&pipeline, 0, counts.len());
            match asked.await {
                Ok(answers) if answers.len() == counts.len() => {
                    for (count, answer) in counts.into_iter().zip(answers) {
                        let fate = self.fate(&key, &answer);
                        fates.resize(fates.len() + count, fate);
                    }
                }
                Ok(_) => broken = Some("the server answered other than it was asked".into()),
                Err(error) => broken = Some(self.words(&error).into()),
            }
        }
        if let Some(cause) = broken {
            self.forget(number).await;
            if !fates.contains(&Fate::Delivered) {
                return Verdict::Failed { cause };
            }
            fates.resize(load.len(), Fate::Again { cause });
        }
        match fates.first() {
            Some(first) if fates.iter().all(|fate| fate == first) => Verdict::All(first.clone()),
            _ => Verdict::Each(fates),
        }
    }

    /// The next commands, of about [`PIECE_BYTES`], and how many records each has.
    fn piece(&self, key: &str, records: &mut Peekable<Records<'_>>) -> (Pipeline, Vec<usize>) {
        let (mut pipeline, mut counts, mut bytes) = (Pipeline::new(), Vec::new(), 0);
        let (name, most) = match self.datatype {
            Datatype::List => ("RPUSH", COMMAND_RECORDS),
            Datatype::Channel => ("PUBLISH", 1),
        };
        while bytes < PIECE_BYTES {
            let (mut command, mut count) = (Cmd::new(), 0);
            command.arg(name).arg(key);
            while count < most && bytes < PIECE_BYTES {
                let Some((_, record)) = records.next() else {
                    break;
                };
                let record = text(record);
                command.arg(record);
                count += 1;
                bytes += record.len();
            }
            if count == 0 {
                break;
            }
            pipeline.add_command(command);
            counts.push(count);
        }
        (pipeline, counts)
    }

    fn fate(&self, key: &str, answer: &Value) -> Fate {
        let Value::ServerError(error) = answer else {
            return Fate::Delivered;
        };
        let words = error.details().unwrap_or_default();
        let cause = match error.code() {
            "WRONGTYPE" => format!(
                "key `{key}` holds no list; do: delete it, or set another `key` for this output"
            ),
            "OOM" => "the server's memory is full (maxmemory); do: read its lists faster, or give it more".to_owned(),
            "NOAUTH" => "the server wants a password; do: set `password`".to_owned(),
            "NOPERM" => format!("we may not write to `{key}`; do: allow our user RPUSH and PUBLISH there: {words}"),
            "READONLY" => "it is a replica, which takes nothing; do: name the primary".to_owned(),
            "MOVED" | "ASK" | "CLUSTERDOWN" => {
                format!("it is one node of a cluster, which is not supported: {words}")
            }
            code => format!("{code} {words}"),
        };
        let cause = format!("{}: {cause}", self.address).into();
        Fate::Again { cause }
    }

    async fn ask(&self) -> Result<(), String> {
        let (number, mut connection) = self.connection().await?;
        let answer = connection.req_packed_command(&redis::cmd("PING")).await;
        match answer {
            Ok(_) => Ok(()),
            Err(error) => {
                self.forget(number).await;
                Err(self.words(&error))
            }
        }
    }
}

impl Output for Redis {
    fn guarantee(&self) -> Guarantee {
        match self.datatype {
            Datatype::List => Guarantee::AtLeastOnce,
            Datatype::Channel => Guarantee::NotAcknowledged,
        }
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::ship::load::tests::load;

    fn settings(own: &str) -> OutputSettings {
        let own = serde_yaml_ng::from_str(own).expect("the test's own YAML");
        OutputSettings::of("redis", own)
    }

    /// A server that takes one connection and writes `answer` for each command of a pipeline, in the order of the
    /// commands; after the last answer it cuts the connection. What it was told.
    async fn scripted(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let told = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let (mut told, mut buffer) = (Vec::new(), [0; 65_536]);
            let mut answers = answers.into_iter();
            let mut seen = 0;
            while answers.len() > 0 {
                let n = socket.read(&mut buffer).await.expect("a read");
                if n == 0 {
                    break;
                }
                told.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&told).into_owned();
                let commands = text.matches("RPUSH").count() + text.matches("PING").count();
                while seen < commands
                    && let Some(answer) = answers.next()
                {
                    seen += 1;
                    socket.write_all(answer.as_bytes()).await.expect("a write");
                }
            }
            String::from_utf8_lossy(&told).into_owned()
        });
        (port, told)
    }

    #[tokio::test]
    async fn each_record_has_the_fate_of_its_command() {
        let record = "x".repeat(PIECE_BYTES / 2);
        let texts = vec![record.as_str(); 5];
        let full = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
        let (port, told) = scripted(vec![":2\r\n", full]).await;
        let redis = Redis::new(&settings(&format!("{{host: 127.0.0.1, port: {port}}}")), 0)
            .expect("good settings");
        // Two records each piece; the third piece finds the connection cut.
        let verdict = redis.send(&load("web", &[&texts], None)).await;
        let Verdict::Each(fates) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(fates[..2], [Fate::Delivered, Fate::Delivered]);
        for fate in &fates[2..4] {
            assert!(
                matches!(fate, Fate::Again { cause } if cause.contains("memory is full")),
                "{fate:?}"
            );
        }
        assert!(
            matches!(&fates[4], Fate::Again { cause } if cause.contains("was lost")),
            "{:?}",
            fates[4]
        );
        assert!(redis.open.lock().await.1.is_none());
        let told = told.await.expect("the script");
        assert!(
            told.starts_with("*4\r\n$5\r\nRPUSH\r\n$3\r\nweb\r\n"),
            "{}",
            &told[..40]
        );
    }

    #[tokio::test]
    async fn a_server_that_says_no_to_all_is_told_in_its_words() {
        let wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";
        let (port, _told) = scripted(vec![wrong]).await;
        let own = format!("{{host: 127.0.0.1, port: {port}, key: 'logs:{{target}}'}}");
        let redis = Redis::new(&settings(&own), 0).expect("good settings");
        let verdict = redis.send(&load("web", &[&["a", "b"]], None)).await;
        let Verdict::All(Fate::Again { cause }) = &verdict else {
            panic!("{verdict:?}");
        };
        assert!(cause.contains("key `logs:web` holds no list"), "{cause}");
    }

    #[test]
    fn every_wrong_key_is_told_with_its_cure() {
        let mut shown = String::new();
        for own in [
            "{port: 1}",
            "{host: 'redis://r', key: '{x}'}",
            "{host: r, db: -1}",
            "{host: r, datatype: stream}",
            "{host: r, username: u, tls: {verfy: true}}",
            "{host: r, username: u, key: ''}",
        ] {
            let problems = Redis::new(&settings(own), 0).expect_err("wrong settings");
            shown.extend(problems.iter().map(|problem| format!("{problem}\n")));
        }
        insta::assert_snapshot!(shown);
    }
}
