//! The output before a service of our own, over the network: it checks every signature by itself and reads every group
//! by the published schema. What the vendor's client sends is recorded by `recorded/record.py`.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use prost::Message;
use sha1::Sha1;
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::schema::{Log, LogGroup as Read};
use super::*;
use crate::ship::transport::scripted::{Scripted, load, says};

/// 2026-11-24T10:00:00Z.
pub(super) const NOW: Timestamp = Timestamp::constant(1_795_514_400, 0);

/// What the vendor's client sends.
#[derive(Debug, Deserialize)]
pub(super) struct Recorded {
    pub(super) name: String,
    pub(super) signature: String,
    pub(super) method: String,
    pub(super) url: String,
    pub(super) params: BTreeMap<String, String>,
    pub(super) headers: BTreeMap<String, String>,
    /// In hexadecimal, as `raw`, which is the body before compression.
    pub(super) body: String,
    pub(super) raw: String,
}

pub(super) fn recorded() -> Vec<Recorded> {
    serde_json::from_str(include_str!("recorded/requests.json")).expect("a recording")
}

fn settings(yaml: &str) -> OutputSettings {
    let yaml = serde_yaml_ng::from_str(yaml).expect("the test's own YAML");
    OutputSettings::of("aliyun_sls", yaml)
}

const KEYS: &str = "access_key_id: an-id, access_key_secret: a-secret";

/// The records of these numbers.
fn numbered(numbers: std::ops::Range<usize>) -> Vec<String> {
    let record = |n| {
        format!("{{\"@timestamp\":\"2026-11-24T09:59:00Z\",\"message\":\"line {n}\",\"n\":{n}}}\n")
    };
    numbers.map(record).collect()
}

/// A service that has these logstores and takes what is right.
#[derive(Default)]
struct Service {
    logstores: Mutex<BTreeSet<String>>,
    /// Logstore, shard key and group of each request that was taken.
    taken: Mutex<Vec<(String, Option<String>, Read)>>,
    /// Answers for the next requests, in place of its own; the last first.
    faults: Mutex<Vec<(u16, &'static str)>>,
}

/// One request as it came.
struct Asked {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

async fn read_request(stream: &mut TcpStream) -> Option<Asked> {
    let mut read = Vec::new();
    let head = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(read[..head].to_vec()).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length")?.parse().ok()?;
    while read.len() < head + length {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    Some(Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: read.split_off(head),
    })
}

/// Whether the signature is right: written down once more, from the documentation.
fn signature_is_right(asked: &Asked) -> bool {
    let header = |name: &str| asked.headers.get(name).map_or("", String::as_str);
    let sha1 = |key: &[u8], words: &str| {
        let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("any length");
        mac.update(words.as_bytes());
        STANDARD.encode(mac.finalize().into_bytes())
    };
    let sha256 = |key: &[u8], words: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
        mac.update(words.as_bytes());
        mac.finalize().into_bytes().to_vec()
    };
    let own = |name: &&String| name.starts_with("x-log-") || name.starts_with("x-acs-");
    let lines = |names: &[&String]| {
        let lines = names
            .iter()
            .map(|name| format!("{name}:{}\n", header(name)));
        lines.collect::<String>()
    };
    let authorization = header("authorization");
    if let Some(signed) = authorization.strip_prefix("LOG an-id:") {
        let md5 = match asked.body.is_empty() {
            true => String::new(),
            false => hex::encode_upper(Md5::digest(&asked.body)),
        };
        let names: Vec<&String> = asked.headers.keys().filter(own).collect();
        let query = match asked.query.as_str() {
            "" => String::new(),
            query => format!("?{query}"),
        };
        let words = format!(
            "{}\n{md5}\n{}\n{}\n{}{}{query}",
            asked.method,
            header("content-type"),
            header("date"),
            lines(&names),
            asked.path,
        );
        return header("content-md5") == md5 && signed == sha1(b"a-secret", &words);
    }
    let also = |name: &&String| own(name) || ["host", "content-type"].contains(&name.as_str());
    let names: Vec<&String> = asked.headers.keys().filter(also).collect();
    let joined: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    let content = hex::encode(Sha256::digest(&asked.body));
    let request = format!(
        "{}\n{}\n{}\n{}\n{}\n{content}",
        asked.method,
        asked.path,
        asked.query,
        lines(&names),
        joined.join(";"),
    );
    let scope = "20261124/cn-hangzhou/sls/aliyun_v4_request";
    let words = format!(
        "SLS4-HMAC-SHA256\n20261124T100000Z\n{scope}\n{}",
        hex::encode(Sha256::digest(request))
    );
    let mut key = sha256(b"aliyun_v4a-secret", "20261124");
    for part in ["cn-hangzhou", "sls", "aliyun_v4_request"] {
        key = sha256(&key, part);
    }
    let expected = format!(
        "SLS4-HMAC-SHA256 Credential=an-id/{scope},Signature={}",
        hex::encode(sha256(&key, &words))
    );
    header("x-log-content-sha256") == content && authorization == expected
}

impl Service {
    /// Listens; the base of its URL.
    async fn start(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let service = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    while let Some(asked) = read_request(&mut stream).await {
                        let (status, body) = service.answer(&asked);
                        let answer = format!(
                            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        format!("http://{address}")
    }

    fn answer(&self, asked: &Asked) -> (u16, String) {
        let says = |status: u16, code: &str| {
            let body = format!("{{\"errorCode\":\"{code}\",\"errorMessage\":\"it is {code}\"}}");
            (status, body)
        };
        let header = |name: &str| asked.headers.get(name).map_or("", String::as_str);
        if !signature_is_right(asked) {
            return says(401, "SignatureNotMatch");
        }
        if header("host") != "shop.127.0.0.1" || header("x-log-apiversion") != "0.6.0" {
            return says(404, "ProjectNotExist");
        }
        if let Some((status, code)) = self.faults.lock().pop() {
            return says(status, code);
        }
        if asked.path == "/logstores" {
            let made: serde_json::Value = serde_json::from_slice(&asked.body).expect("JSON");
            assert_eq!((&made["ttl"], &made["shardCount"]), (&7.into(), &3.into()));
            let name = made["logstoreName"].as_str().expect("a name");
            return match self.logstores.lock().insert(name.to_owned()) {
                true => (200, String::new()),
                false => says(400, "LogStoreAlreadyExist"),
            };
        }
        let mut parts = asked.path.split('/').skip(2);
        let (name, how) = (parts.next().unwrap_or_default(), parts.nth(1));
        if !self.logstores.lock().contains(name) {
            return says(404, "LogStoreNotExist");
        }
        let raw: usize = header("x-log-bodyrawsize").parse().expect("a number");
        if raw > 3_000_000 {
            return says(400, "PostBodyTooLarge");
        }
        assert_eq!(header("x-log-compresstype"), "lz4");
        assert_eq!(header("content-type"), "application/x-protobuf");
        let group = lz4_flex::block::decompress(&asked.body, raw).expect("lz4");
        assert_eq!(group.len(), raw);
        let group = Read::decode(&*group).expect("a group");
        if group.logs.len() > 4_096 {
            return says(400, "PostBodyTooLarge");
        }
        let poison = |log: &Log| log.contents.iter().any(|content| content.key == "poison");
        if group.logs.iter().any(poison) {
            return says(400, "InvalidKey");
        }
        let shard = match how {
            Some("lb") => None,
            _ => asked.query.strip_prefix("key=").map(str::to_owned),
        };
        self.taken.lock().push((name.to_owned(), shard, group));
        (200, String::new())
    }

    /// The number of every record it has, as often as it has it.
    fn numbers(&self) -> Vec<usize> {
        let taken = self.taken.lock();
        let logs = taken.iter().flat_map(|(_, _, group)| &group.logs);
        let number = |log: &Log| {
            let number = log.contents.iter().find(|content| content.key == "n");
            number.expect("a number").value.parse().expect("a number")
        };
        let mut numbers: Vec<usize> = logs.map(number).collect();
        numbers.sort_unstable();
        numbers
    }
}

/// A service that has `web`, and an output to it with these keys besides.
async fn output(more: &str) -> (Arc<Service>, AliyunSls) {
    let service = Arc::new(Service::default());
    service.logstores.lock().insert("web".to_owned());
    let endpoint = service.start().await;
    let yaml = format!("{{project: shop, endpoint: '{endpoint}', {KEYS}{more}}}");
    let settings = settings(&yaml);
    let web = Web::new(
        TlsSettings::default(),
        Compression::None,
        settings.timeout,
        4,
    );
    let web = Arc::new(web.expect("a client"));
    let output = AliyunSls::with_exchange(&settings, "node-1", web, || NOW);
    (service, output.expect("good settings"))
}

fn cause(verdict: Verdict) -> String {
    match verdict {
        Verdict::All(Fate::Again { cause }) | Verdict::Failed { cause } => cause.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_record_arrives_signed_either_way_in_requests_of_the_size_that_is_allowed() {
    for more in [
        "",
        ", region: cn-hangzhou",
        ", topic: 't-{target}', security_token: a-token",
    ] {
        let (service, output) = output(more).await;
        assert_eq!(output.probe().await, Ok(()), "{more}");
        let load = load("web", &numbered(0..10_000));
        assert_eq!(
            output.attempt(&load).await,
            Verdict::All(Fate::Delivered),
            "{more}"
        );
        assert_eq!(service.numbers(), (0..10_000).collect::<Vec<_>>());
        let taken = service.taken.lock();
        let sizes: Vec<usize> = taken.iter().map(|(_, _, group)| group.logs.len()).collect();
        assert_eq!(sizes, [4_096, 4_096, 1_808]);
        let group = &taken[0].2;
        assert_eq!(group.source.as_deref(), Some("node-1"));
        assert_eq!(
            group.topic.as_deref(),
            more.contains("topic").then_some("t-web")
        );
        assert_eq!(i64::from(group.logs[0].time), NOW.as_second() - 60);
    }
}

#[tokio::test]
async fn long_records_are_sent_in_requests_of_three_megabytes() {
    let (service, output) = output("").await;
    let long = "x".repeat(700_000);
    let record = |n: usize| format!("{{\"message\":\"{long}\",\"n\":{n}}}\n");
    let load = load("web", &(0..10).map(record).collect::<Vec<_>>());
    assert_eq!(output.attempt(&load).await, Verdict::All(Fate::Delivered));
    assert_eq!(service.numbers(), (0..10).collect::<Vec<_>>());
    assert_eq!(service.taken.lock().len(), 3);
}

#[tokio::test]
async fn a_guilty_record_is_found_and_refused_alone() {
    let (service, output) = output("").await;
    let mut records = numbered(0..5_000);
    records[1_234] = "{\"poison\":1}\n".to_owned();
    records[4_999] = "no JSON\n".to_owned();
    let load = load("web", &records);
    let Verdict::Each(fates) = output.attempt(&load).await else {
        panic!("all alike");
    };
    for (number, fate) in fates.iter().enumerate() {
        match (number, fate) {
            (1_234, Fate::Refused { reason, detail }) => {
                assert_eq!(&**reason, "InvalidKey");
                assert!(detail.contains("it is InvalidKey"), "{detail}");
            }
            (4_999, Fate::Refused { reason, .. }) => assert_eq!(&**reason, "not_a_record"),
            (_, fate) => assert_eq!(*fate, Fate::Delivered, "{number}"),
        }
    }
    let expected: Vec<usize> = (0..4_999).filter(|n| *n != 1_234).collect();
    assert_eq!(service.numbers(), expected);
}

#[tokio::test]
async fn only_what_was_not_taken_waits_and_says_why() {
    let (service, output) = output("").await;
    let records = numbered(0..10_000);
    // The second of three requests meets the quota.
    let load = load("web", &records);
    service
        .faults
        .lock()
        .extend([(403, "WriteQuotaExceed"), (500, "")]);
    assert!(cause(output.attempt(&load).await).contains("not able to answer now (500)"));
    service.faults.lock().clear();
    let limited = Load {
        records: Some((0..10_000).filter(|n| n % 2 == 1).collect()),
        ..load.clone()
    };
    assert_eq!(
        output.attempt(&limited).await,
        Verdict::All(Fate::Delivered)
    );
    let odd: Vec<usize> = (0..10_000).filter(|n| n % 2 == 1).collect();
    assert_eq!(service.numbers(), odd);

    for (status, code, words) in [
        (403, "WriteQuotaExceed", "quota is used up"),
        (403, "ShardWriteQuotaExceed", "split shards"),
        (503, "ServerBusy", "not able to answer now"),
        (401, "Unauthorized", "does not accept who we say we are"),
        (400, "RequestTimeTooSkewed", "clock is wrong"),
        (404, "ProjectNotExist", "check `project` and `endpoint`"),
    ] {
        service.faults.lock().push((status, code));
        let cause = cause(output.attempt(&load).await);
        assert!(cause.contains(words) && cause.contains(code), "{cause}");
    }
}

#[tokio::test]
async fn a_fault_after_some_were_taken_leaves_only_the_others_open() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let scripted =
        Scripted::new(
            move |_| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => says(200, ""),
                _ => says(
                    500,
                    r#"{"errorCode":"InternalServerError","errorMessage":"oops"}"#,
                ),
            },
        );
    let exchange: Arc<dyn Exchange> = Arc::clone(&scripted) as _;
    let yaml = format!("{{project: shop, endpoint: h.example, {KEYS}}}");
    let output = AliyunSls::with_exchange(&settings(&yaml), "node-1", exchange, || NOW);
    let output = output.expect("good settings");
    let load = load("web", &numbered(0..5_000));
    let Verdict::Each(fates) = output.attempt(&load).await else {
        panic!("all alike");
    };
    assert_eq!(
        fates
            .iter()
            .filter(|fate| **fate == Fate::Delivered)
            .count(),
        4_096
    );
    assert!(matches!(&fates[4_096], Fate::Again { cause } if cause.contains("oops")));
    let asked = scripted.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(
        asked[0].0.url.as_str(),
        "https://shop.h.example/logstores/web/shards/lb"
    );
    assert_eq!(asked[0].0.headers[HOST], "shop.h.example");
}

#[tokio::test]
async fn a_missing_logstore_is_made_when_asked_and_its_target_waits() {
    let (service, output) = output(", create_logstore: true, ttl_days: 7, shards: 3").await;
    let load = load("orders", &numbered(0..10));
    assert!(cause(output.attempt(&load).await).contains("has just been made"));
    assert!(service.logstores.lock().contains("orders"));
    assert_eq!(output.attempt(&load).await, Verdict::All(Fate::Delivered));

    let (_, output) = self::output("").await;
    assert!(cause(output.attempt(&load).await).contains("set `create_logstore: true`"));
}

#[tokio::test]
async fn a_target_that_no_logstore_can_be_called_after_waits_and_is_told() {
    let (service, output) = output("").await;
    for target in ["Web", "a.b", "w", "web-"] {
        let verdict = output.attempt(&load(target, &numbered(0..3))).await;
        assert!(cause(verdict).contains(&format!("no logstore can be called `{target}`")));
    }
    assert!(service.numbers().is_empty());
}

#[tokio::test]
async fn records_of_one_source_or_node_go_to_one_shard_if_asked() {
    // The load's chunks, of three records each, are of different sources.
    let load = load("web", &numbered(0..7));
    for (by, keys, ordered) in [("node", 1, false), ("source", 3, true)] {
        let (service, output) = output(&format!(", shard_by: {by}, region: cn-hangzhou")).await;
        assert_eq!(output.attempt(&load).await, Verdict::All(Fate::Delivered));
        assert_eq!(output.ordered(), ordered);
        let taken = service.taken.lock();
        let shards = taken
            .iter()
            .map(|(_, shard, _)| shard.as_deref().expect("a key"));
        let shards: BTreeSet<&str> = shards.inspect(|key| assert_eq!(key.len(), 32)).collect();
        assert_eq!((taken.len(), shards.len()), (keys, keys));
    }
}

#[tokio::test]
async fn a_probe_tells_who_is_not_known() {
    let (service, output) = output("").await;
    service.faults.lock().push((401, "Unauthorized"));
    let why = output.probe().await.expect_err("refused");
    assert!(why.contains("Unauthorized"), "{why}");
    let wrong = format!(
        "{{project: shop, endpoint: '{}', access_key_id: an-id, access_key_secret: other}}",
        service.start().await
    );
    let output = AliyunSls::new(&settings(&wrong), "node-1").expect("good settings");
    let why = output.probe().await.expect_err("refused");
    assert!(why.contains("SignatureNotMatch"), "{why}");
}

#[test]
fn every_wrong_key_is_told_with_its_cure() {
    let mut shown = String::new();
    let whole = |more: &str| {
        format!("{{project: shop, endpoint: cn-hangzhou.log.aliyuncs.com, {KEYS}{more}}}")
    };
    for yaml in [
        "{}".to_owned(),
        format!("{{project: My Shop, endpoint: 'https://u:hunter2@h/p', {KEYS}}}"),
        whole(", logstore: '{target}-{date}'"),
        whole(", signature: v4"),
        whole(", signature: v1, region: cn-hangzhou"),
        whole(", region: 'cn hangzhou'"),
        whole(", create_logstore: true, ttl_days: 0"),
        whole(", shard_by: host"),
        whole(", tls: {key: /nonexistent}"),
    ] {
        match AliyunSls::new(&settings(&yaml), "node-1") {
            Ok(_) => panic!("{yaml} is taken"),
            Err(problems) => shown.extend(problems.iter().map(|p| format!("{p}\n"))),
        }
    }
    assert!(
        !shown.contains("hunter2") && !shown.contains("a-secret"),
        "{shown}"
    );
    insta::assert_snapshot!(shown);
    // What log-pilot's variables become.
    let yaml = whole(", create_logstore: true, ttl_days: 1, shards: 2, tls: {verify: false}");
    let output = AliyunSls::new(&settings(&yaml), "node-1").expect("good settings");
    assert!(!format!("{output:?}").contains("a-secret"));
}
