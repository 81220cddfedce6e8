//! The Lumberjack v2 server of elastic's own making: acknowledgements, TLS, several hosts, and a kill in the middle.

use ringpilot::batch::Codec;
use ringpilot::settings::OutputSettings;
use ringpilot::ship::logstash::Logstash;
use ringpilot::ship::{Load, Output};
use serde_json::Value;

use crate::deliver::deliver;
use crate::records::{count, loads, object};
use crate::started::{Counted, Started, say};

fn output(own: &str) -> Logstash {
    let own = serde_yaml_ng::from_str(own).unwrap();
    Logstash::new(&OutputSettings::of("logstash", own), 1 << 20).unwrap()
}

fn batches() -> Vec<Load> {
    loads("web", &Codec::Json, 0..count(), object, |_| None)
}

/// The numbers of the events that a server wrote down, each checked to be what was sent.
fn numbers(server: &Started) -> Vec<usize> {
    let number = |event: Value| {
        let number = usize::try_from(event["n"].as_u64().unwrap()).unwrap();
        let sent: Value = serde_json::from_str(&object(number)).unwrap();
        assert_eq!(event, sent);
        number
    };
    server.lines("events").into_iter().map(number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_arrives_once_compressed_or_not_plainly_or_by_tls() {
    let server = Started::new("lumberjack", 2, &[]);
    let ca = server.data().join("tls/ca.pem");
    let (plain, secure) = (server.port, server.port + 1);
    let mut expected = 0;
    for own in [
        format!("{{hosts: ['127.0.0.1:{plain}']}}"),
        format!("{{hosts: ['127.0.0.1:{plain}'], compression_level: 0}}"),
        format!(
            "{{hosts: ['localhost:{secure}'], tls: {{ca: '{}'}}}}",
            ca.display()
        ),
        format!("{{hosts: ['127.0.0.1:{secure}'], tls: {{verify: false}}}}"),
    ] {
        let logstash = output(&own);
        logstash.probe().await.unwrap();
        let tally = deliver(&logstash, batches()).await;
        assert_eq!(
            (tally.delivered, tally.failed, tally.again),
            (count(), 0, 0),
            "{own}"
        );
        expected += count();
        assert_eq!(numbers(&server).len(), expected);
    }
    let stranger = output(&format!("{{hosts: ['localhost:{secure}'], tls: {{}}}}"));
    let why = stranger.probe().await.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_loses_nothing() {
    let mut server = Started::new("lumberjack", 2, &[]);
    let logstash = output(&format!("{{hosts: ['127.0.0.1:{}']}}", server.port));
    let counted = Counted::new(&logstash);
    let loads = batches();
    let middle = loads.len() / 2;
    let (tally, ()) = tokio::join!(deliver(&counted, loads), async {
        counted.reached(middle).await;
        tokio::task::block_in_place(|| {
            server.kill();
            server.start();
        });
    });
    assert_eq!(tally.delivered, count());
    assert!(tally.failed + tally.again > 0, "the kill was not noticed");
    let mut there = numbers(&server);
    let twice = there.len() - count();
    there.sort_unstable();
    there.dedup();
    assert!(there.into_iter().eq(0..count()));
    say(format_args!(
        "lumberjack: {} records, {twice} of them twice",
        count()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_share_the_load_and_one_that_dies_is_left_out() {
    let (mut first, second) = (
        Started::new("lumberjack", 2, &[]),
        Started::new("lumberjack", 2, &[]),
    );
    let own = format!(
        "{{hosts: ['127.0.0.1:{}', '127.0.0.1:{}']}}",
        first.port, second.port
    );
    let logstash = output(&own);
    deliver(&logstash, batches()).await;
    let (one, two) = (numbers(&first).len(), numbers(&second).len());
    assert_eq!(one + two, count());
    assert!(one > 0 && two > 0);
    first.kill();
    let tally = deliver(&logstash, batches()).await;
    assert_eq!((tally.delivered, tally.refused.len()), (count(), 0));
    assert_eq!(numbers(&second).len(), two + count());
}
