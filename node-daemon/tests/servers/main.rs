//! What outputs promise, kept on real servers.
//!
//! `cargo test -p ringpilot --features e2e --test servers [NAME]`: without the feature they are not built. A server that
//! cannot be started is a failure, never a skipped test. `RINGPILOT_E2E_RECORDS` says how many records are delivered
//! where the number does not matter (20,000; 200,000 is what a release is held to).
//!
//! Each server is a script in `deploy/e2e/servers/`, which fetches what it needs; it ends with this process.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where and stop"
)]

mod deliver;
mod elasticsearch;
mod http;
mod kafka;
mod logstash;
mod proxy;
mod records;
mod redis;
mod server;
mod started;
mod syslog;
