//! `custom.config`: Filebeat input options that log-pilot lets a workload add, one `NAME.key=value` a line.
//! Place: declare, after the logs are declared. Source: log-pilot's `custom.config`, Filebeat's `log` input.
//! Invariant: a key that has no effect here is told, never ignored.

use super::{Declaration, Multiline, Place, StartAt};
use crate::decode::charset::Charset;
use crate::problem::use_instead;
use crate::settings::{parse_seconds, parse_size};

/// Every option that is honoured, besides `fields.NAME`.
pub(super) const OPTIONS: &[&str] = &[
    "multiline.pattern",
    "multiline.negate",
    "multiline.match",
    "multiline.max_lines",
    "multiline.timeout",
    "include_lines",
    "exclude_lines",
    "max_bytes",
    "encoding",
    "ignore_older",
    "tail_files",
];

/// One line, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'text> {
    /// The log it speaks of; empty if the line has no such form.
    pub(super) name: &'text str,
    /// The option.
    pub(super) option: &'text str,
    /// Its value, trimmed.
    pub(super) value: &'text str,
    /// The whole line, trimmed.
    pub(super) whole: &'text str,
}

/// The lines of a `custom.config`, but empty ones and comments.
pub(super) fn lines(config: &str) -> impl Iterator<Item = Line<'_>> {
    config
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|whole| {
            let (key, value) = whole.split_once('=').unwrap_or((whole, ""));
            let (name, option) = key.trim().split_once('.').unwrap_or(("", key));
            Line {
                name,
                option: option.trim(),
                value: value.trim(),
                whole,
            }
        })
}

/// Why an option does nothing: the reason and what to do; and whether its log must not be collected without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) cure: String,
    pub(super) fatal: bool,
}

fn wrong(reason: impl Into<String>, cure: impl Into<String>) -> Refusal {
    Refusal {
        reason: reason.into(),
        cure: cure.into(),
        fatal: true,
    }
}

/// What the lines of one log add up to before multi-line options are put together.
#[derive(Debug, Default)]
pub(super) struct Options {
    pattern: Option<String>,
    negate: bool,
    before: bool,
    max_lines: Option<usize>,
    timeout: Option<std::time::Duration>,
    any_multiline: bool,
}

impl Options {
    /// Takes one option into the declaration.
    pub(super) fn take(
        &mut self,
        declaration: &mut Declaration,
        option: &str,
        value: &str,
    ) -> Result<(), Refusal> {
        self.any_multiline |= option.starts_with("multiline.");
        match option {
            "multiline.pattern" => self.pattern = Some(text(value)),
            "multiline.type" if text(value) == "pattern" => {}
            "multiline.negate" => self.negate = flag(value)?,
            "multiline.match" => match text(value).as_str() {
                "after" => self.before = false,
                "before" => self.before = true,
                other => {
                    let reason = format!("`{other}` is no side");
                    return Err(wrong(reason, "write `after` or `before`"));
                }
            },
            "multiline.max_lines" => {
                self.max_lines = Some(
                    text(value)
                        .parse::<usize>()
                        .ok()
                        .filter(|lines| *lines > 0)
                        .ok_or_else(|| {
                            wrong("it is no number of lines", "write for example `500`")
                        })?,
                );
            }
            "multiline.timeout" => self.timeout = Some(duration(value)?),
            "include_lines" => declaration.include = texts(value),
            "exclude_lines" => declaration.exclude = texts(value),
            "max_bytes" => {
                let size = parse_size(&text(value)).map_err(split)?;
                let size = usize::try_from(size).ok().filter(|size| *size > 0);
                let refuse = || wrong("a record of no bytes is none", "write for example `65536`");
                declaration.max_bytes = Some(size.ok_or_else(refuse)?);
            }
            "encoding" => match text(value).as_str() {
                // Filebeat's word for bytes as they are.
                "plain" => declaration.encoding = None,
                label if Charset::new(label).is_ok() => {
                    declaration.encoding = Some(label.to_owned());
                }
                label => {
                    let reason = format!("no encoding is called `{label}`");
                    let some = [
                        "utf-8", "gbk", "gb18030", "big5", "utf-16le", "utf-16be", "latin1",
                    ];
                    return Err(wrong(reason, use_instead(label, &some)));
                }
            },
            "ignore_older" => {
                declaration.ignore_older = Some(duration(value)?).filter(|age| !age.is_zero());
            }
            "tail_files" => declaration.start_at = flag(value)?.then_some(StartAt::End),
            other => {
                if let Some(field) = other
                    .strip_prefix("fields.")
                    .filter(|field| !field.is_empty())
                {
                    super::put_tag(&mut declaration.tags, field, text(value));
                    return Ok(());
                }
                return Err(Refusal {
                    reason: format!(
                        "the option `{other}` is not supported; the log is collected without it"
                    ),
                    cure: use_instead(other, OPTIONS) + ", or fields.NAME",
                    fatal: false,
                });
            }
        }
        Ok(())
    }

    /// The multi-line rule that the options make.
    pub(super) fn multiline(self) -> Result<Option<Multiline>, Refusal> {
        if !self.any_multiline {
            return Ok(None);
        }
        let cure = r"add for example `NAME.multiline.pattern=^\d{4}-`";
        let pattern = self
            .pattern
            .filter(|pattern| !pattern.is_empty())
            .ok_or_else(|| wrong("multi-line options require `multiline.pattern`", cure))?;
        Ok(Some(Multiline {
            pattern,
            negate: self.negate,
            place: if self.before {
                Place::Before
            } else {
                Place::After
            },
            max_lines: self.max_lines.unwrap_or(Multiline::MAX_LINES),
            timeout: self.timeout.unwrap_or(Multiline::TIMEOUT),
        }))
    }
}

/// A value as Filebeat's YAML has it: quotes are taken off, anything that is no YAML text is taken as written.
fn text(value: &str) -> String {
    match serde_yaml_ng::from_str::<serde_yaml_ng::Value>(value) {
        Ok(serde_yaml_ng::Value::String(text)) => text,
        _ => value.to_owned(),
    }
}

/// A list as Filebeat's YAML has it, or one text.
fn texts(value: &str) -> Vec<String> {
    match serde_yaml_ng::from_str::<Vec<String>>(value) {
        Ok(texts) => texts,
        Err(_) if value.is_empty() => Vec::new(),
        Err(_) => vec![text(value)],
    }
}

fn flag(value: &str) -> Result<bool, Refusal> {
    match text(value).to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err(wrong(
            "it is neither true nor false",
            "write `true` or `false`",
        )),
    }
}

fn duration(value: &str) -> Result<std::time::Duration, Refusal> {
    parse_seconds(&text(value)).map_err(split)
}

fn split(message: String) -> Refusal {
    let (reason, cure) = message
        .split_once("; do: ")
        .unwrap_or((&message, "compare the guide"));
    wrong(reason, cure)
}
