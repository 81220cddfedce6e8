//! A proxy before a real server that does to each bulk what a test says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of one request.
pub(crate) enum Act {
    /// The server is asked and its answer given back.
    Pass,
    /// The server is asked and does its work, and the connection ends before its answer.
    CutAfter,
    /// The connection ends before the server is asked.
    CutBefore,
    /// Of the records in it the server gets only those for which this is false; the others are answered with 429.
    RejectRecords(fn(usize) -> bool),
    /// The server is not asked.
    Answer(u16, &'static str),
}

/// A proxy that listens for as long as the runtime lives.
pub(crate) struct Proxy {
    pub(crate) url: String,
    requests: Arc<AtomicUsize>,
}

impl Proxy {
    /// Listens before the server at `port`; `script` is given the number of each request.
    pub(crate) async fn start(
        port: u16,
        script: impl Fn(usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let (script, count) = (Arc::new(script), Arc::clone(&requests));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, count, client) =
                    (Arc::clone(&script), Arc::clone(&count), client.clone());
                tokio::spawn(async move {
                    let mut stream = stream;
                    while let Some((path, body)) = read_request(&mut stream).await {
                        let act = script(count.fetch_add(1, Ordering::SeqCst));
                        let Some((status, body)) = answer(&client, server, &path, body, act).await
                        else {
                            return;
                        };
                        let head = format!(
                            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                            body.len()
                        );
                        stream.write_all(head.as_bytes()).await.unwrap();
                        stream.write_all(&body).await.unwrap();
                    }
                });
            }
        });
        Self { url, requests }
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Path and body of the next request of a connection.
async fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let head = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
    let length = text.split("content-length:").nth(1)?.lines().next()?;
    let length: usize = length.trim().parse().ok()?;
    let path = String::from_utf8_lossy(&read[..head]);
    let path = path.split(' ').nth(1)?.to_owned();
    while read.len() < head + length {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    Some((path, read.split_off(head)))
}

/// Status and body to give back; `None` to end the connection.
async fn answer(
    client: &reqwest::Client,
    server: SocketAddr,
    path: &str,
    body: Vec<u8>,
    act: Act,
) -> Option<(u16, Vec<u8>)> {
    let ask = async |body: Vec<u8>| {
        let answer = client
            .post(format!("http://{server}{path}"))
            .header("content-type", "application/x-ndjson")
            .body(body)
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        (status, answer.bytes().await.unwrap().to_vec())
    };
    match act {
        Act::Pass => Some(ask(body).await),
        Act::CutAfter => {
            let (status, _) = ask(body).await;
            assert_eq!(status, 200);
            None
        }
        Act::CutBefore => None,
        Act::Answer(status, text) => Some((status, text.as_bytes().to_vec())),
        Act::RejectRecords(reject) => {
            let lines: Vec<&[u8]> = body.split_inclusive(|byte| *byte == b'\n').collect();
            let pairs: Vec<&[&[u8]]> = lines.chunks(2).collect();
            let kept = pairs.iter().enumerate().filter(|(n, _)| !reject(*n));
            let kept: Vec<u8> = kept.flat_map(|(_, pair)| pair.concat()).collect();
            let mut items = Vec::new();
            if !kept.is_empty() {
                let (status, body) = ask(kept).await;
                assert_eq!(status, 200);
                let mut answer: Value = serde_json::from_slice(&body).unwrap();
                items = answer["items"].as_array_mut().unwrap().split_off(0);
            }
            let mut items = items.into_iter();
            let rejected = json!({"create": {"status": 429, "error": {
                "type": "es_rejected_execution_exception",
                "reason": "rejected execution of coordinating operation",
            }}});
            let items: Vec<Value> = (0..pairs.len())
                .map(|n| {
                    if reject(n) {
                        rejected.clone()
                    } else {
                        items.next().unwrap()
                    }
                })
                .collect();
            Some((
                200,
                json!({"errors": true, "items": items})
                    .to_string()
                    .into_bytes(),
            ))
        }
    }
}
