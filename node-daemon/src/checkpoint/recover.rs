//! Which of the file output's last transactions count after a crash, and where its files are cut.
//! Place: within **checkpoint**, once at the start, between reading the journal and handing out what it says.
//!
//! - In the same boot the kernel lost nothing: a transaction counts if its file is at least that long.
//! - After a reboot only what was marked synced counts; what the disk kept beyond that is cut off and comes again.
//! - A file that someone else wrote to, that was written while the checkpoint could not be, or that was modified long
//!   after its last mark (an old checkpoint was put back) is not cut at all, nor is any after damage: what was not
//!   marked synced comes again, and may be there twice.
//! - A transaction counts only with all earlier ones of each of its flows, in whatever file they are, and of its own
//!   file; so cutting is done from the first that does not count.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::live::Live;
use super::{FlowKey, SavedFlow, SavedWrite};
use crate::problem::{Problem, of_operator};

/// A file of the file output, as far as it is known to be synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMark {
    /// The output's name.
    pub output: Arc<str>,
    /// Its path when it was written.
    pub path: PathBuf,
    /// Its inode.
    pub inode: u64,
    /// Its birth time, where the file system keeps one.
    pub birth_ns: Option<i64>,
    /// Everything before this is whole records, synced, and part of the saved cursors.
    pub length: u64,
    /// When that was noted, nanoseconds since 1970.
    pub at_ns: i64,
}

impl FileMark {
    /// Whether a transaction speaks of this file.
    pub(super) fn is_of(&self, write: &SavedWrite) -> bool {
        self.inode == write.inode
            && self.birth_ns == write.birth_ns
            && *self.output == *write.output
            && self.path == write.path
    }
}

/// What stands where a file was.
#[derive(Debug)]
pub enum Look {
    /// The file itself, under its name or a rotated one.
    Here {
        /// Its length in bytes.
        length: u64,
        /// Last modification, nanoseconds since 1970.
        modified_ns: i64,
        /// It was written while the checkpoint could not be, or could not be synced.
        unnoted: bool,
    },
    /// Nothing, or another file.
    Gone,
    /// It cannot be told.
    Unknown(io::Error),
}

/// The file output's files, as the checkpoint asks for them.
pub trait Files {
    /// Looks for a file by its identity.
    fn look(&mut self, file: &FileMark) -> Look;
    /// Cuts a file that was found to `length`, if it is longer, and makes that durable.
    ///
    /// # Errors
    /// As the disk gives them.
    fn settle(&mut self, file: &FileMark, length: u64) -> io::Result<()>;
}

/// No file output has ever written, or nothing of it is to be touched.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn look(&mut self, _: &FileMark) -> Look {
        Look::Gone
    }
    fn settle(&mut self, _: &FileMark, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Marks are renewed every ten minutes where a file is written at all; the rest is for clocks.
const LATEST_NS: i64 = 15 * 60 * 1_000_000_000;

/// What was found of one file, and what is decided.
struct Case {
    mark: FileMark,
    /// Its length now, if it is here.
    here: Option<u64>,
    /// Transactions up to this length count; `None`: those marked synced.
    reached: Option<u64>,
    /// It may be cut.
    cuts: bool,
    /// The end of what counts.
    keep: u64,
    /// One of its transactions does not count, nor do those after it.
    stopped: bool,
}

/// Decides, cuts, and moves the flows. Returns the places of flows that are further than what is synced, because a
/// file could not be synced just now.
pub(super) fn recover(
    live: &mut Live,
    same_boot: bool,
    trusted: bool,
    files: &mut dyn Files,
    problems: &mut Vec<Problem>,
) -> HashMap<FlowKey, SavedFlow> {
    live.settle();
    let marks = live.files();
    let mut cases: Vec<Case> = marks
        .into_iter()
        .map(|mark| judge(live, mark, same_boot, trusted, files, problems))
        .collect();
    let counts = choose(live, &mut cases);
    let mut unsettled: Vec<FileMark> = Vec::new();
    for case in &cases {
        let Some(here) = case.here else {
            live.set_mark(&case.mark, None);
            continue;
        };
        let length = if case.cuts { case.keep.min(here) } else { here };
        let touched = length != case.mark.length || here != length || case.reached.is_some();
        match if touched {
            files.settle(&case.mark, length)
        } else {
            Ok(())
        } {
            Ok(()) => live.set_mark(&case.mark, Some(length)),
            Err(error) => {
                problems.push(cannot_settle(&case.mark, &error));
                unsettled.push(case.mark.clone());
            }
        }
    }
    let mut ahead: HashMap<FlowKey, SavedFlow> = HashMap::new();
    let pending = std::mem::take(&mut live.pending);
    for (mut pending, counts) in pending.into_iter().zip(counts) {
        if !counts {
            continue;
        }
        let flows = &pending.write.flows;
        let unsynced = unsettled.iter().any(|mark| mark.is_of(&pending.write));
        if unsynced || flows.iter().any(|(key, _)| ahead.contains_key(key)) {
            ahead.extend(flows.iter().cloned());
            if !unsynced {
                pending.synced.get_or_insert(i64::MIN);
            }
            live.pending.push_back(pending);
        } else {
            for (key, flow) in pending.write.flows {
                live.merge(&key, flow);
            }
        }
    }
    ahead
}

fn judge(
    live: &Live,
    mark: FileMark,
    same_boot: bool,
    trusted: bool,
    files: &mut dyn Files,
    problems: &mut Vec<Problem>,
) -> Case {
    let last = live.pending.iter().rev().find(|p| mark.is_of(&p.write));
    let open = last.is_some_and(|p| p.synced.is_none());
    let longest = last.map_or(mark.length, |p| p.write.length);
    let mut case = Case {
        keep: mark.length,
        mark,
        here: None,
        reached: None,
        cuts: false,
        stopped: false,
    };
    let why = match files.look(&case.mark) {
        Look::Here {
            length,
            modified_ns,
            unnoted,
        } => {
            case.here = Some(length);
            if !trusted {
                "the checkpoint is damaged, or of a later release"
            } else if unnoted {
                "its disk, or that of the checkpoint, could not be written for a time"
            } else if same_boot && length > longest {
                "someone else wrote to it"
            } else if !same_boot
                && length > case.mark.length
                && modified_ns > case.mark.at_ns.saturating_add(LATEST_NS)
            {
                "it is much younger than the checkpoint"
            } else {
                case.cuts = true;
                case.reached = (same_boot && open).then_some(length);
                return case;
            }
        }
        Look::Gone => "it is gone",
        Look::Unknown(error) => {
            problems.push(of_operator(
                format!("outputs.{}.path", case.mark.output),
                case.mark.path.display().to_string(),
                format!("the file cannot be looked at: {error}"),
                "let the daemon read and write it",
            ));
            "it cannot be looked at"
        }
    };
    // Only what has records that may come twice is worth a word.
    if case
        .here
        .is_some_and(|here| open || here > case.mark.length)
    {
        problems.push(of_operator(
            format!("outputs.{}.path", case.mark.output),
            case.mark.path.display().to_string(),
            format!(
                "the end of this file is left as it is, and its last records may come twice: {why}"
            ),
            "nothing; to find them, look for equal records near its end",
        ));
    }
    case
}

/// Whether each pending transaction counts; sets how much each file keeps.
fn choose(live: &Live, cases: &mut [Case]) -> Vec<bool> {
    let mut held_back: HashSet<&FlowKey> = HashSet::new();
    live.pending
        .iter()
        .map(|pending| {
            let write = &pending.write;
            let case = cases.iter_mut().find(|case| case.mark.is_of(write));
            let counts = case.is_some_and(|case| {
                let reached = case.reached.is_some_and(|reached| write.length <= reached);
                let waits = write.flows.iter().any(|(key, _)| held_back.contains(key));
                let counts = !case.stopped && !waits && (pending.synced.is_some() || reached);
                if !counts && !case.stopped {
                    // Its own bytes go, and with them all behind it.
                    case.keep = case.keep.min(write.from);
                    case.stopped = true;
                }
                if counts {
                    case.keep = case.keep.max(write.length);
                }
                counts
            });
            if !counts {
                held_back.extend(write.flows.iter().map(|(key, _)| key));
            }
            counts
        })
        .collect()
}

fn cannot_settle(mark: &FileMark, error: &io::Error) -> Problem {
    of_operator(
        format!("outputs.{}.path", mark.output),
        mark.path.display().to_string(),
        format!("the file cannot be cut to its last whole record: {error}"),
        "let the daemon write it; until then its last records may come twice",
    )
}
