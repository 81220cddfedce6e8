//! One librdkafka producer with the thread that polls it, and the delivery reports that become fates.
//! Place: an attempt enqueues its records here and waits; the polling thread counts its reports down.
//! Invariants: every record that was enqueued gets exactly one report, a purged one included; a record costs no
//! allocation of ours, only its number in the message's opaque; a producer that is retired takes nothing more, lets
//! others finish while they move, then is purged; librdkafka's copies of all producers together stay within `Room`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Partitioner, Producer as _, ProducerContext,
    PurgeConfig,
};
use tokio::sync::Notify;

use super::words;

/// What librdkafka keeps beside a record's bytes, in bytes.
pub(super) const BESIDE_A_RECORD: usize = 300;

/// How long a retired producer waits for others' reports once none comes.
const QUIET: Duration = Duration::from_secs(1);
/// The longest it waits for them at all.
const LONGEST_GOODBYE: Duration = Duration::from_secs(5);
/// How often the polling thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);

/// The bytes that librdkafka may hold for an output: records, keys, and [`BESIDE_A_RECORD`] for each.
#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    held: AtomicUsize,
    /// Whoever waits is told once so little or less is held.
    wake_at: AtomicUsize,
    freed: Notify,
}

impl Room {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: AtomicUsize::new(0),
            wake_at: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }

    /// Counts `bytes`, if there is room for them; into an empty room anything fits. One caller at a time.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let held = self.held.load(Ordering::SeqCst);
        let fits = held == 0 || held.saturating_add(bytes) <= self.limit;
        if fits {
            self.held.fetch_add(bytes, Ordering::SeqCst);
        }
        fits
    }

    pub(super) fn give_back(&self, bytes: usize) {
        let held = self.held.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        if held <= self.wake_at.load(Ordering::SeqCst) {
            self.freed.notify_one();
        }
    }

    /// Waits until `bytes` fit, and a quarter of the room beside them is free: not once for each record.
    pub(super) async fn freed(&self, bytes: usize) {
        let wake_at = (self.limit / 4 * 3).min(self.limit.saturating_sub(bytes));
        self.wake_at.store(wake_at, Ordering::SeqCst);
        // A permit that a report left behind since only makes the caller look once more.
        if self.held.load(Ordering::SeqCst) > wake_at {
            self.freed.notified().await;
        }
        self.wake_at.store(0, Ordering::SeqCst);
    }

    /// What is held now, in bytes.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

/// What is known of a topic.
#[derive(Debug, Default)]
pub(super) struct Topic {
    /// The cluster has it and lets us write to it, as far as is known.
    pub(super) ready: AtomicBool,
    /// Counted up, now and then, as reports on its records come: whether anything moves.
    moved: AtomicU64,
}

/// Why one record was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its number in the load.
    pub(super) record: u32,
    pub(super) code: RDKafkaErrorCode,
    /// Said by librdkafka of this record alone, before it was enqueued.
    pub(super) local: bool,
}

/// An attempt's place in a producer.
#[derive(Debug, Default)]
struct Slot {
    /// Records without a report yet.
    left: AtomicU32,
    /// What was not delivered.
    faults: Mutex<Vec<Fault>>,
    topic: Mutex<Arc<Topic>>,
    done: Notify,
}

/// What a producer tells us, from its polling thread.
#[derive(Debug)]
pub(super) struct Reports {
    slots: Box<[Slot]>,
    room: Arc<Room>,
    /// All reports so far.
    count: AtomicU64,
    /// It takes nothing more: why.
    retired: Mutex<Option<Arc<str>>>,
    is_retired: AtomicBool,
    /// librdkafka has given it up.
    is_fatal: AtomicBool,
    /// Nobody waits for its reports: it is purged at once.
    hurry: AtomicBool,
    /// The last error that is not about a record, in librdkafka's words, and when.
    trouble: Mutex<Option<(Instant, Arc<str>)>>,
    /// A broker did not accept who we are since this was last asked.
    refused: AtomicBool,
    turns: Option<RoundRobin>,
}

impl Reports {
    fn retire(&self, why: &Arc<str>) {
        let mut retired = self.retired.lock();
        if retired.is_none() {
            *retired = Some(Arc::clone(why));
        }
        self.is_retired.store(true, Ordering::SeqCst);
    }

    fn open(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|slot| slot.left.load(Ordering::SeqCst) > 0)
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        let words: Arc<str> = reason.into();
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.is_fatal.store(true, Ordering::SeqCst),
            // Says only that the others were said of each broker.
            Some(RDKafkaErrorCode::AllBrokersDown) => return,
            Some(
                RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::SSL,
            ) => self.refused.store(true, Ordering::SeqCst),
            _ => {}
        }
        *self.trouble.lock() = Some((Instant::now(), words));
    }
}

impl ProducerContext<RoundRobin> for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (message, fault) = match result {
            Ok(message) => (message, None),
            Err((error, message)) => {
                let code = error.rdkafka_error_code();
                (message, Some(code.unwrap_or(RDKafkaErrorCode::Unknown)))
            }
        };
        self.room
            .give_back(message.payload_len() + message.key_len() + BESIDE_A_RECORD);
        self.count
            .store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let (slot, record) = unpack(opaque);
        if let Some(slot) = self.slots.get(slot) {
            slot.settle(fault.map(|code| Fault {
                record,
                code,
                local: false,
            }));
        }
    }

    fn get_custom_partitioner(&self) -> Option<&RoundRobin> {
        self.turns.as_ref()
    }
}

impl Slot {
    fn settle(&self, fault: Option<Fault>) {
        if let Some(fault) = fault {
            self.faults.lock().push(fault);
        }
        let left = self.left.fetch_sub(1, Ordering::SeqCst) - 1;
        if left.is_multiple_of(64) {
            self.topic.lock().moved.fetch_add(1, Ordering::Relaxed);
        }
        if left == 0 {
            self.done.notify_one();
        }
    }
}

/// The slot's index and the record's number in its load, as one word that librdkafka carries along.
fn pack(slot: u16, record: u32) -> usize {
    const {
        assert!(
            usize::BITS >= 64,
            "a message's opaque holds slot and record"
        )
    };
    (usize::from(slot) << 32) | record as usize
}

fn unpack(opaque: usize) -> (usize, u32) {
    // Only what `pack` put in: the lower half is the record.
    (opaque >> 32, opaque as u32)
}

/// Gives each message to the next partition that has a leader.
#[derive(Debug, Default)]
pub(super) struct RoundRobin(AtomicU32);

impl Partitioner for RoundRobin {
    fn partition(
        &self,
        _: &str,
        _: Option<&[u8]>,
        partitions: i32,
        is_available: impl Fn(i32) -> bool,
    ) -> i32 {
        let count = u32::try_from(partitions).unwrap_or(0).max(1);
        let first = self.0.fetch_add(1, Ordering::Relaxed) % count;
        let mut turn = (first..count).chain(0..first).map(u32::cast_signed);
        turn.find(|partition| is_available(*partition))
            .unwrap_or(first.cast_signed())
    }
}

/// One librdkafka producer.
pub(super) struct Producer {
    base: Arc<BaseProducer<Reports, RoundRobin>>,
    free: Mutex<Vec<u16>>,
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
    slot_freed: Notify,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// Makes one and starts its thread; `attempts` is how many use it at once. Blocking, shortly.
    ///
    /// # Errors
    /// What librdkafka has against the configuration.
    pub(super) fn start(
        config: &ClientConfig,
        room: &Arc<Room>,
        attempts: u16,
        round_robin: bool,
    ) -> Result<Arc<Self>, String> {
        let context = Reports {
            slots: (0..attempts).map(|_| Slot::default()).collect(),
            room: Arc::clone(room),
            count: AtomicU64::new(0),
            retired: Mutex::new(None),
            is_retired: AtomicBool::new(false),
            is_fatal: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
            trouble: Mutex::new(None),
            refused: AtomicBool::new(false),
            turns: round_robin.then(RoundRobin::default),
        };
        let base: BaseProducer<Reports, RoundRobin> = config
            .create_with_context(context)
            .map_err(|error| error.to_string())?;
        let base = Arc::new(base);
        let polled = Arc::clone(&base);
        std::thread::Builder::new()
            .name("kafka-reports".to_owned())
            .spawn(move || poll(&polled))
            .map_err(|error| format!("no thread for delivery reports: {error}"))?;
        Ok(Arc::new(Self {
            base,
            free: Mutex::new((0..attempts).rev().collect()),
            topics: Mutex::default(),
            slot_freed: Notify::new(),
        }))
    }

    fn reports(&self) -> &Reports {
        self.base.context()
    }

    /// Whether it takes records.
    pub(super) fn is_in_use(&self) -> bool {
        !self.reports().is_retired.load(Ordering::SeqCst)
    }

    /// It takes nothing more; what others enqueued has a moment to be delivered, the rest comes back for this reason.
    pub(super) fn retire(&self, why: &Arc<str>) {
        self.reports().retire(why);
    }

    /// It takes nothing more, and nobody waits for what it still has.
    pub(super) fn end(&self) {
        self.retire(&"the output was closed".into());
        self.reports().hurry.store(true, Ordering::SeqCst);
    }

    /// Retires it if librdkafka has given it up, whose own word on that may come after its reports.
    pub(super) fn retire_if_fatal(&self) {
        retire_if_fatal(&self.base);
    }

    /// Why it was retired, if it was.
    pub(super) fn retired_for(&self) -> Option<Arc<str>> {
        self.reports().retired.lock().clone()
    }

    /// The last error of a connection since `since`, in librdkafka's words.
    pub(super) fn trouble(&self, since: Instant) -> Option<Arc<str>> {
        let trouble = self.reports().trouble.lock();
        let (when, words) = trouble.as_ref()?;
        (*when >= since).then(|| Arc::clone(words))
    }

    /// Whether a broker did not accept who we are since this was last asked.
    pub(super) fn was_refused(&self) -> bool {
        self.reports().refused.swap(false, Ordering::SeqCst)
    }

    /// What is known of a topic.
    pub(super) fn topic(&self, name: &str) -> Arc<Topic> {
        let mut topics = self.topics.lock();
        if let Some(topic) = topics.get(name) {
            return Arc::clone(topic);
        }
        Arc::clone(topics.entry(name.into()).or_default())
    }

    /// Asks the cluster for a topic, or for all; its own error on the topic if it has one. Blocking.
    ///
    /// # Errors
    /// Why there was no answer within `timeout`.
    pub(super) fn ask(
        &self,
        topic: Option<&str>,
        timeout: Duration,
    ) -> Result<Option<RDKafkaErrorCode>, RDKafkaErrorCode> {
        let unknown = RDKafkaErrorCode::Unknown;
        let metadata = self
            .base
            .client()
            .fetch_metadata(topic, timeout)
            .map_err(|error| error.rdkafka_error_code().unwrap_or(unknown))?;
        let fault = topic.and_then(|name| {
            let told = metadata.topics().iter().find(|told| told.name() == name)?;
            told.error().map(RDKafkaErrorCode::from)
        });
        Ok(fault)
    }

    /// A place for an attempt of `records` records; waits while all are taken.
    pub(super) async fn place(self: &Arc<Self>, topic: &Arc<Topic>, records: u32) -> Place {
        let slot = loop {
            let freed = self.slot_freed.notified();
            if let Some(slot) = self.free.lock().pop() {
                break slot;
            }
            freed.await;
        };
        let place = Place {
            producer: Arc::clone(self),
            slot,
            unsent: records,
        };
        let here = place.slot();
        here.faults.lock().clear();
        *here.topic.lock() = Arc::clone(topic);
        here.left.store(records, Ordering::SeqCst);
        place
    }
}

/// An attempt's place in a producer, until all its reports are in. Given up before that, it retires the producer: there
/// is no other way to take records back.
#[derive(Debug)]
pub(super) struct Place {
    producer: Arc<Producer>,
    slot: u16,
    /// Records that are neither enqueued nor refused yet.
    unsent: u32,
}

/// What became of an attempt to enqueue one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enqueued {
    /// It is librdkafka's now, or has its fault.
    Yes,
    /// librdkafka has no room.
    Full,
}

impl Place {
    fn slot(&self) -> &Slot {
        &self.producer.reports().slots[usize::from(self.slot)]
    }

    /// Enqueues a record for which room was taken; if it is refused, its room is given back and its fault noted.
    pub(super) fn enqueue(&mut self, topic: &str, n: u32, record: &[u8], key: &[u8]) -> Enqueued {
        let mut message =
            BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, pack(self.slot, n));
        message.payload = Some(record);
        if !key.is_empty() {
            message.key = Some(key);
        }
        let Err((error, _)) = self.producer.base.send(message) else {
            self.unsent -= 1;
            return Enqueued::Yes;
        };
        let code = error
            .rdkafka_error_code()
            .unwrap_or(RDKafkaErrorCode::Unknown);
        if code == RDKafkaErrorCode::QueueFull {
            return Enqueued::Full;
        }
        let room = &self.producer.reports().room;
        room.give_back(record.len() + key.len() + BESIDE_A_RECORD);
        self.fail(n, code);
        Enqueued::Yes
    }

    /// Notes the fault of a record that is not enqueued.
    pub(super) fn fail(&mut self, n: u32, code: RDKafkaErrorCode) {
        self.unsent -= 1;
        self.slot().settle(Some(Fault {
            record: n,
            code,
            local: true,
        }));
    }

    /// Waits until all reports are in, at most so long; whether they are.
    pub(super) async fn reported(&self, within: Duration) -> bool {
        let slot = self.slot();
        let all = || slot.left.load(Ordering::SeqCst) == 0;
        let waited = async {
            while !all() {
                slot.done.notified().await;
            }
        };
        tokio::time::timeout(within, waited).await.is_ok() || all()
    }

    /// What changes while reports on this attempt, or on others of its topic, come.
    pub(super) fn moves(&self) -> (u32, u64) {
        let slot = self.slot();
        let topic = slot.topic.lock().moved.load(Ordering::Relaxed);
        (slot.left.load(Ordering::SeqCst), topic)
    }

    /// What was not delivered, by number; only after all reports are in.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = std::mem::take(&mut *self.slot().faults.lock());
        faults.sort_unstable_by_key(|fault| fault.record);
        faults
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let slot = self.slot();
        let left = slot.left.fetch_sub(self.unsent, Ordering::SeqCst) - self.unsent;
        if left == 0 {
            self.producer.free.lock().push(self.slot);
            self.producer.slot_freed.notify_one();
        } else {
            // Its reports still come: the place stays taken, and the producer goes.
            self.producer
                .retire(&"another request to the same cluster was given up".into());
        }
    }
}

fn retire_if_fatal(base: &BaseProducer<Reports, RoundRobin>) {
    if let Some((code, words)) = base.client().fatal_error() {
        let why = match code {
            RDKafkaErrorCode::ClusterAuthorizationFailed => words::cause(code, "", None),
            _ => words,
        };
        base.context().retire(&why.into());
    }
}

/// The polling thread of one producer, until it is retired and has nothing left.
fn poll(base: &Arc<BaseProducer<Reports, RoundRobin>>) {
    let reports = Arc::clone(base.context());
    while !reports.is_retired.load(Ordering::SeqCst) {
        base.poll(LOOK);
        if reports.is_fatal.load(Ordering::SeqCst) {
            retire_if_fatal(base);
        }
    }
    let start = Instant::now();
    let (mut count, mut moved) = (reports.count.load(Ordering::Relaxed), start);
    let mut purged = None;
    while reports.open() {
        base.poll(Duration::from_millis(20));
        let now = Instant::now();
        let here = reports.count.load(Ordering::Relaxed);
        if here != count {
            (count, moved) = (here, now);
        }
        let hurry = reports.hurry.load(Ordering::SeqCst);
        let over = hurry || now - moved >= QUIET || now - start >= LONGEST_GOODBYE;
        if over {
            // Again in each round: a record may have been on its way into the queue.
            base.purge(PurgeConfig::default().queue().inflight());
            purged = Some(purged.unwrap_or(now));
        }
        if purged.is_some_and(|purged| hurry && now - purged >= QUIET) {
            break;
        }
    }
    // Destroying it waits for its other threads: that is ours to do, not a network thread's.
    while Arc::strong_count(base) > 1 {
        base.poll(LOOK);
    }
}
