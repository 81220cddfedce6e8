//! Read what a workload says into declarations, and say what is wrong in its own words.

use std::collections::{BTreeSet, HashMap};

use super::key::{self, ATTRIBUTES, Declared, Entry, Found, Keys};
use super::{Declaration, Format, TimeKey, What, custom, put_tag, target};
use crate::discover::{Stdout, Workload};
use crate::problem::{Problem, nearest, use_instead};
use crate::settings::{CollectStdout, Settings, is_name, is_zone};

/// Most targets of one container.
pub const MOST_TARGETS: usize = 100;

/// Most problems that are told of one container.
const MOST_PROBLEMS: usize = 200;

/// The name of the declaration that `collect_stdout: all` makes.
pub const ALL_STDOUT: &str = "_stdout";

/// Every format.
const FORMATS: &[&str] = &[
    "none",
    "json",
    "csv",
    "nginx",
    "apache2",
    "apache_error",
    "regexp",
];

/// What reading declarations needs of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Prefixes of declarations; the earlier wins.
    pub prefixes: Vec<String>,
    /// Whose stdout is collected.
    pub collect_stdout: CollectStdout,
    /// For times without a zone.
    pub time_zone: String,
    /// Container ids and pod UIDs that are the daemon itself: its own stdout is never collected unasked, into a loop.
    pub own: Vec<String>,
}

impl Reading {
    /// As the settings say, for the process that asks.
    pub fn of(settings: &Settings) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            prefixes: settings.label_prefixes.clone(),
            collect_stdout: settings.collect_stdout,
            time_zone: settings.time_zone.clone(),
            own: own_marks(&mounts),
        }
    }
}

/// The names in the paths that a runtime mounts over `/etc/hosts` and its like: in a container they hold its id or
/// its pod's UID; on the host itself nothing is mounted there.
fn own_marks(mountinfo: &str) -> Vec<String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(3);
            let (root, point) = (words.next()?, words.next()?);
            matches!(point, "/etc/hosts" | "/etc/hostname" | "/etc/resolv.conf").then_some(root)
        })
        .flat_map(|root| root.split('/'))
        .filter(|name| name.len() >= 32)
        .map(str::to_owned)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Whom a workload's problems concern.
pub fn who(workload: &Workload) -> String {
    match &workload.pod {
        Some(pod) => format!("{}/{} ({})", pod.namespace, pod.name, pod.container),
        None => workload.name.clone(),
    }
}

/// Reads every declaration of a workload. Each stands alone: a bad one is a problem and stops no other. A problem
/// whose log is collected all the same says so.
pub fn read(workload: &Workload, reading: &Reading) -> (Vec<Declaration>, Vec<Problem>) {
    let labels = workload
        .labels
        .iter()
        .map(|(key, value)| (Found::Label, key, value));
    let annotations = workload
        .annotations
        .iter()
        .map(|(k, v)| (Found::Annotation, k, v));
    let environment = workload
        .environment
        .iter()
        .map(|(k, v)| (Found::Environment, k, v));
    let entries = labels
        .chain(annotations)
        .chain(environment)
        .map(|(found, key, value)| Entry { key, value, found });
    let keys = key::resolve(&reading.prefixes, entries);

    let mut told = Told {
        who: who(workload),
        problems: Vec::new(),
    };
    let mut drafts: HashMap<&str, Draft<'_>> = HashMap::new();
    for (name, declared) in &keys.declared {
        if let Some(declaration) = one(name, declared, &keys, &mut told) {
            drafts.insert(
                name,
                Draft {
                    declaration,
                    declared,
                    options: custom::Options::default(),
                },
            );
        }
    }
    for stray in &keys.strays {
        told.stray(stray, &keys);
    }
    if let Some(entry) = keys.custom {
        take_custom(entry, &keys, &mut drafts, &mut told);
    }
    let mut declarations = Vec::new();
    let mut targets = BTreeSet::new();
    for name in keys.declared.keys() {
        let Some(draft) = drafts.remove(name) else {
            continue;
        };
        let entry = draft.declared.entry;
        let Some(declaration) = draft.finish(&keys, &mut told) else {
            continue;
        };
        if targets.len() >= MOST_TARGETS && !targets.contains(&declaration.target) {
            told.of(
                name,
                entry,
                format!("a container may have at most {MOST_TARGETS} targets"),
                "give several logs one target",
            );
            continue;
        }
        targets.insert(declaration.target.clone());
        declarations.push(declaration);
    }
    if reading.collect_stdout == CollectStdout::All && wants_stdout(workload, reading, &keys) {
        declarations.push(all_stdout(workload));
    }
    (declarations, told.finish())
}

/// Whether `collect_stdout: all` adds this container's stdout. One whose stdout declaration is wrong is not
/// collected by another name behind its owner's back.
fn wants_stdout(workload: &Workload, reading: &Reading, keys: &Keys<'_>) -> bool {
    let is_own = reading.own.iter().any(|mark| {
        *mark == workload.id || workload.pod.as_ref().is_some_and(|pod| pod.uid == *mark)
    });
    !is_own
        && !matches!(workload.stdout, Stdout::None(_))
        && !keys
            .declared
            .values()
            .any(|declared| declared.entry.value.trim() == "stdout")
}

/// The declaration that `collect_stdout: all` makes.
fn all_stdout(workload: &Workload) -> Declaration {
    let label = |key: &str| workload.labels.get(key).filter(|value| !value.is_empty());
    let app = label("com.docker.stack.namespace").or(label("com.docker.compose.project"));
    let pod = workload
        .pod
        .as_ref()
        .map(|pod| &pod.container)
        .filter(|name| !name.is_empty());
    let named = app.or(pod).unwrap_or(&workload.name);
    Declaration {
        target: target::made_of(named),
        ..Declaration::new(ALL_STDOUT, What::Stdout)
    }
}

/// Gathers problems of one container.
struct Told {
    who: String,
    problems: Vec<Problem>,
}

impl Told {
    fn of(
        &mut self,
        name: &str,
        entry: Entry<'_>,
        reason: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.problems.push(Problem {
            container: format!("{}, log `{name}`", self.who),
            key: entry.key.to_owned(),
            value: shortened(entry.value),
            reason: reason.into(),
            cure: cure.into(),
        });
    }

    fn stray(&mut self, stray: &key::Stray<'_>, keys: &Keys<'_>) {
        let declared: Vec<&str> = keys.declared.keys().copied().collect();
        if keys.declared.contains_key(stray.name) {
            let reason = format!(
                "no attribute is called `{}`; the log is collected without it",
                stray.attribute
            );
            self.of(
                stray.name,
                stray.entry,
                reason,
                use_instead(stray.attribute, ATTRIBUTES),
            );
            return;
        }
        let reason = format!(
            "it is an attribute of `{}`, and no such log is declared",
            stray.name
        );
        let parent = stray
            .entry
            .key
            .strip_suffix(stray.attribute)
            .unwrap_or(stray.entry.key);
        let parent = parent.trim_end_matches(['.', '_']);
        let cure = match nearest(stray.name, &declared) {
            Some(near) => format!("name the log `{near}`, or declare {parent}=stdout or a path"),
            None => format!("declare {parent}=stdout or a path"),
        };
        self.of(stray.name, stray.entry, reason, cure);
    }

    fn finish(mut self) -> Vec<Problem> {
        if self.problems.len() > MOST_PROBLEMS {
            let more = self.problems.len() - MOST_PROBLEMS;
            self.problems.truncate(MOST_PROBLEMS);
            self.problems.push(Problem {
                container: self.who,
                key: String::new(),
                value: String::new(),
                reason: format!("{more} more problems are not shown"),
                cure: "mend those that are".to_owned(),
            });
        }
        self.problems
    }
}

/// A value as it is shown: a workload may write a megabyte of it.
fn shortened(value: &str) -> String {
    const MOST_CHARS: usize = 120;
    match value.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

/// A declaration before `custom.config` and the last checks.
struct Draft<'text> {
    declaration: Declaration,
    declared: &'text Declared<'text>,
    options: custom::Options,
}

impl Draft<'_> {
    fn finish(mut self, keys: &Keys<'_>, told: &mut Told) -> Option<Declaration> {
        let name = self.declaration.name.clone();
        let custom = keys.custom.unwrap_or(self.declared.entry);
        match self.options.multiline() {
            Ok(rule) => self.declaration.multiline = rule,
            Err(refusal) => {
                told.of(&name, custom, refusal.reason, refusal.cure);
                return None;
            }
        }
        Some(self.declaration)
    }
}

/// Reads one declared log; `None` if it cannot be collected as it is asked for.
fn one(
    name: &str,
    declared: &Declared<'_>,
    keys: &Keys<'_>,
    told: &mut Told,
) -> Option<Declaration> {
    let entry = declared.entry;
    if !is_name(name) || name == ALL_STDOUT {
        let reason = if name == ALL_STDOUT {
            "this name is kept for `collect_stdout: all`"
        } else {
            "a log's name is made of letters, digits, `_` and `-`, at most 200"
        };
        told.of(name, entry, reason, "give the log another name");
        return None;
    }
    let value = entry.value.trim();
    let what = if value == "stdout" {
        What::Stdout
    } else if let Err((reason, cure)) = check_path(value) {
        // A mistyped attribute of another log looks like a name.
        let cure = near_attribute(entry, name, keys).unwrap_or(cure);
        told.of(name, entry, reason, cure);
        return None;
    } else {
        What::Files(value.to_owned())
    };
    let mut declaration = Declaration::new(name, what);
    let mut good = true;
    // One left empty, as templates do, is one not written.
    let target = declared
        .attributes
        .get("target")
        .filter(|entry| !entry.value.trim().is_empty());
    if let Some(entry) = target {
        declaration.target = entry.value.trim().to_owned();
    }
    if let Some(entry) = declared.attributes.get("tags") {
        take_tags(name, *entry, &mut declaration, told);
    }
    if let Err(reason) = target::check(&declaration.target) {
        match target {
            Some(entry) => told.of(name, *entry, reason, target::CURE),
            None => {
                let reason = format!("the name is also the target: {reason}");
                told.of(
                    name,
                    entry,
                    reason,
                    format!("add {}", sibling(entry, "target", "app")),
                );
            }
        }
        good = false;
    }
    match format(name, declared, told) {
        Some(format) => declaration.format = format,
        None => good = false,
    }
    good.then_some(declaration)
}

/// Judges a path in a container.
fn check_path(path: &str) -> Result<(), (String, String)> {
    let wrong = |reason: &str, cure: &str| Err((reason.to_owned(), cure.to_owned()));
    const WRITE: &str = "write `stdout`, or an absolute path such as `/var/log/app/*.log`";
    if path.is_empty() {
        wrong("it says nothing", WRITE)
    } else if path.eq_ignore_ascii_case("stdout") || path.eq_ignore_ascii_case("stderr") {
        wrong(
            "stdout and stderr are collected together, by one word",
            "write `stdout`",
        )
    } else if !path.starts_with('/') {
        wrong("it is neither `stdout` nor an absolute path", WRITE)
    } else if path.contains('\0') || path.len() > 4096 {
        wrong("no path is like this", WRITE)
    } else if path.ends_with('/') {
        wrong(
            "it is a folder, not a file",
            "add the file's name, such as `*.log`",
        )
    } else if path.split('/').any(|part| part == "..") {
        wrong(
            "a path with `..` is not followed",
            "write the path without `..`",
        )
    } else if matches!(
        path,
        "/dev/stdout" | "/dev/stderr" | "/proc/self/fd/1" | "/proc/self/fd/2"
    ) {
        wrong("this is the container's own stdout", "write `stdout`")
    } else {
        Ok(())
    }
}

/// The cure for `aliyun_logs_web_tagz=…` where `web` is declared.
fn near_attribute(entry: Entry<'_>, name: &str, keys: &Keys<'_>) -> Option<String> {
    if entry.found != Found::Environment {
        return None;
    }
    let known: Vec<String> = ATTRIBUTES.iter().map(|a| a.replace('.', "_")).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    // An attribute of a log that is not declared at all.
    for attribute in &known {
        if let Some(stem) = name
            .strip_suffix(attribute)
            .and_then(|stem| stem.strip_suffix('_'))
            && !stem.is_empty()
        {
            let parent = entry.key.strip_suffix(attribute)?.trim_end_matches('_');
            return Some(format!(
                "if it is an attribute of `{stem}`, declare that log: {parent}=stdout or a path"
            ));
        }
    }
    let (at, near) = name.match_indices('_').rev().find_map(|(at, _)| {
        let stem = keys.declared.contains_key(&name[..at]);
        stem.then(|| nearest(&name[at + 1..], &known).map(|near| (at, near)))?
    })?;
    let parent = entry.key.strip_suffix(name)?;
    Some(format!(
        "if it is an attribute of `{}`, write {parent}{}_{near}",
        &name[..at],
        &name[..at]
    ))
}

/// The key of another attribute of the same log, in the same style, with a value.
fn sibling(entry: Entry<'_>, attribute: &str, value: &str) -> String {
    let separator = if entry.key.contains(".logs.") {
        "."
    } else {
        "_"
    };
    format!(
        "{}{separator}{}={value}",
        entry.key,
        attribute.replace('.', separator)
    )
}

/// Reads `k1=v1,k2=v2`; a trailing comma and a `=` in a value are fine.
fn take_tags(name: &str, entry: Entry<'_>, declaration: &mut Declaration, told: &mut Told) {
    for pair in entry
        .value
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => (key.trim(), value.trim()),
            _ => {
                let reason =
                    format!("the tag `{pair}` has no name; the log is collected without it");
                told.of(
                    name,
                    entry,
                    reason,
                    "write NAME=VALUE, with commas between several",
                );
                continue;
            }
        };
        if matches!(key, "index" | "topic")
            && let Err(reason) = target::check(value)
        {
            let reason = format!(
                "the tag `{key}` names a target: {reason}; the log is collected without it"
            );
            told.of(name, entry, reason, target::CURE);
            continue;
        }
        put_tag(&mut declaration.tags, key, value.to_owned());
    }
}

/// Reads the format with its attributes; `None` if it cannot be.
fn format(name: &str, declared: &Declared<'_>, told: &mut Told) -> Option<Format> {
    let get = |attribute: &str| {
        let value = declared
            .attributes
            .get(attribute)
            .map(|entry| entry.value.trim());
        value.filter(|value| !value.is_empty()).map(str::to_owned)
    };
    let written = get("format").unwrap_or_default().to_ascii_lowercase();
    let (time, pattern, keys) = (
        TimeKey {
            key: get("format.time_key"),
            format: get("format.time_format"),
            zone: get("format.time_zone"),
        },
        get("format.pattern"),
        get("format.keys"),
    );
    let timed = ["format.time_key", "format.time_format", "format.time_zone"];
    let (format, used): (Format, Vec<&str>) = match written.as_str() {
        // `nonex` is what log-pilot's own fluentd parser is called.
        "" | "none" | "nonex" => (Format::None, vec![]),
        "json" => (Format::Json(time), timed.to_vec()),
        "csv" => {
            let keys: Vec<String> = keys
                .unwrap_or_default()
                .split(',')
                .map(|key| key.trim().to_owned())
                .filter(|key| !key.is_empty())
                .collect();
            if keys.is_empty() {
                let entry = declared
                    .attributes
                    .get("format")
                    .copied()
                    .unwrap_or(declared.entry);
                let cure = format!(
                    "add {}",
                    sibling(declared.entry, "format.keys", "time,level,message")
                );
                told.of(
                    name,
                    entry,
                    "format `csv` requires the names of its columns",
                    cure,
                );
                return None;
            }
            (
                Format::Csv { keys, time },
                [&timed[..], &["format.keys"]].concat(),
            )
        }
        "nginx" => (Format::Nginx, vec![]),
        "apache2" => (Format::Apache2, vec![]),
        "apache_error" => (Format::ApacheError, vec![]),
        "regexp" => {
            let Some(pattern) = pattern else {
                let entry = declared
                    .attributes
                    .get("format")
                    .copied()
                    .unwrap_or(declared.entry);
                let example = r"(?<level>\w+) (?<text>.*)";
                let cure = format!("add {}", sibling(declared.entry, "format.pattern", example));
                told.of(name, entry, "format `regexp` requires a pattern", cure);
                return None;
            };
            (
                Format::Regexp { pattern, time },
                [&timed[..], &["format.pattern"]].concat(),
            )
        }
        other => {
            let entry = declared
                .attributes
                .get("format")
                .copied()
                .unwrap_or(declared.entry);
            told.of(
                name,
                entry,
                format!("no format is called `{other}`"),
                use_instead(other, FORMATS),
            );
            return None;
        }
    };
    let shown = if written.is_empty() { "none" } else { &written };
    let mut good = true;
    for (attribute, entry) in &declared.attributes {
        if !attribute.starts_with("format.") {
            continue;
        }
        if !used.contains(attribute) {
            let reason = format!(
                "`{attribute}` means nothing with format `{shown}`; the log is collected without it"
            );
            told.of(
                name,
                *entry,
                reason,
                "remove it, or set the format that it is for",
            );
        } else if *attribute == "format.time_zone" && !is_zone(entry.value.trim()) {
            let cure = "write an IANA name such as `Asia/Shanghai`, or an offset such as `+08:00`";
            told.of(name, *entry, "no time zone is called so", cure);
            good = false;
        }
    }
    good.then_some(format)
}

/// Takes the lines of `custom.config` into the logs they speak of.
fn take_custom(
    entry: Entry<'_>,
    keys: &Keys<'_>,
    drafts: &mut HashMap<&str, Draft<'_>>,
    told: &mut Told,
) {
    let declared: Vec<&str> = keys.declared.keys().copied().collect();
    for line in custom::lines(entry.value) {
        let entry = Entry {
            value: line.whole,
            ..entry
        };
        if !keys.declared.contains_key(line.name) {
            let (reason, cure) = if line.name.is_empty() || line.option.is_empty() {
                let reason =
                    "a line is `NAME.option=value`, with the NAME of a declared log".to_owned();
                (
                    reason,
                    format!(
                        "write for example {}.multiline.pattern=^\\d",
                        declared.first().unwrap_or(&"NAME")
                    ),
                )
            } else {
                let reason = format!(
                    "it speaks of the log `{}`, which is not declared",
                    line.name
                );
                (reason, use_instead(line.name, &declared))
            };
            told.of(line.name, entry, reason, cure);
            continue;
        }
        // One that is refused already has been told.
        let Some(draft) = drafts.get_mut(line.name) else {
            continue;
        };
        if let Err(refusal) = draft
            .options
            .take(&mut draft.declaration, line.option, line.value)
        {
            told.of(line.name, entry, refusal.reason, refusal.cure);
            if refusal.fatal {
                drafts.remove(line.name);
            }
        }
    }
}
