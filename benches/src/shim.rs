//! The shim as a process, as it is shipped: static and small.
//! Invariants: it ends with its handle.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

/// Where `cargo build --profile shim` puts it, beside this program's own folder.
const BUILT: &str = "x86_64-unknown-linux-musl/shim/ringpilot-shim";

/// The shim's program, as it is shipped, unless another is asked for.
///
/// # Errors
/// When it is not there.
pub(crate) fn program(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let built = own.parent().and_then(Path::parent).unwrap_or(&own);
    let program = asked.map_or_else(|| built.join(BUILT), Path::to_owned);
    ensure!(
        program.exists(),
        "{} is not there; do: build it with \
         `cargo build -p ringpilot-shim --profile shim --target x86_64-unknown-linux-musl`, or name one with --shim",
        program.display()
    );
    Ok(program)
}

/// A running shim.
#[derive(Debug)]
pub(crate) struct Shim(Child);

impl Shim {
    /// Starts it for files that `pattern` names, declared as `name`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        program: &Path,
        socket: &Path,
        name: &str,
        pattern: &str,
    ) -> anyhow::Result<Self> {
        let child = Command::new(program)
            .args(["--drain-timeout", "5s", "--socket"])
            .arg(socket)
            .arg(format!("{name}={pattern}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("the shim cannot be started")?;
        Ok(Self(child))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // It may have ended; nothing more is wanted of it.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
