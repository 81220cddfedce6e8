//! Elasticsearch 7.17, 8.18, 9.1 and OpenSearch 2.19: each promise on each of them.

use std::collections::HashSet;
use std::ops::Range;

use ringpilot::batch::Codec;
use ringpilot::settings::OutputSettings;
use ringpilot::ship::elasticsearch::Elasticsearch;
use ringpilot::ship::{Fate, Load, Output, Verdict};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::deliver::deliver;
use crate::proxy::{Act, Proxy};
use crate::records::{DAY, count, loads, object};
use crate::server::{Server, answers, free_port};

/// More than this the servers do not take in one request.
const MOST_REQUEST: &str = "http.max_content_length=2mb";

/// A server that tests take in turn, for some change its settings.
struct Shared(Mutex<Option<Server>>);

impl Shared {
    async fn take(&self, script: &str, version: &str) -> MutexGuard<'_, Option<Server>> {
        let mut server = self.0.lock().await;
        if server.is_none() {
            *server = Some(start(script, version, free_port(), &[]));
        }
        server
    }
}

fn start(script: &str, version: &str, port: u16, variables: &[(&str, &str)]) -> Server {
    let ready = |port| answers(port, "/_cluster/health?wait_for_status=yellow");
    Server::start(script, version, port, &[MOST_REQUEST], variables, ready)
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Asks the server itself.
async fn ask(port: u16, method: &str, path: &str, body: Value) -> Value {
    let request = client()
        .request(
            method.parse().unwrap(),
            format!("http://127.0.0.1:{port}/{path}"),
        )
        .header("content-type", "application/json");
    let request = match body {
        Value::Null => request,
        body => request.body(body.to_string()),
    };
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{method} {path}: {status} {text}");
    serde_json::from_str(&text).unwrap()
}

/// How many documents an index has, by its own word.
async fn count_of(port: u16, index: &str) -> usize {
    ask(port, "POST", &format!("{index}/_refresh"), Value::Null).await;
    let count = ask(port, "GET", &format!("{index}/_count"), Value::Null).await;
    count["count"].as_u64().unwrap().try_into().unwrap()
}

/// Reads every document of an index back and checks that it is the record that was sent, each once.
async fn assert_holds(port: u16, index: &str, expected: impl Iterator<Item = usize>) {
    let mut expected: HashSet<usize> = expected.collect();
    assert_eq!(count_of(port, index).await, expected.len(), "{index}");
    let mut after = -1i64;
    loop {
        let query = json!({"size": 5_000, "sort": [{"n": "asc"}], "search_after": [after]});
        let found = ask(port, "POST", &format!("{index}/_search"), query).await;
        let hits = found["hits"]["hits"].as_array().unwrap().clone();
        let Some(last) = hits.last() else {
            break;
        };
        after = last["sort"][0].as_i64().unwrap();
        for hit in &hits {
            let number = hit["_source"]["n"].as_u64().unwrap().try_into().unwrap();
            assert!(
                expected.remove(&number),
                "{index} holds {number} twice, or should not"
            );
            assert_eq!(hit["_id"], json!(format!("{number:032}")));
            let sent: Value = serde_json::from_str(&object(number)).unwrap();
            assert_eq!(hit["_source"], sent);
        }
    }
    assert!(expected.is_empty(), "{index} lacks {expected:?}");
}

fn output(url: &str, more: &str) -> Elasticsearch {
    let yaml = format!("{{hosts: ['{url}']{more}}}");
    let yaml = serde_yaml_ng::from_str(&yaml).unwrap();
    Elasticsearch::new(&OutputSettings::of("elasticsearch", yaml)).unwrap()
}

fn plain(output: &Elasticsearch, target: &str, numbers: Range<usize>) -> Vec<Load> {
    loads(target, &output.codec(), numbers, object, |_| None)
}

async fn every_record_arrives_with_its_fields_and_a_replay_is_known(server: &Server) {
    let (port, count) = (server.port, count());
    for more in ["", ", compression: gzip"] {
        let output = output(&format!("http://127.0.0.1:{port}"), more);
        assert_eq!(output.probe().await, Ok(()));
        let target = if more.is_empty() {
            "Whole.Plain"
        } else {
            "Whole.Packed"
        };
        let name = target.to_lowercase();
        // One in ten is of the day before, which its action line says.
        let before = format!("{name}-2026.11.23");
        let index = |number: usize| (number % 10 == 3).then(|| before.clone());
        let loads = loads(target, &output.codec(), 0..count, object, index);
        let tally = deliver(&output, loads.clone()).await;
        // A small server may well refuse a whole request for want of memory; what it did not take is sent again.
        assert_eq!((tally.delivered, tally.duplicates), (count, 0), "{tally:?}");
        assert_eq!((tally.refused.len(), tally.too_large), (0, 0));
        assert_holds(port, &before, (0..count).filter(|n| n % 10 == 3)).await;
        let day = format!("{name}-2026.11.24");
        assert_holds(port, &day, (0..count).filter(|n| n % 10 != 3)).await;

        let tally = deliver(&output, loads).await;
        assert_eq!((tally.delivered, tally.duplicates), (0, count), "{tally:?}");
        assert_eq!(count_of(port, &format!("{name}-*")).await, count);
    }
}

async fn one_wrong_record_in_a_hundred_is_refused_and_no_other(server: &Server) {
    let (port, count) = (server.port, count());
    let mapping = json!({"mappings": {"properties": {"n": {"type": "long"}}}});
    ask(port, "PUT", "conflict-2026.11.24", mapping).await;
    let output = output(&format!("http://127.0.0.1:{port}"), "");
    let wrong = |number: usize| number % 100 == 42;
    let object = |number: usize| match wrong(number) {
        true => r#"{"n":"no number"}"#.to_owned(),
        false => object(number),
    };
    let loads = loads("conflict", &output.codec(), 0..count, object, |_| None);
    let tally = deliver(&output, loads).await;
    assert_eq!(tally.delivered, count - count / 100);
    assert_eq!((tally.again, tally.duplicates), (0, 0), "{tally:?}");
    let refused: Vec<usize> = tally.refused.iter().map(|(_, number)| *number).collect();
    let expected: HashSet<usize> = (0..count).filter(|n| wrong(*n)).collect();
    assert_eq!(refused.iter().copied().collect::<HashSet<_>>(), expected);
    assert_eq!(refused.len(), expected.len());
    for (class, _) in &tally.refused {
        let known = ["mapper_parsing_exception", "document_parsing_exception"];
        assert!(known.contains(&class.as_str()), "{class}");
    }
    assert_holds(
        port,
        "conflict-2026.11.24",
        (0..count).filter(|n| !wrong(*n)),
    )
    .await;
}

async fn records_that_a_full_queue_rejects_are_sent_again_and_no_other(server: &Server) {
    let count = count();
    let proxy = Proxy::start(server.port, |request| match request % 7 {
        0 | 1 => Act::RejectRecords(|n| n % 3 == 0),
        2 => Act::RejectRecords(|_| true),
        3 => Act::Answer(
            429,
            r#"{"error":{"type":"circuit_breaking_exception","reason":"[parent] Data too large"},"status":429}"#,
        ),
        4 => Act::Answer(503, ""),
        _ => Act::Pass,
    });
    let proxy = proxy.await;
    let output = output(&proxy.url, "");
    let tally = deliver(&output, plain(&output, "rejected", 0..count)).await;
    assert_eq!((tally.delivered, tally.duplicates), (count, 0));
    assert!(tally.again > 0 && tally.failed > 0, "{tally:?}");
    assert!(
        tally.cause.contains("queue for writing is full"),
        "{tally:?}"
    );
    assert_holds(server.port, "rejected-2026.11.24", 0..count).await;
}

async fn an_answer_that_is_cut_off_costs_no_record_and_makes_no_second(server: &Server) {
    let count = count();
    let proxy = Proxy::start(server.port, |request| match request % 3 {
        0 => Act::CutAfter,
        1 => Act::CutBefore,
        _ => Act::Pass,
    });
    let proxy = proxy.await;
    let output = output(&proxy.url, "");
    let tally = deliver(&output, plain(&output, "cut", 0..count)).await;
    assert_eq!(tally.delivered + tally.duplicates, count);
    assert!(tally.duplicates > 0 && tally.failed > 0, "{tally:?}");
    assert!(proxy.requests() > tally.failed);
    assert_holds(server.port, "cut-2026.11.24", 0..count).await;
}

async fn the_limit_of_shards_and_a_block_hold_back_their_target_until_they_are_lifted(
    server: &Server,
) {
    let port = server.port;
    let limit = async |most: Value| {
        let settings = json!({"persistent": {"cluster.max_shards_per_node": most}});
        ask(port, "PUT", "_cluster/settings", settings).await
    };
    let output = output(&format!("http://127.0.0.1:{port}"), "");
    let load = &plain(&output, "limit", 0..10)[0];
    limit(json!(1)).await;
    let verdict = output.attempt(load).await;
    limit(Value::Null).await;
    let Verdict::All(Fate::Again { cause }) = verdict else {
        panic!("{verdict:?}");
    };
    assert!(cause.contains("cluster.max_shards_per_node"), "{cause}");
    assert_eq!(output.attempt(load).await, Verdict::All(Fate::Delivered));

    let block = async |on: bool| {
        let settings = json!({"index.blocks.write": on});
        ask(port, "PUT", "limit-2026.11.24/_settings", settings).await
    };
    let load = &plain(&output, "limit", 10..20)[0];
    block(true).await;
    let verdict = output.attempt(load).await;
    block(false).await;
    let Verdict::All(Fate::Again { cause }) = verdict else {
        panic!("{verdict:?}");
    };
    assert!(cause.contains("writing is blocked"), "{cause}");
    assert_eq!(output.attempt(load).await, Verdict::All(Fate::Delivered));
    assert_holds(port, "limit-2026.11.24", 0..20).await;
}

async fn what_is_too_large_is_split_and_a_record_that_is_too_large_alone_refused(server: &Server) {
    let port = server.port;
    let output = output(&format!("http://127.0.0.1:{port}"), "");
    let object = |number: usize| match number {
        77 => format!(r#"{{"n":77,"message":"{}"}}"#, "x".repeat(3 << 20)),
        number => object(number),
    };
    let count = 12_000;
    let loads = loads("large", &output.codec(), 0..count, object, |_| None);
    assert!(loads.iter().any(|load| load.batch.bytes > 3 << 20));
    let tally = deliver(&output, loads).await;
    assert_eq!(tally.delivered, count - 1, "{tally:?}");
    assert_eq!(tally.refused, [("too_large".to_owned(), 77)]);
    // A server that refuses by the announced length says so before it ends the connection.
    assert!(!tally.failure.contains("ended the connection"), "{tally:?}");
    assert!(tally.too_large > 0);
    assert_holds(port, "large-2026.11.24", (0..count).filter(|n| *n != 77)).await;
}

async fn a_data_stream_takes_each_record_once(server: &Server) {
    let port = server.port;
    let template =
        json!({"index_patterns": ["logs-*-ringpilot"], "data_stream": {}, "priority": 500});
    ask(port, "PUT", "_index_template/ringpilot", template).await;
    let more = ", data_stream: true, index: 'logs-{target}-ringpilot'";
    let output = output(&format!("http://127.0.0.1:{port}"), more);
    for expected in [(2_000, 0), (0, 2_000)] {
        let tally = deliver(&output, plain(&output, "Stream", 0..2_000)).await;
        assert_eq!((tally.delivered, tally.duplicates), expected, "{tally:?}");
    }
    assert_holds(port, "logs-stream-ringpilot", 0..2_000).await;
}

async fn a_server_that_is_killed_in_the_middle_has_every_record_once(script: &str, version: &str) {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let port = free_port();
    let variables = [("DATA", folder)];
    let count = count();
    let kills = std::env::var("RINGPILOT_E2E_KILLS").map_or(1, |kills| kills.parse().unwrap());
    let mut server = start(script, version, port, &variables);
    let output = output(&format!("http://127.0.0.1:{port}"), "");
    for kill in 0..kills {
        let loads = plain(&output, "killed", kill * count..(kill + 1) * count);
        let deliver = deliver(&output, loads);
        let restart = async {
            // In the middle: when the server itself says that some are there.
            loop {
                let path = format!("http://127.0.0.1:{port}/killed-2026.11.24/_stats/indexing");
                let answer = client().get(path).send().await.unwrap();
                let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
                let indexed = answer["_all"]["primaries"]["indexing"]["index_total"].as_u64();
                if indexed.is_some_and(|indexed| indexed > 0) {
                    break;
                }
            }
            tokio::task::block_in_place(|| {
                server.kill(data.path());
                start(script, version, port, &variables)
            })
        };
        let (tally, started) = tokio::join!(deliver, restart);
        server = started;
        assert_eq!(tally.delivered + tally.duplicates, count, "{tally:?}");
        assert!(tally.failed > 0, "{tally:?}");
    }
    assert_holds(port, "killed-2026.11.24", 0..kills * count).await;
}

macro_rules! on {
    ($($name:ident: $script:literal $version:literal, data_streams: $data_streams:literal;)*) => {$(
        mod $name {
            use super::*;

            static SERVER: Shared = Shared(Mutex::const_new(None));

            on!(test $script $version every_record_arrives_with_its_fields_and_a_replay_is_known);
            on!(test $script $version one_wrong_record_in_a_hundred_is_refused_and_no_other);
            on!(test $script $version records_that_a_full_queue_rejects_are_sent_again_and_no_other);
            on!(test $script $version an_answer_that_is_cut_off_costs_no_record_and_makes_no_second);
            on!(test $script $version the_limit_of_shards_and_a_block_hold_back_their_target_until_they_are_lifted);
            on!(test $script $version what_is_too_large_is_split_and_a_record_that_is_too_large_alone_refused);

            #[tokio::test(flavor = "multi_thread")]
            async fn a_data_stream_takes_each_record_once() {
                // In Elasticsearch they are a module that is not among the jars.
                if $data_streams {
                    let server = SERVER.take($script, $version).await;
                    super::a_data_stream_takes_each_record_once(server.as_ref().unwrap()).await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_server_that_is_killed_in_the_middle_has_every_record_once() {
                super::a_server_that_is_killed_in_the_middle_has_every_record_once($script, $version).await;
            }
        }
    )*};
    (test $script:literal $version:literal $name:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let server = SERVER.take($script, $version).await;
            super::$name(server.as_ref().unwrap()).await;
        }
    };
}

on! {
    elasticsearch_7: "elasticsearch" "7.17.29", data_streams: false;
    elasticsearch_8: "elasticsearch" "8.18.0", data_streams: true;
    elasticsearch_9: "elasticsearch" "9.1.0", data_streams: true;
    opensearch_2: "opensearch" "2.19.1", data_streams: true;
}

/// The day of the loads is the one in the names of the indices above.
#[test]
fn the_day_is_right() {
    assert_eq!(
        ringpilot::batch::target::render("{date}", "", DAY),
        "2026.11.24"
    );
    let codec = output("http://h", "").codec();
    assert!(matches!(codec, Codec::Bulk));
}
