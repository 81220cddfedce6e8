//! Mounts that may hang: network and user-space file systems get a thread each, and only that thread waits for them.
//! Place: under the real `Host`; the walk (`open`) says where a path enters such a mount, and whatever touches it from
//! there on runs in its [`Lane`].
//! Invariants: at most one thread per mount is ever stuck; while it is, every call for that mount fails at once; what
//! a stuck thread holds is one job and what was dropped meanwhile; closing a file is done by the lane, too, because
//! closing asks the server.
//! Source: `/proc/PID/mountinfo`, proc(5); its change is told by POLLPRI. Types and numbers: statfs(2), linux/magic.h.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::{LogFile, Stat};

/// How long one call may take on a mount that may hang. A slow server is not a dead one: what it delivers late is in
/// the page cache when it is asked again.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// How long a lane keeps its thread without work.
const IDLE: Duration = Duration::from_secs(30);

/// As much as one guarded read fetches: a slice.
const MOST_AT_ONCE: usize = 256 * 1024;

/// Lanes without a thread or a file that are kept before they are cleared away.
const SPARE_LANES: usize = 64;

/// A whole mount table is taken up to this; a node with thousands of containers has a tenth of it.
const MOST_MOUNTINFO: u64 = 32 * 1024 * 1024;

/// The mount points whose file systems may hang, as one process sees them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Prone {
    points: HashMap<PathBuf, u64>,
}

impl Prone {
    /// From the text of a `mountinfo`.
    #[must_use]
    pub fn parse(mountinfo: &[u8]) -> Self {
        let mut points = HashMap::new();
        for line in mountinfo.split(|byte| *byte == b'\n') {
            let Some(mounted) = Mounted::parse(line) else {
                continue;
            };
            let point = unescape(mounted.point);
            // The last one mounted at a place is the one that is seen there.
            if may_hang_type(mounted.kind) {
                points.insert(PathBuf::from(point), mounted.device);
            } else if !points.is_empty() {
                points.remove(Path::new(&point));
            }
        }
        Self { points }
    }

    /// Whether there is none, so that nobody need know where he is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The device that is entered at exactly this path.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<u64> {
        self.points.get(path).copied()
    }

    /// The device at the nearest of these mount points at or above a path.
    #[must_use]
    pub fn above(&self, path: &Path) -> Option<u64> {
        path.ancestors().find_map(|path| self.at(path))
    }
}

/// One line of a mount table: `ID PARENT MAJ:MIN ROOT POINT OPTIONS [FIELDS] - TYPE SOURCE SUPER`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mounted<'line> {
    /// As st_dev has it.
    pub(super) device: u64,
    /// Where, escaped.
    pub(super) point: &'line [u8],
    /// The file system's type.
    pub(super) kind: &'line [u8],
    /// The file system's own options, escaped.
    pub(super) options: &'line [u8],
}

impl<'line> Mounted<'line> {
    pub(super) fn parse(line: &'line [u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let (major, minor) = std::str::from_utf8(words.nth(2)?).ok()?.split_once(':')?;
        let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        let point = words.nth(1)?;
        let mut after = words.skip_while(|word| *word != b"-").skip(1);
        Some(Self {
            device,
            point,
            kind: after.next()?,
            options: after.nth(1).unwrap_or_default(),
        })
    }
}

/// A mount table writes space, tab, newline and backslash as `\040` and so on.
pub(super) fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(*first));
        rest = match octal {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    OsString::from_vec(plain)
}

/// By the type's name in a mount table.
fn may_hang_type(kind: &[u8]) -> bool {
    const KINDS: [&[u8]; 27] = [
        b"9p",
        b"acfs",
        b"afs",
        b"autofs",
        b"beegfs",
        b"ceph",
        b"cifs",
        b"coda",
        b"fuse",
        b"fuseblk",
        b"gfs2",
        b"glusterfs",
        b"gpfs",
        b"hostfs",
        b"lustre",
        b"ncpfs",
        b"nfs",
        b"nfs4",
        b"ocfs2",
        b"orangefs",
        b"panfs",
        b"prl_fs",
        b"smb3",
        b"smbfs",
        b"vboxsf",
        b"virtiofs",
        b"vmhgfs",
    ];
    KINDS.contains(&kind) || kind.starts_with(b"fuse.")
}

/// By the number that fstatfs gives: for what a mount table did not tell, or told too late.
pub(crate) fn may_hang_number(number: u64) -> bool {
    matches!(
        number,
        0x6969          // NFS
            | 0xFF53_4D42 // CIFS
            | 0xFE53_4D42 // SMB2 and later
            | 0x517B      // SMB
            | 0x6573_5546 // FUSE, virtiofs
            | 0x00C3_6400 // Ceph
            | 0x0102_1997 // 9P
            | 0x5346_414F // OpenAFS
            | 0x6B41_4653 // the kernel's AFS
            | 0x7375_7245 // Coda
            | 0x564C      // NCP
            | 0x0116_1970 // GFS2
            | 0x7461_636F // OCFS2
            | 0x0BD0_0BD0 // Lustre
            | 0x2003_0528 // OrangeFS
            | 0x4750_4653 // GPFS
            | 0x1983_0326 // BeeGFS
            | 0xAAD7_AAEA // PanFS
            | 0x786F_4256 // VirtualBox
            | 0x00C0_FFEE // a user-mode kernel's host
            | 0x0187 // autofs
    )
}

/// This process's mount table, read again whenever the kernel says that it has changed.
#[derive(Debug)]
pub struct MountTable {
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    file: Option<File>,
    prone: Arc<Prone>,
}

impl MountTable {
    /// Opens `/proc/self/mountinfo`. Where there is none, only fstatfs tells what may hang.
    #[must_use]
    pub fn open() -> Self {
        let mut seen = Seen {
            file: File::open("/proc/self/mountinfo").ok(),
            prone: Arc::default(),
        };
        seen.read();
        Self {
            seen: Mutex::new(seen),
        }
    }

    /// What may hang now. One system call where nothing was mounted since.
    #[must_use]
    pub fn prone(&self) -> Arc<Prone> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = seen.file.as_ref().is_some_and(|file| {
            let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
        });
        if changed {
            seen.read();
        }
        Arc::clone(&seen.prone)
    }
}

impl Seen {
    fn read(&mut self) {
        let Some(file) = &mut self.file else { return };
        let mut text = Vec::new();
        // What could be read is better than nothing: the rest is found by fstatfs.
        if file.rewind().is_ok() && file.take(MOST_MOUNTINFO).read_to_end(&mut text).is_ok() {
            self.prone = Arc::new(Prone::parse(&text));
        }
    }
}

/// The lanes of all mounts that may hang.
#[derive(Debug)]
pub struct Lanes {
    deadline: Duration,
    lanes: Mutex<HashMap<u64, Arc<Lane>>>,
}

impl Lanes {
    /// Lanes whose calls take at most `deadline`.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            lanes: Mutex::default(),
        }
    }

    /// The lane of a device (st_dev).
    #[must_use]
    pub fn of(&self, device: u64) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= SPARE_LANES && !lanes.contains_key(&device) {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.state().thread);
        }
        let lane = lanes.entry(device).or_insert_with(|| {
            Arc::new(Lane {
                device,
                deadline: self.deadline,
                state: Mutex::default(),
                work: Condvar::new(),
                free: Condvar::new(),
            })
        });
        Arc::clone(lane)
    }
}

/// One mount's thread: calls for it wait their turn, and none waits longer than the deadline.
pub struct Lane {
    device: u64,
    deadline: Duration,
    state: Mutex<State>,
    /// Tells the thread that there is a job, or something to close.
    work: Condvar,
    /// Tells callers that the thread is free again.
    free: Condvar,
}

type Job = Box<dyn FnOnce() + Send>;

/// Where a job leaves what its caller waits for.
struct Slot<T> {
    answer: Mutex<Answer<T>>,
    told: Condvar,
}

enum Answer<T> {
    Awaited,
    Given(std::thread::Result<T>),
    /// Nobody waits any more: whatever comes is dropped where it was made.
    Unwanted,
}

impl<T> Slot<T> {
    fn put(&self, value: std::thread::Result<T>) {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*answer, Answer::Awaited) {
            *answer = Answer::Given(value);
            self.told.notify_one();
        } else {
            drop(answer);
            drop(value);
        }
    }

    fn wait(&self, give_up: Instant) -> Option<std::thread::Result<T>> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *answer, Answer::Unwanted) {
                Answer::Given(value) => return Some(value),
                Answer::Unwanted => return None,
                Answer::Awaited => {
                    let left = give_up.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    *answer = Answer::Awaited;
                    answer = self
                        .told
                        .wait_timeout(answer, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }
}

#[derive(Default)]
struct State {
    /// A job that is not begun yet.
    job: Option<Job>,
    /// A job is waiting or being done.
    busy: bool,
    /// A caller gave up on the present job, or on waiting for its turn.
    hung: bool,
    /// The last job's.
    number: u64,
    /// A thread is there.
    thread: bool,
    /// What the thread drops when it comes to it.
    closing: Vec<Box<dyn Any + Send>>,
    /// The buffer of the last read.
    spare: Vec<u8>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("device", &self.device)
            .field("hung", &self.is_hung())
            .finish_non_exhaustive()
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so a poisoned one holds a whole state all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its thread is stuck.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.state().hung
    }

    /// Does `work` on the mount's thread and waits for it, at most until the deadline.
    ///
    /// # Errors
    /// `TimedOut` when it takes longer, and at once while an earlier call is stuck; what `work` gives is dropped then,
    /// by the mount's thread. Otherwise as the thread could not be started.
    pub fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let give_up = Instant::now() + self.deadline;
        let slot = Arc::new(Slot {
            answer: Mutex::new(Answer::Awaited),
            told: Condvar::new(),
        });
        let number = self.begin(give_up, {
            let slot = Arc::clone(&slot);
            Box::new(move || slot.put(catch_unwind(AssertUnwindSafe(work))))
        })?;
        match slot.wait(give_up) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(io::Error::other(
                "a call on a network or user-space mount broke off",
            )),
            None => {
                let mut state = self.state();
                state.hung |= state.busy && state.number == number;
                Err(self.hangs())
            }
        }
    }

    /// Hands a job to the thread when it is free; the job's number.
    fn begin(self: &Arc<Self>, give_up: Instant, job: Job) -> io::Result<u64> {
        let mut state = self.state();
        while state.busy {
            let left = give_up.saturating_duration_since(Instant::now());
            state.hung |= left.is_zero();
            if state.hung {
                return Err(self.hangs());
            }
            state = self
                .free
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        self.need_thread(&mut state)?;
        state.busy = true;
        state.number += 1;
        state.job = Some(job);
        self.work.notify_one();
        Ok(state.number)
    }

    /// Drops `thing` on the mount's thread, some time.
    pub fn close(self: &Arc<Self>, thing: Box<dyn Any + Send>) {
        let mut state = self.state();
        state.closing.push(thing);
        // Without a thread it stays until there is one: dropping it here could hang us.
        if self.need_thread(&mut state).is_ok() {
            self.work.notify_one();
        }
    }

    fn hangs(&self) -> io::Error {
        let (major, minor) = (
            nix::sys::stat::major(self.device),
            nix::sys::stat::minor(self.device),
        );
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the network or user-space mount {major}:{minor} does not answer"),
        )
    }

    fn need_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if !state.thread {
            let lane = Arc::clone(self);
            std::thread::Builder::new()
                .name("mount".to_owned())
                .stack_size(256 * 1024)
                .spawn(move || lane.work())?;
            state.thread = true;
        }
        Ok(())
    }

    /// The thread: it ends after a while without work.
    fn work(&self) {
        let mut state = self.state();
        loop {
            let closing = std::mem::take(&mut state.closing);
            let job = state.job.take();
            if closing.is_empty() && job.is_none() {
                let (kept, waited) = self
                    .work
                    .wait_timeout(state, IDLE)
                    .unwrap_or_else(PoisonError::into_inner);
                state = kept;
                if waited.timed_out() && state.job.is_none() && state.closing.is_empty() {
                    state.thread = false;
                    state.spare = Vec::new();
                    return;
                }
                continue;
            }
            state.busy = true;
            drop(state);
            if let Some(job) = job {
                job();
            }
            drop(closing);
            state = self.state();
            if state.job.is_none() {
                state.busy = false;
                state.hung = false;
                self.free.notify_all();
            }
        }
    }
}

/// A log file on a mount that may hang: every call runs in the mount's lane.
#[derive(Debug)]
pub struct Guarded {
    /// There until this is dropped.
    file: Option<Arc<dyn LogFile>>,
    lane: Arc<Lane>,
}

impl Guarded {
    /// Guards a file that was opened in `lane`.
    #[must_use]
    pub fn new(file: Arc<dyn LogFile>, lane: Arc<Lane>) -> Self {
        Self {
            file: Some(file),
            lane,
        }
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn LogFile) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file.clone().ok_or(io::ErrorKind::NotFound)?;
        // The job's handle goes with the job: should this be dropped meanwhile, the lane closes the file.
        self.lane.run(move || {
            let result = work(&*file);
            drop(file);
            result
        })?
    }
}

impl LogFile for Guarded {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // A stuck read still writes to its buffer when the mount comes back, so it has one of its own.
        let wanted = buffer.len().min(MOST_AT_ONCE);
        let mut bytes = std::mem::take(&mut self.lane.state().spare);
        let (bytes, read) = self.run(move |file| {
            bytes.resize(wanted, 0);
            let read = file.read_at(&mut bytes, offset)?;
            Ok((bytes, read))
        })?;
        let read = read.min(wanted);
        buffer[..read].copy_from_slice(&bytes[..read]);
        self.lane.state().spare = bytes;
        Ok(read)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.run(|file| file.stat())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.run(move |file| file.next_data(offset))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.lane.close(Box::new(file));
        }
    }
}

/// The upper directory of the overlay that is mounted at `/`, from the text of a mount table.
pub(super) fn upper_of_root(mountinfo: &[u8]) -> Option<PathBuf> {
    let root = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(Mounted::parse)
        .rfind(|mounted| mounted.point == b"/")?;
    if root.kind != b"overlay" {
        return None;
    }
    let upper = root
        .options
        .split(|byte| *byte == b',')
        .find_map(|option| option.strip_prefix(b"upperdir="))?;
    Some(PathBuf::from(unescape(upper)))
}

/// Whether a mount's own word for a directory means `path`: the whole of it, or its end where the overlay was mounted
/// from its parent, as runtimes do when its options would be too long.
pub(super) fn is_named(path: &Path, word: &Path) -> bool {
    path == word || (word.is_relative() && word != Path::new("") && path.ends_with(word))
}
