//! `ringpilot check`: is the configuration good, or what a manifest declares, before anything runs.
//! Place: a command; reads with the same code as the daemon.
//! Invariant: exit code 0 means that the daemon would take all of it as it is.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::said;
use crate::declare::{self, Declaration, Format, Reading, What};
use crate::manifest;
use crate::policy::Policy;
use crate::problem::{Problem, of_operator};
use crate::say::{self, Fault};
use crate::settings::Settings;

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
            report.outputs(&settings);
        }
        Err(problems) => report.problems = problems,
    }
    report.good = report.problems.is_empty();
    report
}

impl Report {
    fn outputs(&mut self, settings: &Settings) {
        for output in &settings.outputs {
            self.outputs.push(OutputReport {
                name: output.name.clone(),
                kind: output.kind.clone(),
            });
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
                match allowed {
                    Some(Err(problem)) => self.problems.push(problem),
                    _ => self
                        .logs
                        .push(LogReport::of(declare::who(workload), &declaration)),
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
            format: match declaration.format {
                Format::None => "none",
                Format::Json(_) => "json",
                Format::Csv { .. } => "csv",
                Format::Nginx => "nginx",
                Format::Apache2 => "apache2",
                Format::ApacheError => "apache_error",
                Format::Regexp { .. } => "regexp",
            },
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
    if args.manifest.is_empty() {
        for output in &report.outputs {
            said(say::line(format_args!(
                "output `{}`: {}",
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
                          outputs: {es: {type: elasticsearch, hosts: [http://u:hunter2@es], password: hunter2}}}";

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
