//! What is written but not yet safe, and what of it a power loss leaves.
//! Place: within **sim**; the disk tells it every change of a file's content and of a name.
//! Invariants: what a sync covered survives; a name's changes survive from the first on, and so do those of an inode
//! number, so that no power loss makes two files of one; a rename is never half done.
//! Sources: what POSIX promises of fsync, and ext4, XFS and btrfs where it promises nothing (lengths that grew
//! without their bytes, sectors in any order, writes that a failed fsync gave up).

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::ops::Range;
use std::time::Duration;

use super::content::{Content, index};
use super::disk::NodeId;
use super::rng::Rng;

/// After how long the kernel writes back what nobody syncs (`vm.dirty_expire_centisecs`).
const WRITE_BACK: Duration = Duration::from_secs(30);
/// What a device writes whole.
const SECTOR: u64 = 512;

/// Who changed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The daemon.
    Ours,
    /// Those whose logs it reads.
    Workload,
}

/// Which changes a power loss takes, among those that no sync covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// The last ones, in the order in which they were made; at most one is torn.
    InOrder,
    /// Any, each for itself; any may be torn, and lengths may grow without their bytes.
    AnyOrder,
}

/// What a power loss may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerLoss {
    /// What was written to our own files since their last sync.
    pub writes: Survival,
    /// Our own creations, renames and removals since their directory's last sync.
    pub names: Survival,
    /// What workloads wrote and named in the last 30 s; `None`: all of it stays.
    pub workloads: Option<Survival>,
}

impl Default for PowerLoss {
    /// The worst for our own files, nothing for those of workloads.
    fn default() -> Self {
        Self {
            writes: Survival::AnyOrder,
            names: Survival::AnyOrder,
            workloads: None,
        }
    }
}

/// One change of a file's content.
#[derive(Debug)]
enum Change {
    /// Bytes where none were: they are still in the content.
    Grown {
        at: u64,
        length: u64,
    },
    Write {
        at: u64,
        bytes: Vec<u8>,
    },
    SetLen(u64),
    Punch(Range<u64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// No sync has covered it.
    Open,
    /// It survives.
    Safe,
    /// A sync failed on it: no later one covers it.
    GivenUp,
}

#[derive(Debug)]
struct Made {
    when: Duration,
    who: Who,
    change: Change,
    fate: Fate,
}

/// What is safe of a file's content.
#[derive(Debug)]
enum Safe {
    /// Its first bytes, as they are now.
    Prefix(u64),
    /// Something else than it is now.
    Other(Content),
}

/// What was done to one file since its last sync.
#[derive(Debug)]
pub(super) struct Unsynced {
    safe: Safe,
    made: VecDeque<Made>,
}

impl Default for Unsynced {
    fn default() -> Self {
        Self {
            safe: Safe::Prefix(0),
            made: VecDeque::new(),
        }
    }
}

impl Unsynced {
    /// Before `bytes` are written into `content`.
    pub(super) fn write(
        &mut self,
        content: &Content,
        at: u64,
        bytes: &[u8],
        who: Who,
        when: Duration,
    ) {
        let change = if at >= content.size() && matches!(self.safe, Safe::Prefix(_)) {
            let length = bytes.len() as u64;
            Change::Grown { at, length }
        } else {
            self.part_from(content);
            let bytes = bytes.to_vec();
            Change::Write { at, bytes }
        };
        self.push(change, who, when);
    }

    /// Before `content` is cut or extended.
    pub(super) fn set_len(&mut self, content: &Content, size: u64, who: Who, when: Duration) {
        if size < content.size() {
            self.part_from(content);
        }
        self.push(Change::SetLen(size), who, when);
    }

    /// Before a hole is made in `content`.
    pub(super) fn punch(&mut self, content: &Content, hole: Range<u64>, who: Who, when: Duration) {
        self.part_from(content);
        self.push(Change::Punch(hole), who, when);
    }

    fn push(&mut self, change: Change, who: Who, when: Duration) {
        self.made.push_back(Made {
            when,
            who,
            change,
            fate: Fate::Open,
        });
    }

    /// Keeps what is safe apart from the content, which is about to lose some of it.
    fn part_from(&mut self, content: &Content) {
        if let Safe::Prefix(length) = self.safe {
            let mut safe = content.clone();
            safe.set_len(length);
            self.safe = Safe::Other(safe);
            for made in &mut self.made {
                if let Change::Grown { at, length } = made.change {
                    let bytes = content.slice(at..at + length);
                    made.change = Change::Write { at, bytes };
                }
            }
        }
    }

    /// After a sync that succeeded.
    pub(super) fn synced(&mut self, content: &Content) {
        if self.made.iter().any(|made| made.fate == Fate::GivenUp) {
            for made in self.made.iter_mut() {
                if made.fate == Fate::Open {
                    made.fate = Fate::Safe;
                }
            }
            return;
        }
        self.synced_all(content);
    }

    /// After everything was written back.
    pub(super) fn synced_all(&mut self, content: &Content) {
        self.made.clear();
        self.safe = Safe::Prefix(content.size());
    }

    /// After one that failed: the kernel takes what it could not write for written.
    pub(super) fn sync_failed(&mut self) {
        for made in &mut self.made {
            if made.fate == Fate::Open {
                made.fate = Fate::GivenUp;
            }
        }
    }

    /// Lets go of what workloads wrote long ago: the kernel has written it back.
    pub(super) fn age(&mut self, content: &Content, now: Duration) {
        while let Some(made) = self.made.front()
            && made.who == Who::Workload
            && made.when + WRITE_BACK <= now
        {
            match (&mut self.safe, &made.change) {
                (Safe::Prefix(length), Change::Grown { at, length: more }) => *length = at + more,
                (Safe::Prefix(length), Change::SetLen(size)) => *length = *size,
                // Every other change has parted from the content.
                (Safe::Prefix(_), _) => {}
                (Safe::Other(safe), change) => apply(safe, change, content),
            }
            self.made.pop_front();
        }
        if self.made.is_empty() {
            self.safe = Safe::Prefix(content.size());
        }
    }

    /// What a power loss leaves of `content`; all of that is safe then.
    pub(super) fn lose(&mut self, content: &Content, rng: &mut Rng, loss: PowerLoss) -> Content {
        let mut left = match &mut self.safe {
            Safe::Prefix(length) => {
                let mut safe = content.clone();
                safe.set_len(*length);
                safe
            }
            Safe::Other(safe) => std::mem::take(safe),
        };
        let share = *rng.pick(&[0.0, 0.3, 0.7, 0.95, 1.0]);
        let mut longest = left.size();
        let mut any_order = false;
        let mut stopped = false;
        let mut not_cut: Option<u64> = None;
        for made in &self.made {
            let survival = match made.who {
                Who::Ours => Some(loss.writes),
                Who::Workload => loss.workloads,
            };
            let Some(survival) = survival.filter(|_| made.fate != Fate::Safe) else {
                apply(&mut left, &made.change, content);
                longest = longest.max(left.size());
                continue;
            };
            any_order |= survival == Survival::AnyOrder;
            let end = made.change.end();
            if stopped || not_cut.is_some_and(|cut| end.is_some_and(|end| end > cut)) {
                // Blocks behind a cut are given out anew only once the cut itself is safe.
                continue;
            }
            if rng.chance(share) {
                apply(&mut left, &made.change, content);
                longest = match made.change {
                    Change::SetLen(size) => size,
                    _ => longest.max(left.size()),
                };
                continue;
            }
            stopped = survival == Survival::InOrder;
            match &made.change {
                Change::SetLen(size) if *size < left.size() => {
                    not_cut = Some(not_cut.map_or(*size, |cut| cut.min(*size)));
                }
                Change::SetLen(_) | Change::Punch(_) => {}
                Change::Grown { at, length } => {
                    longest = longest.max(at + length);
                    tear(
                        &mut left,
                        *at,
                        &content.slice(*at..at + length),
                        rng,
                        survival,
                    );
                }
                Change::Write { at, bytes } => {
                    longest = longest.max(at + bytes.len() as u64);
                    tear(&mut left, *at, bytes, rng, survival);
                }
            }
        }
        if any_order && longest > left.size() && rng.chance(0.25) {
            left.set_len(rng.between(left.size(), longest));
        }
        self.made.clear();
        self.safe = Safe::Prefix(left.size());
        left
    }
}

impl Change {
    /// One past the last byte it writes.
    fn end(&self) -> Option<u64> {
        match self {
            Self::Grown { at, length } => Some(at + length),
            Self::Write { at, bytes } => Some(at + bytes.len() as u64),
            Self::SetLen(_) | Self::Punch(_) => None,
        }
    }
}

fn apply(to: &mut Content, change: &Change, now: &Content) {
    match change {
        Change::Grown { at, length } => to.write(*at, &now.slice(*at..at + length)),
        Change::Write { at, bytes } => to.write(*at, bytes),
        Change::SetLen(size) => to.set_len(*size),
        Change::Punch(hole) => to.punch(hole.clone()),
    }
}

/// Writes some of `bytes`, or none.
fn tear(to: &mut Content, at: u64, bytes: &[u8], rng: &mut Rng, survival: Survival) {
    let length = bytes.len() as u64;
    if survival == Survival::AnyOrder && rng.chance(0.3) {
        return;
    }
    if survival == Survival::AnyOrder && length > SECTOR && rng.chance(0.5) {
        let mut from = at;
        while from < at + length {
            let to_sector = ((from / SECTOR + 1) * SECTOR).min(at + length);
            if rng.chance(0.5) {
                to.write(from, &bytes[index(from - at)..index(to_sector - at)]);
            }
            from = to_sector;
        }
    } else {
        to.write(at, &bytes[..index(rng.below(length))]);
    }
    if survival == Survival::AnyOrder && to.size() < at + length && rng.chance(0.5) {
        to.set_len(at + length);
    }
}

/// One name, and what it stood for before and after.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) dir: NodeId,
    pub(super) name: OsString,
    pub(super) old: Option<NodeId>,
    pub(super) new: Option<NodeId>,
}

/// One change of names, done whole or not at all.
#[derive(Debug)]
pub(super) struct Naming {
    pub(super) when: Duration,
    pub(super) who: Who,
    pub(super) slots: Vec<Slot>,
    /// (file system, inode number) of all that it names or no longer names.
    pub(super) inodes: Vec<(usize, u64)>,
    /// Whether a directory moved: then everything before it is safe, too, so that no directory ends up in itself.
    pub(super) moves_directory: bool,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    Slot(NodeId, &'a OsString),
    Inode(usize, u64),
}

impl Naming {
    fn keys(&self) -> impl Iterator<Item = Key<'_>> {
        let slots = self
            .slots
            .iter()
            .map(|slot| Key::Slot(slot.dir, &slot.name));
        let inodes = self
            .inodes
            .iter()
            .map(|(system, inode)| Key::Inode(*system, *inode));
        slots.chain(inodes)
    }
}

/// Changes of names that are not safe yet.
#[derive(Debug, Default)]
pub(super) struct Namings {
    made: VecDeque<Naming>,
}

impl Namings {
    pub(super) fn push(&mut self, naming: Naming) {
        self.made.push_back(naming);
    }

    /// Takes out those that are safe once the chosen ones are: they, and what they build on.
    pub(super) fn commit(&mut self, chosen: impl Fn(&Naming) -> bool) -> Vec<Naming> {
        if !self.made.iter().any(&chosen) {
            return Vec::new();
        }
        let safe = self.needed(chosen);
        let mut safe = safe.into_iter();
        let (out, left) = std::mem::take(&mut self.made)
            .into_iter()
            .partition(|_| safe.next().unwrap_or(false));
        self.made = left;
        Vec::from(out)
    }

    /// Takes out those that workloads made long ago, and what they build on.
    pub(super) fn age(&mut self, now: Duration) -> Vec<Naming> {
        self.commit(|naming| naming.who == Who::Workload && naming.when + WRITE_BACK <= now)
    }

    /// For each, whether it must be safe for the chosen ones to be.
    fn needed(&self, chosen: impl Fn(&Naming) -> bool) -> Vec<bool> {
        let mut keys = HashSet::new();
        let mut all = false;
        let mut needed = vec![false; self.made.len()];
        for (naming, needed) in self.made.iter().zip(&mut needed).rev() {
            *needed = all || chosen(naming) || naming.keys().any(|key| keys.contains(&key));
            if *needed {
                keys.extend(naming.keys());
                all |= naming.moves_directory;
            }
        }
        needed
    }

    /// Takes all out, and says which a power loss undid, last first.
    pub(super) fn lose(&mut self, rng: &mut Rng, loss: PowerLoss) -> Vec<Naming> {
        let share = *rng.pick(&[0.0, 0.3, 0.7, 0.95, 1.0]);
        let survival = |naming: &Naming| match naming.who {
            Who::Ours => Some(loss.names),
            Who::Workload => loss.workloads,
        };
        let needed = self.needed(|naming| survival(naming).is_none());
        let mut gone_keys = HashSet::new();
        let mut stopped = false;
        let mut gone = Vec::with_capacity(self.made.len());
        for (naming, needed) in self.made.iter().zip(needed) {
            let builds_on_gone = naming.keys().any(|key| gone_keys.contains(&key))
                || (naming.moves_directory && !gone_keys.is_empty());
            let goes = !needed && (stopped || builds_on_gone || !rng.chance(share));
            if goes {
                gone_keys.extend(naming.keys());
                stopped |= survival(naming) == Some(Survival::InOrder);
            }
            gone.push(goes);
        }
        let mut gone = gone.into_iter();
        let mut undone: Vec<Naming> = std::mem::take(&mut self.made)
            .into_iter()
            .filter(|_| gone.next().unwrap_or(false))
            .collect();
        undone.reverse();
        undone
    }
}
