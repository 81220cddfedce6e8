//! The ways to collect: which processes each takes, and how they are told what to do.
//! Invariants: all have the same files, the same sink and the same names for a pod; each process ends with its handle.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::workload::Workload;
use crate::daemon::Daemon;
use crate::shim::Shim;

/// A way to collect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    /// One daemon reads the pods' files on the node.
    Node,
    /// A whole daemon in each pod, with a connection of its own.
    Sidecar,
    /// A shim in each pod, a ring to the one daemon.
    Hybrid,
    /// A bare forwarder in each pod, a unix socket to one bare collector that promises nothing.
    Socket,
    /// rsyslog in each pod, with a connection of its own.
    Rsyslog,
    /// Fluent Bit in each pod, with a connection of its own.
    Fluentbit,
}

impl Way {
    /// As people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Sidecar => "sidecar",
            Self::Hybrid => "hybrid (ring)",
            Self::Socket => "unix socket",
            Self::Rsyslog => "rsyslog sidecar",
            Self::Fluentbit => "Fluent Bit sidecar",
        }
    }

    /// Why it cannot be tried here.
    pub(super) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Rsyslog if rsyslog_plugin().is_none() || !is_there("rsyslogd") => {
                Some("not installed; Debian's packages are rsyslog and rsyslog-elasticsearch")
            }
            Self::Fluentbit if !is_there("fluent-bit") => {
                Some("not installed; Debian has no package of it")
            }
            _ => None,
        }
    }
}

/// The programs that are compared.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) daemon: PathBuf,
    pub(super) shim: PathBuf,
}

/// All processes of one way.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    daemons: Vec<Daemon>,
    shims: Vec<Shim>,
    others: Vec<Other>,
}

/// Any other program.
#[derive(Debug)]
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended; nothing more is wanted of it.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Fleet {
    /// Starts what a way takes. `dir` is theirs; the sink is at `port`.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub(super) fn start(
        way: Way,
        programs: &Programs,
        workload: &Workload,
        (pods, of_a_pod): (u16, u16),
        (dir, port): (&Path, u16),
    ) -> anyhow::Result<Self> {
        let mut fleet = Self::default();
        let output = format!(
            "outputs: {{es: {{type: elasticsearch, hosts: [\"http://127.0.0.1:{port}\"]}}}}\n"
        );
        match way {
            Way::Node => {
                let sources: String = (0..pods).map(|pod| source(workload, pod)).collect();
                fleet.daemon(
                    programs,
                    dir,
                    &format!("{NO_RINGS}sources:\n{sources}{output}"),
                )?;
            }
            Way::Sidecar => {
                for pod in 0..pods {
                    let dir = dir.join(format!("sidecar-{pod}"));
                    std::fs::create_dir(&dir)?;
                    let source = source(workload, pod);
                    let yaml = format!("{NO_RINGS}sources:\n{source}{output}");
                    fleet.daemon(programs, &dir, &yaml)?;
                }
            }
            Way::Hybrid => {
                let rings = dir.join("rings");
                let folder = |pod: u16| rings.join(format!("bench_pod-{pod}_uid-{pod}"));
                for pod in 0..pods {
                    std::fs::create_dir_all(folder(pod))?;
                }
                let yaml = format!(
                    "host_root: /\ndiscover: {{docker: false, cri: false, rings: {{dir: {}}}}}\n{output}",
                    rings.display()
                );
                fleet.daemon(programs, dir, &yaml)?;
                for pod in 0..pods {
                    let pattern = workload.folder(pod).join("*.log");
                    fleet.shims.push(Shim::start(
                        &programs.shim,
                        &folder(pod).join("s"),
                        "app",
                        &pattern.display().to_string(),
                    )?);
                }
            }
            Way::Socket => {
                let socket = dir.join("collector");
                let own = std::env::current_exe()?;
                let mut collector = Command::new(&own);
                collector
                    .arg("collector")
                    .arg(&socket)
                    .arg(port.to_string());
                fleet.other(collector)?;
                let until = Instant::now() + Duration::from_secs(10);
                while !socket.exists() {
                    ensure!(Instant::now() < until, "the collector does not listen");
                    std::thread::sleep(Duration::from_millis(10));
                }
                for pod in 0..pods {
                    let mut forwarder = Command::new(&own);
                    forwarder.arg("forwarder").arg(&socket);
                    for n in 0..of_a_pod {
                        forwarder.arg(workload.folder(pod).join(format!("{n}.log")));
                    }
                    fleet.other(forwarder)?;
                }
            }
            Way::Rsyslog => {
                let plugin = rsyslog_plugin().context("rsyslog-elasticsearch is missing")?;
                for pod in 0..pods {
                    let dir = dir.join(format!("rsyslog-{pod}"));
                    std::fs::create_dir(&dir)?;
                    let config = rsyslog(&plugin, &dir, &workload.folder(pod), pod, port);
                    std::fs::write(dir.join("conf"), config)?;
                    let mut agent = Command::new("rsyslogd");
                    agent.arg("-n").arg("-f").arg(dir.join("conf"));
                    agent.arg("-i").arg(dir.join("pid"));
                    fleet.other(agent)?;
                }
            }
            Way::Fluentbit => {
                for pod in 0..pods {
                    let files = workload.folder(pod).join("*.log");
                    let mut agent = Command::new("fluent-bit");
                    agent.args(["-q", "-f", "0.5", "-i", "tail"]);
                    agent.arg("-p").arg(format!("path={}", files.display()));
                    agent.args(["-p", "read_from_head=true", "-p"]);
                    agent.arg(format!("db={}", dir.join(format!("{pod}.db")).display()));
                    agent.args(["-F", "modify", "-m", "*", "-p"]);
                    agent.arg(format!("add=k8s_pod pod-{pod}"));
                    agent.args(["-p", "add=k8s_pod_namespace bench"]);
                    agent.args(["-o", "es", "-m", "*", "-p", "host=127.0.0.1", "-p"]);
                    agent.arg(format!("port={port}"));
                    agent.args(["-p", "index=app", "-p", "suppress_type_name=on"]);
                    fleet.other(agent)?;
                }
            }
        }
        Ok(fleet)
    }

    fn daemon(&mut self, programs: &Programs, dir: &Path, yaml: &str) -> anyhow::Result<()> {
        let mut daemon = Daemon::new(programs.daemon.clone(), dir, yaml)?;
        daemon.start()?;
        self.daemons.push(daemon);
        Ok(())
    }

    fn other(&mut self, mut command: Command) -> anyhow::Result<()> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        self.others.push(Other(child));
        Ok(())
    }

    /// Every process.
    pub(super) fn pids(&self) -> Vec<u32> {
        let daemons = self.daemons.iter().map(Daemon::pid);
        let shims = self.shims.iter().map(Shim::pid);
        let others = self.others.iter().map(|other| other.0.id());
        daemons.chain(shims).chain(others).collect()
    }

    /// Those that there is one of in each pod.
    pub(super) fn in_pods(&self, way: Way) -> Vec<u32> {
        let all = self.pids();
        let on_node = match way {
            Way::Node | Way::Hybrid | Way::Socket => 1,
            Way::Sidecar | Way::Rsyslog | Way::Fluentbit => 0,
        };
        all.into_iter().skip(on_node).collect()
    }
}

const NO_RINGS: &str = "discover: {docker: false, cri: false, rings: false}\n";

/// A pod's files as one of the daemon's own sources, named as the shim's are.
fn source(workload: &Workload, pod: u16) -> String {
    format!(
        "  - {{name: pod-{pod}, target: app, path: \"{}/*.log\", \
         tags: {{k8s_pod: pod-{pod}, k8s_pod_namespace: bench}}}}\n",
        workload.folder(pod).display()
    )
}

/// Batches of 2,000, half a second at most, nothing kept on disk but the files' positions.
fn rsyslog(plugin: &Path, dir: &Path, logs: &Path, pod: u16, port: u16) -> String {
    format!(
        "global(workDirectory=\"{dir}\" maxMessageSize=\"64k\" net.enableDNS=\"off\")\n\
         module(load=\"imfile\")\n\
         module(load=\"{plugin}\")\n\
         template(name=\"record\" type=\"list\" option.jsonf=\"on\") {{\n\
         property(outname=\"@timestamp\" name=\"timereported\" dateFormat=\"rfc3339\" format=\"jsonf\")\n\
         property(outname=\"message\" name=\"msg\" format=\"jsonf\")\n\
         constant(outname=\"k8s_pod\" value=\"pod-{pod}\" format=\"jsonf\")\n\
         constant(outname=\"k8s_pod_namespace\" value=\"bench\" format=\"jsonf\")\n\
         }}\n\
         input(type=\"imfile\" file=\"{logs}/*.log\" tag=\"app\" ruleset=\"out\")\n\
         ruleset(name=\"out\" queue.type=\"LinkedList\" queue.size=\"100000\" queue.dequeueBatchSize=\"2000\") {{\n\
         action(type=\"omelasticsearch\" server=\"127.0.0.1\" serverport=\"{port}\" searchIndex=\"app\" \
         searchType=\"\" bulkmode=\"on\" template=\"record\" action.resumeRetryCount=\"-1\")\n\
         }}\n",
        dir = dir.display(),
        plugin = plugin.display(),
        logs = logs.display(),
    )
}

fn rsyslog_plugin() -> Option<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut plugins = libraries.map(|dir| dir.path().join("rsyslog/omelasticsearch.so"));
    plugins.find(|plugin| plugin.exists())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}
