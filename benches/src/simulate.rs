//! `simulate`: histories of a whole node from seeds, and whether they find what is wrong.
//! Place: beside the product; the histories are `ringpilot::sim`, the real code on a simulated machine.
//! Invariants: a history that fails is named by its kind and seed, and makes the whole run fail; a mutant (a patch that
//! breaks a rule on purpose) that no history finds makes it fail, too, and so does a patch that fits no more.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ringpilot::sim::{Options, Summary, run};

/// A kind of history: its name, and what may happen in it.
const KINDS: [(&str, Options); 4] = [
    ("calm", of(false, false, true)),
    ("killed", of(true, false, false)),
    ("power-loss", of(true, true, false)),
    ("copied", of(true, true, true)),
];

const fn of(kills: bool, power_losses: bool, copies: bool) -> Options {
    Options {
        steps: 150,
        kills,
        power_losses,
        faults: true,
        copies,
        traced: false,
    }
}

/// Run histories from seeds; each kind on its own
#[derive(Debug, clap::Args)]
pub(crate) struct Simulate {
    /// How many seeds of each kind
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this kind: `calm` (the daemon lives), `killed` and `power-loss` (logs are renamed), `copied` (both, and logs
    /// are copied and truncated, too)
    #[arg(long, value_parser = ["calm", "killed", "power-loss", "copied"])]
    kind: Option<String>,
    /// Break the product on purpose, patch by patch, and demand that the histories of `cargo test` find each
    #[arg(long)]
    mutants: bool,
}

impl Simulate {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.mutants {
            return mutants(self.seeds);
        }
        let mut failed = Vec::new();
        say(format_args!(
            "{:<12}{:>10}{:>10}{:>12}{:>12}{:>10}{:>9}",
            "kind", "histories", "failed", "lines", "owed", "repeated", "s"
        ))?;
        for (name, options) in KINDS {
            if self.kind.as_deref().is_some_and(|kind| kind != name) {
                continue;
            }
            let begun = Instant::now();
            let (all, failures) = self.histories(name, options)?;
            say(format_args!(
                "{name:<12}{:>10}{:>10}{:>12}{:>12}{:>10}{:>9.1}",
                self.seeds,
                failures.len(),
                all.lines,
                all.owed,
                all.repeated,
                begun.elapsed().as_secs_f64()
            ))?;
            failed.extend(failures.into_iter().map(|what| format!("{name} {what}")));
        }
        for what in &failed {
            say(format_args!("{what}"))?;
        }
        ensure!(failed.is_empty(), "{} histories failed", failed.len());
        Ok(())
    }

    fn histories(&self, name: &str, options: Options) -> anyhow::Result<(Summary, Vec<String>)> {
        let next = AtomicU64::new(self.from);
        let end = self.from + self.seeds;
        let found = Mutex::new((Summary::default(), Vec::new()));
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                let result = run(seed, options);
                let mut found = found.lock().unwrap_or_else(|broken| broken.into_inner());
                match result {
                    Ok(one) => {
                        found.0.lines += one.lines;
                        found.0.owed += one.owed;
                        found.0.repeated += one.repeated;
                    }
                    Err(failure) => found.1.push((seed, failure.to_string())),
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get);
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut shown = std::io::stderr().lock();
            while shown.is_terminal() && running.iter().any(|one| !one.is_finished()) {
                let done = next.load(Ordering::Relaxed).min(end) - self.from;
                write!(shown, "\r{name}: {done} of {}\x1b[K", self.seeds)?;
                shown.flush()?;
                std::thread::park_timeout(Duration::from_millis(200));
            }
            if shown.is_terminal() {
                write!(shown, "\r\x1b[K")?;
            }
            anyhow::Ok(())
        })?;
        let (all, mut failures) = found
            .into_inner()
            .unwrap_or_else(|broken| broken.into_inner());
        failures.sort();
        Ok((all, failures.into_iter().map(|(_, what)| what).collect()))
    }
}

fn say(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("writing to stdout")
}

/// Applies each patch to a copy of the source tree and demands that the histories fail there.
fn mutants(seeds: u64) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace of this crate")?;
    let mut patches: Vec<PathBuf> = std::fs::read_dir(root.join("node-daemon/tests/mutants"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    patches.retain(|path| path.extension().is_some_and(|ending| ending == "patch"));
    patches.sort();
    ensure!(!patches.is_empty(), "there are no mutants");
    let copies = tempfile::tempdir()?;
    let copy = copies.path().join("ringpilot");
    let mut survived = Vec::new();
    for patch in &patches {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy();
        let begun = Instant::now();
        copy_tree(root, &copy)?;
        let applied = Command::new("git")
            .args(["apply", "--whitespace=nowarn"])
            .arg(patch)
            .current_dir(&copy)
            .status()
            .context("git apply")?;
        ensure!(applied.success(), "{name} does not apply any more");
        let found = is_found(root, &copy, seeds).with_context(|| format!("mutant {name}"))?;
        let verdict = if found { "found" } else { "NOT FOUND" };
        say(format_args!(
            "{name:<36}{verdict:>10}{:>8.0} s",
            begun.elapsed().as_secs_f64()
        ))?;
        if !found {
            survived.push(name.into_owned());
        }
    }
    if !survived.is_empty() {
        bail!("no history found: {}", survived.join(", "));
    }
    Ok(())
}

/// Builds and runs the histories of a copy; whether one failed. What was built of others' crates is used again.
fn is_found(root: &Path, copy: &Path, seeds: u64) -> anyhow::Result<bool> {
    let test = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        command
            .args(["test", "--quiet", "--locked", "-p", "ringpilot"])
            .args(["--test", "promises"])
            .args(arguments)
            .current_dir(copy)
            .env("CARGO_TARGET_DIR", root.join("target"))
            .env("RINGPILOT_SEEDS", format!("0..{seeds}"))
            .stdout(Stdio::null());
        command
    };
    let built = test(&["--no-run"]).status().context("cargo test")?;
    ensure!(built.success(), "it does not build");
    let mut run = test(&[]);
    Ok(!run.stderr(Stdio::null()).status()?.success())
}

/// Copies what git knows of a tree, as it is now; times stay, so that only what differs is built again.
fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(from)
        .output()
        .context("git ls-files")?;
    ensure!(listed.status.success(), "git ls-files failed");
    for name in listed.stdout.split(|byte| *byte == 0) {
        let name = Path::new(std::str::from_utf8(name)?);
        let (source, target) = (from.join(name), to.join(name));
        if name.as_os_str().is_empty() || !source.is_file() {
            continue;
        }
        let is_same = std::fs::read(&target)
            .is_ok_and(|there| std::fs::read(&source).is_ok_and(|wanted| wanted == there));
        if !is_same {
            std::fs::create_dir_all(target.parent().unwrap_or(to))?;
            std::fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_still_applies() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let listed = std::fs::read_dir(root.join("node-daemon/tests/mutants")).expect("mutants");
        let mut patches = 0;
        for entry in listed {
            let path = entry
                .expect("an entry")
                .path()
                .canonicalize()
                .expect("a path");
            let mut check = Command::new("git");
            check
                .args(["apply", "--check"])
                .arg(&path)
                .current_dir(&root);
            let checked = check.output().expect("git, which the long form needs, too");
            let why = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{}: {why}", path.display());
            patches += 1;
        }
        assert!(patches >= 5, "only {patches} mutants");
    }
}
