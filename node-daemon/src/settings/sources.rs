//! The configuration's own `sources`: files that no workload declares.
//! Place: settings; each becomes a declaration whose path is the host's.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml_ng::Value;

use super::{HumanDuration, Size, StartAtWritten, is_name, is_zone, value};
use crate::declare::{Declaration, Format, Multiline, Place, TimeKey, What, target};
use crate::problem::{Problem, of_operator, use_instead};

/// One of `sources` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    path: String,
    from: Option<StartAtWritten>,
    #[serde(default)]
    format: FormatName,
    #[serde(default)]
    pattern: Option<String>,
    #[serde(default)]
    keys: Vec<String>,
    time_key: Option<String>,
    time_format: Option<String>,
    time_zone: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    target: Option<String>,
    #[serde(default)]
    outputs: Vec<String>,
    multiline: Option<MultilineWritten>,
    #[serde(default)]
    include_lines: Vec<String>,
    #[serde(default)]
    exclude_lines: Vec<String>,
    encoding: Option<String>,
    max_bytes: Option<Size>,
    ignore_older: Option<HumanDuration>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FormatName {
    #[default]
    None,
    Json,
    Csv,
    Nginx,
    Apache2,
    ApacheError,
    Regexp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MultilineWritten {
    /// Short for `pattern` with `negate: true, match: after`.
    start: Option<String>,
    pattern: Option<String>,
    #[serde(default)]
    negate: bool,
    r#match: Option<Side>,
    max_lines: Option<usize>,
    timeout: Option<HumanDuration>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    After,
    Before,
}

/// Reads `sources`; `outputs` are the names there are.
pub(super) fn read(
    written: &[Value],
    outputs: &[&str],
    problems: &mut Vec<Problem>,
) -> Vec<Declaration> {
    let mut sources: Vec<Declaration> = Vec::new();
    for (n, value) in written.iter().enumerate() {
        let path = format!("sources[{n}]");
        let before = problems.len();
        let Some(written) = value::read::<Written>(value, &path, problems) else {
            continue;
        };
        let source = settle(written, &path, outputs, problems);
        if sources.iter().any(|other| other.name == source.name) {
            problems.push(of_operator(
                format!("{path}.name"),
                source.name.clone(),
                "another source has this name",
                "give each source a name of its own",
            ));
        }
        if problems.len() == before {
            sources.push(source);
        }
    }
    sources
}

fn settle(
    written: Written,
    path: &str,
    outputs: &[&str],
    problems: &mut Vec<Problem>,
) -> Declaration {
    let mut wrong = |key: &str, value: &str, reason: String, cure: String| {
        problems.push(of_operator(format!("{path}.{key}"), value, reason, cure));
    };
    if !is_name(&written.name) {
        let reason = "a name is made of letters, digits, `_` and `-`".to_owned();
        wrong(
            "name",
            &written.name,
            reason,
            "write for example `access`".to_owned(),
        );
    }
    if !written.path.starts_with('/') || written.path.ends_with('/') {
        let reason = "it is no absolute path of a file".to_owned();
        wrong(
            "path",
            &written.path,
            reason,
            "write for example `/var/log/app/*.log`".to_owned(),
        );
    }
    let target = written
        .target
        .clone()
        .unwrap_or_else(|| written.name.clone());
    if let Err(reason) = target::check(&target) {
        wrong("target", &target, reason, target::CURE.to_owned());
    }
    for output in written
        .outputs
        .iter()
        .filter(|name| !outputs.contains(&name.as_str()))
    {
        let reason = format!("no output is called `{output}`");
        wrong("outputs", output, reason, use_instead(output, outputs));
    }
    if let Some(zone) = written.time_zone.as_deref().filter(|zone| !is_zone(zone)) {
        let cure = "write an IANA name such as `Asia/Shanghai`, or an offset such as `+08:00`";
        wrong(
            "time_zone",
            zone,
            "no time zone is called so".to_owned(),
            cure.to_owned(),
        );
    }
    let named: [(&str, bool, &[FormatName]); 4] = [
        ("pattern", written.pattern.is_some(), &[FormatName::Regexp]),
        ("keys", !written.keys.is_empty(), &[FormatName::Csv]),
        ("time_key", written.time_key.is_some(), TIMED),
        ("time_format", written.time_format.is_some(), TIMED),
    ];
    for (key, is_set, formats) in named {
        if is_set && !formats.contains(&written.format) {
            let reason = "it means nothing with this format".to_owned();
            wrong(key, "", reason, "leave it out, or set `format`".to_owned());
        }
    }
    let time = TimeKey {
        key: written.time_key,
        format: written.time_format,
        zone: written.time_zone,
    };
    let format = match written.format {
        FormatName::None => Format::None,
        FormatName::Json => Format::Json(time),
        FormatName::Csv => Format::Csv {
            keys: written.keys,
            time,
        },
        FormatName::Nginx => Format::Nginx,
        FormatName::Apache2 => Format::Apache2,
        FormatName::ApacheError => Format::ApacheError,
        FormatName::Regexp => {
            if written.pattern.is_none() {
                let reason = "format `regexp` requires a pattern".to_owned();
                wrong(
                    "pattern",
                    "",
                    reason,
                    "write for example `(?<level>\\w+) (?<text>.*)`".to_owned(),
                );
            }
            Format::Regexp {
                pattern: written.pattern.unwrap_or_default(),
                time,
            }
        }
    };
    let multiline = written.multiline.and_then(|rule| {
        let (pattern, negate, side) = match (rule.start, rule.pattern) {
            (Some(start), None) if !rule.negate && rule.r#match.is_none() => {
                (start, true, Side::After)
            }
            (None, Some(pattern)) => (pattern, rule.negate, rule.r#match.unwrap_or(Side::After)),
            _ => {
                let reason =
                    "it says `start` alone, or `pattern` with `negate` and `match`".to_owned();
                wrong(
                    "multiline",
                    "",
                    reason,
                    r"write for example `{start: '^\d{4}-'}`".to_owned(),
                );
                return None;
            }
        };
        Some(Multiline {
            pattern,
            negate,
            place: match side {
                Side::After => Place::After,
                Side::Before => Place::Before,
            },
            max_lines: rule.max_lines.unwrap_or(Multiline::MAX_LINES),
            timeout: rule.timeout.map_or(Multiline::TIMEOUT, |timeout| timeout.0),
        })
    });
    Declaration {
        name: written.name,
        what: What::Files(written.path),
        tags: written.tags.into_iter().collect(),
        target,
        format,
        multiline,
        include: written.include_lines,
        exclude: written.exclude_lines,
        encoding: written.encoding,
        max_bytes: written.max_bytes.map(Size::bytes),
        ignore_older: written.ignore_older.map(|age| age.0),
        start_at: written.from.map(|from| from.0),
        outputs: written.outputs,
    }
}

const TIMED: &[FormatName] = &[FormatName::Json, FormatName::Csv, FormatName::Regexp];
