//! Wakes a thread when something changes in watched directories, by inotify.
//! Place: the real `Wakes`; whoever waits looks at what is told, and at everything when events were lost.
//! Invariants: what is watched is the very directory that the walk reached (`/proc/self/fd/N`), in each root of the
//! container that has it: writes through an overlay are told only there, in its merged tree, while names are told in its
//! upper directory, too. A kernel's watch is shared by all who want it and removed after the last. Nothing is watched on
//! a mount that may hang. Memory is bounded by the kernel's queue (fs.inotify.max_queued_events, 16,384).
//! Source: inotify(7).
//!
//! A directory is watched whole, for writes too, and by one watch: one for each file would be as many as files, and
//! re-arming one-shot watches costs two system calls for what the kernel's own merging gives for none: as long as
//! its last queued event is the same, a write adds nothing. Measured, with a caller that sleeps 100 ms between calls: one
//! file written 50,000 times a second costs 0.06 % of a core here, two that alternate 1.4 % (0.3 us a write, nearly all
//! the kernel's). Above some 160,000 alternating writes a second the queue overflows, and a sweep is what remains.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{self, AddWatchFlags, InitFlags, WatchDescriptor};
use nix::unistd::read;

use super::View;
use super::hang::MountTable;
use super::open::{self, Limits, OpenError};
use crate::host::{Wakes, WatchId, Woken};

/// What is asked of every watch, so that watching the same thing twice changes nothing.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_MODIFY
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);

/// Of these, what leaves all names as they are.
const CONTENT: AddWatchFlags = AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_ATTRIB);

/// Bytes that one read takes: at least one event with the longest name, about 400 with usual ones.
const READ_BYTES: usize = 16 * 1024;

/// Reads in one `wait`: more than the kernel's queue holds by default; a larger one is taken by the next call.
const MOST_READS: usize = 256;

/// An event's fixed part: descriptor, mask, cookie, length of the name.
const HEADER: usize = 16;

/// The kernel's limit of watches is reached.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel's limit of inotify watches is reached (fs.inotify.max_user_watches{})",
    limit.map(|limit| format!(" = {limit}")).unwrap_or_default()
)]
pub struct WatchLimit {
    /// The limit of the user that we run as.
    pub limit: Option<u64>,
}

impl WatchLimit {
    /// The one within an error of [`Wakes::watch`].
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What the operator can do.
    #[must_use]
    pub fn cure(&self) -> String {
        let wanted = self.limit.unwrap_or(65_536).saturating_mul(4);
        format!(
            "set `sysctl fs.inotify.max_user_watches={wanted}` on the node; until then new lines are found by the sweep"
        )
    }
}

/// An inotify instance with an eventfd beside it.
#[derive(Debug)]
pub struct Inotify {
    mounts: Arc<MountTable>,
    inotify: inotify::Inotify,
    bell: EventFd,
    watches: Mutex<Watches>,
    /// Held by the one that waits.
    buffer: Mutex<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Watches {
    last: u64,
    /// The kernel's watches behind each of ours: one for each root of the container.
    kernels: HashMap<WatchId, Vec<i32>>,
    /// Whose each of the kernel's is.
    ours: HashMap<i32, (WatchDescriptor, Vec<WatchId>)>,
}

impl Inotify {
    /// A new instance.
    ///
    /// # Errors
    /// As the kernel gives them: `fs.inotify.max_user_instances` may be reached.
    pub fn new(mounts: Arc<MountTable>) -> io::Result<Self> {
        let inotify = inotify::Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|error| match error {
                Errno::EMFILE => io::Error::other(
                    "no inotify instance is left (fs.inotify.max_user_instances, or open files)",
                ),
                error => error.into(),
            })?;
        Ok(Self {
            mounts,
            inotify,
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            watches: Mutex::default(),
            buffer: Mutex::new(vec![0; READ_BYTES]),
        })
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one of ours off one of the kernel's, and that away after the last.
    fn release(&self, watches: &mut Watches, kernels: i32, watch: WatchId) {
        let Some((descriptor, ours)) = watches.ours.get_mut(&kernels) else {
            return;
        };
        ours.retain(|other| *other != watch);
        if ours.is_empty() {
            // It fails only where the kernel has removed it itself.
            self.inotify.rm_watch(*descriptor).unwrap_or_default();
            watches.ours.remove(&kernels);
        }
    }

    fn drain(&self, buffer: &mut [u8], woken: &mut Woken) {
        let mut heard = Heard::default();
        for _ in 0..MOST_READS {
            match read(self.inotify.as_fd(), buffer) {
                Ok(0) => break,
                Ok(len) => events(&buffer[..len], |event| heard.take(&event)),
                Err(Errno::EINTR) => {}
                // Nothing is left.
                Err(_) => break,
            }
        }
        woken.overflow = heard.overflow;
        let mut watches = self.watches();
        for (kernels, change) in heard.changes {
            // A watch that was taken away meanwhile tells nobody.
            let Some((_, ours)) = watches.ours.get(&kernels) else {
                continue;
            };
            // One of our watches may be told by several of the kernel's.
            for watch in ours {
                let of = |names: &HashSet<OsString>| -> Vec<_> {
                    let named =
                        |name: &OsString| (*watch, (!name.is_empty()).then(|| name.clone()));
                    names.iter().map(named).collect()
                };
                woken.changed.extend(of(&change.names));
                woken.written.extend(of(&change.written));
            }
        }
        for kernels in heard.ended {
            let Some((_, ours)) = watches.ours.remove(&kernels) else {
                continue;
            };
            for watch in ours {
                let Some(left) = watches.kernels.get_mut(&watch) else {
                    continue;
                };
                left.retain(|other| *other != kernels);
                if left.is_empty() {
                    watches.kernels.remove(&watch);
                    woken.gone.push(watch);
                }
            }
        }
    }
}

impl Wakes for Inotify {
    fn watch(&self, view: &View, path: &Path) -> io::Result<WatchId> {
        let limits = Limits {
            prone: self.mounts.prone(),
            entered: Vec::new(),
        };
        let places = open::places(view, path, &limits)?;
        let mut watches = self.watches();
        watches.last += 1;
        let watch = WatchId(watches.last);
        let mut kernels = Vec::with_capacity(places.len());
        for place in places {
            match self
                .inotify
                .add_watch(open::held(&place.fd).as_path(), EVENTS)
            {
                Ok(descriptor) => {
                    let raw = descriptor.as_raw();
                    let (_, ours) = watches
                        .ours
                        .entry(raw)
                        .or_insert_with(|| (descriptor, Vec::new()));
                    if !ours.contains(&watch) {
                        ours.push(watch);
                        kernels.push(raw);
                    }
                }
                Err(error) => {
                    for raw in kernels {
                        self.release(&mut watches, raw, watch);
                    }
                    return Err(match error {
                        Errno::ENOSPC => io::Error::new(
                            io::ErrorKind::StorageFull,
                            WatchLimit {
                                limit: std::fs::read_to_string(
                                    "/proc/sys/fs/inotify/max_user_watches",
                                )
                                .ok()
                                .and_then(|text| text.trim().parse().ok()),
                            },
                        ),
                        error => OpenError::at(path, error).into(),
                    });
                }
            }
        }
        watches.kernels.insert(watch, kernels);
        Ok(watch)
    }

    fn unwatch(&self, watch: WatchId) {
        let mut watches = self.watches();
        for kernels in watches.kernels.remove(&watch).unwrap_or_default() {
            self.release(&mut watches, kernels, watch);
        }
    }

    fn wait(&self, timeout: Duration) -> Woken {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut woken = Woken::default();
        // Rounded up: a rest of less than a millisecond must not become a busy loop.
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut polled = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
        ];
        // A signal ends it early, with nothing to tell.
        if poll(&mut polled, timeout).is_err() {
            return woken;
        }
        let [told, called] = polled.map(|fd| fd.any().unwrap_or(false));
        if called {
            woken.called = self.bell.read().is_ok();
        }
        if told {
            self.drain(&mut buffer, &mut woken);
        }
        woken
    }

    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(&self.inotify))
    }

    fn wake(&self) {
        // It fails only when it has been rung 2^64 times and not heard.
        self.bell.write(1).unwrap_or_default();
    }
}

/// One event, its name borrowed from the buffer.
#[derive(Debug, PartialEq, Eq)]
struct Event<'buffer> {
    watch: i32,
    mask: AddWatchFlags,
    name: &'buffer OsStr,
}

/// What was read in one `wait`.
#[derive(Debug, Default)]
struct Heard {
    overflow: bool,
    changes: HashMap<i32, Change>,
    ended: Vec<i32>,
}

/// What happened in one directory; an empty name is the directory itself.
#[derive(Debug, Default)]
struct Change {
    /// Came, went or became others.
    names: HashSet<OsString>,
    written: HashSet<OsString>,
}

impl Heard {
    fn take(&mut self, event: &Event<'_>) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.overflow = true;
            return;
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.ended.push(event.watch);
            return;
        }
        let change = self.changes.entry(event.watch).or_default();
        let names = if CONTENT.contains(event.mask.difference(AddWatchFlags::IN_ISDIR)) {
            &mut change.written
        } else {
            &mut change.names
        };
        if !names.contains(event.name) {
            names.insert(event.name.to_owned());
        }
    }
}

/// Takes apart what inotify gives: whole events, each padded with NUL.
fn events(mut buffer: &[u8], mut each: impl FnMut(Event<'_>)) {
    fn word(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
        bytes.get(at..at + 4)?.try_into().ok()
    }
    while let (Some(watch), Some(mask), Some(len)) =
        (word(buffer, 0), word(buffer, 4), word(buffer, 12))
    {
        let end = HEADER.saturating_add(u32::from_ne_bytes(len) as usize);
        let Some(name) = buffer.get(HEADER..end) else {
            return;
        };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        each(Event {
            watch: i32::from_ne_bytes(watch),
            mask: AddWatchFlags::from_bits_retain(u32::from_ne_bytes(mask)),
            name: OsStr::from_bytes(name),
        });
        buffer = &buffer[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(watch: i32, name: &[u8]) -> Vec<u8> {
        let padded = name.len().div_ceil(16) * 16;
        let mut bytes = Vec::new();
        bytes.extend(watch.to_ne_bytes());
        bytes.extend(AddWatchFlags::IN_MODIFY.bits().to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(u32::try_from(padded).expect("short").to_ne_bytes());
        bytes.extend(name);
        bytes.resize(HEADER + padded, 0);
        bytes
    }

    proptest! {
        #[test]
        fn every_event_is_taken_and_each_name_once(
            told in prop::collection::vec((0_i32..3, "[a-c]{0,2}"), 0..50)
        ) {
            let bytes: Vec<u8> = told
                .iter()
                .flat_map(|(watch, name)| written(*watch, name.as_bytes()))
                .collect();
            let mut heard = Heard::default();
            let mut count = 0;
            events(&bytes, |event| {
                count += 1;
                heard.take(&event);
            });
            prop_assert_eq!(count, told.len());
            for (watch, name) in &told {
                let change = &heard.changes[watch];
                prop_assert!(change.written.contains(OsStr::new(name)));
            }
        }

        #[test]
        fn torn_events_are_left_alone(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            events(&bytes, |event| drop(event.name.to_owned()));
        }
    }
}
