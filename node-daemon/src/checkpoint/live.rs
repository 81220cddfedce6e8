//! What is known at one moment: every entry so far, folded.
//! Place: within **checkpoint**; the journal keeps one to write snapshots from, the loader builds one by reading, and
//! both fold by the same rules, so that a snapshot and the entries it stands for mean the same.
//! Invariants: `flows` never counts what the file output has not synced: what its transactions say waits in `pending`
//! until they are marked synced, and behind every earlier one of the same flow.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringpilot_shared::follow::StreamKey;

use super::recover::FileMark;
use super::{Entry, FlowKey, SavedFlow, SavedSource, SavedStream, SavedWrite};

/// What is known of one stream.
#[derive(Debug, Default)]
struct Known {
    stream: Option<Box<SavedStream>>,
    sources: Vec<SavedSource>,
    flows: Vec<KnownFlow>,
}

#[derive(Debug)]
struct KnownFlow {
    declaration: Arc<str>,
    output: Arc<str>,
    at: SavedFlow,
}

/// What tells a file from the next one at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    inode: u64,
    birth_ns: Option<i64>,
}

impl Node {
    fn of(write: &SavedWrite) -> Self {
        Self {
            inode: write.inode,
            birth_ns: write.birth_ns,
        }
    }
}

/// A transaction that is not yet part of its flows.
#[derive(Debug)]
pub(super) struct Pending {
    pub write: SavedWrite,
    /// Its file is synced; it waits for an earlier one of the same flow.
    pub synced: Option<i64>,
}

impl Pending {
    fn is_of(&self, output: &str, path: &Path, node: Node) -> bool {
        Node::of(&self.write) == node && *self.write.output == *output && self.write.path == path
    }
}

/// A file of the file output up to its last synced transaction.
#[derive(Debug, Clone, Copy)]
struct Synced {
    node: Node,
    length: u64,
    at_ns: i64,
}

/// Pending transactions are looked through when there are so many; else when someone wants to know.
const MANY_PENDING: usize = 1024;

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The boot in which the last writer ran.
    pub boot: Option<u128>,
    pub outputs: BTreeMap<Arc<str>, i64>,
    streams: HashMap<StreamKey, Known>,
    files: BTreeMap<(Arc<str>, PathBuf), Synced>,
    pub pending: VecDeque<Pending>,
    settle_at: usize,
    /// One copy of each name, however many flows bear it.
    names: HashSet<Arc<str>>,
}

/// How far a flow is, to tell the later of two. Its offset never goes back; where it stays, what is settled or handed
/// over grows.
fn progress(flow: &SavedFlow) -> (u64, u64) {
    (flow.offset, flow.ledger.accounted() + flow.handed)
}

impl Live {
    /// Folds one entry in.
    pub(super) fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Stream(stream) => {
                let known = self.streams.entry(stream.key).or_default();
                known.stream = Some(Box::new(stream));
            }
            Entry::Source(mut source) => {
                source.declaration = self.name(&source.declaration);
                source.days.shrink_to_fit();
                let sources = &mut self.streams.entry(source.stream).or_default().sources;
                match sources
                    .iter_mut()
                    .find(|s| s.declaration == source.declaration)
                {
                    Some(known) => *known = source,
                    None => {
                        // Most streams have one, and there are thousands.
                        sources.reserve_exact(1);
                        sources.push(source);
                    }
                }
            }
            Entry::Flow(key, flow) => self.merge(&key, flow),
            Entry::Forget(key) => {
                self.streams.remove(&key);
                for pending in &mut self.pending {
                    pending.write.flows.retain(|(flow, _)| flow.stream != key);
                }
            }
            Entry::Write(write) => self.write(write),
            Entry::Synced {
                output,
                path,
                inode,
                birth_ns,
                length,
                at_ns,
            } => {
                let node = Node { inode, birth_ns };
                self.synced(
                    &output,
                    path,
                    node,
                    Synced {
                        node,
                        length,
                        at_ns,
                    },
                );
            }
            Entry::Left { output, path } => {
                self.settle();
                let of = |p: &Pending| p.write.output == output && p.write.path == path;
                // One of its flows may still be behind in another file.
                if !self.pending.iter().any(of) {
                    self.files.remove(&(output, path));
                }
            }
            Entry::Boot(boot) => self.boot = Some(boot),
            Entry::Outputs(outputs, since) => {
                for output in outputs {
                    let output = self.name(&output);
                    self.outputs.insert(output, since);
                }
            }
            Entry::ForgetOutput(output) => {
                self.outputs.remove(&output);
                for known in self.streams.values_mut() {
                    known.flows.retain(|flow| flow.output != output);
                }
            }
        }
    }

    /// The one copy of a name.
    fn name(&mut self, name: &Arc<str>) -> Arc<str> {
        match self.names.get(name) {
            Some(known) => Arc::clone(known),
            None => {
                self.names.insert(Arc::clone(name));
                Arc::clone(name)
            }
        }
    }

    /// Moves a flow, unless it is further already.
    pub(super) fn merge(&mut self, key: &FlowKey, mut flow: SavedFlow) {
        let (declaration, output) = (self.name(&key.declaration), self.name(&key.output));
        let flows = &mut self.streams.entry(key.stream).or_default().flows;
        match flows
            .iter_mut()
            .find(|f| f.declaration == declaration && f.output == output)
        {
            Some(known) => {
                let sent = known.at.sent.max(flow.sent);
                if progress(&flow) >= progress(&known.at) {
                    known.at = flow;
                }
                known.at.sent = sent;
            }
            None => {
                flow.held.shrink_to_fit();
                flows.reserve_exact(1);
                flows.push(KnownFlow {
                    declaration,
                    output,
                    at: flow,
                });
            }
        }
    }

    fn write(&mut self, mut write: SavedWrite) {
        write.output = self.name(&write.output);
        // What says it lies beyond this one's start was cut off, or never written. Those of a file ascend.
        let node = Node::of(&write);
        let same = |p: &Pending| p.is_of(&write.output, &write.path, node);
        let last = self.pending.iter().rev().find(|p| same(p));
        if last.is_some_and(|p| p.write.length > write.from) {
            // Or was synced, and then someone emptied the file: that stays delivered.
            self.settle();
            self.pending
                .retain(|p| !same(p) || p.write.length <= write.from);
        }
        let key = (Arc::clone(&write.output), write.path.clone());
        if let Some(file) = self.files.get_mut(&key).filter(|file| file.node == node) {
            file.length = file.length.min(write.from);
        }
        self.pending.push_back(Pending {
            write,
            synced: None,
        });
    }

    fn synced(&mut self, output: &Arc<str>, path: PathBuf, node: Node, up_to: Synced) {
        let mut reached = None;
        for pending in &mut self.pending {
            if pending.write.length <= up_to.length && pending.is_of(output, &path, node) {
                pending.synced = Some(up_to.at_ns);
                reached = Some(pending.write.length);
            }
        }
        let key = (self.name(output), path);
        match (reached, self.files.get_mut(&key)) {
            // What had this path before is done with: it was synced before its successor was begun.
            (Some(reached), known) => {
                let other_output = known.is_none();
                let known = known.filter(|file| file.node == node);
                let length = known.map_or(reached, |file| file.length.max(reached));
                if other_output {
                    // An output that was renamed or replaced: nobody may cut the file by what the old one knew.
                    self.files.retain(|(_, path), _| *path != key.1);
                }
                self.files.insert(key, Synced { length, ..up_to });
            }
            (None, Some(file)) if file.node == node => file.at_ns = up_to.at_ns,
            (None, _) => {}
        }
        if self.pending.len() >= self.settle_at.max(MANY_PENDING) {
            self.settle();
            self.settle_at = 2 * self.pending.len();
        }
    }

    /// Moves flows by those synced transactions that wait for no earlier one of the same flow.
    pub(super) fn settle(&mut self) {
        let mut waiting: HashSet<FlowKey> = HashSet::new();
        for mut pending in std::mem::take(&mut self.pending) {
            let flows = &pending.write.flows;
            let free = waiting.is_empty() || !flows.iter().any(|(key, _)| waiting.contains(key));
            if pending.synced.is_some() && free {
                for (key, flow) in std::mem::take(&mut pending.write.flows) {
                    self.merge(&key, flow);
                }
            } else {
                waiting.extend(flows.iter().map(|(key, _)| key.clone()));
                self.pending.push_back(pending);
            }
        }
    }

    /// Every file that is known, or that a transaction speaks of, as far as it is synced.
    pub(super) fn files(&self) -> Vec<FileMark> {
        let mut marks: Vec<FileMark> = Vec::new();
        for ((output, path), file) in &self.files {
            marks.push(FileMark {
                output: Arc::clone(output),
                path: path.clone(),
                inode: file.node.inode,
                birth_ns: file.node.birth_ns,
                length: file.length,
                at_ns: file.at_ns,
            });
        }
        for Pending { write, .. } in &self.pending {
            if !marks.iter().any(|mark| mark.is_of(write)) {
                marks.push(FileMark {
                    output: Arc::clone(&write.output),
                    path: write.path.clone(),
                    inode: write.inode,
                    birth_ns: write.birth_ns,
                    length: write.from,
                    at_ns: i64::MIN,
                });
            }
        }
        marks
    }

    /// Puts a file's mark where the file was found to be; `None` forgets it.
    pub(super) fn set_mark(&mut self, mark: &FileMark, length: Option<u64>) {
        let key = (Arc::clone(&mark.output), mark.path.clone());
        let node = Node {
            inode: mark.inode,
            birth_ns: mark.birth_ns,
        };
        let other = self.files.get(&key).is_some_and(|file| file.node != node);
        match length {
            // Its successor is known already; this one has only its transactions.
            _ if other => {}
            Some(length) => {
                let at_ns = mark.at_ns;
                self.files.insert(
                    key,
                    Synced {
                        node,
                        length,
                        at_ns,
                    },
                );
            }
            None => {
                self.files.remove(&key);
            }
        }
    }

    /// Every flow with its place.
    pub(super) fn flows(&self) -> impl Iterator<Item = (FlowKey, &SavedFlow)> {
        self.streams.iter().flat_map(|(stream, known)| {
            known.flows.iter().map(|flow| {
                let key = FlowKey {
                    stream: *stream,
                    declaration: Arc::clone(&flow.declaration),
                    output: Arc::clone(&flow.output),
                };
                (key, &flow.at)
            })
        })
    }

    /// Every stream.
    pub(super) fn streams(&self) -> impl Iterator<Item = &SavedStream> {
        self.streams
            .values()
            .filter_map(|known| known.stream.as_deref())
    }

    /// Every source.
    pub(super) fn sources(&self) -> impl Iterator<Item = &SavedSource> {
        self.streams.values().flat_map(|known| &known.sources)
    }

    /// The entries that say all this again, in an order that means the same.
    ///
    /// # Errors
    /// The first that `entry` gives.
    pub(super) fn write_out<E>(
        &self,
        mut entry: impl FnMut(&Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(boot) = self.boot {
            entry(&Entry::Boot(boot))?;
        }
        for (output, since) in &self.outputs {
            entry(&Entry::Outputs(vec![Arc::clone(output)], *since))?;
        }
        for stream in self.streams() {
            entry(&Entry::Stream(stream.clone()))?;
        }
        for source in self.sources() {
            entry(&Entry::Source(source.clone()))?;
        }
        for (key, flow) in self.flows() {
            entry(&Entry::Flow(key, flow.clone()))?;
        }
        for ((output, path), file) in &self.files {
            let Node { inode, birth_ns } = file.node;
            entry(&Entry::Write(SavedWrite {
                output: Arc::clone(output),
                path: path.clone(),
                inode,
                birth_ns,
                from: file.length,
                length: file.length,
                flows: Vec::new(),
            }))?;
            entry(&Entry::Synced {
                output: Arc::clone(output),
                path: path.clone(),
                inode,
                birth_ns,
                length: file.length,
                at_ns: file.at_ns,
            })?;
        }
        for pending in &self.pending {
            entry(&Entry::Write(pending.write.clone()))?;
        }
        for Pending { write, synced } in &self.pending {
            if let Some(at_ns) = *synced {
                entry(&Entry::Synced {
                    output: Arc::clone(&write.output),
                    path: write.path.clone(),
                    inode: write.inode,
                    birth_ns: write.birth_ns,
                    length: write.length,
                    at_ns,
                })?;
            }
        }
        Ok(())
    }
}
