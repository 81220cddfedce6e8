use super::*;
use crate::load::Load;

/// A receiver within this process, and one connection to it.
fn connect() -> io::Result<TcpStream> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    std::thread::spawn(move || serve(&listener, Received::default()));
    Ok(stream)
}

/// Sends a request and reads its answer.
fn ask(stream: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<(String, serde_json::Value)> {
    write!(stream, "{head}\r\n\r\n")?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    let (mut byte, end) = ([0], b"\r\n\r\n");
    while !answer.ends_with(end) {
        stream.read_exact(&mut byte)?;
        answer.extend_from_slice(&byte);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let length = answer
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((answer, serde_json::from_slice(&body)?))
}

fn bulk(lines: &[u64]) -> Vec<u8> {
    let load = Load::new(1, 3, 80);
    let mut body = Vec::new();
    for sequence in lines {
        body.extend_from_slice(b"{\"create\":{\"_id\":\"x\",\"_index\":\"web\"}}\n{\"message\":\"");
        load.line(&mut body, *sequence);
        body.pop();
        body.extend_from_slice(b"\"}\n");
    }
    body
}

fn post(stream: &mut TcpStream, target: &str, body: &[u8]) -> io::Result<serde_json::Value> {
    let head = format!("POST {target} HTTP/1.1\r\nContent-Length: {}", body.len());
    Ok(ask(stream, &head, body)?.1)
}

#[test]
fn every_item_is_answered_and_what_is_missing_or_came_twice_is_known() -> io::Result<()> {
    let mut stream = connect()?;
    let answer = post(&mut stream, "/_bulk", &bulk(&[0, 1, 2]))?;
    assert_eq!(answer["errors"], false);
    assert_eq!(answer["items"].as_array().map(Vec::len), Some(3));
    assert_eq!(answer["items"][2]["create"]["status"], 201);
    assert_eq!(answer["items"][2]["create"]["_index"], "web");
    post(&mut stream, "/_bulk", &bulk(&[2, 9]))?;
    post(
        &mut stream,
        "/lines",
        b"{\"message\":\"not a line of a load\"}\n\n{}\n",
    )?;
    let (_, tally) = ask(&mut stream, "GET /tally HTTP/1.1", b"")?;
    let tally: Tally = serde_json::from_value(tally)?;
    assert_eq!((tally.requests, tally.records), (3, 7));
    assert_eq!((tally.distinct, tally.repeated, tally.missing), (4, 1, 6));
    Ok(())
}

#[test]
fn the_answer_holds_what_the_filter_asks_for() -> io::Result<()> {
    let mut stream = connect()?;
    let mut filtered = |filter: &str| {
        let target = format!("/web/_bulk?timeout=1m&filter_path={filter}");
        post(&mut stream, &target, &bulk(&[1, 2])).map(|answer| answer.to_string())
    };
    let statuses =
        r#"{"errors":false,"items":[{"create":{"status":201}},{"create":{"status":201}}]}"#;
    for (filter, want) in [
        ("errors,items.*.status", statuses),
        ("errors%2Citems.%2A.status", statuses),
        ("errors,items.*.error", r#"{"errors":false}"#),
        ("errors,**.stat*", statuses),
        ("took", r#"{"took":1}"#),
        ("nothing", "{}"),
        (
            "items.create,-items.*._*,-**.result",
            r#"{"items":[{"create":{"status":201}},{"create":{"status":201}}]}"#,
        ),
    ] {
        assert_eq!(filtered(filter)?, want, "{filter}");
    }
    Ok(())
}

#[test]
fn a_body_may_come_in_chunks_and_its_client_may_ask_before_it_sends() -> io::Result<()> {
    let mut stream = connect()?;
    let body = bulk(&[0, 1]);
    let (one, two) = body.split_at(50);
    let mut chunks = format!("{:x};ext=1\r\n", one.len()).into_bytes();
    chunks.extend_from_slice(one);
    chunks.extend_from_slice(format!("\r\n{:X}\r\n", two.len()).as_bytes());
    chunks.extend_from_slice(two);
    chunks.extend_from_slice(b"\r\n0\r\ntrailer: x\r\n\r\n");
    let head = "POST /_bulk HTTP/1.1\r\nTransfer-Encoding: chunked";
    let (_, answer) = ask(&mut stream, head, &chunks)?;
    assert_eq!(answer["items"].as_array().map(Vec::len), Some(2));

    let head = format!(
        "PUT /_bulk HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}",
        body.len()
    );
    write!(stream, "{head}\r\n\r\n")?;
    let mut go = [0; 25];
    stream.read_exact(&mut go)?;
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&body)?;
    let (_, tally) = {
        // The bulk's answer, then the tally's.
        let (head, answer) = ask(&mut stream, "GET /tally HTTP/1.1", b"")?;
        assert_eq!(answer["items"].as_array().map(Vec::len), Some(2), "{head}");
        ask(&mut stream, "GET /tally HTTP/1.1", b"")?
    };
    assert_eq!(tally["records"], 4);
    Ok(())
}

#[test]
fn what_is_no_bulk_request_is_refused_and_not_counted() -> io::Result<()> {
    let mut stream = connect()?;
    for body in [
        &b"{\"message\":\"x\"}\n"[..],
        b"nonsense",
        b"{\"create\":{}}\n",
    ] {
        let head = format!("POST /_bulk HTTP/1.1\r\nContent-Length: {}", body.len());
        assert!(ask(&mut stream, &head, body)?.0.starts_with("HTTP/1.1 400"));
    }
    let head = "POST /_bulk HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 2";
    assert!(ask(&mut stream, head, b"xx")?.0.starts_with("HTTP/1.1 415"));
    let (head, who) = ask(&mut stream, "GET / HTTP/1.1", b"")?;
    assert!(head.contains("X-Elastic-Product: Elasticsearch"), "{head}");
    assert_eq!(who["tagline"], "You Know, for Search");
    let (_, tally) = ask(&mut stream, "GET /tally HTTP/1.1", b"")?;
    assert_eq!(serde_json::from_value::<Tally>(tally)?, Tally::default());
    Ok(())
}
