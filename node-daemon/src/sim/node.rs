//! One life of the daemon on a simulated machine: from its start to the crash that ends it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::glob::Pattern;
use ringpilot_shared::follow::{Event, Follower, View, WantId, Wanted};
use ringpilot_shared::host::{Host, Wakes, Woken};
use ringpilot_shared::sim::{Machine, Rng};

use super::server::{Kind, Server, by_hand};
use crate::batch::Codec;
use crate::batch::json::Names;
use crate::checkpoint::Checkpoint;
use crate::declare::{Declaration, Multiline, Place, StartAt, What};
use crate::decode::Envelope;
use crate::decode::multiline::Rule;
use crate::discover::fixed;
use crate::filter::Filter;
use crate::follow::{Shown, Spec};
use crate::parse::Parser;
use crate::pipeline::{OutputPlan, Pipeline, Plan, Turn};
use crate::policy::Limits;
use crate::settings::{FieldShape, FieldsFrom, OnExcess, OutputSettings, Settings};
use crate::ship::dead_letter::DeadLetterFiles;
use crate::ship::file::{FileOutput, OwnFiles};
use crate::ship::retry::{Attempt, Shipper};
use crate::ship::{Fate, Load, Verdict};
use crate::tag::Tags;
use crate::worker::{Outcome, Worker};

/// Where the daemon's own files are.
pub(super) const DATA_DIR: &str = "/var/lib/ringpilot";
/// Where the file output writes.
pub(super) const OUT_DIR: &str = "/out";

/// What is wanted of the node, the same in each of its lives.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Declared paths with the name they are declared under.
    pub logs: Vec<(String, String)>,
    /// Lines that begin with a tab belong to the line before.
    pub groups: bool,
    /// Bytes in flight.
    pub budget: usize,
    /// Encoded bytes of a batch.
    pub batch_bytes: usize,
    /// Longest line.
    pub max_bytes: usize,
    /// Which logs are changed over at once: what has a successor is finished.
    pub at_once: Vec<bool>,
}

/// The outputs, by index.
pub(super) const OUTPUTS: [&str; 3] = ["es", "kafka", "file"];
/// The index of the file output.
pub(super) const FILE: usize = 2;

/// A running daemon.
#[derive(Debug)]
pub(super) struct Node {
    machine: Machine,
    pub pipeline: Arc<Pipeline>,
    follower: Follower,
    wakes: Option<Arc<dyn Wakes>>,
    worker: Worker,
    file: Arc<FileOutput>,
    /// Requests whose answer has not arrived: which output, which attempt, what it will say.
    pending: Vec<(usize, u64, Verdict)>,
}

impl Node {
    /// Starts the daemon on what the machine's disk holds.
    pub(super) fn start(machine: &Machine, setup: &Setup, seed: u64) -> Self {
        let host: Arc<Machine> = Arc::new(machine.clone());
        let settings = OUTPUTS.map(|name| output(name, setup.batch_bytes));
        let mut files = OwnFiles::new(Arc::clone(&host) as _);
        let opened = Checkpoint::open(
            Arc::clone(&host) as _,
            Path::new(DATA_DIR),
            "node",
            host.boot_id(),
            &mut files,
        );
        let loaded = opened.loaded;
        let checkpoint = Arc::new(opened.checkpoint);
        let share = setup.budget / OUTPUTS.len();
        let file = {
            let host = Arc::clone(&host);
            FileOutput::new(
                &settings[FILE],
                Arc::clone(&host) as _,
                Arc::clone(&checkpoint) as _,
                &loaded.files,
                Arc::new(move || host.wall_ns()),
            )
        };
        let file = Arc::new(file.unwrap_or_else(|problems| panic!("{problems:?}")));
        let outputs = settings
            .iter()
            .enumerate()
            .map(|(n, settings)| {
                let to = match n {
                    0 => by_hand(Kind::ById),
                    1 => by_hand(Kind::Plain),
                    _ => Arc::clone(&file) as _,
                };
                let wait = Duration::from_millis(500);
                OutputPlan {
                    shipper: Shipper::new(settings, wait, to, share, seed ^ n as u64),
                    codec: if n == 0 { Codec::Bulk } else { Codec::Json },
                    start_at: None,
                    known: loaded.outputs.contains_key(settings.name.as_str()),
                    dated: n == 0,
                }
            })
            .collect();
        let plan = Plan {
            node: "node".to_owned(),
            memory_budget: setup.budget,
            start_at: StartAt::Beginning,
            once: false,
            outputs,
        };
        let all = Settings::from_yaml("outputs: {es: {type: \"null\"}}", &|_| None);
        let all = all.unwrap_or_else(|problems| panic!("{problems:?}"));
        let (known, streams) = crate::run::known(loaded, &all);
        let letters = DeadLetterFiles::open(Arc::clone(&host), Path::new(DATA_DIR), &settings);
        let pipeline = Pipeline::new(
            Arc::clone(&host) as _,
            checkpoint,
            Arc::new(letters),
            plan,
            known,
            seed,
        );
        let mut follower = Follower::new(Arc::clone(&host) as _, streams, seed ^ 0xf01);
        for (n, (name, path)) in setup.logs.iter().enumerate() {
            let want = WantId(n as u64 + 1);
            pipeline.want(want, Arc::new(spec(name, path, setup)), None, None);
            follower.want(Wanted {
                want,
                owner: "".into(),
                view: View {
                    host_root: PathBuf::from("/"),
                    is_host: true,
                    ..View::default()
                },
                pattern: Pattern::new(path).unwrap_or_else(|error| panic!("{error}")),
                from_start: true,
                rotates_at_once: setup.at_once[n],
                pinned_bytes: 1 << 30,
            });
        }
        Self {
            machine: machine.clone(),
            wakes: follower.wakes(),
            worker: pipeline.worker(),
            pipeline,
            follower,
            file,
            pending: Vec::new(),
        }
    }

    /// Looks at the files, as after a wake; what the follower said of them.
    pub(super) fn look(&mut self) -> Vec<Event> {
        let woken = match &self.wakes {
            Some(wakes) => wakes.wait(Duration::ZERO),
            None => Woken::default(),
        };
        let (suspects, released) = self.pipeline.for_follower();
        let events = self
            .follower
            .look(woken, &suspects, &released, &*self.pipeline);
        self.pipeline.apply(events.clone());
        events
    }

    /// Whether the last look has seen all that there was to see.
    pub(super) fn has_seen_all(&self) -> bool {
        self.follower.is_up_to_date()
    }

    /// Whether a file is left unread for now, because it may be a copy.
    pub(super) fn waits(&self) -> bool {
        self.follower.waits()
    }

    /// Whether the files of a log that were there before are known.
    pub(super) fn has_looked(&self, log: usize) -> bool {
        self.follower.has_looked(WantId(log as u64 + 1))
    }

    /// Whether no group is open: else a line may be read and not delivered.
    pub(super) fn has_open_groups(&self) -> bool {
        self.pipeline.settledness().open > 0
    }

    /// Works up to `most` slices; what they were, if that is asked for.
    pub(super) fn read(&mut self, most: usize, trace: Option<&mut Vec<String>>) {
        let mut trace = trace;
        for _ in 0..most {
            let turn = self.pipeline.turn_told(&mut self.worker, &mut |job, flows, done| {
                if let Some(trace) = &mut trace {
                    trace.push(format!(
                        "slice of {:?} for {flows:?} at {} held {} cuts {:?} -> {} held {} records {} {}",
                        job.stream,
                        job.position.offset,
                        job.position.held_bytes(),
                        job.cuts,
                        done.after.offset,
                        done.after.held_bytes(),
                        done.records,
                        match &done.outcome {
                            Outcome::Waiting(at_end) => format!(
                                "end {} partial {} open {}",
                                at_end.size,
                                at_end.partial,
                                at_end.open.len()
                            ),
                            other => format!("{other:?}"),
                        },
                    ));
                }
            });
            if turn == Turn::Idle {
                return;
            }
        }
    }

    /// Sends what there is to send. With `held`, answers do not arrive yet.
    pub(super) fn send(&mut self, servers: &mut [Server; 2], rng: &mut Rng, held: bool) -> bool {
        let mut sent = false;
        for output in 0..OUTPUTS.len() {
            sent |= self.send_to(output, servers, rng, held);
        }
        sent
    }

    /// As [`Node::send`], to one output alone: the others are slower.
    pub(super) fn send_to(
        &mut self,
        output: usize,
        servers: &mut [Server; 2],
        rng: &mut Rng,
        held: bool,
    ) -> bool {
        let mut sent = false;
        if self.machine.has_crashed() {
            return false;
        }
        while let Some(Attempt { number, load }) = self.pipeline.next_load(output) {
            sent = true;
            let verdict = match servers.get_mut(output) {
                Some(server) => server.serve(&load, rng),
                None => self.write(&load),
            };
            if held && output != FILE {
                self.pending.push((output, number, verdict));
                break;
            }
            self.pipeline.finish(output, number, verdict);
        }
        sent
    }

    fn write(&self, load: &Load) -> Verdict {
        match self.machine.has_crashed() {
            true => Verdict::All(Fate::Again {
                cause: "crashed".into(),
            }),
            false => self.file.write(load),
        }
    }

    /// Lets answers that were held arrive, in any order.
    pub(super) fn answer(&mut self, rng: &mut Rng) {
        rng.shuffle(&mut self.pending);
        for (output, number, verdict) in std::mem::take(&mut self.pending) {
            self.pipeline.finish(output, number, verdict);
        }
    }

    /// Saves; whether that worked.
    pub(super) fn save(&self) -> bool {
        self.pipeline.save().is_ok()
    }

    /// Whether everything that is known to be there is delivered.
    pub(super) fn is_settled(&self) -> bool {
        let now = self.pipeline.settledness();
        self.pending.is_empty() && now.behind == 0 && now.in_flight == 0
    }

    /// Why it is not settled, and a sentence for each flow that is not, for a failure.
    pub(super) fn unsettled(&self) -> String {
        let now = self.pipeline.settledness();
        let waits = self.pending.len();
        let flows: String = self.pipeline.look(|view| {
            view.sources()
                .flat_map(|source| {
                    source.flows.iter().filter_map(move |flow| {
                        let lag = source.lag(flow);
                        (lag > 0 || !flow.spans.is_empty()).then(|| {
                            format!(
                                "{} {:?} output {} read {} cursor {} size {} spans {} turn {:?} stuck {:?} \
                                 finished {} suspended {} gate {:?} file {}\n",
                                source.path.display(),
                                source.stream,
                                flow.output,
                                flow.read.offset,
                                flow.cursor.offset,
                                source.stat.size,
                                flow.spans.len(),
                                flow.turn,
                                flow.stuck_at,
                                source.finished,
                                source.suspended,
                                source.gate,
                                source.file.is_some(),
                            )
                        })
                    })
                })
                .collect()
        });
        let failing = self.pipeline.look(|view| view.save_failing().cloned());
        format!("{now:?}, answers that wait {waits}, saving fails: {failing:?}\n{flows}")
    }
}

fn output(name: &str, batch_bytes: usize) -> OutputSettings {
    let (kind, keys) = match name {
        "es" => ("elasticsearch", "{}".to_owned()),
        "kafka" => ("kafka", "{}".to_owned()),
        _ => ("file", format!("{{path: \"{OUT_DIR}/{{target}}.ndjson\"}}")),
    };
    let keys = serde_yaml_ng::from_str(&keys).unwrap_or_else(|error| panic!("{error}"));
    let mut settings = OutputSettings::of(kind, keys);
    settings.name = name.to_owned();
    settings.batch_bytes = batch_bytes;
    settings
}

fn spec(name: &str, path: &str, setup: &Setup) -> Spec {
    let declaration = Declaration::new(name, What::Files(path.to_owned()));
    let multiline = setup.groups.then(|| Multiline {
        pattern: "^\\t".to_owned(),
        negate: false,
        place: Place::After,
        max_lines: 500,
        timeout: Duration::from_secs(5),
    });
    let parser = Parser::new(&declaration.format, "UTC").unwrap_or_else(|error| panic!("{error}"));
    let tags = Tags::render(
        &fixed::workload(),
        &declaration,
        "node",
        FieldShape::LogPilot,
        &FieldsFrom::default(),
    );
    Spec {
        name: name.into(),
        who: String::new(),
        owner: "".into(),
        created_ns: 0,
        envelope: Envelope::Plain,
        charset: None,
        timeout: Duration::from_secs(5),
        multiline: multiline
            .as_ref()
            .map(|rule| Rule::new(rule).unwrap_or_else(|error| panic!("{error}"))),
        filter: Filter::new(&[], &[]).unwrap_or_else(|error| panic!("{error}")),
        names: Names::render(parser.names(), &tags),
        parser,
        tags,
        max_bytes: setup.max_bytes,
        outputs: (0..OUTPUTS.len()).map(|n| (n, name.into())).collect(),
        limits: Limits {
            rate: None,
            on_excess: OnExcess::Wait,
            pinned_bytes: 1 << 30,
        },
        shown: Shown::default(),
    }
}

/// How often each line is in what an output has: lines by their text, those of a group each for itself.
///
/// # Errors
/// A record that is none.
pub(super) fn count_lines<'a>(
    records: impl Iterator<Item = &'a [u8]>,
) -> Result<HashMap<Vec<u8>, u32>, String> {
    #[derive(serde::Deserialize)]
    struct Record {
        message: String,
    }
    let mut counts = HashMap::new();
    for record in records {
        let Some(json) = record.split(|b| *b == b'\n').rfind(|line| line.len() > 2) else {
            continue;
        };
        let record: Record = serde_json::from_slice(json).map_err(|error| {
            let shown = String::from_utf8_lossy(&json[..json.len().min(200)]);
            format!("a record is damaged: {error}: `{shown}`")
        })?;
        for line in record.message.split('\n') {
            // What a writer leaves that goes on at its old place after a truncation.
            let line = line.trim_start_matches('\0');
            *counts.entry(line.as_bytes().to_vec()).or_default() += 1;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Lost;

    fn setup() -> Setup {
        Setup {
            logs: vec![("app".to_owned(), "/logs/app.log".to_owned())],
            groups: false,
            budget: 1 << 20,
            batch_bytes: 4096,
            max_bytes: 1024,
            at_once: vec![false],
        }
    }

    /// A daemon that is killed when it has seen two lines and delivered none.
    fn killed(machine: &Machine) {
        for dir in ["/logs", DATA_DIR, OUT_DIR] {
            machine.make_dir(dir).expect("new");
        }
        machine.create("/logs/app.log").expect("new");
        machine
            .append("/logs/app.log", b"one\ntwo\n")
            .expect("room");
        let mut node = Node::start(machine, &setup(), 1);
        node.look();
        assert!(node.save());
        machine.kill();
    }

    /// Lost to the first output, after so long.
    fn lost_after(machine: &Machine, node: &mut Node, seconds: u64) -> u64 {
        for _ in 0..seconds {
            machine.pass(Duration::from_secs(1));
            node.look();
            node.pipeline.tick();
        }
        node.pipeline.look(|view| {
            assert_eq!(view.unbalanced(), None);
            let lost = view.ledger(0).0.lost;
            lost.get(&Lost::Vanished).map_or(0, |lost| lost.bytes)
        })
    }

    #[test]
    fn what_was_deleted_unread_while_the_daemon_was_down_is_counted_as_lost() {
        let machine = Machine::new(7);
        killed(&machine);
        machine.delete("/logs/app.log").expect("there");
        let mut node = Node::start(&machine, &setup(), 2);
        assert_eq!(lost_after(&machine, &mut node, 100), 0);
        assert_eq!(lost_after(&machine, &mut node, 30), 8);
    }

    #[test]
    fn what_comes_back_is_read_and_not_lost() {
        let machine = Machine::new(7);
        killed(&machine);
        machine
            .rename("/logs/app.log", "/elsewhere")
            .expect("there");
        let mut node = Node::start(&machine, &setup(), 2);
        assert_eq!(lost_after(&machine, &mut node, 130), 8);
        machine
            .rename("/elsewhere", "/logs/app.log")
            .expect("there");
        assert_eq!(lost_after(&machine, &mut node, 10), 0);
        let settled = node.pipeline.settledness();
        assert_eq!(settled.behind, OUTPUTS.len());
    }
}
