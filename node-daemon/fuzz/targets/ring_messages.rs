#![no_main]
//! What comes on the socket of a ring is one whole message, with one form, or none.

use libfuzzer_sys::fuzz_target;
use ringpilot_shared::wire::handshake::{ToDaemon, ToShim};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = ToDaemon::read(bytes) {
        assert_eq!(message.write().as_deref(), Some(bytes));
    }
    if let Ok(message) = ToShim::read(bytes) {
        assert_eq!(message.write().as_deref(), Some(bytes));
    }
});
