//! The command line: argv in, exit code out.
//! Place: `main` calls it; each command is a module of its own with its `Args` and one function.
//!
//! To add a command: its module derives `clap::Args` for what it takes, with an example in `after_help`, and has
//! `pub fn run(args: Args) -> Result<ExitCode, Fault>`; here it is a variant of `Command` and a line in
//! `Command::run`. A test holds every `--help` to one screen with an example.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::check;
use crate::control::{letters, reload, tap, top};
use crate::demo;
use crate::import;
use crate::inject;
use crate::run;
use crate::say::{self, Fault};
use crate::settings::VARIABLES;
use crate::status::explain;

/// Collects the logs of every container on a node, losing nothing.
#[derive(Debug, Parser)]
#[command(
    name = "ringpilot",
    version,
    disable_help_subcommand = true,
    after_help = "Example:\n  ringpilot check -c /etc/ringpilot.yaml --connect"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Demo(demo::Args),
    Check(check::Args),
    Explain(explain::Args),
    DeadLetters(letters::Args),
    Reload(reload::Args),
    Top(top::Args),
    Tap(tap::Args),
    Import(import::Args),
    Inject(inject::command::Args),
    Webhook(inject::webhook::Args),
    Csi(inject::csi::Args),
    Variables(Variables),
    Completions(Completions),
    Man(Man),
}

impl Command {
    fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Run(args) => run::run(&args),
            Self::Demo(args) => demo::run(&args),
            Self::Check(args) => check::run(&args),
            Self::Explain(args) => explain::run(&args),
            Self::DeadLetters(args) => letters::run(&args),
            Self::Reload(args) => reload::run(&args),
            Self::Top(args) => top::run(&args),
            Self::Tap(args) => tap::run(&args),
            Self::Import(args) => import::run(&args),
            Self::Inject(args) => inject::command::run(&args),
            Self::Webhook(args) => inject::webhook::run(&args),
            Self::Csi(args) => inject::csi::run(&args),
            Self::Variables(args) => variables(&args),
            Self::Completions(args) => completions(&args),
            Self::Man(args) => man(&args),
        }
    }
}

/// List the environment variables that the daemon understands, log-pilot's included.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ringpilot variables kafka")]
struct Variables {
    /// Only those of this output
    output: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ringpilot completions bash > /etc/bash_completion.d/ringpilot")]
struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Print the manual page, or write those of all commands into a folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  ringpilot man /usr/local/share/man/man1")]
struct Man {
    /// Where to write one page per command
    folder: Option<PathBuf>,
}

/// Runs what the arguments ask for.
pub fn run_arguments(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // The shim of the demo: the same code as `ringpilot-shim`, in a process of its own.
    if arguments.get(1).is_some_and(|argument| argument == "shim") {
        return ringpilot_shim::command(arguments.into_iter().skip(2));
    }
    let done = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command.run(),
        Err(error) if !error.use_stderr() => {
            said(say::line(error.render().to_string().trim_end())).map(|()| ExitCode::SUCCESS)
        }
        Err(error) => Err(misused(&error)),
    };
    done.unwrap_or_else(|fault| {
        say::fault(&fault);
        ExitCode::from(fault.exit)
    })
}

/// A write to stdout that failed is a fault of the command.
pub(crate) fn said(written: std::io::Result<()>) -> Result<(), Fault> {
    written.map_err(|error| {
        Fault::new(
            format!("cannot write to stdout: {error}"),
            "check where the output is sent to",
        )
    })
}

/// clap's words as one line of cause and one of cure.
fn misused(error: &clap::Error) -> Fault {
    use clap::error::ErrorKind;
    let text = error.render().to_string();
    let mut parts = text.split("\n\n");
    let cause = parts
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ");
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let usage = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage: "));
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Fault::usage("no command is given", "see `ringpilot --help`");
    }
    let cure = match (tip, usage) {
        (Some(tip), _) => tip.to_owned(),
        (None, Some(usage)) => format!("write {usage}"),
        (None, None) => "see `ringpilot --help`".to_owned(),
    };
    Fault::usage(cause, cure)
}

fn variables(args: &Variables) -> Result<ExitCode, Fault> {
    let of_output = |name: &str| args.output.as_deref().is_none_or(|output| output == name);
    let chosen: Vec<_> = VARIABLES
        .iter()
        .filter(|variable| of_output(variable.output))
        .collect();
    if chosen.is_empty() {
        let known: std::collections::BTreeSet<&str> = VARIABLES
            .iter()
            .map(|variable| variable.output)
            .filter(|o| !o.is_empty())
            .collect();
        let known: Vec<&str> = known.into_iter().collect();
        let wrong = args.output.as_deref().unwrap_or_default();
        return Err(Fault::usage(
            format!("no output with variables of its own is called `{wrong}`"),
            crate::problem::use_instead(wrong, &known),
        ));
    }
    if args.json {
        said(say::json(&chosen))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut section = None;
    for variable in chosen {
        if section.replace(variable.output) != Some(variable.output) {
            let name = if variable.output.is_empty() {
                "the daemon"
            } else {
                variable.output
            };
            said(say::line(format_args!("{name}:")))?;
        }
        let note = match (variable.obsolete, variable.unit, variable.default) {
            (true, ..) => "not needed".to_owned(),
            (_, unit, "") => unit.to_owned(),
            (_, unit, default) => format!("{unit}; default {default}"),
        };
        said(say::line(format_args!(
            "  {:38} {} ({note})",
            variable.name, variable.meaning
        )))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn completions(args: &Completions) -> Result<ExitCode, Fault> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ringpilot", &mut script);
    said(say::line(String::from_utf8_lossy(&script).trim_end()))?;
    Ok(ExitCode::SUCCESS)
}

fn man(args: &Man) -> Result<ExitCode, Fault> {
    let written = match &args.folder {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder).map_err(|error| {
            Fault::new(
                format!("cannot write manual pages to {}: {error}", folder.display()),
                "name a folder that exists and may be written to",
            )
        }),
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            said(rendered.and_then(|()| say::line(String::from_utf8_lossy(&page).trim_end())))
        }
    };
    written.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_help_fits_one_screen_and_has_an_example() {
        let mut cli = Cli::command();
        cli.build();
        let mut all = vec![cli.clone()];
        while let Some(mut command) = all.pop() {
            let help = command.render_help().to_string();
            let name = command.get_name();
            // A small terminal's; the list of all commands takes a usual one's.
            let screen = if name == "ringpilot" { 40 } else { 24 };
            assert!(help.lines().count() <= screen, "{name}:\n{help}");
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{name}: {line}");
            }
            if !command
                .get_subcommands()
                .any(|inner| inner.get_name() != "help")
                || name == "ringpilot"
            {
                assert!(help.contains("Example"), "{name}:\n{help}");
            }
            all.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn wrong_usage_is_one_line_of_cause_and_one_of_cure() {
        let fault = |arguments: &[&str]| {
            let parsed = Cli::try_parse_from(arguments.iter().map(|a| OsString::from(*a)));
            misused(&parsed.expect_err("wrong"))
        };
        let shown: String = [
            &["ringpilot"][..],
            &["ringpilot", "chek"],
            &["ringpilot", "check", "--conect"],
            &["ringpilot", "check", "--config"],
            &["ringpilot", "completions"],
            &["ringpilot", "completions", "tcsh"],
        ]
        .iter()
        .map(|arguments| {
            let Fault { cause, cure, exit } = fault(arguments);
            format!(
                "{}\n  {cause}\n  {cure}\n  exit {exit}\n",
                arguments.join(" ")
            )
        })
        .collect();
        insta::assert_snapshot!(shown);
    }
}
