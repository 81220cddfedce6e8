//! `ringpilot check`: is the configuration good, or what a manifest declares, before anything runs.
//! Place: a command; reads with the same code as the daemon.
//! Invariant: exit code 0 means that the daemon would take all of it as it is.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::host::RealHost;
use serde::Serialize;

use crate::checkpoint::{Entry, Journal, Loaded};
use crate::cli::said;
use crate::collect;
use crate::declare::{self, Declaration, Reading, What};
use crate::manifest;
use crate::policy::Policy;
use crate::problem::{Escaped, Problem, of_operator};
use crate::say::{self, Fault};
use crate::settings::Settings;
use crate::ship::{self, Guarantee};

/// How long a connection is tried.
const PATIENCE: Duration = Duration::from_secs(15);

/// Check the configuration, or the logs that a workload's manifest declares.
///
/// Without a file the environment is checked, as the daemon would read it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 good, 1 problems, each with its cure.\n\nExample:\n  \
                        ringpilot check -c ringpilot.yaml --connect\n  \
                        ringpilot check --manifest deployment.yaml"
)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Workloads: Kubernetes objects or a compose file; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    manifest: Vec<PathBuf>,
    /// Try each output's connection, with its login
    #[arg(long)]
    connect: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    good: bool,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    outputs: Vec<OutputReport>,
    logs: Vec<LogReport>,
}

/// An output as it would run.
#[derive(Debug, Serialize)]
struct OutputReport {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// `effectively-once`, `at-least-once` or `not-acknowledged`; none where its settings are wrong.
    guarantee: Option<Guarantee>,
    /// Whether its connection works; none unless it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    connected: Option<bool>,
    /// Why its connection does not work.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

/// A declared log as it would be collected.
#[derive(Debug, Serialize)]
struct LogReport {
    container: String,
    name: String,
    reads: String,
    target: String,
    format: &'static str,
}

/// Nothing is written, so nothing is noted.
#[derive(Debug)]
struct NoJournal;

impl Journal for NoJournal {
    fn append(&self, _: &[Entry]) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// When the report cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    let env = |name: &str| std::env::var(name).ok();
    let report = report(args, &env);
    if args.json {
        said(say::json(&report))?;
    } else {
        print(args, &report)?;
    }
    Ok(if report.good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn report(args: &Args, env: &dyn Fn(&str) -> Option<String>) -> Report {
    let mut report = Report::default();
    match Settings::load(args.config.as_deref(), env) {
        Ok(settings) => {
            report.warnings.extend(settings.warnings.iter().cloned());
            for manifest in &args.manifest {
                report.manifest(manifest, &settings);
            }
            for source in &settings.sources {
                report.judge("", source, &settings);
            }
            report.outputs(&settings, args.connect);
        }
        Err(problems) => report.problems = problems,
    }
    report.good = report.problems.is_empty();
    report
}

impl Report {
    /// Makes each output as the daemon would; with `connect` each is tried.
    fn outputs(&mut self, settings: &Settings, connect: bool) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let reason = format!("no threads can be had: {error}");
                self.problems.push(of_operator("", "", reason, "free some"));
                return;
            }
        };
        let host = Arc::new(RealHost::new());
        let share = settings.memory_budget / settings.outputs.len().max(1);
        let inside = runtime.enter();
        let mut probes = Vec::new();
        for output in &settings.outputs {
            let made = ship::connect(
                output,
                share,
                &settings.node_name,
                &host,
                Arc::new(NoJournal),
                &Loaded::default(),
            );
            let guarantee = made.as_ref().ok().map(|made| made.guarantee());
            match made {
                Ok(made) if connect => {
                    let wait = output.timeout.min(PATIENCE);
                    probes.push(runtime.spawn(async move {
                        match tokio::time::timeout(wait, made.probe()).await {
                            Ok(probed) => probed.err(),
                            Err(_) => Some(format!("no answer within {wait:?}")),
                        }
                    }));
                }
                Ok(_) => {}
                Err(problems) => self.problems.extend(problems),
            }
            self.outputs.push(OutputReport {
                name: output.name.clone(),
                kind: output.kind.clone(),
                guarantee,
                connected: None,
                trouble: None,
            });
        }
        let tried = self
            .outputs
            .iter_mut()
            .filter(|one| one.guarantee.is_some());
        for (report, probe) in tried.zip(probes) {
            let trouble = runtime
                .block_on(probe)
                .unwrap_or_else(|error| Some(format!("it could not be tried: {error}")));
            report.connected = Some(trouble.is_none());
            if let Some(trouble) = &trouble {
                self.problems.push(of_operator(
                    format!("outputs.{}", report.name),
                    "",
                    format!("it cannot be reached: {trouble}"),
                    "mend its address, login or server; a running daemon tries again by itself and loses nothing",
                ));
            }
            report.trouble = trouble;
        }
        drop(inside);
        runtime.shutdown_timeout(Duration::from_millis(100));
    }

    /// What the daemon would say of a declaration; whether it would be collected.
    fn judge(&mut self, who: &str, declaration: &Declaration, settings: &Settings) -> bool {
        match collect::judge(who, declaration, &settings.time_zone) {
            Ok(doubts) => {
                self.warnings.extend(doubts);
                true
            }
            Err(problem) => {
                self.problems.push(problem);
                false
            }
        }
    }

    fn manifest(&mut self, path: &PathBuf, settings: &Settings) {
        let shown = path.display().to_string();
        let text = if shown == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                let reason = format!("the manifest cannot be read: {error}");
                self.problems.push(of_operator(
                    shown,
                    "",
                    reason,
                    "name a file that exists, or `-`",
                ));
                return;
            }
        };
        let manifest = match manifest::read(&text) {
            Ok(manifest) => manifest,
            Err(error) => {
                let reason = format!("it is not YAML: {error}");
                self.problems.push(of_operator(
                    shown,
                    "",
                    reason,
                    "mend the YAML at that place",
                ));
                return;
            }
        };
        let reading = Reading {
            own: Vec::new(),
            ..Reading::of(settings)
        };
        // Settings that were loaded hold a policy that can be made.
        let policy = Policy::new(&settings.policy).ok();
        let before = self.logs.len() + self.problems.len();
        for workload in &manifest.workloads {
            let (declarations, problems) = declare::read(workload, &reading);
            self.problems.extend(problems);
            for declaration in declarations {
                let allowed = policy
                    .as_ref()
                    .map(|policy| policy.allows(workload, &declaration));
                let who = declare::who(workload);
                match allowed {
                    Some(Err(problem)) => self.problems.push(problem),
                    _ if !self.judge(&who, &declaration, settings) => {}
                    _ => self.logs.push(LogReport::of(who, &declaration)),
                }
            }
        }
        for (who, name) in manifest.unknown {
            let is_ours = settings.label_prefixes.iter().any(|prefix| {
                name.strip_prefix(prefix.as_str())
                    .is_some_and(|rest| rest.starts_with(['_', '.']))
            });
            if is_ours {
                self.warnings.push(Problem {
                    container: who,
                    key: name,
                    value: String::new(),
                    reason: "its value comes from elsewhere and is known only where it runs"
                        .to_owned(),
                    cure: "ask `ringpilot explain` there".to_owned(),
                });
            }
        }
        if self.logs.len() + self.problems.len() == before {
            let example = format!("{}_logs_app", settings.label_prefixes.join(""));
            let (reason, cure) = if manifest.workloads.is_empty() {
                (
                    "no workload is in it",
                    "name a file with a Pod, Deployment, Job… or compose services".to_owned(),
                )
            } else {
                (
                    "no container in it declares a log",
                    format!("add a variable such as {example}=stdout"),
                )
            };
            self.problems.push(of_operator(shown, "", reason, cure));
        }
    }
}

impl LogReport {
    fn of(container: String, declaration: &Declaration) -> Self {
        Self {
            container,
            name: declaration.name.clone(),
            reads: match &declaration.what {
                What::Stdout => "stdout".to_owned(),
                What::Files(path) => path.clone(),
            },
            target: declaration.target.clone(),
            format: collect::format_name(&declaration.format),
        }
    }
}

fn print(args: &Args, report: &Report) -> Result<(), Fault> {
    for log in &report.logs {
        let LogReport {
            container,
            name,
            reads,
            target,
            format,
        } = log;
        said(say::line(format_args!(
            "{container}, log `{name}`: reads {reads} as {format}, target {target}"
        )))?;
    }
    if args.manifest.is_empty() || args.connect {
        for output in &report.outputs {
            let promise = match output.guarantee {
                Some(Guarantee::EffectivelyOnce) => ", effectively once",
                Some(Guarantee::AtLeastOnce) => ", at least once",
                Some(Guarantee::NotAcknowledged) => ", not acknowledged by its protocol",
                None => "",
            };
            let tried = match (output.connected, &output.trouble) {
                (Some(true), _) => "; it answers".to_owned(),
                (_, Some(trouble)) => format!("; {}", Escaped(trouble)),
                _ => String::new(),
            };
            said(say::line(format_args!(
                "output `{}`: {}{promise}{tried}",
                output.name, output.kind
            )))?;
        }
    }
    for warning in &report.warnings {
        said(say::line(format_args!("note: {warning}")))?;
    }
    for problem in &report.problems {
        said(say::line(format_args!("problem: {problem}")))?;
    }
    let what = match (&args.config, args.manifest.is_empty()) {
        (_, false) => "the manifest".to_owned(),
        (Some(path), true) => path.display().to_string(),
        (None, true) => "the environment".to_owned(),
    };
    said(say::line(match report.problems.len() {
        0 => format!("{what} is good"),
        1 => format!("{what} has 1 problem"),
        n => format!("{what} has {n} problems"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(config: &str, manifest: Option<&str>) -> Report {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("a write");
            path
        };
        let args = Args {
            config: Some(write("ringpilot.yaml", config)),
            manifest: manifest
                .map(|text| write("pod.yaml", text))
                .into_iter()
                .collect(),
            connect: false,
            json: false,
        };
        let mut report = report(&args, &|_| None);
        for problem in &mut report.problems {
            problem.key = problem
                .key
                .replace(&dir.path().display().to_string(), "DIR");
        }
        report
    }

    const CONFIG: &str = "{node_name: n, policy: {namespaces: {shop: {targets: [shop-*]}}}, \
                          outputs: {es: {type: elasticsearch, hosts: [http://es], username: u, password: hunter2}}}";

    #[test]
    fn a_manifest_is_told_what_would_be_collected_and_what_not() {
        let manifest = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata:
      annotations: {aliyun.logs.audit: /logs/audit.log, aliyun.logs.audit.target: shop-audit}
    spec:
      containers:
        - name: nginx
          env:
            - {name: aliyun_logs_access, value: "/var/log/nginx/*.log"}
            - {name: aliyun_logs_access_target, value: shop-web}
            - {name: aliyun_logs_access_format, value: nginx}
            - {name: aliyun_logs_error, value: /var/log/nginx/error.log}
            - {name: aliyun_logs_slow, value: slow.log}
            - {name: aliyun_logs_late, valueFrom: {configMapKeyRef: {name: a, key: b}}}
            - {name: OTHER, valueFrom: {configMapKeyRef: {name: a, key: b}}}
---
kind: Service
"#;
        let report = checked(CONFIG, Some(manifest));
        assert!(!report.good);
        insta::assert_json_snapshot!(report);
    }

    #[test]
    fn nothing_to_check_is_a_problem_and_never_a_silent_success() {
        for (manifest, why) in [
            ("kind: Service", "no workload is in it"),
            (
                "{kind: Pod, spec: {containers: [{name: a}]}}",
                "no container in it declares a log",
            ),
            ("a: [", "it is not YAML"),
        ] {
            let report = checked(CONFIG, Some(manifest));
            assert!(
                !report.good && report.problems[0].reason.contains(why),
                "{manifest}"
            );
        }
    }

    #[test]
    fn no_secret_is_in_a_report() {
        for config in [CONFIG.to_owned(), CONFIG.replace("password", "passwrd")] {
            let report = checked(&config, None);
            let text = serde_json::to_string(&report).expect("JSON") + &format!("{report:?}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
