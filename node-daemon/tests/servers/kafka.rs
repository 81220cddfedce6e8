//! Kafka 4.1: every way to log in, every compression, records refused exactly, a kill in the middle, and the speed.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use ringpilot::batch::Codec;
use ringpilot::settings::OutputSettings;
use ringpilot::ship::kafka::Kafka;
use ringpilot::ship::{Fate, Load, Output, Verdict};

use crate::deliver::deliver;
use crate::records::{count, loads, object};
use crate::started::{Counted, Started, say};

/// What librdkafka may hold for an output.
const SHARE_BYTES: usize = 8 << 20;

fn output(own: &str) -> Kafka {
    let own = serde_yaml_ng::from_str(own).unwrap();
    let mut settings = OutputSettings::of("kafka", own);
    settings.timeout = Duration::from_secs(60);
    Kafka::new(&settings, SHARE_BYTES).unwrap()
}

fn plain(server: &Started, own: &str) -> Kafka {
    output(&format!(
        "{{brokers: ['127.0.0.1:{}'], {own}}}",
        server.port
    ))
}

fn batches(target: &str, numbers: std::ops::Range<usize>) -> Vec<Load> {
    loads(target, &Codec::Json, numbers, object, |_| None)
}

fn config(server: &Started) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", format!("127.0.0.1:{}", server.port));
    config
}

async fn create(server: &Started, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = config(server).create().unwrap();
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    topic.config = settings.to_vec();
    let made = admin.create_topics([&topic], &AdminOptions::new()).await;
    made.unwrap().remove(0).unwrap();
}

/// A message as the broker has it.
struct Kept {
    partition: i32,
    key: Option<String>,
    number: usize,
}

/// All messages of a topic, each partition's in its order, each checked to be what was sent.
fn consume(server: &Started, topic: &str, sent: impl Fn(usize) -> String) -> Vec<Kept> {
    let wait = Duration::from_secs(20);
    let consumer: BaseConsumer = config(server).set("group.id", "test").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), wait).unwrap();
    let mut assigned = TopicPartitionList::new();
    let mut open = 0;
    for partition in metadata.topics()[0].partitions() {
        let (first, end) = consumer
            .fetch_watermarks(topic, partition.id(), wait)
            .unwrap();
        open += usize::try_from(end - first).unwrap();
        assigned
            .add_partition_offset(topic, partition.id(), Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assigned).unwrap();
    (0..open)
        .map(|_| {
            let message = consumer.poll(wait).expect("in time").unwrap();
            let text = std::str::from_utf8(message.payload().unwrap()).unwrap();
            let record: serde_json::Value = serde_json::from_str(text).unwrap();
            let number = usize::try_from(record["n"].as_u64().unwrap()).unwrap();
            assert_eq!(text, sent(number));
            Kept {
                partition: message.partition(),
                key: message
                    .key()
                    .map(|key| String::from_utf8_lossy(key).into_owned()),
                number,
            }
        })
        .collect()
}

/// Checks that each number of `0..count` is there, and says how many are there twice.
fn all_there(kept: &[Kept], count: usize) -> usize {
    let mut numbers: Vec<usize> = kept.iter().map(|kept| kept.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let missing: Vec<usize> = (0..count)
        .filter(|n| numbers.binary_search(n).is_err())
        .collect();
    assert!(
        missing.is_empty(),
        "{} are missing: {:?}…",
        missing.len(),
        &missing[..1]
    );
    kept.len() - count
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_arrives_once_by_every_way_to_log_in_and_every_compression() {
    let server = Started::new("kafka", 5, &[]);
    let tls = server.data().join("tls");
    let tls = |name: &str| tls.join(name).display().to_string();
    let ours = format!(
        "tls: {{ca: '{}', certificate: '{}', key: '{}'}}",
        tls("ca.pem"),
        tls("client.pem"),
        tls("client.key")
    );
    let ca = format!("tls: {{ca: '{}'}}", tls("ca.pem"));
    let user = "username: alice, password: alice-secret";
    let (login, secure, both) = (server.port + 1, server.port + 2, server.port + 3);
    let ways = [
        format!("brokers: ['127.0.0.1:{}']", server.port),
        format!("brokers: ['127.0.0.1:{login}'], {user}, compression: gzip"),
        format!("brokers: ['127.0.0.1:{login}'], {user}, sasl: SCRAM-SHA-256, compression: snappy"),
        format!("brokers: ['127.0.0.1:{login}'], {user}, sasl: scram-sha-512, compression: lz4"),
        format!("brokers: ['127.0.0.1:{secure}'], {ours}, compression: zstd"),
        format!("brokers: ['localhost:{both}'], {user}, {ca}, sasl: scram-sha-512, acks: 1"),
    ];
    for (way, own) in ways.into_iter().enumerate() {
        let topic = format!("way-{way}");
        let kafka = output(&format!("{{{own}}}"));
        kafka
            .probe()
            .await
            .unwrap_or_else(|why| panic!("{own}: {why}"));
        let tally = deliver(&kafka, batches(&topic, 0..count())).await;
        assert_eq!(
            (tally.delivered, tally.failed, tally.again),
            (count(), 0, 0),
            "{own}: {tally:?}"
        );
        let kept = consume(&server, &topic, object);
        assert_eq!(all_there(&kept, count()), 0, "{own}");
        // One source is one key is one partition: in order, but for what four at once overtake.
        assert!(
            kept.iter()
                .all(|kept| kept.key.as_deref() == Some("0000000000000007"))
        );
        assert!(kept.iter().all(|one| one.partition == kept[0].partition));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_batch_after_the_other_a_source_keeps_its_order_and_without_key_records_are_spread() {
    let server = Started::new("kafka", 5, &[]);
    let kafka = plain(&server, "key: 'k{target}'");
    for load in batches("order", 0..count()) {
        assert_eq!(kafka.attempt(&load).await, Verdict::All(Fate::Delivered));
    }
    let kept = consume(&server, "order", object);
    assert!(kept.iter().map(|kept| kept.number).eq(0..count()));
    assert!(
        kept.iter()
            .all(|kept| kept.key.as_deref() == Some("korder"))
    );

    for partition in ["random", "round_robin"] {
        let kafka = plain(&server, &format!("partition: {partition}"));
        deliver(&kafka, batches(partition, 0..count())).await;
        let kept = consume(&server, partition, object);
        assert_eq!(all_there(&kept, count()), 0);
        let mut counts = HashMap::new();
        for kept in &kept {
            assert_eq!(kept.key, None);
            *counts.entry(kept.partition).or_insert(0_usize) += 1;
        }
        let spread =
            |even: usize| counts.len() == 3 && counts.values().all(|n| n.abs_diff(even) <= 1);
        // At random one partition serves for some milliseconds, so there may be fewer.
        assert!(partition == "random" || spread(count() / 3), "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_in_the_middle_loses_nothing() {
    let mut server = Started::new("kafka", 5, &[]);
    let kafka = plain(&server, "compression: lz4");
    let counted = Counted::new(&kafka);
    let kills: usize = match std::env::var("RINGPILOT_E2E_KILLS") {
        Ok(kills) => kills.parse().unwrap(),
        Err(_) => 1,
    };
    let loads = batches("web", 0..count() * kills);
    let step = loads.len() / kills;
    let (tally, ()) = tokio::join!(deliver(&counted, loads), async {
        for kill in 0..kills {
            counted.reached(step * kill + step / 2).await;
            tokio::task::block_in_place(|| {
                server.kill();
                server.start();
            });
        }
    });
    assert_eq!(tally.delivered, count() * kills, "{tally:?}");
    let twice = all_there(&consume(&server, "web", object), count() * kills);
    say(format_args!(
        "kafka: {} records, {kills} kills, {twice} records twice",
        count() * kills
    ));
    // The producer outlives the broker, which knows its numbers again when it is back.
    assert_eq!(twice, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_too_large_are_refused_and_no_other() {
    let server = Started::new("kafka", 5, &[]);
    create(&server, "small", 2, &[("max.message.bytes", "20000")]).await;
    // One in a hundred is larger than the topic allows, one in a thousand larger than we would send at all.
    let sent = |number: usize| {
        let length = match number {
            n if n % 1_000 == 7 => 110_000,
            n if n % 100 == 7 => 30_000,
            _ => 300,
        };
        format!(r#"{{"n":{number},"message":"{}"}}"#, "x".repeat(length))
    };
    let kafka = plain(&server, "max_message_bytes: 100000, key: '%{[n]}'");
    let tally = deliver(
        &kafka,
        loads("small", &Codec::Json, 0..4_000, sent, |_| None),
    )
    .await;
    let mut refused: Vec<usize> = tally.refused.iter().map(|(_, number)| *number).collect();
    refused.sort_unstable();
    assert!(refused.into_iter().eq((0..4_000).filter(|n| n % 100 == 7)));
    assert!(
        tally
            .refused
            .iter()
            .all(|(reason, _)| reason == "message_too_large")
    );
    assert_eq!((tally.delivered, tally.failed), (3_960, 0), "{tally:?}");
    let kept = consume(&server, "small", sent);
    assert_eq!(kept.len(), 3_960);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_topic_calls_invalid_are_refused() {
    let server = Started::new("kafka", 5, &[]);
    create(&server, "latest", 1, &[("cleanup.policy", "compact")]).await;
    // A compacted topic wants a key.
    let keyless = plain(&server, "partition: random");
    let tally = deliver(&keyless, batches("latest", 0..100)).await;
    assert_eq!(tally.refused.len(), 100, "{tally:?}");
    assert!(
        tally
            .refused
            .iter()
            .all(|(reason, _)| reason == "invalid_record")
    );
    let tally = deliver(&plain(&server, ""), batches("latest", 0..100)).await;
    assert_eq!((tally.delivered, tally.refused.len()), (100, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_and_a_wrong_password_are_told_and_waited_out() {
    let server = Started::new("kafka", 5, &["auto.create.topics.enable=false"]);
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("password");
    std::fs::write(&secret, "wrong\n").unwrap();
    let kafka = output(&format!(
        "{{brokers: ['127.0.0.1:{}'], username: alice, password: {{file: {}}}}}",
        server.port + 1,
        secret.display()
    ));
    let one = batches("web", 0..10).remove(0);
    let Verdict::Failed { cause } = kafka.attempt(&one).await else {
        panic!("a wrong password is accepted");
    };
    assert!(cause.contains("uthentication"), "{cause}");
    std::fs::write(&secret, "alice-secret\n").unwrap();
    let Verdict::All(Fate::Again { cause }) = kafka.attempt(&one).await else {
        panic!("the topic is there");
    };
    assert!(cause.contains("topic `web` does not exist"), "{cause}");
    create(&server, "web", 1, &[]).await;
    let tally = deliver(&kafka, vec![one]).await;
    assert_eq!(
        (tally.delivered, tally.failed, tally.again),
        (10, 0, 0),
        "{tally:?}"
    );
    assert_eq!(consume(&server, "web", object).len(), 10);
}

/// Seconds of processor time that this process has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    let ticks: Vec<f64> = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse().unwrap())
        .collect();
    ticks.iter().sum::<f64>() / 100.0
}

/// The same records by librdkafka's own producer, as fast as it takes them.
fn bare(server: &Started, loads: &[Load]) -> f64 {
    let producer: ThreadedProducer<DefaultProducerContext> = config(server)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set(
            "queue.buffering.max.kbytes",
            (SHARE_BYTES >> 10).to_string(),
        )
        .set(
            "queue.buffering.max.messages",
            (SHARE_BYTES / 600).to_string(),
        )
        .create()
        .unwrap();
    let before = cpu_seconds();
    for load in loads {
        for (_, _, record) in load.batch.iter() {
            let mut message = BaseRecord::to("bare").key("0000000000000007");
            message.payload = record.strip_suffix(b"\n");
            while let Err((error, back)) = producer.send(message) {
                let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                assert_eq!(error, full);
                message = back;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    cpu_seconds() - before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_costs_little_more_than_by_librdkafkas_own_producer() {
    let server = Started::new("kafka", 5, &[]);
    create(&server, "bare", 1, &[]).await;
    create(&server, "ours", 1, &[]).await;
    let records = count().max(500_000);
    let kafka = plain(&server, "");
    let (mut theirs, mut ours) = (f64::MAX, f64::MAX);
    // The best of three, in turn: others use this machine, too.
    for _ in 0..3 {
        let loads = batches("ours", 0..records);
        theirs = theirs.min(tokio::task::block_in_place(|| bare(&server, &loads)));
        let before = cpu_seconds();
        let tally = deliver(&kafka, loads).await;
        ours = ours.min(cpu_seconds() - before);
        assert_eq!(tally.delivered, records);
    }
    let per_second = |seconds: f64| records as f64 / seconds;
    say(format_args!(
        "kafka: {:.0} records a second and core, librdkafka alone {:.0}: {:.2} of it",
        per_second(ours),
        per_second(theirs),
        theirs / ours
    ));
    // Our own part is hardly optimised in a build for tests.
    let least = if cfg!(debug_assertions) { 0.7 } else { 0.9 };
    assert!(theirs / ours >= least);
}
