//! A mount that hangs: a user-space file system with one log, whose reads are not answered until it is told to.
//! Place: beside `whatever_goes_wrong`; the kernel's own FUSE, by the crate `fuser`.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request,
};

/// What its one file is called.
pub(crate) const NAME: &str = "slow.log";
const LOG: INodeNo = INodeNo(2);
const TEXT: &[u8] = b"at last\n";

/// A mounted file system; unmounted when dropped.
pub(crate) struct HangingMount {
    answers: Arc<Mutex<Answers>>,
    _session: BackgroundSession,
}

/// Reads that wait for their answer; `None` when nothing waits any more.
type Answers = Option<Vec<(u64, ReplyData)>>;

impl HangingMount {
    /// Mounts it.
    ///
    /// # Errors
    /// Where the machine has no FUSE, or this user may not mount.
    pub(crate) fn at(dir: &Path) -> std::io::Result<Self> {
        let answers = Arc::new(Mutex::new(Some(Vec::new())));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO];
        let files = Files(Arc::clone(&answers));
        let session = fuser::spawn_mount(files, dir, &config)?;
        Ok(Self {
            answers,
            _session: session,
        })
    }

    /// How many reads hang.
    pub(crate) fn hanging(&self) -> usize {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.as_ref().map_or(0, Vec::len)
    }

    /// From now on everything is answered.
    pub(crate) fn mend(&self) {
        let waiting = self
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        for (offset, reply) in waiting.into_iter().flatten() {
            reply.data(text_from(offset));
        }
    }
}

impl Drop for HangingMount {
    fn drop(&mut self) {
        // What hangs keeps a mount from going.
        self.mend();
    }
}

fn text_from(offset: u64) -> &'static [u8] {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    TEXT.get(offset..).unwrap_or_default()
}

struct Files(Arc<Mutex<Answers>>);

fn attributes(inode: INodeNo) -> FileAttr {
    let is_log = inode == LOG;
    FileAttr {
        ino: inode,
        size: if is_log { TEXT.len() as u64 } else { 0 },
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_log {
            FileType::RegularFile
        } else {
            FileType::Directory
        },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 512,
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&Duration::ZERO, &attributes(LOG), fuser::Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attributes(inode));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *answers {
            Some(waiting) => waiting.push((offset, reply)),
            None => reply.data(text_from(offset)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            // One name, and room for many: it is not full.
            let is_full = reply.add(LOG, 1, FileType::RegularFile, NAME);
            debug_assert!(!is_full);
        }
        reply.ok();
    }
}
