//! Whatever is written while the daemon could read it arrives, once where the output allows it; and the ledger closes.

use std::sync::atomic::{AtomicU64, Ordering};

use ringpilot::sim::{Options, Summary, run};

/// Histories in every run. `RINGPILOT_SEEDS=FROM..TO` runs others.
const HISTORIES: u64 = 525;

fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("RINGPILOT_SEEDS").ok();
    asked
        .as_deref()
        .and_then(|text| {
            let (from, to) = text.split_once("..")?;
            Some(from.parse().ok()?..to.parse().ok()?)
        })
        .unwrap_or(0..HISTORIES)
}

fn histories(options: Options) {
    // What happens in a history that failed: `RINGPILOT_LOG=debug RINGPILOT_SEEDS=7..8`, with `--nocapture`.
    ringpilot::run::log_to_stderr();
    let seeds = seeds();
    let most = match std::env::var_os("RINGPILOT_SEEDS") {
        Some(_) => 500,
        None => 3,
    };
    // One alone tells all that happened.
    let options = Options {
        traced: seeds.end - seeds.start == 1,
        ..options
    };
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let run_some = || {
            let mut failures = Vec::new();
            let mut all = Summary::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end || failures.len() >= most {
                    return (failures, all);
                }
                match run(seed, options) {
                    Ok(summary) => {
                        all.lines += summary.lines;
                        all.owed += summary.owed;
                    }
                    Err(failure) => failures.push(failure.to_string()),
                }
            }
        };
        let runs: Vec<_> = (0..threads).map(|_| scope.spawn(run_some)).collect();
        let mut failures = Vec::new();
        let mut owed = 0;
        for run in runs {
            let (mine, all) = run.join().expect("a history panicked");
            failures.extend(mine);
            owed += all.owed;
        }
        assert!(owed > 0 || !failures.is_empty(), "no line was owed");
        failures
    });
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn while_the_daemon_runs_every_rotation_is_read_to_its_end() {
    histories(Options {
        kills: false,
        power_losses: false,
        ..Options::default()
    });
}

#[test]
fn a_daemon_that_is_killed_goes_on_where_it_was() {
    histories(Options {
        power_losses: false,
        copies: false,
        ..Options::default()
    });
}

#[test]
fn a_power_loss_loses_no_line() {
    histories(Options {
        copies: false,
        ..Options::default()
    });
}

#[test]
fn what_was_copied_and_cut_while_nobody_looked_is_read_from_the_copy() {
    histories(Options::default());
}
