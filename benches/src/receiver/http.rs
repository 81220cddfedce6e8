//! As much of HTTP/1.1 as a log agent speaks: requests with a length or in chunks, one after the other.
//! Source: RFC 9112.

use std::io::{self, Read, Write};

use memchr::memmem;

/// Longest head and longest body; beyond, the connection ends.
const HEAD_BYTES: usize = 64 * 1024;
const BODY_BYTES: usize = 256 * 1024 * 1024;

/// One request, used again for the next.
#[derive(Debug, Default)]
pub(super) struct Request {
    method: String,
    target: String,
    /// The body, unwrapped.
    pub(super) body: Vec<u8>,
    /// Its body is compressed.
    pub(super) encoded: bool,
}

impl Request {
    /// The path without query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or("")
    }

    /// What stands behind `?`.
    pub(super) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    pub(super) fn is_post(&self) -> bool {
        matches!(self.method.as_str(), "POST" | "PUT") && !self.body.is_empty()
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

/// The body of an answer that has been read to its end.
pub(crate) fn body(answer: &[u8]) -> Option<&[u8]> {
    answer.get(memmem::find(answer, b"\r\n\r\n")? + 4..)
}

/// Reads requests.
#[derive(Debug)]
pub(super) struct Reader<R> {
    from: R,
    /// Read and not yet used: `buffer[start..]`.
    buffer: Vec<u8>,
    start: usize,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Reads the next request; `false` if there is none. `to` gets the word to go on where a client waits for it.
    pub(super) fn next(&mut self, to: &mut impl Write, request: &mut Request) -> io::Result<bool> {
        let Some(head) = self.until(b"\r\n\r\n", HEAD_BYTES)? else {
            return Ok(false);
        };
        let head = String::from_utf8(head).map_err(|_| bad("the head is no text"))?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or("").split(' ');
        request.method = words.next().unwrap_or("").to_owned();
        request.target = words.next().unwrap_or("").to_owned();
        request.encoded = false;
        request.body.clear();
        let (mut length, mut chunked, mut waits) = (0_usize, false, false);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().map_err(|_| bad("no length"))?,
                "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
                "content-encoding" => request.encoded = !value.eq_ignore_ascii_case("identity"),
                "expect" => waits = value.eq_ignore_ascii_case("100-continue"),
                _ => {}
            }
        }
        if waits {
            to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if !chunked {
            self.take(length, &mut request.body)?;
            return Ok(true);
        }
        loop {
            let size = self.line()?;
            let size = size.split(|byte| *byte == b';').next().unwrap_or_default();
            let size = std::str::from_utf8(size).unwrap_or("").trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| bad("no chunk"))?;
            if size == 0 {
                // Trailers, up to an empty line.
                while !self.line()?.is_empty() {}
                return Ok(true);
            }
            self.take(size, &mut request.body)?;
            self.line()?;
        }
    }

    /// Takes what stands before `mark`, and the mark itself; `None` at the connection's end.
    fn until(&mut self, mark: &[u8], most: usize) -> io::Result<Option<Vec<u8>>> {
        loop {
            let waiting = self.buffer.get(self.start..).unwrap_or_default();
            if let Some(at) = memmem::find(waiting, mark) {
                let taken = waiting[..at].to_vec();
                self.start += at + mark.len();
                return Ok(Some(taken));
            }
            if waiting.len() > most {
                return Err(bad("the head is too long"));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let before = self.buffer.len();
            self.buffer.resize(before + 16 * 1024, 0);
            let read = self.from.read(&mut self.buffer[before..])?;
            self.buffer.truncate(before + read);
            match (read, before) {
                (0, 0) => return Ok(None),
                (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        self.until(b"\r\n", HEAD_BYTES)?
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Appends `length` bytes to `body`.
    fn take(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let before = body.len();
        if length > BODY_BYTES.saturating_sub(before) {
            return Err(bad("the body is too long"));
        }
        let waiting = self.buffer.get(self.start..).unwrap_or_default();
        let ready = length.min(waiting.len());
        body.extend_from_slice(&waiting[..ready]);
        self.start += ready;
        body.resize(before + length, 0);
        self.from.read_exact(&mut body[before + ready..])
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
