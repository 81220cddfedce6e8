//! Ship batches and learn the fate of each record.
//! Place: batch -> **ship** -> ack.
//! Invariants: an output is a codec (batch -> request, response -> fates) plus a transport, and only the transport
//! is replaced in tests; a record's fate is the server's own word on it; no output knows another.

pub mod aliyun_sls;
mod connect;
pub mod connection;
pub mod console;
pub mod dead_letter;
pub mod elasticsearch;
mod fields;
pub mod file;
pub mod graylog;
pub mod http;
pub mod kafka;
mod load;
pub mod logstash;
pub mod null;
mod pool;
pub mod redis;
pub mod retry;
pub mod syslog;
pub mod transport;
mod unacknowledged;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use connect::{codec_of, connect, is_dated};

use crate::batch::Batch;
use crate::checkpoint::{FlowKey, SavedFlow};

/// What became of one record in one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The server has it.
    Delivered,
    /// The server had it already, by our own id.
    Duplicate,
    /// The record itself is at fault and never will be taken: it becomes a dead letter.
    Refused {
        /// The class, a metric label such as `mapper_parsing_exception`.
        reason: Arc<str>,
        /// The server's words.
        detail: Arc<str>,
    },
    /// Not this record's fault: its target waits and it is sent again.
    Again {
        /// Why, in words an operator understands.
        cause: Arc<str>,
    },
}

/// The fates of one attempt's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every record fared alike.
    All(Fate),
    /// One fate per record of the load, in its order.
    Each(Vec<Fate>),
    /// The whole request failed on its way (connection, time out, 5xx, 401…): nothing is known of any record.
    Failed {
        /// Why, in words an operator understands.
        cause: Arc<str>,
    },
    /// The request was too large (413): send it in two.
    TooLarge,
}

/// What one attempt sends: a batch, or those of its records whose fate is still open.
#[derive(Debug, Clone)]
pub struct Load {
    /// The batch.
    pub batch: Arc<Batch>,
    /// Numbers of the records to send, ascending; all if `None`.
    pub records: Option<Arc<[u32]>>,
    /// Where the batch's flows stand once all of it is delivered; filled in for an output that `commits`.
    pub after: Arc<[(FlowKey, SavedFlow)]>,
}

impl Load {
    /// How many records are sent.
    pub fn len(&self) -> usize {
        self.records
            .as_ref()
            .map_or(self.batch.records, |some| some.len())
    }
    /// Whether nothing is sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What an output promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// A replay makes no second copy.
    EffectivelyOnce,
    /// Acknowledged by the server; a replay after a crash may repeat records.
    AtLeastOnce,
    /// The protocol acknowledges nothing: what the kernel took counts as delivered.
    NotAcknowledged,
}

/// A place that takes batches.
pub trait Output: Send + Sync + std::fmt::Debug {
    /// What it promises.
    fn guarantee(&self) -> Guarantee;
    /// Whether a flow's batches must be sent one after the other.
    fn ordered(&self) -> bool;
    /// Whether it writes the cursors down itself, together with the records (`Load::after`).
    fn commits(&self) -> bool {
        false
    }
    /// The most bytes a batch should have, if there is such a bound beside `batch_bytes`.
    fn largest_batch(&self) -> Option<u64> {
        None
    }
    /// Makes what it has written durable and notes so in its journal; called within a second of a write, before
    /// cursors are saved. Blocking.
    ///
    /// # Errors
    /// As the disk gives them.
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
    /// Tries once to deliver a load. Never retries by itself: `retry` decides when again.
    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;
    /// Tries the connection without sending a record, for `check --connect`; the cause on failure.
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}
