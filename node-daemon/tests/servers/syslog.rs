//! rsyslog: what it reads of our messages, by UDP, TCP and TLS, by both RFCs and both framings.

use std::time::Duration;

use ringpilot::batch::Codec;
use ringpilot::settings::OutputSettings;
use ringpilot::ship::syslog::Syslog;
use ringpilot::ship::{Guarantee, Load, Output};
use serde_json::{Value, json};

use crate::deliver::deliver;
use crate::records::{count, loads, object};
use crate::started::{Counted, Started, say};

fn output(own: &str) -> Syslog {
    let own = serde_yaml_ng::from_str(own).unwrap();
    Syslog::new(&OutputSettings::of("syslog", own), 1 << 20).unwrap()
}

fn batches(target: &str, numbers: std::ops::Range<usize>) -> Vec<Load> {
    loads(target, &Codec::Json, numbers, object, |_| None)
}

/// What rsyslog wrote down, once it is `expected` messages: it acknowledges nothing, so they may still be on their way.
async fn messages(server: &Started, expected: usize) -> Vec<Value> {
    for _ in 0..200 {
        let text = std::fs::read(server.data().join("messages")).unwrap_or_default();
        if text.iter().filter(|byte| **byte == b'\n').count() >= expected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.lines("messages")
}

fn number(message: &Value) -> usize {
    let text = message["msg"].as_str().unwrap();
    let text = text.trim_start().strip_prefix("line ").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rsyslog_reads_every_record_and_every_part_of_it() {
    let server = Started::new("rsyslog", 2, &[]);
    let (port, secure) = (server.port, server.port + 1);
    let ca = server.data().join("tls/ca.pem");
    let tls = format!("tls: {{ca: '{}'}}", ca.display());
    let mut before = 0;
    for (own, sent) in [
        (
            format!("host: 127.0.0.1, port: {port}, protocol: tcp"),
            count(),
        ),
        (
            format!("host: 127.0.0.1, port: {port}, protocol: tcp, framing: newline"),
            count(),
        ),
        (
            format!("host: 127.0.0.1, port: {port}, protocol: tcp, format: rfc3164"),
            count(),
        ),
        (format!("host: localhost, port: {secure}, {tls}"), count()),
        (
            format!("host: localhost, port: {secure}, {tls}, confirm: false"),
            count(),
        ),
        // Small enough for the socket's buffer: what does not fit there is lost, which is UDP's own way.
        (format!("host: 127.0.0.1, port: {port}"), 500),
        (
            format!("host: 127.0.0.1, port: {port}, format: rfc3164"),
            500,
        ),
    ] {
        let syslog = output(&format!("{{{own}, facility: local2, severity: notice}}"));
        assert_eq!(syslog.guarantee(), Guarantee::NotAcknowledged);
        syslog.probe().await.unwrap();
        let tally = deliver(&syslog, batches("web", 0..sent)).await;
        assert_eq!(
            (tally.delivered, tally.failed, tally.again),
            (sent, 0, 0),
            "{own}"
        );
        let there = messages(&server, before + sent).await.split_off(before);
        before += sent;
        let mut numbers: Vec<usize> = there.iter().map(number).collect();
        numbers.sort_unstable();
        assert!(
            numbers.into_iter().eq(0..sent),
            "{own}: {} of {sent}",
            there.len()
        );
        let first = there.iter().find(|message| number(message) == 7).unwrap();
        let record: Value = serde_json::from_str(&object(7)).unwrap();
        assert_eq!(first["pri"], json!("149"), "{own}");
        assert_eq!(first["host"], record["host"], "{own}");
        assert_eq!(first["app"], json!("web"), "{own}");
        let msg = first["msg"].as_str().unwrap().trim_start();
        assert_eq!(msg, record["message"].as_str().unwrap(), "{own}");
        let (version, time) = match own.contains("rfc3164") {
            true => ("0", "-11-24T10:00:00+00:00"),
            false => ("1", "2026-11-24T10:00:00.007000+00:00"),
        };
        assert_eq!(first["version"], json!(version), "{own}");
        let read = first["timestamp"].as_str().unwrap();
        // The older RFC has no year and no zone.
        let read = read.replace('Z', "+00:00");
        assert!(read.ends_with(time), "{own}: {read}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_record_goes_as_json_and_lines_within_a_message_stay_within_it() {
    let server = Started::new("rsyslog", 2, &[]);
    let at = format!("host: 127.0.0.1, port: {}, protocol: tcp", server.port);
    let two = |_| json!({"message": "first\nsecond", "n": 1}).to_string();
    let loads = || loads("web", &Codec::Json, 0..1, two, |_| None);
    deliver(&output(&format!("{{{at}, codec: json}}")), loads()).await;
    deliver(&output(&format!("{{{at}, framing: newline}}")), loads()).await;
    deliver(&output(&format!("{{{at}}}")), loads()).await;
    let mut texts: Vec<String> = messages(&server, 3)
        .await
        .iter()
        .map(|message| message["msg"].as_str().unwrap().to_owned())
        .collect();
    texts.sort();
    // rsyslog itself writes control characters so.
    assert_eq!(texts, ["first#012second", "first#012second", &two(0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_loses_what_was_on_its_way_and_with_confirm_less() {
    for confirm in [false, true] {
        let mut server = Started::new("rsyslog", 2, &[]);
        let own = format!("host: 127.0.0.1, port: {}, protocol: tcp", server.port);
        let syslog = output(&format!("{{{own}, confirm: {confirm}}}"));
        let counted = Counted::new(&syslog);
        let loads = batches("web", 0..count());
        let middle = loads.len() / 2;
        let (tally, ()) = tokio::join!(deliver(&counted, loads), async {
            counted.reached(middle).await;
            tokio::task::block_in_place(|| {
                server.kill();
                server.start();
            });
        });
        assert_eq!(tally.delivered, count());
        deliver(&syslog, batches("web", count()..count() + 100)).await;
        // The last batch comes through whole; of what was on its way at the kill nobody can say.
        let mut there: Vec<usize> = Vec::new();
        for _ in 0..200 {
            there = messages(&server, 0).await.iter().map(number).collect();
            if there.iter().filter(|number| **number >= count()).count() >= 100 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let all = there.len();
        there.sort_unstable();
        there.dedup();
        let (lost, twice) = (count() + 100 - there.len(), all - there.len());
        say(format_args!(
            "rsyslog, confirm: {confirm}: {lost} of {} lost, {twice} twice",
            count()
        ));
        assert!(there.ends_with(&(count()..count() + 100).collect::<Vec<_>>()));
        // rsyslog writes each message as it reads it: what it had read at the kill is there.
        assert!(!confirm || lost == 0, "{lost}");
    }
}
