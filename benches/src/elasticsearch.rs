//! Reads back what an Elasticsearch or OpenSearch holds, whole, so that the count is the server's own.
//! Source: Elasticsearch 7 to 9 and OpenSearch 2, "Refresh", "Search" with `scroll`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::receiver::body;

/// Documents of one answer.
const PAGE: u32 = 10_000;

/// Calls with the `message` of every document of an index.
///
/// # Errors
/// When the server does not answer, or `each` says so.
pub(crate) fn each_message(
    url: &str,
    index: &str,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    ask(url, &format!("/{index}/_refresh"), &json!({}))?;
    let first = json!({ "size": PAGE, "sort": ["_doc"], "_source": ["message"] });
    let mut page = ask(url, &format!("/{index}/_search?scroll=2m"), &first)?;
    loop {
        let hits = page["hits"]["hits"].as_array().context("no hits")?;
        if hits.is_empty() {
            return Ok(());
        }
        for hit in hits {
            let text = hit["_source"]["message"].as_str().context("no message")?;
            each(text.as_bytes())?;
        }
        let next = json!({ "scroll": "2m", "scroll_id": page["_scroll_id"] });
        page = ask(url, "/_search/scroll", &next)?;
    }
}

fn ask(url: &str, path: &str, request: &Value) -> anyhow::Result<Value> {
    let host = url
        .strip_prefix("http://")
        .context("only http:// is read back")?;
    let mut stream = TcpStream::connect(host.trim_end_matches('/'))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let request = request.to_string();
    // By 1.0, so that the answer does not come in chunks.
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{request}",
        request.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let status = answer.get(9..12).unwrap_or_default();
    let body = body(&answer).context("the server's answer is no HTTP")?;
    ensure!(
        status == b"200",
        "{path}: {}",
        String::from_utf8_lossy(body)
    );
    Ok(serde_json::from_slice(body)?)
}
