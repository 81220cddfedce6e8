//! What comes out of a ring is what went in, or the ring is refused: whatever a pod writes into its memory.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use ringpilot_shared::ring::Backend;
use ringpilot_shared::ring::consume::{Consumer, Poison};
use ringpilot_shared::ring::layout::{self, PAGE};
use ringpilot_shared::ring::produce::Producer;
use ringpilot_shared::wire::frame::{
    self, BatchMetadata, FrameError, Header, Kind, MarkMetadata, What,
};

use crate::rings::{BACKENDS, Pair, copy_of, descriptors, make, open};

/// Bytes that show where they belong.
fn log(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|n| {
            if (n + seed) % 61 == 60 {
                b'\n'
            } else {
                b'a' + ((n * 7 + seed) % 23) as u8
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random frames, drains, sleeps and restarts of either end, against a queue of bytes.
    #[test]
    fn bytes_come_out_as_they_went_in(
        posix in any::<bool>(),
        steps in prop::collection::vec((0usize..8, 1usize..70_000), 1..120),
    ) {
        let backend = BACKENDS[usize::from(posix)];
        let mut pair = Pair::new(backend, layout::CAPACITY_LOG2_MIN);
        let mut model: VecDeque<u8> = VecDeque::new();
        let mut expected = Vec::new();
        for (seed, (step, size)) in steps.into_iter().enumerate() {
            match step {
                0..=4 => {
                    let bytes = log(size, seed);
                    let taken = pair.write(&bytes);
                    prop_assert!(taken > 0 || model.len() > (1 << 15), "an empty ring has room");
                    model.extend(&bytes[..taken]);
                }
                5 | 6 => {
                    while pair.drain().unwrap().more {}
                    expected.extend(model.drain(..));
                    prop_assert_eq!(&pair.read, &expected);
                    prop_assert!(pair.producer.is_drained().unwrap());
                }
                _ => {
                    // The shim dies and its ring with it: what is published is drained, a new ring goes on.
                    while pair.drain().unwrap().more {}
                    expected.extend(model.drain(..));
                    prop_assert_eq!(&pair.read, &expected);
                    pair = Pair::new(backend, layout::CAPACITY_LOG2_MIN);
                    expected.clear();
                }
            }
        }
    }

    #[test]
    fn a_header_reads_back_as_it_was_written(
        lane in any::<u32>(), sequence in any::<u64>(), payload in 1u32..100_000, metadata in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let header = Header::new(Kind::Batch, lane, sequence, payload, metadata.len() as u16);
        let mut bytes = copy_of(header.total as usize);
        bytes[..32].copy_from_slice(&header.write(&metadata));
        let at = frame::metadata_at(payload as usize);
        bytes[at..at + metadata.len()].copy_from_slice(&metadata);
        let (read, found) = Header::read(&bytes, layout::FRAME_LIMIT).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(found, &metadata[..]);
        // Any one bit of header or metadata changed is seen.
        let bit = (sequence % ((32 + metadata.len() as u64) * 8)) as usize;
        let byte = if bit / 8 < 32 { bit / 8 } else { at + bit / 8 - 32 };
        bytes[byte] ^= 1 << (bit % 8);
        prop_assert!(Header::read(&bytes, layout::FRAME_LIMIT).is_err());
    }

    #[test]
    fn foreign_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut copy = copy_of(bytes.len());
        copy.copy_from_slice(&bytes);
        for frame in ringpilot_shared::ring::consume::frames(&copy) {
            drop(frame);
        }
        prop_assert!(frame::read_mark(&copy).is_err() || copy.len() >= 32);
        if let Ok(read) = frame::read_batch(&copy, 100) {
            prop_assert!(read.lines().len() <= 100);
        }
    }

    /// Metadata that a pod has changed either reads as some metadata, or is refused; its lines always add up.
    #[test]
    fn changed_metadata_is_judged(
        lines in prop::collection::vec(1u32..500, 0..40), at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let payload: u32 = lines.iter().sum();
        let metadata = BatchMetadata { offset: 9, size: 99, read_ns: -1, file: 3, generation: 2, lines };
        let mut bytes = copy_of(512);
        let length = usize::from(frame::write_batch(&metadata, &mut bytes).unwrap());
        let read = frame::read_batch(&bytes[..length], payload).unwrap();
        prop_assert!(read.lines().eq(metadata.lines.iter().copied()));
        prop_assert_eq!((read.offset(), read.size(), read.read_ns(), read.file(), read.generation()), (9, 99, -1, 3, 2));
        let at = at.index(length);
        bytes[at] = value;
        if let Ok(read) = frame::read_batch(&bytes[..length], payload) {
            let sum: u64 = read.lines().map(u64::from).sum();
            prop_assert!(read.lines().len() == 0 || sum == u64::from(payload));
        }
    }
}

#[test]
fn a_full_ring_takes_no_more_and_goes_on_after_a_drain() {
    for backend in BACKENDS {
        let mut pair = Pair::new(backend, layout::CAPACITY_LOG2_MIN);
        let bytes = log(10_000, 3);
        let mut written = 0;
        loop {
            match pair.write(&bytes) {
                0 => break,
                taken => written += taken,
            }
        }
        assert!(
            written > 50_000,
            "{backend:?}: most of the ring holds log bytes"
        );
        assert!(!pair.producer.want_space(4096).unwrap());
        let mut is_nudged = false;
        loop {
            let drained = pair.drain().unwrap();
            is_nudged |= drained.nudge;
            if !drained.more {
                break;
            }
        }
        assert!(is_nudged, "{backend:?}: a waiting shim is told of space");
        assert_eq!(pair.read.len(), written);
        pair.producer.stop_wanting();
        assert_eq!(pair.write(&bytes), bytes.len());
    }
}

#[test]
fn a_shim_killed_within_a_frame_leaves_nothing_of_it() {
    for backend in BACKENDS {
        let mut pair = Pair::new(backend, layout::CAPACITY_LOG2_MIN);
        pair.write(b"whole\n");
        let mut slot = pair.producer.slot(100).unwrap().unwrap();
        slot.payload().fill(b'x');
        assert_eq!(pair.drain().unwrap().frames, 1);
        assert_eq!(pair.read, b"whole\n");
    }
}

#[test]
fn marks_stand_in_their_place_among_the_bytes() {
    let mut pair = Pair::new(Backend::Memfd, layout::CAPACITY_LOG2_MIN);
    pair.write(b"first\n");
    let gap = MarkMetadata {
        offset: 6,
        bytes: 0,
        size: 6,
        file: 0,
        generation: 0,
        what: What::Finished.code(),
    };
    assert!(pair.producer.mark(1, &gap).unwrap().is_some());
    pair.drain().unwrap();
    assert_eq!(pair.lanes.len(), 0);
    // The lane is taken back: what still comes in it is dropped, and the ring lives.
    pair.write(b"late\n");
    pair.drain().unwrap();
    assert_eq!(pair.read, b"first\n");
}

#[test]
fn line_lengths_that_do_not_fit_are_left_to_the_daemon() {
    let mut pair = Pair::new(Backend::Memfd, layout::CAPACITY_LOG2_MIN);
    let mut metadata = pair.metadata();
    metadata.lines = vec![1; 3000];
    let mut slot = pair.producer.slot(3000).unwrap().unwrap();
    slot.payload().fill(b'\n');
    let _ring = slot.publish(3000, 1, &mut metadata);
    assert_eq!(pair.drain().unwrap().frames, 1);
    assert_eq!(pair.read.len(), 3000);
}

/// What each change of a ring's memory is answered with.
fn poisoned(backend: Backend, change: impl FnOnce(&std::fs::File)) -> Poison {
    let mut pair = Pair::new(backend, layout::CAPACITY_LOG2_MIN);
    pair.write(b"one line\n");
    pair.write(b"another line\n");
    change(&pair.data);
    pair.drain().unwrap_err()
}

fn set_head(data: &std::fs::File, head: u64) {
    let mut pair = head.to_le_bytes().to_vec();
    pair.extend((!head).to_le_bytes());
    data.write_all_at(&pair, layout::HEAD_AT as u64).unwrap();
}

#[test]
fn a_head_that_jumps_poisons_the_ring() {
    for backend in BACKENDS {
        for head in [!31, 1 << 40, (1 << 16) + 32, 1 << 63] {
            let poison = poisoned(backend, |data| set_head(data, head));
            assert!(
                matches!(poison, Poison::HeadOutside { .. }),
                "{backend:?} {head} {poison}"
            );
        }
        let poison = poisoned(backend, |data| set_head(data, 33));
        assert!(
            matches!(poison, Poison::HeadUnaligned { .. }),
            "{backend:?} {poison}"
        );
        let poison = poisoned(backend, |data| set_head(data, 128));
        assert!(
            matches!(poison, Poison::HeadInFrame),
            "{backend:?} {poison}"
        );
    }
}

#[test]
fn a_head_that_goes_back_poisons_the_ring() {
    let mut pair = Pair::new(Backend::Memfd, layout::CAPACITY_LOG2_MIN);
    pair.write(b"one line\n");
    pair.drain().unwrap();
    set_head(&pair.data, 0);
    assert!(matches!(
        pair.drain().unwrap_err(),
        Poison::HeadOutside { .. }
    ));
}

#[test]
fn bad_lengths_kinds_and_sequences_poison_the_ring() {
    for backend in BACKENDS {
        let set = |at: usize, bytes: &[u8]| {
            poisoned(backend, |data| {
                data.write_all_at(bytes, (PAGE + at) as u64).unwrap()
            })
        };
        for (at, bytes) in [
            (0, &u32::MAX.to_le_bytes()[..]),
            (0, &0u32.to_le_bytes()),
            (0, &48u32.to_le_bytes()),
            (4, &[9]),
            (5, &[0xff]),
            (6, &u16::MAX.to_le_bytes()),
            (8, &77u64.to_le_bytes()),
            (16, &u32::MAX.to_le_bytes()),
            (20, &u32::MAX.to_le_bytes()),
            (24, &[1, 2, 3, 4]),
            (28, &[1]),
            (48, &[0xff; 40]),
        ] {
            let poison = set(at, bytes);
            assert!(
                matches!(poison, Poison::Frame { .. } | Poison::HeadInFrame),
                "{backend:?} at {at}: {poison}"
            );
        }
    }
}

#[test]
fn a_frame_with_a_right_checksum_and_a_wrong_number_poisons_the_ring() {
    let write = |header: Header, metadata: &[u8]| {
        let mut pair = Pair::new(Backend::Memfd, layout::CAPACITY_LOG2_MIN);
        let mut bytes = vec![0; header.total as usize];
        bytes[..32].copy_from_slice(&header.write(metadata));
        let at = frame::metadata_at(header.payload as usize);
        bytes.resize(bytes.len().max(at + metadata.len()), 0);
        bytes[at..at + metadata.len()].copy_from_slice(metadata);
        pair.data.write_all_at(&bytes, PAGE as u64).unwrap();
        set_head(&pair.data, u64::from(header.total));
        pair.drain().unwrap_err()
    };
    let metadata = |change: &dyn Fn(&mut BatchMetadata)| {
        let mut metadata = BatchMetadata {
            offset: 0,
            size: 10,
            read_ns: 0,
            file: 0,
            generation: 0,
            lines: Vec::new(),
        };
        change(&mut metadata);
        let mut bytes = copy_of(256);
        let length = frame::write_batch(&metadata, &mut bytes).unwrap();
        bytes[..usize::from(length)].to_vec()
    };
    let batch = |lane, sequence, metadata: &[u8]| {
        write(
            Header::new(Kind::Batch, lane, sequence, 10, metadata.len() as u16),
            metadata,
        )
    };
    let plain = metadata(&|_| ());
    assert!(matches!(batch(1, 5, &plain), Poison::Sequence { .. }));
    assert!(matches!(batch(2, 0, &plain), Poison::Lane(2)));
    assert!(matches!(batch(0, 0, &plain), Poison::Lane(0)));
    assert!(matches!(
        batch(1, 0, &metadata(&|m| m.offset = 1)),
        Poison::Jump { .. }
    ));
    assert!(matches!(
        batch(1, 0, &metadata(&|m| m.offset = u64::MAX)),
        Poison::Jump { .. }
    ));
    assert!(matches!(
        batch(1, 0, &metadata(&|m| m.file = 1)),
        Poison::Other { .. }
    ));
    assert!(matches!(
        batch(1, 0, &metadata(&|m| m.generation = 1)),
        Poison::Other { .. }
    ));
    let lines = |lines: &'static [u32]| batch(1, 0, &metadata(&move |m| m.lines = lines.to_vec()));
    for wrong in [&[9][..], &[11], &[0, 10], &[u32::MAX, 11], &[5, 5, 1]] {
        assert!(matches!(
            lines(wrong),
            Poison::Frame {
                error: FrameError::LineLengths,
                ..
            }
        ));
    }
    assert!(matches!(
        batch(1, 0, &[0xff; 48]),
        Poison::Frame {
            error: FrameError::Metadata,
            ..
        }
    ));
    // A pad that does not reach the ring's end.
    let mut pad = Header::new(Kind::Pad, 0, 0, 0, 0);
    pad.total = 64;
    assert!(matches!(write(pad, &[]), Poison::Wrap));
    // A gap that leads past the largest file.
    let gap = MarkMetadata {
        offset: 0,
        bytes: u64::MAX,
        size: 0,
        file: 0,
        generation: 0,
        what: What::Gap.code(),
    };
    let mut bytes = copy_of(256);
    let length = frame::write_mark(&gap, &mut bytes).unwrap();
    let poison = write(
        Header::new(Kind::Mark, 1, 0, 0, length),
        &bytes[..usize::from(length)],
    );
    assert!(matches!(poison, Poison::Overflow(1)), "{poison}");
}

/// A pod that changes bytes while they are drained: every drain gives judged frames or a poison.
#[test]
fn bytes_that_change_during_a_drain_are_judged_on_the_copy() {
    use std::sync::atomic::{AtomicBool, Ordering};
    for backend in BACKENDS {
        let stop = AtomicBool::new(false);
        let mut refused = 0;
        let made = make(backend, layout::CAPACITY_LOG2_MIN);
        let (memory, data) = open(made.offer, layout::CAPACITY_LOG2_MIN);
        drop(memory);
        let mut consumer = Some(Consumer::new(made.daemon, layout::CAPACITY_LOG2_MIN));
        let good = {
            let metadata = BatchMetadata {
                offset: 0,
                size: 10,
                read_ns: 0,
                file: 0,
                generation: 0,
                lines: vec![4, 6],
            };
            let mut bytes = copy_of(256);
            let length = frame::write_batch(&metadata, &mut bytes).unwrap();
            let header = Header::new(Kind::Batch, 1, 0, 10, length);
            let mut whole = vec![0; header.total as usize];
            whole[..32].copy_from_slice(&header.write(&bytes[..usize::from(length)]));
            let at = frame::metadata_at(10);
            whole[at..at + usize::from(length)].copy_from_slice(&bytes[..usize::from(length)]);
            whole
        };
        data.write_all_at(&good, PAGE as u64).unwrap();
        set_head(&data, good.len() as u64);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let at = (n >> 33) as usize % good.len();
                    let place = (PAGE + at) as u64;
                    data.write_all_at(&[(n >> 20) as u8], place).unwrap();
                    data.write_all_at(&good[at..=at], place).unwrap();
                }
            });
            let mut copy = copy_of(layout::FRAME_LIMIT);
            // On a busy machine the attacker's turn may come late.
            let late = std::time::Instant::now() + std::time::Duration::from_secs(20);
            let mut rounds = 0;
            while rounds < 20_000 || (refused == 0 && std::time::Instant::now() < late) {
                rounds += 1;
                // A fresh reader of the same memory each time: a poisoned one is never used again.
                let mut reader = consumer.take().unwrap();
                match reader.drain(&mut copy) {
                    Ok(drained) => {
                        for frame in ringpilot_shared::ring::consume::frames(&copy[..drained.bytes])
                            .flatten()
                        {
                            let mut lanes = ringpilot_shared::ring::lanes::Lanes::default();
                            lanes.give(0, 0, 0);
                            refused += usize::from(lanes.judge(&frame).is_err());
                        }
                    }
                    Err(_) => refused += 1,
                }
                consumer = Some(reader.begun_anew());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(
            refused > 0,
            "{backend:?}: the attacker was fast enough to be seen"
        );
    }
}

#[test]
fn memory_that_is_punched_or_cut_poisons_the_ring_and_harms_nobody() {
    use nix::fcntl::{FallocateFlags, fallocate};
    for backend in BACKENDS {
        let poison = poisoned(backend, |data| {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(data, punch, PAGE as i64, 1 << 16).unwrap();
        });
        assert!(
            matches!(poison, Poison::Frame { .. }),
            "{backend:?} {poison}"
        );
    }
    // Sealed memory cannot be cut; a named segment can, and the daemon lives through it.
    let mut pair = Pair::new(Backend::Memfd, layout::CAPACITY_LOG2_MIN);
    assert!(pair.data.set_len(0).is_err());
    assert!(pair.data.set_len(1 << 30).is_err());
    pair.write(b"still here\n");
    pair.drain().unwrap();
    assert_eq!(pair.read, b"still here\n");
    let poison = poisoned(Backend::Posix, |data| data.set_len(0).unwrap());
    assert!(matches!(poison, Poison::MemoryGone), "{poison}");
    let poison = poisoned(Backend::Posix, |data| {
        data.set_len(PAGE as u64 + 32).unwrap()
    });
    assert!(matches!(poison, Poison::MemoryGone), "{poison}");
}

#[test]
fn the_pod_can_only_read_the_control_page() {
    let made = make(Backend::Memfd, layout::CAPACITY_LOG2_MIN);
    let (_data, control) = descriptors(made.offer);
    let control = std::fs::File::from(control);
    assert!(control.write_at(&[1], 64).is_err());
    assert!(control.set_len(0).is_err());
    let reopened = std::fs::File::options()
        .read(true)
        .write(true)
        .open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&control)
        ));
    if let Ok(reopened) = reopened {
        assert!(reopened.write_at(&[1], 64).is_err());
        assert!(memmap2::MmapRaw::map_raw(&reopened).is_err());
    }
    assert!(memmap2::MmapRaw::map_raw(&control).is_err());
}

#[test]
fn an_insane_released_word_stops_the_shim_instead_of_overwriting_frames() {
    let made = make(Backend::Posix, layout::CAPACITY_LOG2_MIN);
    let ringpilot_shared::ring::Offer::Posix { data, control } = made.offer else {
        panic!("posix offers names");
    };
    let path = format!("/dev/shm/{}", control.trim_start_matches('/'));
    let control_file = std::fs::File::options().write(true).open(path).unwrap();
    let memory =
        ringpilot_shared::ring::posix_shm::open(&data, &control, layout::CAPACITY_LOG2_MIN)
            .unwrap();
    let mut producer = Producer::new(memory, layout::CAPACITY_LOG2_MIN, 1);
    let mut pair = 4096u64.to_le_bytes().to_vec();
    // Half written: not believed, and no fault.
    control_file
        .write_all_at(&pair, layout::RELEASED_AT as u64)
        .unwrap();
    assert!(producer.is_drained().unwrap());
    pair.extend((!4096u64).to_le_bytes());
    control_file
        .write_all_at(&pair, layout::RELEASED_AT as u64)
        .unwrap();
    assert!(producer.is_drained().is_err());
}
