use std::io::Read;

use flate2::read::GzDecoder;
use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::ship::Fate;
use crate::ship::load::tests::load;

fn settings(own: &str) -> OutputSettings {
    let own = serde_yaml_ng::from_str(own).expect("the test's own YAML");
    OutputSettings::of("graylog", own)
}

fn gelf(record: &str) -> String {
    let mut out = Vec::new();
    message(record.as_bytes(), &mut out);
    String::from_utf8(out).expect("text")
}

#[test]
fn a_record_becomes_gelf_and_nothing_of_it_is_lost() {
    let mut shown = String::new();
    for record in [
        r#"{"@timestamp":"2026-03-01T10:00:00.123456789Z","message":"GET / 200","host":"n1","k8s_pod":"web-1","status":200,"time":0.25}"#,
        r#"{"message":"first\n  second\n","k8s_node_name":"n2","level":"ERROR","ok":true,"no":null,"nested":{"a":[1]}}"#,
        r#"{"message":"","id":"x","a b":1,"a_b":2,"a/b":3,"é":4,"":5,"severity":4}"#,
        r#"{"@timestamp":"yesterday","status":1}"#,
        r#"{"message":7,"host":""}"#,
        "no record at all",
    ] {
        let out = gelf(record);
        serde_json::from_str::<serde_json::Value>(&out).expect("JSON");
        shown.push_str(&out);
        shown.push('\n');
    }
    insta::assert_snapshot!(shown);
}

proptest! {
    #[test]
    fn whatever_a_record_holds_gelf_is_valid(
        fields in prop::collection::vec((".{0,12}", ".{0,30}"), 0..8),
        raw in any::<Vec<u8>>(),
    ) {
        let record: serde_json::Map<String, serde_json::Value> =
            fields.into_iter().map(|(name, text)| (name, text.into())).collect();
        let count = record.keys().filter(|key| !matches!(key.as_str(), "message" | "host" | "host.name" | "@timestamp")).count();
        let record = serde_json::Value::Object(record).to_string();
        for record in [record.as_bytes(), &raw] {
            let mut out = Vec::new();
            message(record, &mut out);
            let read: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&out).expect("JSON");
            for key in ["version", "host", "short_message"] {
                prop_assert!(!read[key].as_str().expect("a text").is_empty());
            }
            prop_assert!(!read.contains_key("_id"));
            let others = read.keys().filter(|key| key.starts_with('_'));
            let allowed = |key: &String| key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
            prop_assert!(others.clone().all(allowed));
            if record != raw {
                prop_assert_eq!(others.count(), count);
            }
            prop_assert!(!out.contains(&0));
        }
    }

    #[test]
    fn chunks_put_together_are_the_message(length in 0..1_100_000_usize, datagram in 100..8_192_usize) {
        let message: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let (mut out, mut ends) = (Vec::new(), Vec::new());
        let made = chunks(&message, datagram, 7, &mut out, &mut ends);
        prop_assert_eq!(made.is_some(), length <= MOST_CHUNKS * (MOST_DATAGRAM - CHUNK_HEAD));
        if made.is_none() {
            return Ok(());
        }
        let (mut start, mut together) = (0, Vec::new());
        for (n, end) in ends.iter().enumerate() {
            let datagram = &out[start..*end];
            prop_assert!(datagram.len() <= MOST_DATAGRAM);
            start = *end;
            if ends.len() == 1 {
                together.extend_from_slice(datagram);
                continue;
            }
            prop_assert_eq!(&datagram[..2], &[0x1e, 0x0f]);
            prop_assert_eq!(&datagram[2..10], &7_u64.to_be_bytes());
            prop_assert_eq!(usize::from(datagram[10]), n);
            prop_assert_eq!(usize::from(datagram[11]), ends.len());
            together.extend_from_slice(&datagram[CHUNK_HEAD..]);
        }
        prop_assert_eq!(together, message);
    }
}

#[tokio::test]
async fn datagrams_arrive_compressed_in_chunks_and_what_is_too_large_is_refused() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let port = server.local_addr().expect("its address").port();
    let own = format!("{{host: 127.0.0.1, port: {port}, chunk_bytes: 200}}");
    let graylog = Graylog::new(&settings(&own), 0).expect("good settings");
    // Something that gzip cannot make small.
    let noise: String = (0..150_000)
        .map(|_| format!("{:016x}", rand::random::<u64>()))
        .collect();
    let large = serde_json::json!({"message": noise}).to_string();
    let long = serde_json::json!({"message": "long ".repeat(200), "n": 2}).to_string();
    let load = load("web", &[&[r#"{"message":"short"}"#, &large, &long]], None);
    let (verdict, ()) = tokio::join!(graylog.attempt(&load), async {
        let mut buffer = [0; 9_000];
        let n = server.recv(&mut buffer).await.expect("a datagram");
        assert!(buffer[..n].starts_with(br#"{"version":"1.1""#));
        let n = server.recv(&mut buffer).await.expect("a datagram");
        let mut unpacked = String::new();
        let packed = match buffer[..2] {
            [0x1e, 0x0f] => panic!("gzip makes it small"),
            _ => &buffer[..n],
        };
        GzDecoder::new(packed)
            .read_to_string(&mut unpacked)
            .expect("gzip");
        assert!(unpacked.contains("long long") && unpacked.contains("\"_n\":2"));
    });
    let Verdict::Each(fates) = verdict else {
        panic!("one is too large: {verdict:?}");
    };
    assert_eq!((&fates[0], &fates[2]), (&Fate::Delivered, &Fate::Delivered));
    assert!(matches!(&fates[1], Fate::Refused { reason, .. } if &**reason == "too_large"));
    assert_eq!(graylog.guarantee(), Guarantee::NotAcknowledged);
}

#[tokio::test]
async fn a_stream_has_a_nul_after_each_message() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let own = format!("{{host: 127.0.0.1, port: {port}, protocol: tcp, confirm: false}}");
    let graylog = Graylog::new(&settings(&own), 0).expect("good settings");
    let load = load(
        "web",
        &[&[r#"{"message":"a"}"#, r#"{"message":"b"}"#]],
        None,
    );
    assert_eq!(graylog.attempt(&load).await, Verdict::All(Fate::Delivered));
    let (mut socket, _) = listener.accept().await.expect("a connection");
    drop(graylog);
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.expect("all of it");
    let messages: Vec<&[u8]> = all.split_inclusive(|b| *b == 0).collect();
    assert_eq!(messages.len(), 2);
    for message in messages {
        serde_json::from_slice::<serde_json::Value>(&message[..message.len() - 1]).expect("JSON");
    }
}

#[test]
fn every_wrong_key_is_told_with_its_cure() {
    let mut shown = String::new();
    for own in [
        "{port: 12201}",
        "{host: 'a:1:2/', protocol: tcp, compression: gzip}",
        "{host: g, tls: {}, chunk_bytes: 64KiB}",
        "{host: g, protocol: http}",
        "{host: g, confirm: true}",
    ] {
        let problems = Graylog::new(&settings(own), 0).expect_err("wrong settings");
        shown.extend(problems.iter().map(|problem| format!("{problem}\n")));
    }
    insta::assert_snapshot!(shown);
}
