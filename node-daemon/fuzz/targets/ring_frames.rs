#![no_main]
//! What comes out of a ring is judged whole: payloads lie in the copy, and lanes take no byte that does not follow.

use libfuzzer_sys::fuzz_target;
use ringpilot_shared::ring::consume::{Frame, frames, private_copy};
use ringpilot_shared::ring::lanes::Lanes;

fuzz_target!(|bytes: &[u8]| {
    let mut copy = private_copy(bytes.len());
    copy.copy_from_slice(bytes);
    let mut lanes = Lanes::default();
    lanes.give(1, 0, 0);
    for frame in frames(&copy) {
        let Ok(frame) = frame else { break };
        if let Frame::Batch { payload, .. } = &frame {
            assert!(payload.end <= copy.len());
        }
        if lanes.judge(&frame).is_err() {
            break;
        }
    }
});
