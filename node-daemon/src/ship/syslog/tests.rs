use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::ship::Fate;
use crate::ship::load::tests::load;

fn settings(own: &str) -> OutputSettings {
    let own = serde_yaml_ng::from_str(own).expect("the test's own YAML");
    OutputSettings::of("syslog", own)
}

fn lines(own: &str) -> Lines {
    let own = settings(&format!("{{host: s, {own}}}"));
    Syslog::new(&own, 0).expect("good settings").lines
}

const RECORDS: [&str; 4] = [
    r#"{"@timestamp":"2026-03-01T10:00:00.123456789+01:00","message":"GET /","host":"n 1","status":200}"#,
    r#"{"message":"first\r\nsecond","k8s_node_name":"n2"}"#,
    r#"{"status":1}"#,
    "no record at all",
];

#[test]
fn a_record_becomes_a_message_of_either_rfc() {
    let mut shown = String::new();
    for own in [
        "tag: 'app {target}', facility: local3, severity: warning",
        "format: rfc3164, facility: '4', severity: ERROR",
        "codec: json",
        "framing: newline",
    ] {
        let lines = lines(own);
        for record in RECORDS {
            let mut out = Vec::new();
            lines.frame("web", record.as_bytes(), &mut out);
            shown.push_str(&String::from_utf8_lossy(&out).escape_debug().to_string());
            shown.push('\n');
        }
        shown.push('\n');
    }
    insta::assert_snapshot!(shown);
}

proptest! {
    #[test]
    fn framed_by_line_ends_a_message_is_one_line_and_its_header_is_clean(
        message in ".{0,40}",
        control in prop::collection::vec(any::<char>(), 0..10),
        host in ".{0,300}",
        tag in ".{0,60}",
        old in any::<bool>(),
        json in any::<bool>(),
        raw in any::<Vec<u8>>(),
    ) {
        let lines = Lines {
            format: if old { Format::Rfc3164 } else { Format::Rfc5424 },
            framing: Framing::Newline,
            content: if json { Content::Json } else { Content::Raw },
            priority: 14,
            tag,
        };
        let message: String = message.chars().chain(control).chain("\n\0".chars()).collect();
        let record = serde_json::json!({"message": message, "host": host}).to_string();
        for record in [record.as_bytes(), &raw] {
            let mut out = Vec::new();
            lines.frame("t", record, &mut out);
            prop_assert_eq!(out.pop(), Some(b'\n'));
            prop_assert!(!out.iter().any(|b| matches!(b, b'\n' | b'\r' | 0)));
            let words = if old { 6 } else { 7 };
            let mut rest = out.as_slice();
            for n in 0..words {
                let end = rest.iter().position(|b| *b == b' ').expect("a word");
                // The day of an old date is filled up by a space.
                prop_assert!(end > 0 || old && n == 1);
                prop_assert!(rest[..end].iter().all(|b| (b'!'..=b'~').contains(b)));
                prop_assert!(end <= 255);
                rest = &rest[end + 1..];
            }
        }
    }

    #[test]
    fn framed_by_length_messages_are_found_again(texts in prop::collection::vec(any::<Vec<u8>>(), 1..5)) {
        let lines = lines("protocol: tcp");
        let mut out = Vec::new();
        for text in &texts {
            lines.frame("t", text, &mut out);
        }
        let mut rest = out.as_slice();
        for text in &texts {
            let space = rest.iter().position(|b| *b == b' ').expect("a length");
            let length: usize = String::from_utf8_lossy(&rest[..space]).parse().expect("a number");
            let message = &rest[space + 1..][..length];
            prop_assert!(message.starts_with(b"<14>1 "));
            let whole = text.strip_suffix(b"\n").unwrap_or(text);
            prop_assert!(message.ends_with(whole) || serde_json::from_slice::<serde_json::Value>(whole).is_ok());
            rest = &rest[space + 1 + length..];
        }
        prop_assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn by_udp_each_record_is_a_datagram_and_one_that_does_not_fit_is_refused() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let port = server.local_addr().expect("its address").port();
    let own = format!("{{host: 127.0.0.1, port: {port}}}");
    let syslog = Syslog::new(&settings(&own), 0).expect("good settings");
    let large = serde_json::json!({"message": "x".repeat(66_000)}).to_string();
    let texts = [r#"{"message":"a\nb"}"#, &large, r#"{"message":"c"}"#];
    let Verdict::Each(fates) = syslog.attempt(&load("web", &[&texts], None)).await else {
        panic!("one does not fit");
    };
    assert_eq!((&fates[0], &fates[2]), (&Fate::Delivered, &Fate::Delivered));
    assert!(matches!(&fates[1], Fate::Refused { reason, .. } if &**reason == "too_large"));
    let mut buffer = [0; 100];
    for expected in ["<14>1 - - web - - - a\nb", "<14>1 - - web - - - c"] {
        let n = server.recv(&mut buffer).await.expect("a datagram");
        assert_eq!(String::from_utf8_lossy(&buffer[..n]), expected);
    }
}

#[tokio::test]
async fn a_stream_that_its_server_has_closed_delivers_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let own = format!(
        "{{host: 127.0.0.1, port: {port}, protocol: tcp, framing: newline, confirm: false}}"
    );
    let syslog = Syslog::new(&settings(&own), 0).expect("good settings");
    let load = load("web", &[&[r#"{"message":"a"}"#]], None);
    assert_eq!(syslog.attempt(&load).await, Verdict::All(Fate::Delivered));
    let (mut socket, _) = listener.accept().await.expect("a connection");
    let mut line = [0; 24];
    socket.read_exact(&mut line[..22]).await.expect("a line");
    assert_eq!(&line[..22], b"<14>1 - - web - - - a\n");
    drop((socket, listener));
    // It is known at once, or with the first answer to what was written.
    while let Verdict::All(Fate::Delivered) = syslog.attempt(&load).await {
        tokio::task::yield_now().await;
    }
    let Verdict::Failed { cause } = syslog.attempt(&load).await else {
        panic!("nobody listens");
    };
    assert!(cause.contains("cannot be reached"), "{cause}");
}

#[tokio::test]
async fn a_load_of_a_stream_is_delivered_when_its_server_has_read_to_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let own = format!("{{host: 127.0.0.1, port: {port}, protocol: tcp}}");
    let syslog = Syslog::new(&settings(&own), 0).expect("good settings");
    let message = format!("{{\"message\":\"{}\"}}", "x".repeat(10_000));
    let load = load("web", &[&[message.as_str(); 20]], None);
    for whole in [true, false] {
        let (verdict, ()) = tokio::join!(syslog.attempt(&load), async {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            if whole {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.expect("all of it");
                assert!(all.len() > 200_000);
            } else {
                // Dies with the rest unread.
                socket.read_exact(&mut [0; 100]).await.expect("some of it");
            }
        });
        match verdict {
            Verdict::All(Fate::Delivered) => assert!(whole),
            Verdict::Failed { .. } => assert!(!whole),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_wrong_key_is_told_with_its_cure() {
    let mut shown = String::new();
    for own in [
        "{port: 514}",
        "{host: '', facility: lokal0, severity: bad}",
        "{host: s, protocol: udp, tls: {ca: /nonexistent}}",
        "{host: s, format: rfc1}",
        "{host: s, confirm: true}",
    ] {
        let problems = Syslog::new(&settings(own), 0).expect_err("wrong settings");
        shown.extend(problems.iter().map(|problem| format!("{problem}\n")));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn what_log_pilots_variables_set_is_honoured() {
    let variables = [
        ("LOGGING_OUTPUT", "syslog"),
        ("SYSLOG_HOST", "s"),
        ("SYSLOG_PORT", "5140"),
        ("SYSLOG_FACILITY", "local7"),
        ("SYSLOG_SEVERITY", "debug"),
        ("SYSLOG_TAG", "pilot"),
    ];
    let env = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let all = crate::settings::Settings::from_environment(&env).expect("good variables");
    let syslog = Syslog::new(&all.outputs[0], 0).expect("good settings");
    let mut out = Vec::new();
    syslog.lines.line("web", b"{\"message\":\"m\"}", &mut out);
    assert_eq!(String::from_utf8_lossy(&out), "<191>1 - - pilot - - - m");
}
