//! The same file or another: how a file on disk is matched to a stream.
//! Place: within **follow**; `rotation` asks it about every new name, and the checkpoint keeps its answers.
//! Invariants: never the path; the device counts only within one boot; a doubt is a new stream, because a line read
//! twice is better than one never read.

use std::io;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::host::{LogFile, Stat};

/// Bytes before a cursor whose hash proves that the file is still the one that was read.
pub const TAIL_BYTES: usize = 64;
/// The head hash grows with the file to at most this.
pub const HEAD_BYTES: usize = 1024;

/// What a file is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Inode number.
    #[serde(rename = "i")]
    pub inode: u64,
    /// Birth time in nanoseconds since 1970, where the file system keeps one.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub birth_ns: Option<i64>,
    /// Device; counts only while `boot` is this boot.
    #[serde(rename = "d")]
    pub device: u64,
    /// In which boot the device number was seen.
    #[serde(rename = "o")]
    pub boot: u128,
    /// How many of its first bytes are known, at most [`HEAD_BYTES`].
    #[serde(rename = "n")]
    pub head_len: u32,
    /// Hash of those.
    #[serde(rename = "h")]
    pub head: u64,
}

/// The hash of the bytes before a cursor; 0 where nothing is before it.
#[must_use]
pub fn tail_hash(bytes_before: &[u8]) -> u64 {
    let from = bytes_before.len().saturating_sub(TAIL_BYTES);
    match &bytes_before[from..] {
        [] => 0,
        tail => xxh3_64(tail),
    }
}

/// Reads exactly the bytes of `from..to`, less at the file's end.
///
/// # Errors
/// As the file gives them.
pub fn read_range(file: &dyn LogFile, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let wanted = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; wanted.min(2 * 1024 * 1024)];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], from + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

/// The hash of the at most 64 bytes before `offset`; `None` where the file is too short.
///
/// # Errors
/// As the file gives them.
pub fn tail_at(file: &dyn LogFile, offset: u64) -> io::Result<Option<u64>> {
    let from = offset.saturating_sub(TAIL_BYTES as u64);
    let bytes = read_range(file, from, offset)?;
    Ok((bytes.len() as u64 == offset - from).then(|| tail_hash(&bytes)))
}

impl Identity {
    /// The identity of a file of which nothing was read: its node.
    #[must_use]
    pub fn of(stat: &Stat, boot: u128) -> Self {
        Self {
            inode: stat.inode,
            birth_ns: stat.birth_ns,
            device: stat.device,
            boot,
            head_len: 0,
            head: 0,
        }
    }

    /// Takes a file's identity as it is now.
    ///
    /// # Errors
    /// As the file gives them.
    pub fn take(file: &dyn LogFile, stat: &Stat, boot: u128) -> io::Result<Self> {
        let head = read_range(file, 0, HEAD_BYTES as u64)?;
        Ok(Self {
            head_len: u32::try_from(head.len()).unwrap_or(u32::MAX),
            head: if head.is_empty() { 0 } else { xxh3_64(&head) },
            ..Self::of(stat, boot)
        })
    }

    /// The same head in another file.
    #[must_use]
    pub fn moved(self, stat: &Stat, boot: u128) -> Self {
        Self {
            head_len: self.head_len,
            head: self.head,
            ..Self::of(stat, boot)
        }
    }

    /// Whether the file's node is this one's: inode, birth time where both know one, device within one boot.
    #[must_use]
    pub fn same_node(&self, stat: &Stat, boot: u128) -> bool {
        let same_birth = match (self.birth_ns, stat.birth_ns) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let same_device = self.boot != boot || self.device == stat.device;
        self.inode == stat.inode && same_birth && same_device
    }

    /// Whether the file begins with the bytes that are known of this one.
    ///
    /// # Errors
    /// As the file gives them.
    pub fn same_head(&self, file: &dyn LogFile) -> io::Result<bool> {
        if self.head_len == 0 {
            return Ok(true);
        }
        let head = read_range(file, 0, u64::from(self.head_len))?;
        Ok(head.len() as u64 == u64::from(self.head_len) && xxh3_64(&head) == self.head)
    }

    /// Takes more of the head where what is known is short and more was read; never beyond `read`, so that a truncation
    /// that nobody has seen does not go into it.
    ///
    /// # Errors
    /// As the file gives them.
    pub fn grow(&mut self, file: &dyn LogFile, read: u64) -> io::Result<bool> {
        if self.head_len as usize >= HEAD_BYTES || read <= u64::from(self.head_len) {
            return Ok(false);
        }
        let head = read_range(file, 0, read.min(HEAD_BYTES as u64))?;
        let known = self.head_len as usize;
        // Only a head that still begins as known may grow: anything else is for `rotation` to judge.
        if head.len() <= known || (known > 0 && xxh3_64(&head[..known]) != self.head) {
            return Ok(false);
        }
        self.head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
        self.head = xxh3_64(&head);
        Ok(true)
    }
}
