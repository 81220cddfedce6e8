//! Answers as real servers gave them, and the output over an exchange that is scripted.
//! The recordings are made by `deploy/e2e/servers/record-bulk-answers`.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::answer::outcomes;
use super::*;
use crate::ship::transport::Failure;
use crate::ship::transport::scripted::{self, Scripted, says};

const RECORDED: [(&str, &str); 4] = [
    (
        "Elasticsearch 7.17.29",
        include_str!("recorded/elasticsearch-7.17.29.tsv"),
    ),
    (
        "Elasticsearch 8.18.0",
        include_str!("recorded/elasticsearch-8.18.0.tsv"),
    ),
    (
        "Elasticsearch 9.1.0",
        include_str!("recorded/elasticsearch-9.1.0.tsv"),
    ),
    (
        "OpenSearch 2.19.1",
        include_str!("recorded/opensearch-2.19.1.tsv"),
    ),
];

/// Every recorded answer: its server, what was asked, and what it was.
fn recorded() -> impl Iterator<Item = (&'static str, &'static str, Answer)> {
    RECORDED.iter().flat_map(|(server, text)| {
        text.lines().map(move |line| {
            let mut parts = line.splitn(3, '\t');
            let mut part = || parts.next().expect("three columns");
            let name = part();
            let answer = Answer {
                status: part().parse().expect("a status"),
                body: Bytes::from_static(part().as_bytes()),
            };
            (*server, name, answer)
        })
    })
}

/// The encoded record of this number, of another index if named.
fn record(number: usize, index: Option<&str>) -> String {
    let index = index
        .map(|i| format!(",\"_index\":\"{i}\""))
        .unwrap_or_default();
    format!("{{\"create\":{{\"_id\":\"{number}\"{index}}}}}\n{{\"n\":{number}}}\n")
}

/// A load of so many records.
fn load(records: usize) -> Load {
    let records: Vec<String> = (0..records).map(|number| record(number, None)).collect();
    scripted::load("Web", &records)
}

fn settings(yaml: &str) -> OutputSettings {
    let yaml = serde_yaml_ng::from_str(yaml).expect("the test's own YAML");
    OutputSettings::of("elasticsearch", yaml)
}

fn output(
    yaml: &str,
    script: impl Fn(&Request) -> Result<Answer, Failure> + Send + Sync + 'static,
) -> (Elasticsearch, Arc<Scripted>) {
    let scripted = Scripted::new(script);
    let exchange: Arc<dyn Exchange> = Arc::clone(&scripted) as _;
    let output = Elasticsearch::with_exchange(&settings(yaml), exchange);
    (output.expect("good settings"), scripted)
}

async fn attempt(status: u16, body: &'static str, records: usize) -> Verdict {
    let script = move |_: &Request| says(status, body);
    let (output, _) = output("hosts: [h]", script);
    output.attempt(&load(records)).await
}

#[test]
fn each_fault_of_a_real_server_has_its_fate() {
    let mut shown = String::new();
    let mut last = "";
    for (server, name, answer) in recorded() {
        if server != last {
            writeln!(shown, "# {server}").expect("memory");
            last = server;
        }
        let fates = match answer.status {
            200 => {
                let items = serde_json::from_slice::<serde_json::Value>(&answer.body);
                let items = items.expect("JSON")["items"].as_array().map_or(0, Vec::len);
                match outcomes(&answer.body, items).expect("a bulk's answer") {
                    Verdict::Each(fates) => fates,
                    Verdict::All(fate) => vec![fate],
                    other => panic!("{other:?}"),
                }
            }
            _ => vec![Fate::Again {
                cause: answer::words(&answer).into(),
            }],
        };
        for fate in fates {
            let fate = match fate {
                Fate::Refused { reason, detail } => format!("refused [{reason}] {detail:?}"),
                Fate::Again { cause } => format!("again: {cause}"),
                other => format!("{other:?}").to_lowercase(),
            };
            writeln!(shown, "{name}: {fate}").expect("memory");
        }
    }
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn a_batch_is_one_bulk_to_the_index_of_its_target_and_day() {
    let yaml = "{hosts: ['http://u:hunter2@h1:9201/a/'], path: /b}";
    let script = |_: &Request| {
        says(
            200,
            r#"{"errors":false,"items":[{"create":{"status":201}},{"create":{"status":201}},{"create":{"status":201}},{"create":{"status":201}}]}"#,
        )
    };
    let (output, scripted) = output(yaml, script);
    let load = load(4);
    assert_eq!(output.attempt(&load).await, Verdict::All(Fate::Delivered));
    let asked = scripted.asked();
    let (request, body) = &asked[0];
    assert_eq!(request.method, Method::POST);
    assert_eq!(
        request.url.as_str(),
        "http://h1:9201/a/b/web-2026.11.24/_bulk?filter_path=errors,items.*.status,\
         items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason&timeout=30000ms"
    );
    assert_eq!(request.headers[CONTENT_TYPE], "application/x-ndjson");
    assert_eq!(request.headers[ACCEPT], "application/json");
    assert_eq!(request.headers[AUTHORIZATION], "Basic dTpodW50ZXIy");
    let records: String = (0..4).map(|number| record(number, None)).collect();
    assert_eq!(body, records.as_bytes());
}

#[tokio::test]
async fn only_the_records_that_are_still_open_are_sent() {
    let script = |_: &Request| {
        says(
            200,
            r#"{"errors":true,"items":[{"create":{"status":201}},{"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"full"}}}]}"#,
        )
    };
    let (output, scripted) = output("{hosts: h, index: all, data_stream: true}", script);
    let mut load = load(7);
    load.records = Some([1, 5].into());
    let verdict = output.attempt(&load).await;
    let Verdict::Each(fates) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(fates[0], Fate::Delivered);
    assert!(
        matches!(&fates[1], Fate::Again { cause } if cause.contains("queue for writing is full"))
    );
    let asked = scripted.asked();
    assert!(
        asked[0]
            .0
            .url
            .as_str()
            .starts_with("http://h:9200/all/_bulk?")
    );
    let records = record(1, None) + &record(5, None);
    assert_eq!(asked[0].1, records.as_bytes());
    assert_eq!(output.guarantee(), Guarantee::AtLeastOnce);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_split_until_one_record_is_left() {
    assert_eq!(attempt(413, "", 2).await, Verdict::TooLarge);
    let verdict = attempt(413, "", 1).await;
    assert!(
        matches!(&verdict, Verdict::All(Fate::Refused { reason, .. }) if **reason == *"too_large"),
        "{verdict:?}"
    );
    let script = |_: &Request| {
        Err(Failure::AnswerTooLong {
            host: "h".to_owned(),
        })
    };
    let (output, _) = output("hosts: [h]", script);
    assert_eq!(output.attempt(&load(2)).await, Verdict::TooLarge);
    assert!(matches!(
        output.attempt(&load(1)).await,
        Verdict::Failed { .. }
    ));
}

#[tokio::test]
async fn a_request_that_failed_as_a_whole_says_why_and_proves_nothing() {
    let mut shown = String::new();
    for (status, body) in [
        (200, "<html>Please log in</html>"),
        (200, r#"{"errors":false,"items":[]}"#),
        (
            200,
            r#"{"errors":false,"items":[{"create":{"status":201}}]}"#,
        ),
        (200, ""),
        (302, ""),
        (
            400,
            r#"{"error":"no handler found for uri [/x] and method [POST]"}"#,
        ),
        (
            401,
            r#"{"error":{"type":"security_exception","reason":"unable to authenticate user [u]"},"status":401}"#,
        ),
        (
            403,
            r#"{"error":{"type":"cluster_block_exception","reason":"blocked by: [FORBIDDEN/6/cluster read-only (api)];"},"status":403}"#,
        ),
        (404, ""),
        (
            429,
            r#"{"error":{"type":"circuit_breaking_exception","reason":"[parent] Data too large"},"status":429}"#,
        ),
        (502, "<html>Bad Gateway</html>"),
        (
            503,
            r#"{"error":{"root_cause":[],"type":"cluster_block_exception","reason":"blocked by: [SERVICE_UNAVAILABLE/1/state not recovered / initialized];"},"status":503}"#,
        ),
    ] {
        match attempt(status, body, 2).await {
            Verdict::Failed { cause } => writeln!(shown, "{cause}").expect("memory"),
            other => panic!("{status} {body}: {other:?}"),
        }
    }
    insta::assert_snapshot!(shown);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_rests_while_the_others_take_its_place() {
    let script = |request: &Request| match request.url.host_str() {
        Some("bad") => Err(Failure::Unreachable {
            host: "http://bad:9200".to_owned(),
            why: "connection refused".to_owned(),
        }),
        _ => says(
            200,
            r#"{"errors":false,"items":[{"create":{"status":201}}]}"#,
        ),
    };
    let yaml = "{hosts: [good, bad]}";
    let (output, scripted) = output(yaml, script);
    let load = load(1);
    let mut failed = 0;
    for _ in 0..10 {
        failed += usize::from(output.attempt(&load).await != Verdict::All(Fate::Delivered));
    }
    // It rests 1 ms at least, and here no time passes.
    assert_eq!(failed, 1);
    assert_eq!(scripted.asked().len(), 10);
}

#[tokio::test]
async fn a_secret_that_was_refused_is_read_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("key");
    std::fs::write(&path, "old").expect("a write");
    let script = |request: &Request| match request.headers[AUTHORIZATION].to_str() {
        Ok("ApiKey new") => says(
            200,
            r#"{"errors":false,"items":[{"create":{"status":201}}]}"#,
        ),
        _ => says(401, ""),
    };
    let yaml = format!("{{hosts: [h], api_key: {{file: {}}}}}", path.display());
    let (output, _) = output(&yaml, script);
    let load = load(1);
    assert!(matches!(
        output.attempt(&load).await,
        Verdict::Failed { .. }
    ));
    std::fs::write(&path, "new\n").expect("a write");
    assert_eq!(output.attempt(&load).await, Verdict::All(Fate::Delivered));
}

#[tokio::test]
async fn a_probe_sends_a_bulk_of_nothing_and_knows_the_answer_of_each_version() {
    for (server, _, answer) in recorded().filter(|(_, name, _)| *name == "nothing") {
        let script = move |_: &Request| Ok(answer.clone());
        let (output, scripted) = output("hosts: [h]", script);
        assert_eq!(output.probe().await, Ok(()), "{server}");
        assert_eq!(scripted.asked()[0].1, b"");
    }
    for (status, body) in [
        (200, "{}"),
        (
            400,
            r#"{"error":"no handler found for uri [/x/_bulk] and method [POST]"}"#,
        ),
        (401, ""),
        (404, "<html>"),
    ] {
        let script = move |_: &Request| says(status, body);
        let (output, _) = output("hosts: [h]", script);
        let why = output.probe().await.expect_err("not Elasticsearch");
        assert!(why.starts_with("http://h:9200: "), "{why}");
    }
}

#[test]
fn every_wrong_key_is_told_with_its_cure() {
    let mut shown = String::new();
    for yaml in [
        "{}",
        "{hosts: []}",
        "{hosts: {a: 9200}}",
        "{hosts: ['', 'ftp://h', 'http://u:hunter2@[', 'h:port']}",
        "{hosts: [h], index: '{target}-{dat}'}",
        "{hosts: [h], index: _all}",
        "{hosts: [h], index: '{target}{target}'}",
        "{hosts: [h], index: 'a b', username: u}",
        "{hosts: [h], data_stream: true, index: 'logs-{target}-{date}'}",
        "{hosts: [h], username: u, password: hunter2, api_key: hunter2}",
        "{hosts: [h], password: hunter2}",
        "{hosts: [h], compression: zstd}",
        "{hosts: [h], tls: {ca: /nonexistent, verify: true}}",
        "{hosts: [h], tls: {certificat: /nonexistent}}",
    ] {
        match Elasticsearch::new(&settings(yaml)) {
            Ok(_) => panic!("{yaml} is taken"),
            Err(problems) => shown.extend(problems.iter().map(|p| format!("{p}\n"))),
        }
    }
    assert!(!shown.contains("hunter2"), "{shown}");
    insta::assert_snapshot!(shown);
}

#[test]
fn what_log_pilot_set_is_taken() {
    for yaml in [
        "{hosts: ['http://es:9200']}",
        "{hosts: ['https://a:9200', 'https://b:9200'], username: u, password: p, path: /p, tls: {verify: false}}",
        "{hosts: ['http://es:9200'], index: 'all-{date}'}",
        "{hosts: 'es', compression: gzip, data_stream: true, index: 'logs-{target}-default'}",
    ] {
        let output = Elasticsearch::new(&settings(yaml));
        let output = output.unwrap_or_else(|problems| panic!("{yaml}: {problems:?}"));
        assert!(!output.ordered());
    }
}

#[test]
fn a_host_without_a_port_has_that_of_elasticsearch_and_a_url_its_own() {
    for (host, path, expected) in [
        ("es", None, "http://es:9200/"),
        ("es:80", None, "http://es/"),
        ("es:8080/p", Some("q/"), "http://es:8080/p/q/"),
        ("[::80]", None, "http://[::80]:9200/"),
        ("[::1]:9201", None, "http://[::1]:9201/"),
        ("https://es.example.com", None, "https://es.example.com/"),
        ("http://es:9200/a b?x#y", None, "http://es:9200/a%20b/"),
    ] {
        let (url, login) = base_url(host, path).expect("a host");
        assert_eq!((url.as_str(), login), (expected, None), "{host}");
    }
    let (url, login) = base_url("us%65r:p%40ss@es", None).expect("a host");
    assert_eq!(url.as_str(), "http://es:9200/");
    assert_eq!(login, Some(("user".to_owned(), "p@ss".to_owned())));
}

#[test]
fn an_index_is_in_lower_case() {
    assert_eq!(
        index_name("{target}-{date}", "Web.A", 0),
        "web.a-1970.01.01"
    );
}

/// What a hostile or broken server may answer: pieces of good answers, cut, doubled and changed.
fn garbled() -> impl Strategy<Value = Vec<u8>> {
    let bodies: Vec<Vec<u8>> = recorded()
        .map(|(_, _, answer)| answer.body.to_vec())
        .collect();
    let edit = (any::<prop::sample::Index>(), any::<u8>(), 0usize..40);
    (
        prop::sample::select(bodies),
        prop::collection::vec(edit, 0..6),
    )
        .prop_map(|(mut body, edits)| {
            for (at, byte, cut) in edits {
                let at = at.index(body.len().max(1));
                match byte % 3 {
                    0 if at < body.len() => body[at] = byte,
                    1 => drop(body.drain(at..(at + cut).min(body.len()))),
                    _ => {
                        let copied = body[at..(at + cut).min(body.len())].to_vec();
                        body.splice(at..at, copied);
                    }
                }
            }
            body
        })
}

/// How many items say 201 of themselves, by the most generous reading.
fn most_delivered(body: &[u8]) -> usize {
    let text = String::from_utf8_lossy(body);
    text.matches("20").count()
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic_or_believe_what_nobody_said(
        body in garbled(),
        records in 1usize..5,
    ) {
        match outcomes(&body, records) {
            Ok(Verdict::All(Fate::Delivered)) => prop_assert!(most_delivered(&body) >= records),
            Ok(Verdict::Each(fates)) => {
                prop_assert_eq!(fates.len(), records);
                let delivered = fates.iter().filter(|fate| **fate == Fate::Delivered).count();
                prop_assert!(delivered <= most_delivered(&body));
            }
            Ok(Verdict::All(_)) | Err(_) => {}
            Ok(other) => prop_assert!(false, "{:?}", other),
        }
        let answer = Answer { status: 400, body: body.into() };
        prop_assert!(answer::words(&answer).len() < 1_000);
    }

    #[test]
    fn an_item_without_a_good_status_is_never_delivered(
        statuses in prop::collection::vec(prop::option::of(prop::sample::select(vec![200u16, 201, 202, 204, 404, 409, 429, 500])), 1..20),
        action in prop::sample::select(vec!["create", "index", "update"]),
        spaces in " {0,3}",
    ) {
        let items: Vec<String> = statuses
            .iter()
            .map(|status| match status {
                Some(status) => format!("{{\"{action}\":{spaces}{{\"status\":{status}}}}}"),
                None => format!("{{\"{action}\":{{}}{spaces}}}"),
            })
            .collect();
        let body = format!("{{\"errors\":false,\"items\":[{}]}}", items.join(","));
        let fates = match outcomes(body.as_bytes(), statuses.len()) {
            Ok(Verdict::Each(fates)) => fates,
            Ok(Verdict::All(fate)) => vec![fate; statuses.len()],
            other => panic!("{other:?}"),
        };
        for (fate, status) in fates.iter().zip(&statuses) {
            prop_assert_eq!(*fate == Fate::Delivered, matches!(status, Some(200 | 201)));
        }
    }
}

#[test]
fn an_answer_of_twenty_thousand_records_is_read_in_no_time() {
    let items = vec![r#"{"create":{"status":201}}"#; 20_000].join(",");
    let good = format!("{{\"errors\":false,\"items\":[{items}]}}");
    let items = vec![r#"{"create":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"[a]: version conflict, document already exists (current version [1])"}}}"#; 20_000].join(",");
    let replayed = format!("{{\"errors\":true,\"items\":[{items}]}}");
    let spaced = good.replace(",\"items", ", \"items");
    for (body, fate, most) in [
        (spaced, Fate::Delivered, Duration::from_millis(100)),
        (good, Fate::Delivered, Duration::from_millis(5)),
        (replayed, Fate::Duplicate, Duration::from_millis(200)),
    ] {
        // The best of a few: others use this machine, too.
        let best = (0..5)
            .map(|_| {
                let start = std::time::Instant::now();
                assert_eq!(
                    outcomes(body.as_bytes(), 20_000),
                    Ok(Verdict::All(fate.clone()))
                );
                start.elapsed()
            })
            .min();
        assert!(best.is_some_and(|best| best < most), "{best:?}");
    }
}
