//! The messages on the node's socket, as bytes and back.
//! Place: `socket` moves them; the shim and the daemon's `rings` act on them.
//! Invariants: a message is at most `MESSAGE_LIMIT` bytes and is read whole or refused; every length is checked before
//! it is used; no byte may be left over; nothing that a pod says here names the pod.
//!
//! ```text
//!  shim                                             daemon
//!  Hello ────────────────────────────────────────►  who it is: by the socket it came from
//!  ◄──────────────────────── Welcome + descriptors  the ring's memory, the doorbell
//!  Declare …, Ready ─────────────────────────────►  read as a container's environment is
//!  ◄─────────────────────── Known …, Follow …, Start  what the checkpoint knows of its files
//!  Seen … Changed … Truncated … Finished … ──────►  the follower's word, one event a message
//!  ◄──────────────────────────── Resume(lane), Grant  bytes wanted from there on, so many
//!  ═══════════════════ frames, through the ring ══►
//!  ◄───────────────── Durable, Release, Suspect, Drain
//!  Left …, Bye ──────────────────────────────────►  what could not be handed over
//! ```
//! All little endian: one byte of kind, then the fields in order; bytes and paths with a `u16` length before them.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{MESSAGE_LIMIT, STRING_LIMIT};
use crate::follow::{Identity, KnownStream, StreamKey};
use crate::host::Stat;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It ends before it is whole.
    #[error("the message ends before it is whole")]
    Short,
    /// Bytes are left over, or it is longer than a message may be.
    #[error("the message is longer than it should be")]
    Long,
    /// Not one of ours.
    #[error("no message is of kind {0}")]
    Kind(u8),
    /// A field has a value that it cannot have.
    #[error("a field of the message has an impossible value")]
    Value,
}

/// One field of a message.
trait Field: Sized {
    fn put(&self, to: &mut Vec<u8>) -> Option<()>;
    fn take(from: &mut &[u8]) -> Result<Self, MessageError>;
}

fn split<'a>(from: &mut &'a [u8], n: usize) -> Result<&'a [u8], MessageError> {
    let (taken, rest) = from.split_at_checked(n).ok_or(MessageError::Short)?;
    *from = rest;
    Ok(taken)
}

macro_rules! number_fields {
    ($($number:ty),*) => {$(
        impl Field for $number {
            fn put(&self, to: &mut Vec<u8>) -> Option<()> {
                to.extend_from_slice(&self.to_le_bytes());
                Some(())
            }
            fn take(from: &mut &[u8]) -> Result<Self, MessageError> {
                let bytes = split(from, size_of::<$number>())?;
                let bytes = bytes.try_into().map_err(|_| MessageError::Short)?;
                Ok(<$number>::from_le_bytes(bytes))
            }
        }
    )*};
}
number_fields!(u8, u16, u32, u64, u128, i64);

impl Field for bool {
    fn put(&self, to: &mut Vec<u8>) -> Option<()> {
        u8::from(*self).put(to)
    }
    fn take(from: &mut &[u8]) -> Result<Self, MessageError> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(MessageError::Value),
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, to: &mut Vec<u8>) -> Option<()> {
        self.is_some().put(to)?;
        match self {
            Some(value) => value.put(to),
            None => Some(()),
        }
    }
    fn take(from: &mut &[u8]) -> Result<Self, MessageError> {
        bool::take(from)?.then(|| T::take(from)).transpose()
    }
}

/// Bytes of at most `STRING_LIMIT`.
impl Field for Vec<u8> {
    fn put(&self, to: &mut Vec<u8>) -> Option<()> {
        let length = u16::try_from(self.len()).ok()?;
        (self.len() <= STRING_LIMIT).then_some(())?;
        length.put(to)?;
        to.extend_from_slice(self);
        Some(())
    }
    fn take(from: &mut &[u8]) -> Result<Self, MessageError> {
        let length = usize::from(u16::take(from)?);
        if length > STRING_LIMIT {
            return Err(MessageError::Value);
        }
        Ok(split(from, length)?.to_vec())
    }
}

/// A path's bytes; nothing is said of what they mean.
impl Field for PathBuf {
    fn put(&self, to: &mut Vec<u8>) -> Option<()> {
        self.as_os_str().as_bytes().to_vec().put(to)
    }
    fn take(from: &mut &[u8]) -> Result<Self, MessageError> {
        Ok(std::ffi::OsString::from_vec(Vec::take(from)?).into())
    }
}

macro_rules! struct_fields {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl Field for $name {
            fn put(&self, to: &mut Vec<u8>) -> Option<()> {
                $(self.$field.put(to)?;)*
                Some(())
            }
            fn take(from: &mut &[u8]) -> Result<Self, MessageError> {
                Ok(Self { $($field: Field::take(from)?),* })
            }
        }
    )*};
}
struct_fields! {
    StreamKey { id, generation }
    Stat { device, inode, birth_ns, size, disk_bytes, links, modified_ns, may_hang }
    Identity { inode, birth_ns, device, boot, head_len, head }
    CopySeen { path, identity, size, modified_ns }
}

/// The copy that was made of a file before it was truncated, as a message tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySeen {
    /// Where it is.
    pub path: PathBuf,
    /// What it is recognised by.
    pub identity: Identity,
    /// Its length.
    pub size: u64,
    /// Last modification, nanoseconds since 1970.
    pub modified_ns: i64,
}

macro_rules! messages {
    ($(#[$doc:meta])* $enum:ident { $($(#[$kind_doc:meta])* $code:literal $kind:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* })* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $enum {
            $($(#[$kind_doc])* $kind { $($(#[$field_doc])* $field: $type),* },)*
        }

        impl $enum {
            /// The message as bytes; nothing where a string in it is too long to be told.
            #[must_use]
            pub fn write(&self) -> Option<Vec<u8>> {
                let mut to = Vec::with_capacity(64);
                match self {
                    $(Self::$kind { $($field),* } => {
                        to.push($code);
                        $($field.put(&mut to)?;)*
                    })*
                }
                (to.len() <= MESSAGE_LIMIT).then_some(to)
            }

            /// Reads one whole message.
            ///
            /// # Errors
            /// Whatever keeps it from being one.
            pub fn read(bytes: &[u8]) -> Result<Self, MessageError> {
                if bytes.len() > MESSAGE_LIMIT {
                    return Err(MessageError::Long);
                }
                let mut from = bytes;
                let message = match u8::take(&mut from)? {
                    $($code => Self::$kind { $($field: Field::take(&mut from)?),* },)*
                    other => return Err(MessageError::Kind(other)),
                };
                if from.is_empty() { Ok(message) } else { Err(MessageError::Long) }
            }
        }
    };
}

messages! {
    /// What a shim says.
    ToDaemon {
        /// First of all.
        1 Hello {
            /// Oldest protocol that it speaks.
            oldest: u16,
            /// Newest protocol that it speaks.
            newest: u16,
            /// Of the archived types.
            schema: u64,
            /// Random, once a process.
            epoch: u64,
            /// Wanted size of the data area, as a power of two.
            capacity_log2: u8
        }
        /// One variable of its environment, or a part of one: parts of one name follow one another.
        2 Declare {
            /// The variable's name.
            name: Vec<u8>,
            /// Its value, or the next part of it.
            value: Vec<u8>,
            /// Another part follows.
            more: bool
        }
        /// Everything is declared.
        3 Ready {}
        /// A want sees a stream, perhaps again.
        4 Seen {
            /// Which want.
            want: u64,
            /// Which stream, in the shim's words: the daemon believes it only of this pod's own streams.
            stream: StreamKey,
            /// What the file is.
            stat: Stat,
            /// What it is recognised by.
            identity: Identity,
            /// The stream whose name it took.
            after: Option<StreamKey>,
            /// The stream was known before.
            known: bool,
            /// The file was there before the shim started.
            existed: bool,
            /// Nothing more will be written to it.
            finished: bool,
            /// Under which path.
            path: PathBuf
        }
        /// A file's size or time has changed.
        5 Changed {
            /// Which.
            stream: StreamKey,
            /// What it is now.
            stat: Stat
        }
        /// More is known of what a stream is recognised by.
        6 Identified {
            /// Which.
            stream: StreamKey,
            /// All that is known.
            identity: Identity
        }
        /// A file has another name.
        7 Renamed {
            /// Which.
            stream: StreamKey,
            /// Where it is now.
            path: PathBuf
        }
        /// Another file has the name that this one had.
        8 Succeeded {
            /// Which lost it.
            stream: StreamKey,
            /// Which has it.
            by: StreamKey
        }
        /// A file was truncated and begins anew.
        9 Truncated {
            /// The life that ended.
            old: StreamKey,
            /// The life that begins.
            new: StreamKey,
            /// What the new one is recognised by.
            identity: Identity,
            /// Where the rest of the old one is.
            copy: Option<CopySeen>,
            /// The new life's length.
            size: u64,
            /// Last modification, nanoseconds since 1970.
            modified_ns: i64
        }
        /// A suspicion was false.
        10 Intact {
            /// Which.
            stream: StreamKey
        }
        /// Nothing more will be written to a file.
        11 Finished {
            /// Which.
            stream: StreamKey
        }
        /// A file that was finished has changed after all.
        12 Unfinished {
            /// Which.
            stream: StreamKey
        }
        /// A file is given up: too many bytes were held.
        13 Shed {
            /// Which.
            stream: StreamKey
        }
        /// The copy in which the rest of a stream was has been overwritten.
        14 Overwritten {
            /// Which.
            stream: StreamKey
        }
        /// A file that was released is closed.
        15 Released {
            /// Which.
            stream: StreamKey,
            /// It has no name left.
            deleted: bool
        }
        /// A stream is known no longer.
        16 Forgotten {
            /// Which.
            stream: StreamKey
        }
        /// Something that is wanted cannot be read, or can be again.
        17 Trouble {
            /// Whose.
            want: u64,
            /// The cause as an error number; 0: well again; -1: see the text.
            error: i64,
            /// In words, cut short where it is long.
            text: Vec<u8>
        }
        /// Everything that was there at the first look has been told.
        18 Looked {}
        /// The shim ends: it reads on until everything is handed over or its time is over.
        19 Ending {}
        /// The shim ends now; so many bytes of its files were not handed over.
        20 Bye {
            /// Unread bytes of all files.
            unread: u64
        }
    }
}

messages! {
    /// What the daemon says.
    ToShim {
        /// The ring. Its descriptors come with it: data and control (memfd), and the doorbell.
        101 Welcome {
            /// The protocol that is spoken.
            version: u16,
            /// 0 memfd, 1 posix.
            backend: u8,
            /// Size of the data area, as a power of two.
            capacity_log2: u8,
            /// A number for this ring.
            generation: u64,
            /// Name of the data segment (posix).
            data: Vec<u8>,
            /// Name of the control segment (posix).
            control: Vec<u8>
        }
        /// A stream that the daemon knows, and how far it was read.
        102 Known {
            /// Its key.
            stream: StreamKey,
            /// What it is recognised by.
            identity: Identity,
            /// When it was last modified, nanoseconds since 1970.
            modified_ns: i64,
            /// Which stream took its name.
            successor: Option<StreamKey>,
            /// When it was last seen, nanoseconds since 1970.
            seen_ns: i64,
            /// The furthest offset of any output.
            offset: u64,
            /// Hash of the bytes before it.
            tail: u64,
            /// Where it was last seen.
            path: PathBuf
        }
        /// Follow this.
        103 Follow {
            /// The daemon's number of the want.
            want: u64,
            /// The declaration's name.
            name: Vec<u8>,
            /// Most bytes of its deleted files that are held.
            pinned_bytes: u64,
            /// Which files.
            pattern: Vec<u8>
        }
        /// All that is known and wanted now has been told: begin.
        104 Start {}
        /// Read this file from there on, in this lane.
        105 Resume {
            /// The lane's number.
            lane: u32,
            /// The file's number in frames.
            file: u32,
            /// Which stream.
            stream: StreamKey,
            /// From where.
            offset: u64,
            /// Up to where at most.
            limit: u64
        }
        /// The lane may go on up to there.
        106 Grant {
            /// The lane.
            lane: u32,
            /// Up to where at most.
            limit: u64
        }
        /// The lane is taken back.
        107 Stop {
            /// The lane.
            lane: u32
        }
        /// Every output has acknowledged a stream up to there.
        108 Durable {
            /// Which.
            stream: StreamKey,
            /// Up to where.
            offset: u64
        }
        /// A stream is needed by nobody any more.
        109 Release {
            /// Which.
            stream: StreamKey
        }
        /// A stream's file may have been truncated: judge.
        110 Suspect {
            /// Which.
            stream: StreamKey
        }
        /// Space was released that the shim waits for.
        111 Space {}
        /// Read to the end, hand over, and end.
        112 Drain {}
        /// The shim is refused, and why; it tries again later.
        113 Refused {
            /// In words.
            cause: Vec<u8>,
            /// When it may try again, milliseconds from now.
            after_ms: u32
        }
    }
}

/// Text that fits in a message, cut at a character's start.
#[must_use]
pub fn fitting(text: &str) -> Vec<u8> {
    let mut end = text.len().min(STRING_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.as_bytes()[..end].to_vec()
}

/// Whether a path is short enough to be told.
#[must_use]
pub fn can_tell(path: &Path) -> bool {
    path.as_os_str().len() <= STRING_LIMIT
}

impl ToShim {
    /// What the daemon knows of a stream, as a message.
    #[must_use]
    pub fn known(stream: &KnownStream, furthest: (u64, u64)) -> Self {
        Self::Known {
            stream: stream.key,
            identity: stream.identity,
            modified_ns: stream.modified_ns,
            successor: stream.successor,
            seen_ns: stream.seen_ns,
            offset: furthest.0,
            tail: furthest.1,
            path: stream.path.clone(),
        }
    }
}
