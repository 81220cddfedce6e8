//! `ringpilot inject`: a manifest in, the same manifest with its shims out.
//! Place: a command; all knowledge is in [`super::pod`].
//! Invariant: stdout has a manifest that can be applied as it is, or nothing.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Mode, Options, Profile, manifest};
use crate::cli::said;
use crate::say::{self, Fault};

/// Print a manifest with the shim added where its declarations need one.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 good, 1 a declared file lies in no volume (the manifest is printed all the same).\n\n\
                  Example:\n  ringpilot inject -f deployment.yaml | kubectl apply -f -"
)]
pub struct Args {
    /// Pods and what makes them, one or more documents; `-` is stdin
    #[arg(short, long, value_name = "MANIFEST")]
    file: PathBuf,
    #[command(flatten)]
    how: How,
}

/// What injection needs to know besides the manifest.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// auto, shim or none; a pod's annotation wins
    #[arg(long, value_enum, default_value = "auto", hide_possible_values = true)]
    mode: Mode,
    /// For auto: node-only, hybrid or restricted
    #[arg(
        long,
        value_enum,
        default_value = "restricted",
        hide_possible_values = true
    )]
    profile: Profile,
    /// For hybrid: whose pods get the shim
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    runtime_class: Vec<String>,
    /// The shim's image
    #[arg(long, default_value = concat!("ringpilot/shim:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// Prefixes of declarations; else `$PILOT_LOG_PREFIX`, else `aliyun`
    #[arg(long, value_delimiter = ',')]
    prefix: Vec<String>,
}

impl How {
    /// With what the environment says where the arguments do not.
    #[must_use]
    pub fn options(&self) -> Options {
        let split = |list: String| list.split(',').map(str::trim).map(str::to_owned).collect();
        let named = std::env::var("PILOT_LOG_PREFIX")
            .ok()
            .filter(|list| !list.is_empty());
        Options {
            mode: self.mode,
            profile: self.profile,
            runtime_classes: self.runtime_class.clone(),
            image: self.image.clone(),
            prefixes: match self.prefix.is_empty() {
                false => self.prefix.clone(),
                true => split(named.unwrap_or_else(|| "aliyun".to_owned())),
            },
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the manifest cannot be read, or is none.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let shown = args.file.display().to_string();
    let read = if shown == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(&args.file)
    };
    let written = read.map_err(|error| {
        Fault::usage(
            format!("{shown} cannot be read: {error}"),
            "name a file that exists, or `-`",
        )
    })?;
    let injected = manifest(&written, &args.how.options()).map_err(|error| {
        Fault::new(
            format!("{shown} is not YAML: {error}"),
            "mend it where the line and column say",
        )
    })?;
    said(say::line(injected.text.trim_end()))?;
    for problem in &injected.problems {
        say::note(problem);
    }
    Ok(ExitCode::from(u8::from(!injected.problems.is_empty())))
}
