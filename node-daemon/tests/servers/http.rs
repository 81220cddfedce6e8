//! The HTTP output before nginx, which keeps every body it takes as a file.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use ringpilot::settings::OutputSettings;
use ringpilot::ship::http::Http;
use ringpilot::ship::{Output, Verdict};
use serde_json::Value;

use crate::deliver::deliver;
use crate::records::{count, loads, object, part};
use crate::server::{Server, answers, free_port};

fn start(data: &Path) -> Server {
    let folder = data.to_str().unwrap();
    let ready = |port| answers(port, "/ready");
    Server::start(
        "nginx",
        "debian",
        free_port(),
        &["600k"],
        &[("DATA", folder)],
        ready,
    )
}

fn output(port: u16, path: &str, more: &str) -> Http {
    let yaml = format!("{{url: 'http://127.0.0.1:{port}/{path}/{{target}}'{more}}}");
    let yaml = serde_yaml_ng::from_str(&yaml).unwrap();
    Http::new(&OutputSettings::of("http", yaml)).unwrap()
}

/// Checks that the bodies that nginx kept are these records, each once, and takes them away.
fn assert_kept(data: &Path, mut expected: HashSet<usize>) {
    for entry in std::fs::read_dir(data.join("bodies")).unwrap() {
        let path = entry.unwrap().path();
        let mut body = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        if body.starts_with(&[0x1f, 0x8b]) {
            let packed = std::mem::take(&mut body);
            flate2::read::GzDecoder::new(&*packed)
                .read_to_end(&mut body)
                .unwrap();
        }
        // A probe's body is empty.
        assert!(body.is_empty() || body.ends_with(b"\n"));
        for line in body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let kept: Value = serde_json::from_slice(line).unwrap();
            let number = kept["n"].as_u64().unwrap().try_into().unwrap();
            assert!(
                expected.remove(&number),
                "{number} is there twice, or should not be"
            );
            assert_eq!(
                kept,
                serde_json::from_str::<Value>(&object(number)).unwrap()
            );
        }
    }
    assert!(expected.is_empty(), "{expected:?} are not there");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_arrives_with_its_fields_and_what_is_too_large_is_split() {
    let data = tempfile::tempdir().unwrap();
    let server = start(data.path());
    let count = count();
    for more in ["", ", compression: gzip"] {
        let output = output(server.port, "in", more);
        assert_eq!(output.probe().await, Ok(()));
        let loads = loads("web", &output.codec(), 0..count, object, |_| None);
        assert!(loads.iter().any(|load| load.batch.bytes > 600 << 10));
        let tally = deliver(&output, loads).await;
        assert_eq!((tally.delivered, tally.failed), (count, 0), "{tally:?}");
        assert_eq!(tally.too_large > 0, more.is_empty(), "{tally:?}");
        assert_kept(data.path(), (0..count).collect());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_alone_is_refused_and_a_stranger_is_told() {
    let data = tempfile::tempdir().unwrap();
    let server = start(data.path());
    let known = output(
        server.port,
        "locked",
        ", username: elastic, password: hunter2",
    );
    let object = |number: usize| match number {
        5 => format!("{{\"n\":5,\"message\":\"{}\"}}", "x".repeat(700 << 10)),
        number => object(number),
    };
    let loads = loads("web", &known.codec(), 0..20, object, |_| None);
    let stranger = output(server.port, "locked", "");
    for load in &loads {
        let verdict = stranger.attempt(load).await;
        // nginx looks at the length first.
        assert!(
            matches!(verdict, Verdict::TooLarge | Verdict::Failed { .. }),
            "{verdict:?}"
        );
    }
    assert!(stranger.probe().await.is_err_and(|why| why.contains("401")));
    assert_eq!(known.probe().await, Ok(()));
    let tally = deliver(&known, loads.clone()).await;
    assert_eq!((tally.delivered, tally.failed), (19, 0));
    assert_eq!(tally.refused, [("too_large".to_owned(), 5)]);
    assert_kept(data.path(), (0..20).filter(|n| *n != 5).collect());
    drop(server);
    let verdict = known.attempt(&part(&loads[0], vec![1])).await;
    assert!(
        matches!(&verdict, Verdict::Failed { cause } if cause.contains("cannot be reached")),
        "{verdict:?}"
    );
}
