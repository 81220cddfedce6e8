//! The way of messages whose protocol acknowledges nothing: datagrams, or a stream.
//! Place: graylog, syslog -> **unacknowledged** -> the server.
//! Invariants: what the kernel took counts as delivered, and nothing else does; of a stream that breaks, the whole load is
//! sent again, for nobody knows what of it was read.
//!
//! With `confirm` (the default) a load has a stream of its own, which we end and the server then closes. One that read to
//! the end sends an end, one that died before sends a reset: so it is known that the server has read all, though not what
//! it did with it. Without, all that lies in the buffers of both kernels is lost with the server: some MB.

use std::io::ErrorKind;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::connection::{Address, Connection, Way, datagrams};
use super::load::{Records, arrived};
use super::pool::Pool;
use super::{Fate, Load, Verdict};

/// Bytes of messages that are written at once.
const PIECE_BYTES: usize = 64 << 10;
/// Datagrams that are sent before other tasks of the thread get their turn.
const AT_A_STRETCH: usize = 64;

/// How messages travel.
#[derive(Debug)]
pub(super) enum Carrier {
    /// One message, or a part of one, per datagram.
    Datagrams {
        to: Address,
        /// How long resolving the name may take.
        way: Way,
        socket: Mutex<Option<Arc<UdpSocket>>>,
    },
    /// One after the other.
    Stream {
        pool: Pool,
        /// Whether the server has to close each load's stream.
        confirm: bool,
    },
}

/// Makes messages of records.
pub(super) trait Encode: Sync {
    /// Appends a record's message, framed as a stream wants it.
    fn frame(&self, target: &str, record: &[u8], out: &mut Vec<u8>);
    /// Replaces `out` by a record's datagrams; `ends` is where each ends. `Err` is why they cannot be: its reason, a
    /// label, and in words.
    ///
    /// # Errors
    /// The record is too large.
    fn datagrams(
        &self,
        target: &str,
        record: &[u8],
        out: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) -> Result<(), (&'static str, String)>;
}

impl Carrier {
    pub(super) fn datagrams(to: Address, way: Way) -> Self {
        Self::Datagrams {
            to,
            way,
            socket: Mutex::default(),
        }
    }

    pub(super) fn stream(to: Address, way: Way, confirm: bool) -> Self {
        Self::Stream {
            pool: Pool::new(vec![to], way, false),
            confirm,
        }
    }

    /// Sends a load, once.
    pub(super) async fn send(&self, load: &Load, encode: &impl Encode) -> Verdict {
        if load.is_empty() {
            return Verdict::All(Fate::Delivered);
        }
        match self {
            Self::Datagrams { to, .. } => match self.socket().await {
                Ok(socket) => self.send_datagrams(to, &socket, load, encode).await,
                Err(cause) => failed(cause),
            },
            Self::Stream { pool, confirm } => write_stream(pool, *confirm, load, encode).await,
        }
    }

    /// Whether the server can be reached, as far as that can be told.
    pub(super) async fn ask(&self) -> Result<(), String> {
        match self {
            Self::Datagrams { .. } => self.socket().await.map(drop),
            Self::Stream { pool, .. } => {
                let taken = pool.take().await?;
                pool.give_back(taken);
                Ok(())
            }
        }
    }

    async fn socket(&self) -> Result<Arc<UdpSocket>, String> {
        let Self::Datagrams { to, way, socket } = self else {
            return Err("it is a stream".to_owned());
        };
        if let Some(socket) = &*socket.lock() {
            return Ok(Arc::clone(socket));
        }
        let made = timeout(way.timeout, datagrams(to)).await.map_err(|_| {
            let seconds = way.timeout.as_secs_f64();
            format!("{to} cannot be reached: its name was not resolved within {seconds} s")
        })?;
        let made = Arc::new(made?);
        *socket.lock() = Some(Arc::clone(&made));
        Ok(made)
    }

    async fn send_datagrams(
        &self,
        to: &Address,
        socket: &UdpSocket,
        load: &Load,
        encode: &impl Encode,
    ) -> Verdict {
        let (mut out, mut ends) = (Vec::new(), Vec::new());
        let mut refused = Vec::new();
        let mut sent = 0;
        for (n, (_, record)) in load.iter().enumerate() {
            if let Err((reason, detail)) =
                encode.datagrams(&load.batch.target, record, &mut out, &mut ends)
            {
                let (reason, detail) = (reason.into(), detail.into());
                refused.push((n, Fate::Refused { reason, detail }));
                continue;
            }
            let mut start = 0;
            for end in &ends {
                if let Err(error) = socket.send(&out[start..*end]).await {
                    // Its name may mean another server by now.
                    self.forget();
                    let cause: Arc<str> = format!("{to} cannot be reached: {error}").into();
                    return with_refused(arrived(n, load.len(), &cause), refused, load.len());
                }
                start = *end;
                sent += 1;
                if sent % AT_A_STRETCH == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        with_refused(Verdict::All(Fate::Delivered), refused, load.len())
    }

    fn forget(&self) {
        if let Self::Datagrams { socket, .. } = self {
            *socket.lock() = None;
        }
    }
}

async fn write_stream(pool: &Pool, confirm: bool, load: &Load, encode: &impl Encode) -> Verdict {
    let mut taken = match pool.take().await {
        Ok(taken) => taken,
        Err(cause) => return failed(cause),
    };
    let limit = pool.way().timeout;
    let seconds = limit.as_secs_f64();
    let stream = &mut taken.connection;
    let (mut records, mut out) = (load.iter(), Vec::with_capacity(PIECE_BYTES));
    let mut broken = None;
    while broken.is_none() && fill(&load.batch.target, &mut records, encode, &mut out) > 0 {
        let write = async {
            stream.write_all(&out).await?;
            stream.flush().await
        };
        broken = match timeout(limit, write).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("the connection was lost: {error}")),
            Err(_) => Some(format!("it took no more for {seconds} s")),
        };
    }
    if broken.is_none() && confirm {
        broken = match timeout(limit, end(stream)).await {
            Ok(Ok(())) => return Verdict::All(Fate::Delivered),
            Ok(Err(error)) => Some(format!("it did not read to the end: {error}")),
            Err(_) => Some(format!(
                "it did not close the connection within {seconds} s; do: if it never does, write `confirm: false`"
            )),
        };
    }
    if broken.is_none() && !taken.connection.is_idle() {
        broken = Some("it closed the connection".to_owned());
    }
    match broken {
        Some(why) => failed(format!("{}: {why}", pool.server(&taken))),
        None => {
            pool.give_back(taken);
            Verdict::All(Fate::Delivered)
        }
    }
}

/// Ends a stream, and waits until the server does.
async fn end(stream: &mut Connection) -> std::io::Result<()> {
    stream.shutdown().await?;
    let mut ignored = [0_u8; 1_024];
    loop {
        match stream.read(&mut ignored).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The end of TCP without one of TLS: many servers have it so.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Frames of the next records, of about [`PIECE_BYTES`], and how many.
fn fill(target: &str, records: &mut Records<'_>, encode: &impl Encode, out: &mut Vec<u8>) -> usize {
    out.clear();
    let mut count = 0;
    while out.len() < PIECE_BYTES
        && let Some((_, record)) = records.next()
    {
        encode.frame(target, record, out);
        count += 1;
    }
    count
}

fn failed(cause: String) -> Verdict {
    Verdict::Failed {
        cause: cause.into(),
    }
}

/// A verdict, with the fates of some records put in.
fn with_refused(verdict: Verdict, refused: Vec<(usize, Fate)>, of: usize) -> Verdict {
    if refused.is_empty() {
        return verdict;
    }
    let mut fates = match verdict {
        Verdict::Each(fates) => fates,
        Verdict::All(fate) => vec![fate; of],
        Verdict::Failed { cause } => vec![Fate::Again { cause }; of],
        Verdict::TooLarge => return Verdict::TooLarge,
    };
    for (n, fate) in refused {
        if let Some(place) = fates.get_mut(n) {
            *place = fate;
        }
    }
    Verdict::Each(fates)
}
