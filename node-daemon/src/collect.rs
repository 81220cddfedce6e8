//! Turn what discovery hears into what the follower wants.
//! Place: discover -> declare -> policy -> **collect** -> the follower and the pipeline.
//! Invariants: a declaration stands alone, also when it cannot be compiled; what a workload did wrong is a problem
//! under its name and goes when the workload goes; a container that ends is read to its end before it is let go.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringpilot_shared::follow::glob::Pattern;
use ringpilot_shared::follow::{View, WantId, Wanted};

use crate::api_stdout;
use crate::batch::json::Names;
use crate::declare::{self, Declaration, Format, Reading, What};
use crate::decode::Envelope;
use crate::decode::charset::Charset;
use crate::decode::multiline::Rule;
use crate::discover::{Heard, Runtime, State, Stdout, Workload};
use crate::filter::Filter;
use crate::follow::{Shown, Spec};
use crate::parse::Parser;
use crate::pipeline::Pipeline;
use crate::policy::{Limits, Policy};
use crate::problem::{Problem, Problems};
use crate::settings::{Mode, Settings};
use crate::tag::Tags;

/// What the follower is told.
#[derive(Debug, Clone)]
pub enum Follow {
    /// Follow this, or the same with another view.
    Want(Wanted),
    /// Its container has ended: read to the end.
    Unwant(WantId),
}

impl fmt::Display for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Follow::Want(wanted) => {
                write!(
                    f,
                    "follow {:?} of {:.12}",
                    wanted.pattern.literal_dir(),
                    wanted.owner
                )
            }
            Follow::Unwant(want) => write!(f, "want {} has ended", want.0),
        }
    }
}

fn uid_of(workload: &Workload) -> Option<String> {
    let pod = workload.pod.as_ref()?;
    (!pod.uid.is_empty()).then(|| pod.uid.clone())
}

/// Knows every workload and what is wanted of it.
#[derive(Debug)]
pub struct Collector {
    settings: Arc<Settings>,
    host_root: PathBuf,
    policy: Policy,
    reading: Reading,
    pipeline: Arc<Pipeline>,
    problems: Arc<Problems>,
    workloads: HashMap<(Runtime, String), Collected>,
    next_want: u64,
    /// The folder of the copies of what only an engine's API gives; where there is none it is not collected.
    copies: Option<PathBuf>,
    /// The first full lists are told: what is heard from now on is new.
    is_started: bool,
}

#[derive(Debug)]
struct Collected {
    workload: Workload,
    wants: HashMap<String, Wanted>,
}

impl Collector {
    /// A collector that knows nothing yet.
    ///
    /// # Errors
    /// When the policy has a pattern that is none.
    pub fn new(
        settings: Arc<Settings>,
        host_root: PathBuf,
        pipeline: Arc<Pipeline>,
        problems: Arc<Problems>,
    ) -> Result<Self, Problem> {
        Ok(Self {
            policy: Policy::new(&settings.policy)?,
            reading: Reading::of(&settings),
            settings,
            host_root,
            pipeline,
            problems,
            workloads: HashMap::new(),
            next_want: 0,
            copies: None,
            is_started: false,
        })
    }

    /// Stdout that only an engine's API gives is followed where it is copied to: in this folder of the daemon's own.
    pub fn copies(&mut self, dir: PathBuf) {
        self.copies = Some(dir);
    }

    /// Everything that was there at the start has been heard.
    pub fn started(&mut self) {
        self.is_started = true;
        let pods: HashSet<String> = self.workloads().filter_map(uid_of).collect();
        for uid in pods {
            self.tell_unread(&uid);
        }
    }

    /// Every workload that is known now.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values().map(|one| &one.workload)
    }

    /// The configuration is another from now on: every workload is judged by it.
    ///
    /// # Errors
    /// When the policy has a pattern that is none; then nothing is changed.
    pub fn reload(&mut self, settings: Arc<Settings>) -> Result<Vec<Follow>, Problem> {
        self.policy = Policy::new(&settings.policy)?;
        self.reading = Reading::of(&settings);
        self.settings = settings;
        let workloads: Vec<Workload> = self.workloads().cloned().collect();
        let told = workloads
            .into_iter()
            .map(|workload| self.judged(workload, true));
        Ok(told.collect::<Vec<_>>().concat())
    }

    /// The declaration that a want is of.
    #[must_use]
    pub fn name_of(&self, want: WantId) -> Arc<str> {
        let spec = self.pipeline.spec_of(want);
        spec.map_or_else(|| "".into(), |spec| Arc::clone(&spec.name))
    }

    /// Takes one thing that was heard; what the follower is to be told.
    pub fn heard(&mut self, heard: Heard) -> Vec<Follow> {
        match heard {
            Heard::Here(workload) => {
                let pod = uid_of(&workload);
                let told = self.here(*workload);
                self.looked_at(pod);
                told
            }
            Heard::Gone { runtime, id } => {
                let gone = self.workloads.get(&(runtime, id.clone()));
                let pod = gone.and_then(|one| uid_of(&one.workload));
                let told = self.gone(runtime, id);
                self.looked_at(pod);
                told
            }
            Heard::Listed(runtime) => {
                self.problems.clear(&owner_of_runtime(runtime));
                Vec::new()
            }
            Heard::Unreachable(runtime, cause) => {
                let problem = Problem {
                    container: String::new(),
                    key: format!("discover.{}", runtime_name(runtime)),
                    value: String::new(),
                    reason: format!("the runtime cannot be reached: {cause}"),
                    cure: "start it, or give the daemon its socket; it is tried again by itself"
                        .to_owned(),
                };
                self.problems.set(&owner_of_runtime(runtime), vec![problem]);
                Vec::new()
            }
        }
    }

    fn looked_at(&self, pod: Option<String>) {
        // Before the first full list a pod's shim may just not have been heard of.
        if let Some(uid) = pod.filter(|_| self.is_started) {
            self.tell_unread(&uid);
        }
    }

    /// Tells of a pod whose annotation says that a shim reads its logs, and that has no shim: nobody reads them.
    fn tell_unread(&self, uid: &str) {
        let of_pod: Vec<&Workload> = self
            .workloads()
            .filter(|one| one.pod.as_ref().is_some_and(|pod| pod.uid == uid))
            .collect();
        let is_shim = |one: &&Workload| {
            let pod = one.pod.as_ref();
            one.runtime == Runtime::Shim
                || pod.is_some_and(|pod| pod.container.starts_with(crate::inject::SHIM))
        };
        let is_expected =
            self.settings.discover.rings.mode != Mode::Off && !of_pod.iter().any(is_shim);
        let says = of_pod.iter().find_map(|one| {
            let names = one.annotations.get(crate::inject::READS)?;
            Some((one.pod.as_ref()?, names))
        });
        let unread = says.filter(|_| is_expected).map(|(pod, names)| Problem {
            container: format!("{}/{}", pod.namespace, pod.name),
            key: crate::inject::READS.to_owned(),
            value: names.clone(),
            reason: "a shim is said to read these logs, and the pod has none: nobody reads them"
                .to_owned(),
            cure: "make the pod anew with its shim, or without this annotation".to_owned(),
        });
        self.problems
            .set(&format!("unread:{uid}"), unread.into_iter().collect());
    }

    fn here(&mut self, workload: Workload) -> Vec<Follow> {
        self.judged(workload, false)
    }

    /// A workload is here, or (`again`) is judged by another configuration.
    fn judged(&mut self, workload: Workload, again: bool) -> Vec<Follow> {
        let key = (workload.runtime, workload.id.clone());
        let (declarations, mut problems) = match workload.runtime {
            Runtime::Static => (self.settings.sources.clone(), Vec::new()),
            _ => declare::read(&workload, &self.reading),
        };
        let mut collected = self.workloads.remove(&key).unwrap_or_else(|| Collected {
            workload: workload.clone(),
            wants: HashMap::new(),
        });
        let mut told = Vec::new();
        let mut left = Vec::new();
        if again {
            let is_declared = |name: &str| declarations.iter().any(|one| one.name == name);
            let gone: Vec<String> = collected
                .wants
                .keys()
                .filter(|name| !is_declared(name))
                .cloned()
                .collect();
            left.extend(gone.iter().filter_map(|name| collected.wants.remove(name)));
        }
        let by_shim = |declaration: &Declaration| {
            let reads = workload.annotations.get(crate::inject::READS);
            self.settings.discover.rings.mode != Mode::Off
                && matches!(declaration.what, What::Files(_))
                && reads.is_some_and(|names| names.split(',').any(|name| name == declaration.name))
        };
        // What a pod's shim reads comes by its ring, and is not read a second time.
        for declaration in declarations.iter().filter(|one| !by_shim(one)) {
            let known = collected.wants.get(&declaration.name);
            let want = match known {
                Some(wanted) => wanted.want,
                None => {
                    self.next_want += 1;
                    WantId(self.next_want)
                }
            };
            match self.wanted(&workload, declaration, want) {
                Ok((mut wanted, spec, doubts)) => {
                    problems.extend(doubts);
                    let mut known = known.cloned();
                    // Another path is another want.
                    if let Some(old) = known.take_if(|old| again && old.pattern != wanted.pattern) {
                        left.push(old);
                        self.next_want += 1;
                        wanted.want = WantId(self.next_want);
                    }
                    let (known, want) = (known.as_ref(), wanted.want);
                    if known.is_some() && again {
                        self.pipeline.respec(want, &spec);
                    }
                    if known.is_none() {
                        self.pipeline.want(
                            want,
                            spec,
                            declaration.start_at,
                            declaration.ignore_older,
                        );
                    }
                    let is_news = known.is_none_or(|old| {
                        old.view != wanted.view
                            || old.pinned_bytes != wanted.pinned_bytes
                            || collected.workload.state != workload.state
                    });
                    if is_news {
                        told.push(Follow::Want(wanted.clone()));
                    }
                    collected.wants.insert(declaration.name.clone(), wanted);
                }
                Err(problem) => {
                    problems.push(problem);
                    if again {
                        left.extend(collected.wants.remove(&declaration.name));
                    }
                }
            }
        }
        for wanted in left {
            self.pipeline.drop_want(wanted.want);
            told.push(Follow::Unwant(wanted.want));
        }
        // One that has ended may start again; until then its files are read to their ends.
        if workload.state == State::Ended {
            told.extend(
                collected
                    .wants
                    .values()
                    .map(|wanted| Follow::Unwant(wanted.want)),
            );
        }
        self.problems.set(&workload.id, problems);
        collected.workload = workload;
        self.workloads.insert(key, collected);
        told
    }

    fn gone(&mut self, runtime: Runtime, id: String) -> Vec<Follow> {
        self.problems.clear(&id);
        let Some(collected) = self.workloads.remove(&(runtime, id)) else {
            return Vec::new();
        };
        let wants: Vec<WantId> = collected.wants.values().map(|wanted| wanted.want).collect();
        for want in &wants {
            self.pipeline.unwant(*want);
        }
        wants.into_iter().map(Follow::Unwant).collect()
    }

    /// Compiles one declaration of one workload.
    fn wanted(
        &self,
        workload: &Workload,
        declaration: &Declaration,
        want: WantId,
    ) -> Result<(Wanted, Arc<Spec>, Vec<Problem>), Problem> {
        let who = declare::who(workload);
        let wrong = |key: &str, value: &str, reason: String, cure: &str| {
            problem_of(&who, declaration, key, value, reason, cure)
        };
        let limits = match workload.runtime {
            // The operator's own are read as fast as they are written.
            Runtime::Static => Limits {
                rate: None,
                ..self.policy.limits(workload)
            },
            _ => self.policy.allows(workload, declaration)?,
        };
        let view = View {
            host_root: self.host_root.clone(),
            roots: workload.roots.clone(),
            mounts: workload.mounts.clone(),
            is_host: workload.runtime == Runtime::Static,
        };
        let hosts = View {
            host_root: self.host_root.clone(),
            is_host: true,
            ..View::default()
        };
        let (view, path, envelope) = match &declaration.what {
            What::Files(path) => (view, path.clone(), Envelope::Plain),
            What::Stdout => match &workload.stdout {
                Stdout::DockerJson(path) => (hosts, literal(path), Envelope::DockerJson),
                Stdout::Cri(path) => (hosts, literal(path), Envelope::Cri),
                Stdout::Api(driver) => {
                    let Some(dir) = &self.copies else {
                        return Err(wrong(
                            "",
                            "stdout",
                            format!(
                                "the logging driver `{driver}` keeps stdout where only the engine's API gives it, which \
                                 has no end to be read to once"
                            ),
                            "run the daemon without `--once`, or the container with the logging driver `json-file`",
                        ));
                    };
                    let ours = View {
                        host_root: "/".into(),
                        ..hosts
                    };
                    let path = api_stdout::path(dir, &workload.id);
                    (ours, literal(&path), Envelope::DockerJson)
                }
                Stdout::None(why) => {
                    return Err(wrong(
                        "",
                        "stdout",
                        why.clone(),
                        "let the workload write a file and declare its path",
                    ));
                }
            },
        };
        let pattern = pattern(&who, declaration, &path)?;
        let Compiled {
            charset,
            multiline,
            filter,
            parser,
        } = compile(&who, declaration, &self.settings.time_zone)?;
        let tags = Tags::render(
            workload,
            declaration,
            &self.settings.node_name,
            self.settings.fields,
            &self.settings.fields_from,
        );
        let mut told = doubts(&who, declaration, &parser);
        if tags.left_out > 0 {
            told.push(wrong(
                "tags",
                "",
                format!(
                    "{} of its fields are left out: together they are too long",
                    tags.left_out
                ),
                "declare fewer or shorter tags, labels and annotations; the log is collected without them",
            ));
        }
        let outputs = self
            .settings
            .outputs
            .iter()
            .filter(|output| {
                declaration.outputs.is_empty() || declaration.outputs.contains(&output.name)
            })
            .filter_map(|output| Some((self.pipeline.slot_of(&output.name)?, output)))
            .map(|(n, output)| {
                let target = declaration.target_for(&output.kind);
                let target = match output.kind.as_str() {
                    "elasticsearch" => target.to_lowercase(),
                    _ => target.to_owned(),
                };
                (n, target.into())
            })
            .collect();
        let is_stdout = declaration.what == What::Stdout;
        let owner: Arc<str> = match workload.runtime {
            Runtime::Static => "".into(),
            _ => workload.id.as_str().into(),
        };
        let spec = Spec {
            name: declaration.name.as_str().into(),
            who,
            owner: Arc::clone(&owner),
            created_ns: workload.created_ns,
            envelope,
            charset,
            timeout: declaration
                .multiline
                .as_ref()
                .map_or(declare::Multiline::TIMEOUT, |rule| rule.timeout),
            multiline,
            filter,
            names: Names::render(parser.names(), &tags),
            parser,
            tags,
            max_bytes: declaration
                .max_bytes
                .unwrap_or(self.settings.max_line_bytes)
                .min(1 << 20),
            outputs,
            limits,
            shown: Shown {
                target: declaration.target.clone(),
                format: format_name(&declaration.format),
                runtime: runtime_name(workload.runtime).to_owned(),
                container: workload.name.clone(),
                pod: workload
                    .pod
                    .as_ref()
                    .map(|pod| pod.name.clone())
                    .unwrap_or_default(),
                namespace: workload
                    .pod
                    .as_ref()
                    .map(|pod| pod.namespace.clone())
                    .unwrap_or_default(),
                via: match workload.runtime {
                    _ if is_stdout => "stdout",
                    Runtime::Shim => "ring",
                    _ => "file",
                },
                way: way(workload, &declaration.what),
            },
        };
        let wanted = Wanted {
            want,
            owner,
            view,
            pattern,
            from_start: !self.is_started,
            rotates_at_once: envelope != Envelope::Plain,
            pinned_bytes: limits.pinned_bytes,
        };
        Ok((wanted, Arc::new(spec), told))
    }
}

/// What a declaration says, ready to be used.
#[derive(Debug)]
pub struct Compiled {
    charset: Option<Charset>,
    multiline: Option<Rule>,
    filter: Filter,
    parser: Parser,
}

/// Compiles what a declaration says of its text: encoding, groups of lines, what is wanted, format. `who` is whose it
/// is.
///
/// # Errors
/// The first that is wrong: the log is not collected.
pub fn compile(who: &str, declaration: &Declaration, zone: &str) -> Result<Compiled, Problem> {
    let wrong = |key: &str, value: &str, reason: String, cure: &str| {
        problem_of(who, declaration, key, value, reason, cure)
    };
    let pattern_cure = "write a regular expression such as `^\\d{4}-`";
    let charset = declaration
        .encoding
        .as_deref()
        .filter(|label| !is_utf8(label))
        .map(Charset::new)
        .transpose()
        .map_err(|reason| {
            let value = declaration.encoding.as_deref().unwrap_or_default();
            wrong(
                "encoding",
                value,
                reason,
                "write for example `gbk` or `utf-16le`",
            )
        })?;
    let multiline = declaration
        .multiline
        .as_ref()
        .map(Rule::new)
        .transpose()
        .map_err(|reason| wrong("multiline.pattern", "", reason, pattern_cure))?;
    let filter = Filter::new(&declaration.include, &declaration.exclude)
        .map_err(|reason| wrong("include_lines", "", reason, pattern_cure))?;
    let parser = Parser::new(&declaration.format, zone).map_err(|reason| {
        let cure = "mend it as the reason says; until then the log is not collected";
        wrong("format", format_name(&declaration.format), reason, cure)
    })?;
    Ok(Compiled {
        charset,
        multiline,
        filter,
        parser,
    })
}

/// What a declaration would be told before anything runs: what keeps it from being collected, else what of it can have
/// no effect.
///
/// # Errors
/// What keeps it from being collected.
pub fn judge(who: &str, declaration: &Declaration, zone: &str) -> Result<Vec<Problem>, Problem> {
    if let What::Files(path) = &declaration.what {
        pattern(who, declaration, path)?;
    }
    let compiled = compile(who, declaration, zone)?;
    Ok(doubts(who, declaration, &compiled.parser))
}

fn pattern(who: &str, declaration: &Declaration, path: &str) -> Result<Pattern, Problem> {
    Pattern::new(path).map_err(|error| {
        let cure = "write an absolute path such as `/logs/*.log`";
        problem_of(who, declaration, "path", path, error.to_string(), cure)
    })
}

/// What of a format can have no effect.
fn doubts(who: &str, declaration: &Declaration, parser: &Parser) -> Vec<Problem> {
    let format = format_name(&declaration.format);
    let cure = "mend it or leave it out; the log is collected all the same";
    let doubts = parser.doubts().iter();
    doubts
        .map(|doubt| problem_of(who, declaration, "format", format, doubt.clone(), cure))
        .collect()
}

fn problem_of(
    who: &str,
    declaration: &Declaration,
    key: &str,
    value: &str,
    reason: String,
    cure: &str,
) -> Problem {
    Problem {
        container: match who {
            "" => format!("source `{}`", declaration.name),
            who => format!("{who}, log `{}`", declaration.name),
        },
        key: format!("{}.{key}", declaration.name),
        value: value.to_owned(),
        reason,
        cure: cure.to_owned(),
    }
}

/// The one rule of which way a log is read: stdout where the runtime writes it, a path in a mount where the host has
/// that mount, every other path in the container's root.
fn way(workload: &Workload, what: &What) -> String {
    let path = match what {
        _ if workload.runtime == Runtime::Static => return String::new(),
        What::Stdout if workload.runtime == Runtime::LogFolder => {
            return "known by the names in the log folder alone, for the runtime's socket cannot be had: no \
                    declaration can be read this way, `collect_stdout: all` collects it"
                .to_owned();
        }
        What::Stdout => {
            return match &workload.stdout {
                Stdout::Api(driver) => format!(
                    "the logging driver `{driver}` keeps it where only the engine's API gives it, so it is copied \
                     into data_dir first"
                ),
                _ => String::new(),
            };
        }
        What::Files(path) => Path::new(path),
    };
    match workload
        .mounts
        .iter()
        .find(|m| path.starts_with(&m.container))
    {
        Some(mount) => format!(
            "in the volume at {}, which the host has at {}",
            mount.container.display(),
            mount.host.display()
        ),
        None => match workload.roots.first() {
            Some(root) => format!(
                "in no volume, so in the container's own file system, which the host has at {}",
                root.display()
            ),
            None => {
                "in no volume, and the container's own file system cannot be seen until it runs"
                    .to_owned()
            }
        },
    }
}

/// A path as a pattern that matches only itself.
fn literal(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn is_utf8(label: &str) -> bool {
    ["utf-8", "utf8", "plain"].contains(&label.trim().to_ascii_lowercase().as_str())
}

/// What a format is called.
pub fn format_name(format: &Format) -> &'static str {
    match format {
        Format::None => "none",
        Format::Json(_) => "json",
        Format::Csv { .. } => "csv",
        Format::Nginx => "nginx",
        Format::Apache2 => "apache2",
        Format::ApacheError => "apache_error",
        Format::Regexp { .. } => "regexp",
    }
}

/// What a runtime is called.
pub fn runtime_name(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Docker => "docker",
        Runtime::Cri => "cri",
        Runtime::Static => "static",
        Runtime::LogFolder => "log-folder",
        Runtime::Shim => "shim",
    }
}

fn owner_of_runtime(runtime: Runtime) -> String {
    format!("runtime:{}", runtime_name(runtime))
}
