//! Servers that answer as a test says, and loads to send them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;

use super::{Answer, Exchange, Failure, Request};
use crate::batch::{Batch, Chunk, Hold, Mark};
use crate::ship::Load;

type Script = Box<dyn Fn(&Request) -> Result<Answer, Failure> + Send + Sync>;

/// Answers each request by a function, and keeps what was asked.
pub(crate) struct Scripted {
    script: Script,
    asked: Mutex<Vec<(Request, Vec<u8>)>>,
}

impl Scripted {
    /// Answers by this function.
    pub(crate) fn new(
        script: impl Fn(&Request) -> Result<Answer, Failure> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            script: Box::new(script),
            asked: Mutex::default(),
        })
    }

    /// Every request so far, with its body.
    pub(crate) fn asked(&self) -> Vec<(Request, Vec<u8>)> {
        self.asked.lock().clone()
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Exchange for Scripted {
    fn exchange(
        &self,
        request: Request,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send + '_>> {
        let body = request.body.pieces().flatten().collect();
        let answer = (self.script)(&request);
        self.asked.lock().push((request, body));
        Box::pin(async move { answer })
    }
}

/// An answer.
pub(crate) fn says(status: u16, body: &str) -> Result<Answer, Failure> {
    Ok(Answer {
        status,
        body: body.to_owned().into(),
    })
}

/// A load of these encoded records, in chunks of at most three, of 2026-11-24.
pub(crate) fn load(target: &str, records: &[impl AsRef<[u8]>]) -> Load {
    let budget = Arc::new(AtomicUsize::new(0));
    let chunks: Vec<Arc<Chunk>> = records
        .chunks(3)
        .zip(1..)
        .map(|(records, source_hash)| {
            let mut bytes = Vec::new();
            let mut marks = Vec::new();
            for (n, record) in records.iter().enumerate() {
                bytes.extend_from_slice(record.as_ref());
                marks.push(Mark {
                    encoded_end: u32::try_from(bytes.len()).expect("short"),
                    source_bytes: 10,
                    lines: 1,
                    start: n as u64 * 10,
                });
            }
            Arc::new(Chunk {
                total: crate::ledger::Tally::default(),
                hold: Hold::new(&budget, bytes.len()),
                bytes: bytes.into(),
                records: marks,
                day: 20_781,
                source_hash,
                generation: 0,
            })
        })
        .collect();
    Load {
        batch: Arc::new(Batch {
            id: 1,
            target: target.into(),
            day: 20_781,
            records: records.len(),
            bytes: chunks.iter().map(|chunk| chunk.bytes.len()).sum(),
            spans: Vec::new(),
            chunks,
        }),
        records: None,
        after: Arc::new([]),
    }
}
