//! Against librdkafka's own mock of a cluster: what a real broker would have to be broken for.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Code};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_yaml_ng::Value;

use super::*;
use crate::ship::load::tests::load;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("web", 1, 1).expect("a topic");
    cluster
}

fn settings(own: &str) -> OutputSettings {
    let own = serde_yaml_ng::from_str::<Value>(own).expect("the test's own YAML");
    OutputSettings::of("kafka", own)
}

fn output(cluster: &Cluster, own: &str, timeout: Duration) -> Kafka {
    let brokers = cluster.bootstrap_servers();
    let mut settings = settings(&format!("{{brokers: ['{brokers}'], {own}}}"));
    settings.timeout = timeout;
    let mut read = Settings::read(&settings).expect("good settings");
    // A mock on loopback answers at once.
    read.more = vec![
        ("reconnect.backoff.ms", "20".to_owned()),
        ("reconnect.backoff.max.ms", "50".to_owned()),
        ("retry.backoff.ms", "10".to_owned()),
        ("retry.backoff.max.ms", "20".to_owned()),
        ("linger.ms", "1".to_owned()),
    ];
    Kafka::of(read, &settings, 1 << 20)
}

fn quick(cluster: &Cluster) -> Kafka {
    output(cluster, "", Duration::from_secs(20))
}

const THREE: &[&[&str]] = &[&[r#"{"n":0}"#, r#"{"n":1}"#], &[r#"{"n":2}"#]];

/// Keys and texts of all that is in a partition, in its order.
fn consume(cluster: &Cluster, topic: &str, partition: i32) -> Vec<(String, String)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "test")
        .create()
        .expect("a consumer");
    let wait = Duration::from_secs(10);
    let (_, end) = consumer
        .fetch_watermarks(topic, partition, wait)
        .expect("offsets");
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, partition, Offset::Beginning)
        .expect("an offset");
    consumer.assign(&from).expect("an assignment");
    let text =
        |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    (0..end)
        .map(|_| {
            let message = consumer.poll(wait).expect("in time").expect("a message");
            (text(message.key()), text(message.payload()))
        })
        .collect()
}

fn cause(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Failed { cause } | Verdict::All(Fate::Again { cause }) => cause.to_string(),
        other => panic!("not sent again as a whole: {other:?}"),
    }
}

#[tokio::test]
async fn records_arrive_as_they_are_in_order_under_their_sources_key() {
    let cluster = cluster();
    let kafka = quick(&cluster);
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    let some = load("web", THREE, Some(&[2]));
    assert_eq!(kafka.send(&some).await, Verdict::All(Fate::Delivered));
    assert_eq!(kafka.room.held(), 0);
    assert_eq!(kafka.probe().await, Ok(()));
    let record = |key: &str, text: &str| (key.to_owned(), text.to_owned());
    let (first, second) = ("0000000000001000", "0000000000001001");
    assert_eq!(
        consume(&cluster, "web", 0),
        [
            record(first, r#"{"n":0}"#),
            record(first, r#"{"n":1}"#),
            record(second, r#"{"n":2}"#),
            record(second, r#"{"n":2}"#),
        ]
    );
}

#[tokio::test]
async fn a_batch_many_times_the_size_of_the_room_goes_through_it() {
    let cluster = cluster();
    let mut kafka = quick(&cluster);
    kafka.room = Arc::new(Room::new(2_000));
    let texts: Vec<String> = (0..200).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    // One that is larger than the whole room is taken when nothing else is in it.
    let large = "x".repeat(5_000);
    texts.push(&large);
    let verdict = kafka.send(&load("web", &[&texts], None)).await;
    assert_eq!(verdict, Verdict::All(Fate::Delivered));
    assert_eq!(kafka.room.held(), 0);
    let arrived = consume(&cluster, "web", 0);
    assert!(arrived.iter().map(|(_, text)| text).eq(&texts));
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_and_no_other() {
    let cluster = cluster();
    let kafka = output(&cluster, "max_message_bytes: 2000", Duration::from_secs(20));
    let large = "x".repeat(2_000);
    let verdict = kafka.send(&load("web", &[&["a", &large, "b"]], None)).await;
    let Verdict::Each(fates) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!((&fates[0], &fates[2]), (&Fate::Delivered, &Fate::Delivered));
    let Fate::Refused { reason, detail } = &fates[1] else {
        panic!("{fates:?}");
    };
    assert_eq!(&**reason, "message_too_large");
    assert!(detail.contains("max_message_bytes (2000)"), "{detail}");
    assert_eq!(kafka.room.held(), 0);
}

#[tokio::test]
async fn a_set_that_is_too_large_together_is_sent_one_by_one_and_later_sets_are_smaller() {
    let cluster = cluster();
    let kafka = quick(&cluster);
    let before = kafka.many.set_bytes.load(Ordering::Relaxed);
    cluster.request_errors(Api::Produce, &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let verdict = kafka.send(&load("web", THREE, None)).await;
    assert_eq!(verdict, Verdict::All(Fate::Delivered));
    assert_eq!(kafka.many.set_bytes.load(Ordering::Relaxed), before / 2);
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    assert_eq!(consume(&cluster, "web", 0).len(), 6);
}

#[tokio::test]
async fn the_record_for_which_a_set_was_refused_is_found() {
    let cluster = cluster();
    let kafka = quick(&cluster);
    let (invalid, good) = (
        Code::RD_KAFKA_RESP_ERR_INVALID_RECORD,
        Code::RD_KAFKA_RESP_ERR_NO_ERROR,
    );
    // The set, then each record alone.
    cluster.request_errors(Api::Produce, &[invalid, good, invalid, good]);
    let verdict = kafka.send(&load("web", THREE, None)).await;
    let Verdict::Each(fates) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!((&fates[0], &fates[2]), (&Fate::Delivered, &Fate::Delivered));
    assert!(matches!(&fates[1], Fate::Refused { reason, .. } if &**reason == "invalid_record"));
}

#[tokio::test]
async fn what_is_no_records_fault_is_sent_again_with_its_cause() {
    let cluster = cluster();
    let kafka = quick(&cluster);
    cluster.request_errors(
        Api::Produce,
        &[Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
    );
    let verdict = kafka.send(&load("web", THREE, None)).await;
    assert!(
        cause(&verdict).contains("we may not write to topic `web`"),
        "{verdict:?}"
    );
    // The topic is asked about before more is sent, and it is fine again.
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
}

#[tokio::test]
async fn a_topic_that_cannot_be_written_keeps_nothing_in_memory_and_no_other_topic_waiting() {
    let cluster = cluster();
    cluster.create_topic("secret", 1, 1).expect("a topic");
    let denied = Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.topic_error("secret", denied).expect("an error");
    let kafka = quick(&cluster);
    let (secret, web) = (load("secret", THREE, None), load("web", THREE, None));
    let (secret, web) = tokio::join!(kafka.send(&secret), kafka.send(&web));
    assert!(
        cause(&secret).contains("we may not write to topic `secret`"),
        "{secret:?}"
    );
    assert!(matches!(secret, Verdict::All(Fate::Again { .. })));
    assert_eq!(web, Verdict::All(Fate::Delivered));
    assert_eq!(kafka.room.held(), 0);
}

#[tokio::test]
async fn an_outage_is_waited_out_and_then_told_and_nothing_is_lost() {
    let cluster = cluster();
    let kafka = output(&cluster, "", Duration::from_secs(1));
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    cluster.broker_down(-1).expect("down");
    // This one is in librdkafka already and comes back; the next finds nobody.
    let first = kafka.send(&load("web", THREE, None)).await;
    assert!(
        cause(&first).contains("no record of topic `web` was confirmed for 1 s"),
        "{first:?}"
    );
    assert_eq!(kafka.room.held(), 0);
    let second = kafka.send(&load("web", THREE, None)).await;
    assert!(matches!(&second, Verdict::Failed { .. }), "{second:?}");
    assert!(kafka.probe().await.is_err());
    cluster.broker_up(-1).expect("up");
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    assert_eq!(consume(&cluster, "web", 0).len(), 6);
}

#[tokio::test]
async fn after_a_fatal_error_a_new_producer_sends() {
    let cluster = cluster();
    let kafka = quick(&cluster);
    let denied = Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.request_errors(Api::InitProducerId, &[denied]);
    let verdict = kafka.send(&load("web", THREE, None)).await;
    assert!(
        cause(&verdict).contains("luster authorization failed"),
        "{verdict:?}"
    );
    assert_eq!(kafka.room.held(), 0);
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    assert_eq!(consume(&cluster, "web", 0).len(), 3);
}

#[tokio::test]
async fn an_attempt_that_is_given_up_takes_its_records_back() {
    let cluster = cluster();
    let kafka = quick(&cluster);
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    cluster.broker_down(-1).expect("down");
    let slow = load("web", THREE, None);
    let given_up = tokio::time::timeout(Duration::from_millis(300), kafka.send(&slow)).await;
    assert!(given_up.is_err());
    // The old producer comes to its end by itself.
    while kafka.room.held() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.broker_up(-1).expect("up");
    assert_eq!(
        kafka.send(&load("web", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    assert_eq!(consume(&cluster, "web", 0).len(), 6);
}

#[tokio::test]
async fn without_a_key_records_go_round_the_partitions() {
    let cluster = cluster();
    cluster.create_topic("round", 3, 1).expect("a topic");
    let kafka = output(&cluster, "partition: round_robin", Duration::from_secs(20));
    assert_eq!(
        kafka.send(&load("round", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    for partition in 0..3 {
        let arrived = consume(&cluster, "round", partition);
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0].0, "");
    }
}

#[tokio::test]
async fn a_topic_that_is_not_allowed_is_refused_or_goes_to_the_default_one() {
    let cluster = cluster();
    let wait = Duration::from_secs(20);
    let kafka = output(&cluster, "allowed_topics: [web]", wait);
    let verdict = kafka.send(&load("other", THREE, None)).await;
    let Verdict::All(Fate::Refused { reason, .. }) = &verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(&**reason, "topic_not_allowed");
    let own = "allowed_topics: [x], default_topic: web, key: '{target}/%{[n]}'";
    let kafka = output(&cluster, own, wait);
    assert_eq!(
        kafka.send(&load("other", THREE, None)).await,
        Verdict::All(Fate::Delivered)
    );
    let keys: Vec<String> = consume(&cluster, "web", 0)
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(keys, ["other/0", "other/1", "other/2"]);
}

#[tokio::test]
async fn each_attempt_has_its_own_fates_while_many_run() {
    let cluster = cluster();
    let kafka = output(&cluster, "max_message_bytes: 1500", Duration::from_secs(20));
    let large = "y".repeat(1_500);
    let loads: Vec<Load> = (0..8)
        .map(|n| {
            let mut texts = vec!["small"; n];
            texts.push(&large);
            load("web", &[&texts], None)
        })
        .collect();
    // More than have a place at once: the rest waits for one.
    let verdicts = futures_util::future::join_all(loads.iter().map(|load| kafka.send(load))).await;
    for (n, verdict) in verdicts.into_iter().enumerate() {
        let fates = match verdict {
            Verdict::Each(fates) => fates,
            Verdict::All(fate) => vec![fate],
            other => panic!("{other:?}"),
        };
        assert_eq!(fates.len(), n + 1);
        assert!(fates[..n].iter().all(|fate| *fate == Fate::Delivered));
        assert!(matches!(fates[n], Fate::Refused { .. }));
    }
}

#[test]
fn every_wrong_key_is_told_with_its_cure() {
    let mut shown = String::new();
    for own in [
        "{brokrs: [a]}",
        "{brokers: []}",
        "{brokers: ['a:b'], topic: 'x/{target}', default_topic: y, key: '%{x}'}",
        "{brokers: [a], username: u}",
        "{brokers: [a], password: hunter2}",
        "{brokers: [a], acks: 2}",
        "{brokers: [a], partition: sticky}",
        "{brokers: [a], compression: brotli}",
        "{brokers: [a], sasl: gssapi}",
        "{brokers: [a], max_message_bytes: 10, tls: {ca: /nonexistent}}",
    ] {
        let problems = Kafka::new(&settings(own), 1 << 20).expect_err("wrong settings");
        shown.extend(problems.iter().map(|problem| format!("{problem}\n")));
    }
    assert!(!shown.contains("hunter2"));
    insta::assert_snapshot!(shown);
}

#[test]
fn what_log_pilots_variables_set_is_what_librdkafka_is_told() {
    let variables = [
        ("LOGGING_OUTPUT", "kafka"),
        ("KAFKA_BROKERS", "a:9092,b:9092"),
        ("KAFKA_USERNAME", "alice"),
        ("KAFKA_PASSWORD", "hunter2"),
        ("KAFKA_CLIENT_ID", "pilot"),
        ("KAFKA_PARTITION", "random"),
        ("KAFKA_PARTITION_KEY", "%{[docker_container]}"),
        ("KAFKA_REQUIRE_ACKS", "1"),
        ("KAFKA_COMPRESSION_CODEC", "zstd"),
        ("KAFKA_MAX_MESSAGE_BYTES", "2000000"),
        ("KAFKA_BROKER_TIMEOUT", "30"),
    ];
    let env = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let all = crate::settings::Settings::from_environment(&env).expect("good variables");
    let output = &all.outputs[0];
    let read = Settings::read(output).expect("good settings");
    let used = read.used().expect("plain secrets");
    let config = read.config(&used, output.timeout, read.set_bytes());
    config.create_native_config().expect("librdkafka takes it");
    let told: String = config
        .config_map()
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect();
    assert!(!told.contains("hunter2") && !format!("{read:?}").contains("hunter2"));
    insta::assert_snapshot!(told);
    assert_eq!(
        Kafka::of(read, output, 1).guarantee(),
        Guarantee::AtLeastOnce
    );
}

#[tokio::test]
async fn room_is_waited_for_and_given_back_to_the_byte() {
    let room = Arc::new(Room::new(1_000));
    assert!(room.take(5_000), "anything fits an empty room");
    assert!(!room.take(1));
    room.give_back(5_000);
    assert!(room.take(600) && room.take(400) && !room.take(1));
    let waiting = tokio::spawn({
        let room = Arc::clone(&room);
        async move {
            while !room.take(300) {
                room.freed(300).await;
            }
        }
    });
    tokio::task::yield_now().await;
    room.give_back(200);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    room.give_back(200);
    waiting.await.expect("it is told");
    assert_eq!(room.held(), 900);
}
