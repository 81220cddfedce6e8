//! Plays a server that takes everything, and checks what it gets: an Elasticsearch's `_bulk`, or NDJSON at any path.
//! Place: a process of its own, so that what it costs is not counted; a thread per connection.
//! Invariants: every item is answered; each record is counted once, before its answer is sent. What is not HTTP ends
//! its connection and nothing else.

mod bulk;
mod http;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::load::{Numbers, Seen};
use http::Request;
pub(crate) use http::body;

/// Where the tally is read.
pub(crate) const TALLY: &str = "/tally";

/// Plays an Elasticsearch that takes everything, and checks what it gets.
///
/// It says `{"port":N}` when it listens on 127.0.0.1, and its tally at `GET /tally`.
#[derive(Debug, clap::Args)]
pub(crate) struct Receiver {
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Ends when stdin does, as that of a child
    #[arg(long)]
    with_stdin: bool,
}

/// What has been received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Requests that brought records.
    pub(crate) requests: u64,
    /// Records in them.
    pub(crate) records: u64,
    /// Bytes of their bodies.
    pub(crate) bytes: u64,
    /// Records that are lines of a load, each counted once.
    pub(crate) distinct: u64,
    /// Lines of a load that came again.
    pub(crate) repeated: u64,
    /// Lines of a load below the highest that have not come, of all sources.
    pub(crate) missing: u64,
}

/// Gets source and number of each line of a load that comes.
type Tell = Box<dyn FnMut(u16, u64) + Send>;

/// What all connections have received.
#[derive(Default)]
pub(crate) struct Received {
    tally: Tally,
    seen: BTreeMap<u16, Seen>,
    tell: Option<Tell>,
}

impl Received {
    /// Nothing yet; each line that comes is told.
    pub(crate) fn telling(tell: Tell) -> Self {
        Self {
            tell: Some(tell),
            ..Self::default()
        }
    }

    fn tally(&self) -> Tally {
        let sum = |of: &dyn Fn(&Seen) -> u64| self.seen.values().map(of).sum();
        Tally {
            distinct: sum(&|seen| seen.distinct),
            repeated: sum(&|seen| seen.repeated),
            missing: sum(&Seen::missing),
            ..self.tally
        }
    }
}

impl Receiver {
    /// Receives until stdin ends, if that is asked for, or for ever.
    ///
    /// # Errors
    /// When the port is taken.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port);
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let port = listener.local_addr()?.port();
        ringpilot::say::line(serde_json::json!({ "port": port }))?;
        if self.with_stdin {
            std::thread::spawn(move || serve(&listener, Received::default()));
            io::copy(&mut io::stdin().lock(), &mut io::sink())?;
        } else {
            serve(&listener, Received::default());
        }
        Ok(())
    }
}

/// Answers every connection, for ever.
pub(crate) fn serve(listener: &TcpListener, received: Received) {
    let received = Arc::new(Mutex::new(received));
    // A connection that failed before it was taken is its client's to make again.
    for stream in listener.incoming().flatten() {
        let received = Arc::clone(&received);
        // Its end, by whatever cause, is the client's to notice.
        std::thread::spawn(move || drop(converse(stream, &received)));
    }
}

/// Answers one connection's requests in turn.
fn converse(mut stream: TcpStream, received: &Mutex<Received>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = http::Reader::new(stream.try_clone()?);
    let (mut request, mut desk, mut answer) = (Request::default(), Desk::default(), Vec::new());
    while reader.next(&mut stream, &mut request)? {
        answer.clear();
        let status = desk.answer(&request, received, &mut answer)?;
        let length = answer.len();
        if request.is_head() {
            answer.clear();
        }
        // Elasticsearch's own clients talk to nothing that does not name itself so.
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             X-Elastic-Product: Elasticsearch\r\n\r\n"
        );
        answer.splice(0..0, head.into_bytes());
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// What answering takes, kept from request to request.
#[derive(Debug, Default)]
struct Desk {
    find: Numbers,
    /// Of one request's lines.
    numbers: Vec<(u16, u64)>,
    filters: bulk::Filters,
}

impl Desk {
    /// Takes a request and writes the body of its answer; its status.
    fn answer(
        &mut self,
        request: &Request,
        received: &Mutex<Received>,
        out: &mut Vec<u8>,
    ) -> io::Result<&'static str> {
        let path = request.path();
        if request.encoded {
            out.extend_from_slice(b"{\"error\":\"turn compression off\"}");
            return Ok("415 Unsupported Media Type");
        }
        if path == TALLY {
            let received = received.lock().unwrap_or_else(PoisonError::into_inner);
            serde_json::to_writer(out, &received.tally())?;
            return Ok("200 OK");
        }
        if !request.is_post() {
            out.extend_from_slice(match path {
                "/" => bulk::WHO,
                _ => b"{\"acknowledged\":true}",
            });
            return Ok("200 OK");
        }
        self.numbers.clear();
        let mut records = 0;
        let mut note = |record: &[u8]| {
            records += 1;
            self.numbers.extend(self.find.of(record));
        };
        if let Some(index) = path.strip_suffix("/_bulk") {
            let filter = self.filters.of(request.query());
            let index = index.trim_start_matches('/');
            if !bulk::answer(out, &request.body, filter, index, &mut note) {
                out.clear();
                out.extend_from_slice(b"{\"error\":\"this is no bulk request\",\"status\":400}");
                return Ok("400 Bad Request");
            }
        } else {
            bulk::lines(&request.body).for_each(&mut note);
            out.extend_from_slice(b"{\"acknowledged\":true}");
        }
        let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
        received.tally.requests += 1;
        received.tally.records += records;
        received.tally.bytes += request.body.len() as u64;
        for (source, sequence) in &self.numbers {
            if let Some(tell) = &mut received.tell {
                tell(*source, *sequence);
            }
            received.seen.entry(*source).or_default().note(*sequence);
        }
        Ok("200 OK")
    }
}

/// A receiver in a process of its own, which ends with this one.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// Held open for as long as it is to run.
    stdin: Option<ChildStdin>,
    /// Where it listens, on 127.0.0.1.
    pub(crate) port: u16,
}

impl Running {
    /// Starts this program again as a receiver.
    ///
    /// # Errors
    /// When it cannot be started, or does not say where it listens.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["receiver", "--with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the receiver")?;
        let stdin = child.stdin.take();
        let mut said = Vec::new();
        let mut byte = [0];
        let mut stdout = child.stdout.take().context("the receiver has no stdout")?;
        while stdout.read(&mut byte)? == 1 && byte != *b"\n" {
            said.extend_from_slice(&byte);
        }
        let said: serde_json::Value =
            serde_json::from_slice(&said).context("the receiver did not start")?;
        let port = said["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        Ok(Self {
            child,
            stdin,
            port: port.context("the receiver did not name its port")?,
        })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has received.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn tally(&self) -> anyhow::Result<Tally> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        let ask = format!("GET {TALLY} HTTP/1.1\r\nhost: l\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let body = http::body(&answer).context("the receiver's answer is no HTTP")?;
        Ok(serde_json::from_slice(body)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // It ends with its stdin; there is nobody left to tell of a failure.
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests;
