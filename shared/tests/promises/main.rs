//! What the daemon's and the shim's users are promised by the code that both are made of.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected shall stop there"
)]

mod a_frame_is_whole_or_refused;
mod no_wake_up_is_lost;
mod rings;
