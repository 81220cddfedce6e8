//! Records to Kafka: one message each, with a delivery report each.
//! Place: batch -> **kafka** -> librdkafka -> the brokers, and back.
//! Invariants: a record is delivered when its own report says so; only what is too large or invalid by itself is refused,
//! and where a broker refused a whole message set for one record, each of its records is asked about alone; everything
//! else is sent again, with its cause; librdkafka's copies stay within the output's share.
//!
//! With `acks: all` the producer is idempotent: as long as it lives, a partition holds each record once and in the order
//! of the attempts. What an attempt gives back and a later attempt sends comes after what was sent in between, and may
//! come twice if its producer was given up (no confirmation for `timeout`, a fatal error, a request that was dropped):
//! at least once. Its source's key keeps a source in one partition. With less than `acks: all` the producer is not
//! idempotent: librdkafka's own retries may repeat and overtake, and a broker may lose what it had confirmed.

mod key;
mod producer;
mod settings;
#[cfg(test)]
mod tests;
mod words;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use self::key::Key;
use self::producer::{BESIDE_A_RECORD, Enqueued, Fault, Place, Producer, Room, Topic};
use self::settings::{Acks, Partition, Settings, Used};
use super::load::text;
use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::{Codec, target};
use crate::problem::Problem;
use crate::settings::OutputSettings;

/// How often a waiting attempt looks whether anything moves.
const LOOK: Duration = Duration::from_secs(1);
/// The longest an answer about topics is waited for.
const LONGEST_QUESTION: Duration = Duration::from_secs(10);
/// How long a topic that brokers may be creating is waited for.
const BEING_CREATED: Duration = Duration::from_secs(2);
/// Records that are enqueued before other tasks of the thread get their turn.
const AT_A_STRETCH: u32 = 256;
/// The smallest message set that is tried before records go one by one.
const LEAST_SET_BYTES: usize = 16 << 10;

/// The output.
#[derive(Debug)]
pub struct Kafka {
    settings: Settings,
    timeout: Duration,
    attempts: u16,
    room: Arc<Room>,
    /// Message sets of many records.
    many: Lane,
    /// Message sets of one, for records of which a broker's word on a set says too little.
    alone: Lane,
    /// One batch after the other is enqueued, whole and in the order of the attempts.
    turn: tokio::sync::Mutex<()>,
}

/// A producer of one kind, and what it was made of.
#[derive(Debug)]
struct Lane {
    current: tokio::sync::Mutex<Option<(Arc<Producer>, Used)>>,
    /// The largest message set; 0: one record.
    set_bytes: AtomicUsize,
}

/// Why no record of an attempt was sent.
enum NotSent {
    /// The cluster cannot be reached, or does not want us.
    Cluster(String),
    /// This topic cannot be written.
    Topic(String),
}

impl Kafka {
    /// The output that these settings describe; librdkafka holds at most `share_bytes`, 300 for each record included.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn new(settings: &OutputSettings, share_bytes: usize) -> Result<Self, Vec<Problem>> {
        Ok(Self::of(Settings::read(settings)?, settings, share_bytes))
    }

    fn of(own: Settings, settings: &OutputSettings, share_bytes: usize) -> Self {
        let lane = |set_bytes| Lane {
            current: tokio::sync::Mutex::default(),
            set_bytes: AtomicUsize::new(set_bytes),
        };
        Self {
            many: lane(own.set_bytes()),
            alone: lane(0),
            settings: own,
            timeout: settings.timeout,
            // One that ends and one that begins may overlap.
            attempts: u16::try_from(settings.concurrency + 1).unwrap_or(u16::MAX),
            room: Arc::new(Room::new(share_bytes)),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// How records for this output are encoded.
    pub fn codec(&self) -> Codec {
        Codec::Json
    }

    /// The topic of a load, or why it may not go there.
    fn topic(&self, load: &Load) -> Result<String, Fate> {
        let topic = target::render(&self.settings.topic, &load.batch.target, load.batch.day);
        match &self.settings.allowed_topics {
            Some(allowed) if !allowed.contains(&topic) => match &self.settings.default_topic {
                Some(default) => Ok(default.clone()),
                None => Err(Fate::Refused {
                    reason: "topic_not_allowed".into(),
                    detail: format!("topic `{topic}` is not among the output's allowed_topics")
                        .into(),
                }),
            },
            _ => Ok(topic),
        }
    }

    async fn send(&self, load: &Load) -> Verdict {
        if load.is_empty() {
            return Verdict::All(Fate::Delivered);
        }
        let topic = match self.topic(load) {
            Ok(topic) => topic,
            Err(refused) => return Verdict::All(refused),
        };
        let faults = match self.pass(&self.many, &topic, load, None).await {
            Ok(faults) => faults,
            Err(NotSent::Cluster(cause)) => {
                return Verdict::Failed {
                    cause: cause.into(),
                };
            }
            Err(NotSent::Topic(cause)) => {
                let cause = cause.into();
                return Verdict::All(Fate::Again { cause });
            }
        };
        let mut fates = Vec::with_capacity(faults.len());
        let mut doubtful = Vec::new();
        let mut too_large = false;
        for (fault, cause) in faults {
            if !fault.local && words::blames_a_record(fault.code) {
                too_large |= fault.code == RDKafkaErrorCode::MessageSizeTooLarge;
                doubtful.push(fault.record);
            } else {
                fates.push((fault.record, self.fate(&fault, cause)));
            }
        }
        if !doubtful.is_empty() {
            let settled = self.one_by_one(&topic, load, &doubtful).await;
            if too_large && settled.len() < doubtful.len() {
                // Some were not too large, only all of them together.
                self.send_smaller_sets(&topic).await;
            }
            fates.extend(settled);
            fates.sort_unstable_by_key(|(record, _)| *record);
        }
        verdict(fates, load.len())
    }

    /// Asks about records alone that a broker refused together. The fates of those not delivered.
    async fn one_by_one(&self, topic: &str, load: &Load, records: &[u32]) -> Vec<(u32, Fate)> {
        match self.pass(&self.alone, topic, load, Some(records)).await {
            Ok(faults) => faults
                .into_iter()
                .map(|(fault, cause)| (fault.record, self.fate(&fault, cause)))
                .collect(),
            Err(NotSent::Cluster(cause) | NotSent::Topic(cause)) => {
                let cause: Arc<str> = cause.into();
                let again = Fate::Again { cause };
                records.iter().map(|n| (*n, again.clone())).collect()
            }
        }
    }

    fn fate(&self, fault: &Fault, cause: Arc<str>) -> Fate {
        match words::refusal(fault.code) {
            Some(reason) => Fate::Refused {
                reason: reason.into(),
                detail: match fault.local {
                    true => format!(
                        "{cause}: more than max_message_bytes ({})",
                        self.settings.max_bytes()
                    )
                    .into(),
                    false => cause,
                },
            },
            None => Fate::Again { cause },
        }
    }

    /// A topic takes smaller message sets than we send: halves them.
    async fn send_smaller_sets(&self, topic: &str) {
        let mut current = self.many.current.lock().await;
        let bytes = self.many.set_bytes.load(Ordering::Relaxed);
        let smaller = (bytes / 2).max(LEAST_SET_BYTES);
        if smaller == bytes {
            return;
        }
        self.many.set_bytes.store(smaller, Ordering::Relaxed);
        tracing::info!(
            topic,
            set_bytes = smaller,
            "the topic's max.message.bytes is below the size of our message sets: sending smaller ones"
        );
        if let Some((producer, _)) = current.take() {
            producer.retire(&"message sets are made smaller".into());
        }
    }

    /// Sends all or some records of a load by one producer, and waits for their reports. The faults, each with its cause.
    async fn pass(
        &self,
        lane: &Lane,
        topic_name: &str,
        load: &Load,
        only: Option<&[u32]>,
    ) -> Result<Vec<(Fault, Arc<str>)>, NotSent> {
        let since = Instant::now();
        let producer = self.producer(lane).await.map_err(NotSent::Cluster)?;
        let topic = producer.topic(topic_name);
        if !topic.ready.load(Ordering::Relaxed) {
            self.ask(&producer, topic_name).await?;
            topic.ready.store(true, Ordering::Relaxed);
        }
        let count = only.map_or(load.len(), <[u32]>::len);
        let count = u32::try_from(count).map_err(|_| {
            NotSent::Topic("a batch holds more records than can be numbered".to_owned())
        })?;
        let mut place = producer.place(&topic, count).await;
        {
            let _turn = self.turn.lock().await;
            self.enqueue(&producer, &mut place, topic_name, load, only)
                .await;
        }
        self.wait(lane, &producer, &place, topic_name).await;
        let faults = place.faults();
        if !faults.is_empty() {
            producer.retire_if_fatal();
            note(&topic, &faults);
        }
        let mut causes: Vec<(RDKafkaErrorCode, Arc<str>)> = Vec::new();
        let cause = |fault: Fault| {
            if let Some((_, cause)) = causes.iter().find(|(code, _)| *code == fault.code) {
                return (fault, Arc::clone(cause));
            }
            let retired = producer.retired_for();
            let trouble = producer.trouble(since);
            let cause: Arc<str> =
                words::cause(fault.code, topic_name, retired.or(trouble).as_deref()).into();
            causes.push((fault.code, Arc::clone(&cause)));
            (fault, cause)
        };
        Ok(faults.into_iter().map(cause).collect())
    }

    /// Hands records to librdkafka as its room allows.
    async fn enqueue(
        &self,
        producer: &Producer,
        place: &mut Place,
        topic: &str,
        load: &Load,
        only: Option<&[u32]>,
    ) {
        let fixed = self.settings.key.of_target(&load.batch.target);
        let (mut made, mut source) = (Vec::new(), [0; 16]);
        let mut only = only.map(|records| records.iter().copied().peekable());
        for (n, (chunk, record)) in (0_u32..).zip(load.iter()) {
            if let Some(only) = &mut only
                && only.next_if_eq(&n).is_none()
            {
                continue;
            }
            let record = text(record);
            let key: &[u8] = match (&self.settings.key, &fixed) {
                (Key::None, _) => &[],
                (_, Some(fixed)) => fixed.as_bytes(),
                (key, None) => {
                    if key.of_record(&load.batch.target, record, &mut made) {
                        &made
                    } else {
                        // 16 digits for 8 bytes: it cannot fail.
                        hex::encode_to_slice(chunk.source_hash.to_be_bytes(), &mut source).ok();
                        &source
                    }
                }
            };
            let bytes = record.len() + key.len() + BESIDE_A_RECORD;
            loop {
                if !self.make_room(producer, bytes).await {
                    place.fail(n, RDKafkaErrorCode::PurgeQueue);
                    break;
                }
                if place.enqueue(topic, n, record, key) == Enqueued::Yes {
                    break;
                }
                self.room.give_back(bytes);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if n % AT_A_STRETCH == AT_A_STRETCH - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits until librdkafka may take so many bytes more; `false` if the producer takes nothing any more.
    async fn make_room(&self, producer: &Producer, bytes: usize) -> bool {
        let (mut held, mut moved) = (usize::MAX, None);
        while producer.is_in_use() {
            if self.room.take(bytes) {
                return true;
            }
            // Room comes free as anything is confirmed: if nothing is, the cluster does not answer.
            let here = self.room.held();
            let since = match moved {
                Some(since) if here >= held => since,
                _ => Instant::now(),
            };
            (held, moved) = (here, Some(since));
            if since.elapsed() >= self.timeout {
                producer.retire(&self.silent("record", producer, since));
            }
            // Looked at again in a while, whether or not enough is free.
            tokio::time::timeout(LOOK, self.room.freed(bytes))
                .await
                .ok();
        }
        false
    }

    /// Waits for all reports of an attempt; if nothing moves for `timeout`, gives its producer up.
    async fn wait(&self, lane: &Lane, producer: &Arc<Producer>, place: &Place, topic: &str) {
        let (mut moves, mut moved) = (place.moves(), Instant::now());
        while !place.reported(LOOK).await {
            if producer.was_refused() && self.has_changed(lane).await {
                producer.retire(&"who we say we are has changed".into());
            }
            let here = place.moves();
            if here != moves {
                (moves, moved) = (here, Instant::now());
            } else if moved.elapsed() >= self.timeout && producer.is_in_use() {
                let what = format!("record of topic `{topic}`");
                producer.retire(&self.silent(&what, producer, moved));
            }
        }
    }

    fn silent(&self, what: &str, producer: &Producer, since: Instant) -> Arc<str> {
        let seconds = self.timeout.as_secs_f64();
        match producer.trouble(since) {
            Some(trouble) => format!("no {what} was confirmed for {seconds} s: {trouble}").into(),
            None => format!("no {what} was confirmed for {seconds} s").into(),
        }
    }

    /// Whether secrets or certificates are others than those the producer was made of.
    async fn has_changed(&self, lane: &Lane) -> bool {
        let settings = self.settings.clone();
        let Ok(Ok(now)) = tokio::task::spawn_blocking(move || settings.used()).await else {
            return false;
        };
        let current = lane.current.lock().await;
        current.as_ref().is_some_and(|(_, used)| *used != now)
    }

    /// The producer of a lane, a new one if need be.
    async fn producer(&self, lane: &Lane) -> Result<Arc<Producer>, String> {
        let mut current = lane.current.lock().await;
        if let Some((producer, _)) = &*current
            && producer.is_in_use()
        {
            return Ok(Arc::clone(producer));
        }
        *current = None;
        let (settings, room) = (self.settings.clone(), Arc::clone(&self.room));
        let (timeout, attempts) = (self.timeout, self.attempts);
        let set_bytes = lane.set_bytes.load(Ordering::Relaxed);
        let made = tokio::task::spawn_blocking(move || {
            let used = settings.used()?;
            let config = settings.config(&used, timeout, set_bytes);
            let round_robin = settings.partition == Partition::RoundRobin;
            Producer::start(&config, &room, attempts, round_robin).map(|made| (made, used))
        });
        let made = made
            .await
            .unwrap_or_else(|_| Err("making a producer was given up".to_owned()))?;
        let producer = Arc::clone(&made.0);
        *current = Some(made);
        Ok(producer)
    }

    /// Asks the cluster about a topic before anything is sent there, so that nothing waits in memory for what is not.
    async fn ask(&self, producer: &Arc<Producer>, topic: &str) -> Result<(), NotSent> {
        let since = Instant::now();
        let limit = self.timeout.min(LONGEST_QUESTION);
        loop {
            let (asked, name) = (Arc::clone(producer), topic.to_owned());
            let step = LOOK.min(limit);
            let answer = tokio::task::spawn_blocking(move || asked.ask(Some(&name), step)).await;
            let code = match answer {
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(code))) => {
                    if !words::may_be_created(code) || since.elapsed() >= BEING_CREATED.min(limit) {
                        return Err(NotSent::Topic(words::cause(code, topic, None)));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Ok(Err(code)) => code,
                Err(_) => RDKafkaErrorCode::Unknown,
            };
            let refused = producer.was_refused();
            if refused || since.elapsed() >= limit || !producer.is_in_use() {
                let why = producer.retired_for().or(producer.trouble(since));
                let cause = words::cause(code, topic, why.as_deref());
                if refused {
                    // The next one reads secrets and certificates again.
                    producer.retire(&cause.as_str().into());
                }
                return Err(NotSent::Cluster(cause));
            }
        }
    }

    async fn ask_for_all(&self) -> Result<(), String> {
        let producer = self.producer(&self.many).await?;
        let since = Instant::now();
        let limit = self.timeout.min(LONGEST_QUESTION);
        loop {
            let asked = Arc::clone(&producer);
            let step = LOOK.min(limit);
            match tokio::task::spawn_blocking(move || asked.ask(None, step)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(code)) if producer.was_refused() || since.elapsed() >= limit => {
                    return Err(words::cause(code, "", producer.trouble(since).as_deref()));
                }
                Ok(Err(_)) => {}
                Err(_) => return Err("the question was given up".to_owned()),
            }
        }
    }
}

/// After a fault of the topic it is asked about before more is sent.
fn note(topic: &Topic, faults: &[Fault]) {
    if faults
        .iter()
        .any(|fault| words::blames_the_topic(fault.code))
    {
        topic.ready.store(false, Ordering::Relaxed);
    }
}

/// The verdict, from the fates of those records that were not delivered, in order.
fn verdict(fates: Vec<(u32, Fate)>, of: usize) -> Verdict {
    if fates.is_empty() {
        return Verdict::All(Fate::Delivered);
    }
    if fates.len() == of && fates.windows(2).all(|two| two[0].1 == two[1].1) {
        return match fates.into_iter().next() {
            Some((_, fate)) => Verdict::All(fate),
            None => Verdict::All(Fate::Delivered),
        };
    }
    let mut each = vec![Fate::Delivered; of];
    for (record, fate) in fates {
        if let Some(place) = each.get_mut(record as usize) {
            *place = fate;
        }
    }
    Verdict::Each(each)
}

impl Drop for Kafka {
    fn drop(&mut self) {
        for lane in [&mut self.many, &mut self.alone] {
            if let Some((producer, _)) = lane.current.get_mut() {
                producer.end();
            }
        }
    }
}

impl Output for Kafka {
    fn guarantee(&self) -> Guarantee {
        match self.settings.acks {
            Acks::None => Guarantee::NotAcknowledged,
            Acks::One | Acks::All => Guarantee::AtLeastOnce,
        }
    }
    fn ordered(&self) -> bool {
        false
    }
    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(self.send(load))
    }
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.ask_for_all())
    }
}
