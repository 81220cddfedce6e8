//! Both ends of a ring in one process, on either backend, for the tests beside this.

use std::fs::File;
use std::os::fd::OwnedFd;

use ringpilot_shared::ring::consume::{Consumer, Drained, Frame, Poison, frames};
use ringpilot_shared::ring::lanes::{Judged, Lanes};
use ringpilot_shared::ring::produce::{Producer, ShimMemory};
use ringpilot_shared::ring::{Backend, Made, Offer, layout, memfd, posix_shm};
use ringpilot_shared::wire::frame::BatchMetadata;

pub(crate) const BACKENDS: [Backend; 2] = [Backend::Memfd, Backend::Posix];

/// A private copy, aligned as `drain` wants it.
pub(crate) fn copy_of(bytes: usize) -> rkyv::util::AlignedVec<64> {
    let mut copy = rkyv::util::AlignedVec::with_capacity(bytes);
    copy.resize(bytes, 0);
    copy
}

pub(crate) fn make(backend: Backend, log2: u8) -> Made {
    match backend {
        Backend::Memfd => memfd::make(log2, 7).unwrap(),
        Backend::Posix => posix_shm::make(log2, 7, None).unwrap(),
    }
}

/// The shim's end, and its data memory once more, as a hostile pod would hold it.
pub(crate) fn open(offer: Offer, log2: u8) -> (ShimMemory, File) {
    match offer {
        Offer::Memfd { data, control } => {
            let again = File::from(data.try_clone().unwrap());
            (memfd::open(data, control, log2).unwrap(), again)
        }
        Offer::Posix { data, control } => {
            let path = format!("/dev/shm/{}", data.trim_start_matches('/'));
            let again = File::options().read(true).write(true).open(path).unwrap();
            (posix_shm::open(&data, &control, log2).unwrap(), again)
        }
    }
}

/// A ring, and the file that lane 1 reads.
pub(crate) struct Pair {
    pub(crate) producer: Producer,
    pub(crate) consumer: Consumer,
    pub(crate) lanes: Lanes,
    pub(crate) data: File,
    copy: rkyv::util::AlignedVec<64>,
    written: u64,
    pub(crate) read: Vec<u8>,
}

impl Pair {
    pub(crate) fn new(backend: Backend, log2: u8) -> Self {
        let made = make(backend, log2);
        let (memory, data) = open(made.offer, log2);
        let mut lanes = Lanes::default();
        assert_eq!(lanes.give(0, 0, 0), 1);
        Self {
            producer: Producer::new(memory, log2, 1),
            consumer: Consumer::new(made.daemon, log2),
            lanes,
            data,
            copy: copy_of(layout::FRAME_LIMIT),
            written: 0,
            read: Vec::new(),
        }
    }

    pub(crate) fn metadata(&self) -> BatchMetadata {
        BatchMetadata {
            offset: self.written,
            size: self.written,
            read_ns: 0,
            file: 0,
            generation: 0,
            lines: Vec::new(),
        }
    }

    /// Writes as much of `bytes` as one frame takes; how much that was.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        let mut metadata = self.metadata();
        let Some(mut slot) = self.producer.slot(bytes.len()).unwrap() else {
            return 0;
        };
        let to = slot.payload();
        let taken = to.len().min(bytes.len());
        to[..taken].copy_from_slice(&bytes[..taken]);
        let _ring = slot.publish(taken, 1, &mut metadata);
        self.written += taken as u64;
        taken
    }

    /// Drains once, judges everything, and keeps lane 1's bytes.
    pub(crate) fn drain(&mut self) -> Result<Drained, Poison> {
        let drained = self.consumer.drain(&mut self.copy)?;
        for frame in frames(&self.copy[..drained.bytes]) {
            let frame = frame.map_err(|error| Poison::Frame { error, position: 0 })?;
            if let (Judged::Bytes { offset, .. }, Frame::Batch { payload, .. }) =
                (self.lanes.judge(&frame)?, &frame)
            {
                assert_eq!(
                    offset,
                    self.read.len() as u64,
                    "a lane's bytes follow one another"
                );
                self.read.extend_from_slice(&self.copy[payload.clone()]);
            }
        }
        Ok(drained)
    }
}

/// Descriptors of a memfd offer.
pub(crate) fn descriptors(offer: Offer) -> (OwnedFd, OwnedFd) {
    match offer {
        Offer::Memfd { data, control } => (data, control),
        Offer::Posix { .. } => panic!("the posix backend offers names"),
    }
}
