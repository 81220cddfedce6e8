//! Kafka: what a record costs the daemon, from the file to the broker's acknowledgement, beside what the same record
//! costs librdkafka's own producer that has it in memory already.
//! Place: a real broker; the daemon is a process of its own, the producer is in this one.
//! Invariants: both send the same records with the same key, acknowledged by all, in turn in the same run; the count
//! is the broker's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use memchr::memchr_iter;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use crate::daemon;
use crate::load::Load;
use crate::measure::Cpu;

/// What a record to Kafka costs, the daemon beside librdkafka's own producer.
#[derive(Debug, clap::Args)]
pub(crate) struct Kafka {
    /// The broker; deploy/e2e/servers/kafka starts one
    #[arg(long, default_value = "127.0.0.1:9092")]
    broker: String,
    /// How many lines
    #[arg(long, default_value_t = 1_000_000)]
    lines: u64,
    /// How often each is run; the least is compared
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// The program; the one beside this unless given
    #[arg(long)]
    program: Option<PathBuf>,
}

const LINE_BYTES: usize = 200;
/// What librdkafka may hold, as much as the daemon's one output may.
const QUEUE_BYTES: usize = 32 << 20;
/// What librdkafka keeps of a record beside its bytes.
const OVERHEAD: usize = 300;
/// Any key has the same length.
const KEY: &str = "0000000000000007";
const LONG: Duration = Duration::from_secs(120);
/// Of librdkafka's records per CPU second, what the daemon must reach.
const LEAST: f64 = 0.9;

impl Kafka {
    /// Runs both in turn.
    ///
    /// # Errors
    /// When a record is missing, or the daemon's cost more than they may.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let program = daemon::program(self.program.as_deref())?;
        let dir = tempfile::tempdir()?;
        let input = dir.path().join("lines.log");
        Load::new(1, 0, LINE_BYTES).write(&mut std::fs::File::create(&input)?, self.lines)?;
        let written = dir.path().join("records.ndjson");
        let file = format!("{{type: file, path: {}}}", written.display());
        self.once(&program, dir.path(), &input, &file)?;
        let records = std::fs::read(&written)?;

        let (mut ours, mut theirs, mut reading) = (f64::MAX, f64::MAX, f64::MAX);
        for run in 0..self.runs.max(1) {
            let (bare, daemon) = (format!("bare-{run}"), format!("daemon-{run}"));
            self.create(&bare)?;
            self.create(&daemon)?;
            theirs = theirs.min(self.bare(&bare, &records)?);
            let kafka = format!(
                "{{type: kafka, brokers: [\"{}\"], topic: {daemon}}}",
                self.broker
            );
            ours = ours.min(self.once(&program, dir.path(), &input, &kafka)?);
            let null = "{type: \"null\"}";
            reading = reading.min(self.once(&program, dir.path(), &input, null)?);
            for topic in [&bare, &daemon] {
                let kept = self.count(topic)?;
                ensure!(kept == self.lines, "the broker has {kept} in {topic}");
            }
        }
        let rate = |seconds: f64| self.lines as f64 / seconds;
        ringpilot::say::line(format_args!(
            "kafka: {} records of {} bytes; per CPU second the daemon, from the file on: {:.0}; librdkafka's own producer, from \
             memory: {:.0}; {:.2} of it. Of the daemon's {ours:.2} CPU s, reading and encoding take {reading:.2}",
            self.lines,
            records.len() as u64 / self.lines.max(1),
            rate(ours),
            rate(theirs),
            theirs / ours,
        ))?;
        ensure!(theirs / ours >= LEAST, "that is less than {LEAST}");
        Ok(())
    }

    /// CPU seconds of the daemon that delivers every line to one output.
    fn once(&self, program: &Path, dir: &Path, input: &Path, output: &str) -> anyhow::Result<f64> {
        let config = dir.join("config.yaml");
        std::fs::write(
            &config,
            format!(
                "node_name: bench\ndata_dir: {}\nhttp: none\n\
                 discover: {{docker: false, cri: false, rings: false}}\n\
                 sources: [{{name: bench, path: {}}}]\noutputs: {{out: {output}}}\n",
                dir.join("data").display(),
                input.display(),
            ),
        )?;
        let (report, cost) = daemon::once(program, &config)?;
        let delivered = report[0]["ledger"]["d"]["records"].as_u64();
        ensure!(
            delivered == Some(self.lines),
            "not all is delivered: {report}"
        );
        std::fs::remove_dir_all(dir.join("data"))?;
        Ok(cost)
    }

    /// CPU seconds of librdkafka's own producer for these records.
    fn bare(&self, topic: &str, records: &[u8]) -> anyhow::Result<f64> {
        let before = Cpu::of_self()?;
        let producer: ThreadedProducer<DefaultProducerContext> = self
            .config()
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set(
                "queue.buffering.max.kbytes",
                (QUEUE_BYTES >> 10).to_string(),
            )
            .set(
                "queue.buffering.max.messages",
                (QUEUE_BYTES / (records.len() / self.lines.max(1) as usize + OVERHEAD)).to_string(),
            )
            .create()?;
        let mut start = 0;
        for end in memchr_iter(b'\n', records) {
            let mut message = BaseRecord::to(topic).key(KEY).payload(&records[start..end]);
            start = end + 1;
            while let Err((error, back)) = producer.send(message) {
                let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                ensure!(error == full, "{error}");
                message = back;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        producer.flush(LONG)?;
        drop(producer);
        Ok((Cpu::of_self()? - before).total())
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.broker);
        config
    }

    /// A topic of one partition, as one source with one key has.
    fn create(&self, topic: &str) -> anyhow::Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.config().create()?;
        let topic = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        let options = AdminOptions::new();
        let made = admin.create_topics([&topic], &options);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        for one in runtime.block_on(made)? {
            one.map_err(|(name, code)| anyhow::anyhow!("{name} cannot be created: {code}"))?;
        }
        Ok(())
    }

    /// How many records a topic has, by the broker's word.
    fn count(&self, topic: &str) -> anyhow::Result<u64> {
        let consumer: BaseConsumer = self.config().create()?;
        let (first, end) = consumer.fetch_watermarks(topic, 0, LONG)?;
        Ok(u64::try_from(end - first)?)
    }
}
