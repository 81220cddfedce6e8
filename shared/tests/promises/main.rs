//! What the daemon's and the shim's users are promised by the code that both are made of.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected shall stop there"
)]

mod a_change_wakes;
mod a_frame_is_whole_or_refused;
mod a_message_is_whole_or_refused;
mod a_mount_that_hangs_stops_only_itself;
mod a_path_stays_in_its_root;
mod a_pattern_means_what_it_says;
mod hanging_mount;
mod no_wake_up_is_lost;
mod rings;

/// Says aloud that a promise was not proven on this machine.
#[expect(
    clippy::print_stderr,
    reason = "a test that proves nothing shall say so"
)]
fn not_tested(what: &str) {
    eprintln!("NOT TESTED: {what}");
}
