//! The link to the node: its socket, the ring that came with it, and the lanes that the daemon wants read.
//! Place: under the loop in `lib`; one link lives until either end closes it.
//! Invariants: a frame holds bytes that stood behind the bytes last sent of its lane when it was read; a lane never goes
//! past its limit; messages leave in order; the daemon's word is checked where a wrong one would harm the pod.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use ringpilot_shared::follow::StreamKey;
use ringpilot_shared::follow::identity::{TAIL_BYTES, tail_hash};
use ringpilot_shared::host::LogFile;
use ringpilot_shared::ring::layout::{CAPACITY_LOG2_MAX, CAPACITY_LOG2_MIN};
use ringpilot_shared::ring::produce::{Producer, Ring};
use ringpilot_shared::ring::{memfd, posix_shm};
use ringpilot_shared::wire::frame::BatchMetadata;
use ringpilot_shared::wire::handshake::{ToDaemon, ToShim};
use ringpilot_shared::wire::{MESSAGE_LIMIT, SCHEMA, VERSION, socket};

/// Payload of one frame at most: of a 256 KiB ring several are on their way at once.
const FRAME_PAYLOAD: usize = 60 * 1024;

/// Messages that may wait for a daemon that does not take them.
const MOST_WAITING: usize = 16 * 1024;

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    epoch: u64,
    out: VecDeque<Vec<u8>>,
    pub(crate) ring: Option<RingEnd>,
    pub(crate) lanes: BTreeMap<u32, Lane>,
    /// The lane that was read last: the next turn begins behind it.
    last_lane: u32,
    /// The ring is full, and the daemon was asked to say when it is not.
    waits: bool,
    /// START has come: events are told.
    pub(crate) started: bool,
    /// LOOKED was said.
    pub(crate) looked: bool,
}

/// The ring's end, and the bell that wakes the daemon.
#[derive(Debug)]
pub(crate) struct RingEnd {
    producer: Producer,
    bell: File,
}

/// A file read from one position.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) stream: StreamKey,
    file: u32,
    pub(crate) offset: u64,
    pub(crate) limit: u64,
    /// The at most 64 bytes before `offset`.
    before: Vec<u8>,
    /// Nothing more was there when it was read last; until the file changes.
    pub(crate) at_end: bool,
}

/// What came of one read.
#[derive(Debug)]
pub(crate) enum Sent {
    /// A frame; the stream stands here now.
    Frame {
        stream: StreamKey,
        end: u64,
        tail: u64,
    },
    /// Other bytes stand where the last ones were.
    Suspect(StreamKey),
    /// The file cannot be read.
    Failed(StreamKey, io::Error),
    /// Nothing can be sent now.
    Nothing,
}

impl Link {
    pub(crate) fn connect(path: &Path, epoch: u64, capacity_log2: u8) -> io::Result<Self> {
        let mut link = Self {
            socket: socket::connect_to(path)?,
            epoch,
            out: VecDeque::new(),
            ring: None,
            lanes: BTreeMap::new(),
            last_lane: 0,
            waits: false,
            started: false,
            looked: false,
        };
        link.say(&ToDaemon::Hello {
            oldest: VERSION,
            newest: VERSION,
            schema: SCHEMA,
            epoch,
            capacity_log2,
        })?;
        Ok(link)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether messages wait until the socket takes more.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.out.is_empty()
    }

    /// Queues a message; what is too long to be told is dropped: the caller has made sure of what matters.
    pub(crate) fn say(&mut self, message: &ToDaemon) -> io::Result<()> {
        if let Some(bytes) = message.write() {
            if self.out.len() >= MOST_WAITING {
                return Err(io::Error::other("the node takes no messages"));
            }
            self.out.push_back(bytes);
        }
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some(message) = self.out.front() {
            if !socket::send(self.socket.as_fd(), message, &[])? {
                break;
            }
            self.out.pop_front();
        }
        Ok(())
    }

    /// The next message, if one is there; the ring is taken from WELCOME.
    pub(crate) fn hear(&mut self) -> io::Result<Option<ToShim>> {
        let mut buffer = [0; MESSAGE_LIMIT];
        let mut descriptors = Vec::new();
        let wanted = self.ring.is_none().then_some(&mut descriptors);
        let length = match socket::receive(self.socket.as_fd(), &mut buffer, wanted)? {
            socket::Received::Message(length) => length,
            socket::Received::Nothing => return Ok(None),
            socket::Received::Closed => return Err(io::Error::from(io::ErrorKind::BrokenPipe)),
            socket::Received::TooLong => return Err(io::Error::from(io::ErrorKind::InvalidData)),
        };
        let message = ToShim::read(&buffer[..length])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let ToShim::Welcome {
            version,
            backend,
            capacity_log2,
            data,
            control,
            ..
        } = &message
        {
            let known = *version == VERSION
                && (CAPACITY_LOG2_MIN..=CAPACITY_LOG2_MAX).contains(capacity_log2);
            if !known {
                return Err(io::Error::other("the node speaks another protocol"));
            }
            self.welcome(*backend, *capacity_log2, [data, control], descriptors)?;
        }
        Ok(Some(message))
    }

    fn welcome(
        &mut self,
        backend: u8,
        capacity_log2: u8,
        names: [&Vec<u8>; 2],
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || {
            let missing = || io::Error::other("the node sent too few descriptors");
            descriptors.next().ok_or_else(missing)
        };
        let memory = if backend == 0 {
            let (data, control) = (next()?, next()?);
            memfd::open(data, control, capacity_log2)?
        } else {
            let name = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).map_err(io::Error::other);
            posix_shm::open(&name(names[0])?, &name(names[1])?, capacity_log2)?
        };
        let bell = File::from(next()?);
        self.ring = Some(RingEnd {
            producer: Producer::new(memory, capacity_log2, self.epoch),
            bell,
        });
        Ok(())
    }

    /// A new lane, from `offset` on.
    pub(crate) fn resume(
        &mut self,
        lane: u32,
        file_number: u32,
        stream: StreamKey,
        (offset, limit): (u64, u64),
        file: &Arc<dyn LogFile>,
    ) -> io::Result<()> {
        let from = offset.saturating_sub(TAIL_BYTES as u64);
        let before = ringpilot_shared::follow::identity::read_range(&**file, from, offset)?;
        self.lanes.insert(
            lane,
            Lane {
                stream,
                file: file_number,
                offset,
                limit,
                before,
                at_end: false,
            },
        );
        Ok(())
    }

    /// Space was released.
    pub(crate) fn space(&mut self) {
        self.waits = false;
    }

    /// Whether a lane could be read now.
    pub(crate) fn can_send(&self) -> bool {
        !self.waits && self.ring.is_some() && self.lanes.values().any(|lane| lane.is_open())
    }

    /// Whether a frame of this stream will follow by itself, with its size.
    pub(crate) fn sends(&self, stream: StreamKey) -> bool {
        let mut lanes = self.lanes.values();
        !self.waits
            && self.ring.is_some()
            && lanes.any(|lane| lane.stream == stream && lane.is_open())
    }

    /// Something may be there again in these streams' files.
    pub(crate) fn grew(&mut self, stream: StreamKey) {
        for lane in self.lanes.values_mut().filter(|lane| lane.stream == stream) {
            lane.at_end = false;
        }
    }

    /// Reads one lane's next bytes straight into the ring: the lane whose turn it is.
    pub(crate) fn send(
        &mut self,
        file_of: impl Fn(StreamKey) -> Option<(Arc<dyn LogFile>, u64)>,
        read_ns: i64,
    ) -> io::Result<Sent> {
        let Some(ring) = &mut self.ring else {
            return Ok(Sent::Nothing);
        };
        if self.waits {
            return Ok(Sent::Nothing);
        }
        let after = self.last_lane;
        let open = |(number, lane): (&u32, &Lane)| lane.is_open().then_some(*number);
        let next = self.lanes.range(after + 1..).find_map(open);
        let Some(number) = next.or_else(|| self.lanes.range(..=after).find_map(open)) else {
            return Ok(Sent::Nothing);
        };
        self.last_lane = number;
        let Some(lane) = self.lanes.get_mut(&number) else {
            return Ok(Sent::Nothing);
        };
        let stream = lane.stream;
        let Some((file, size)) = file_of(stream) else {
            lane.at_end = true;
            return Ok(Sent::Nothing);
        };
        let may = usize::try_from(lane.limit - lane.offset).unwrap_or(usize::MAX);
        let want = may.min(FRAME_PAYLOAD);
        let broken = |broken| io::Error::new(io::ErrorKind::InvalidData, broken);
        let mut slot = match ring.producer.slot(want).map_err(broken)? {
            Some(slot) => slot,
            None => {
                // Armed, then looked at once more: no release is missed.
                self.waits = !ring.producer.want_space(want).map_err(broken)?;
                return Ok(Sent::Nothing);
            }
        };
        let to = slot.payload();
        let got = match file.read_at(to, lane.offset) {
            Ok(0) => {
                lane.at_end = true;
                let is_cut = size > lane.offset;
                return Ok(if is_cut {
                    Sent::Suspect(stream)
                } else {
                    Sent::Nothing
                });
            }
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Sent::Nothing),
            Err(error) => {
                lane.at_end = true;
                return Ok(Sent::Failed(stream, error));
            }
        };
        let mut after = std::mem::take(&mut lane.before);
        let is_same = {
            // Only after the read: what was cut before it, or during it, shows here.
            let mut found = [0; TAIL_BYTES];
            let found = &mut found[..after.len()];
            let from = lane.offset - after.len() as u64;
            after.is_empty() || (read_exactly(&*file, found, from) && found == &after[..])
        };
        if !is_same {
            lane.before = after;
            lane.at_end = true;
            return Ok(Sent::Suspect(stream));
        }
        after.extend_from_slice(&to[got.saturating_sub(TAIL_BYTES)..got]);
        after.drain(..after.len().saturating_sub(TAIL_BYTES));
        let end = lane.offset + got as u64;
        let mut metadata = BatchMetadata {
            offset: lane.offset,
            size: size.max(end),
            read_ns,
            file: lane.file,
            generation: stream.generation,
            lines: Vec::new(),
        };
        if slot.publish(got, number, &mut metadata) == Ring::Needed {
            (&ring.bell).write_all(&1_u64.to_ne_bytes())?;
        }
        ring.producer.beat();
        lane.at_end = got < want && end >= size;
        lane.offset = end;
        lane.before = after;
        let tail = tail_hash(&lane.before);
        Ok(Sent::Frame { stream, end, tail })
    }

    /// Whether the daemon has its copy of everything that was published.
    pub(crate) fn is_drained(&mut self) -> bool {
        match &mut self.ring {
            Some(ring) => ring.producer.is_drained().unwrap_or(true),
            None => true,
        }
    }
}

impl Lane {
    fn is_open(&self) -> bool {
        !self.at_end && self.offset < self.limit
    }
}

fn read_exactly(file: &dyn LogFile, buffer: &mut [u8], from: u64) -> bool {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], from + have as u64) {
            Ok(0) => return false,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}
