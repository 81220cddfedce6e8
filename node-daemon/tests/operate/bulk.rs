//! A server that speaks as much of Elasticsearch's bulk API as is needed to refuse records and logins.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What it holds: documents by id, and how it behaves.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) documents: BTreeMap<String, String>,
    /// Records that hold this are refused.
    pub(crate) refuses: Option<String>,
    /// Only this `Authorization` is let in.
    pub(crate) login: Option<String>,
}

/// Listens on loopback for as long as the test runs.
pub(crate) struct Bulk {
    pub(crate) address: String,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Bulk {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || drop(serve(&stream, &shared)));
            }
        });
        Self { address, state }
    }

    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        what(&mut self.state.lock().expect("nobody panics"))
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut login, mut chunked) = (0, None, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap_or(0),
                "transfer-encoding" => chunked = true,
                "authorization" => login = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        while chunked {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece)?;
            body.extend_from_slice(&piece[..size]);
            chunked = size > 0;
        }
        let (status, answer) = answer(&body, login, &mut state.lock().expect("nobody panics"));
        write!(
            &*stream,
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
    }
}

fn answer(body: &[u8], login: Option<String>, state: &mut State) -> (u16, String) {
    if state.login.is_some() && state.login != login {
        let reason = r#"{"error":{"type":"security_exception","reason":"unable to authenticate user"},"status":401}"#;
        return (401, reason.to_owned());
    }
    if body.is_empty() {
        let reason = r#"{"error":{"type":"parse_exception","reason":"request body is required"},"status":400}"#;
        return (400, reason.to_owned());
    }
    let text = String::from_utf8_lossy(body);
    let mut lines = text.lines();
    let mut items = Vec::new();
    while let (Some(action), Some(record)) = (lines.next(), lines.next()) {
        let action: serde_json::Value = serde_json::from_str(action).expect("an action");
        let id = action["create"]["_id"].as_str().expect("an id").to_owned();
        let item = if state
            .refuses
            .as_ref()
            .is_some_and(|word| record.contains(word))
        {
            serde_json::json!({"create": {"_id": id, "status": 400,
                "error": {"type": "mapper_parsing_exception", "reason": "failed to parse field [n]"}}})
        } else if state.documents.contains_key(&id) {
            serde_json::json!({"create": {"_id": id, "status": 409,
                "error": {"type": "version_conflict_engine_exception", "reason": "document already exists"}}})
        } else {
            state.documents.insert(id.clone(), record.to_owned());
            serde_json::json!({"create": {"_id": id, "status": 201}})
        };
        items.push(item);
    }
    (
        200,
        serde_json::json!({"errors": true, "items": items}).to_string(),
    )
}
