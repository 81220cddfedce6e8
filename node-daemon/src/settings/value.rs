//! Read a part of the configuration into a type, and say everything that is wrong with it.
//! Invariants: every wrong key is told, not only the first; no message holds the value of a key that may be secret.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use serde_yaml_ng::Value;

use crate::problem::{Problem, use_instead};

/// Reads `value`, which stands at `path` in the configuration, into a `T`.
///
/// `T` should `deny_unknown_fields`; the message then names the nearest key there is. A custom error may end in
/// `; do: CURE`. A number where a text is wanted, and the other way round, is taken as meant.
///
/// # Errors
/// The first thing that is wrong, as the user's own problem.
pub fn from_value<T: DeserializeOwned>(value: &Value, path: &str) -> Result<T, Problem> {
    let mut problems = Vec::new();
    match read(value, path, &mut problems) {
        Some(read) if problems.is_empty() => Ok(read),
        _ => Err(problems.into_iter().next().unwrap_or_else(|| Problem {
            container: String::new(),
            key: path.to_owned(),
            value: String::new(),
            reason: "it cannot be read".to_owned(),
            cure: "compare it with the example in the guide".to_owned(),
        })),
    }
}

/// How many things can be wrong in one part before the rest goes untold.
const MOST_PROBLEMS: usize = 32;

/// Reads as [`from_value`] does, but mends what is wrong (by leaving it out) to find what else is.
pub(super) fn read<T: DeserializeOwned>(
    value: &Value,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let mut value = value.clone();
    for _ in 0..MOST_PROBLEMS {
        let error = match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let segments: Vec<Segment> = error.path().iter().cloned().collect();
        let message = error.into_inner().to_string();
        if mend_type(&mut value, &segments, &message) {
            continue;
        }
        problems.push(problem(&value, path, &segments, &message));
        if message.starts_with("missing field") || !remove(&mut value, &segments) {
            return None;
        }
    }
    None
}

fn at<'value>(value: &'value mut Value, segments: &[Segment]) -> Option<&'value mut Value> {
    segments
        .iter()
        .try_fold(value, |value, segment| match segment {
            Segment::Map { key } => value.as_mapping_mut()?.get_mut(key.as_str()),
            Segment::Seq { index } => value.as_sequence_mut()?.get_mut(*index),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
}

fn remove(value: &mut Value, segments: &[Segment]) -> bool {
    let Some((last, parents)) = segments.split_last() else {
        return false;
    };
    match (at(value, parents), last) {
        (Some(Value::Mapping(map)), Segment::Map { key }) => map.remove(key.as_str()).is_some(),
        (Some(Value::Sequence(items)), Segment::Seq { index }) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

/// Takes `"4"` for 4 and 0600 for `"600"` where the type wants it so, and an empty key as not written.
fn mend_type(value: &mut Value, segments: &[Segment], message: &str) -> bool {
    if message.starts_with("invalid type: unit value") {
        return remove(value, segments);
    }
    let Some(here) = at(value, segments) else {
        return false;
    };
    let meant = match here {
        Value::String(text) if message.starts_with("invalid type: string") => {
            match serde_yaml_ng::from_str::<Value>(text) {
                Ok(meant @ (Value::Number(_) | Value::Bool(_))) => meant,
                _ => return false,
            }
        }
        Value::Number(number) if message.contains("expected a string") => {
            Value::String(number.to_string())
        }
        Value::Bool(flag) if message.contains("expected a string") => {
            Value::String(flag.to_string())
        }
        _ => return false,
    };
    *here = meant;
    true
}

/// Whether what a key holds must not be shown.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "password",
        "secret",
        "api_key",
        "apikey",
        "access_key",
        "token",
        "headers",
        "credential",
    ]
    .iter()
    .any(|word| key.contains(word))
}

/// The path of a key, as a user would write it.
fn join(path: &str, segments: &[Segment]) -> String {
    segments
        .iter()
        .fold(path.to_owned(), |path, segment| match segment {
            Segment::Map { key } if path.is_empty() => key.clone(),
            Segment::Map { key } => format!("{path}.{key}"),
            Segment::Seq { index } => format!("{path}[{index}]"),
            Segment::Enum { .. } | Segment::Unknown => path,
        })
}

fn problem(value: &Value, path: &str, segments: &[Segment], message: &str) -> Problem {
    let mut value = value.clone();
    let secret = segments
        .iter()
        .any(|segment| matches!(segment, Segment::Map { key } if is_secret(key)));
    // Nobody knows what a misspelled key holds.
    let is_unknown = message.starts_with("unknown field `");
    let shown = match at(&mut value, segments) {
        Some(Value::String(_)) if is_unknown => String::new(),
        Some(Value::String(text)) if !secret => hide_credentials(text),
        Some(Value::Number(number)) if !secret => number.to_string(),
        Some(Value::Bool(flag)) if !secret => flag.to_string(),
        Some(_) if secret => "***".to_owned(),
        _ => String::new(),
    };
    let (key, (reason, cure)) = (join(path, segments), explain(message, secret));
    // What is missing is named as a key, not as its parent.
    match message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'))
    {
        Some(missing) => Problem {
            container: String::new(),
            key: join(
                &key,
                &[Segment::Map {
                    key: missing.to_owned(),
                }],
            ),
            value: String::new(),
            reason: "it is required and not there".to_owned(),
            cure: format!("add `{missing}:` there"),
        },
        None => Problem {
            container: String::new(),
            key,
            value: shown,
            reason,
            cure,
        },
    }
}

/// Turns serde's message into reason and cure.
fn explain(message: &str, secret: bool) -> (String, String) {
    for (kind, noun) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        let Some((wrong, known)) = message
            .strip_prefix(kind)
            .and_then(|rest| rest.split_once('`'))
        else {
            continue;
        };
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let reason = match noun {
            "key" => format!("no key is called `{wrong}` here"),
            _ => format!("`{wrong}` is none of its values"),
        };
        return (reason, use_instead(wrong, &known));
    }
    if secret {
        let cure = "write a string, `{file: PATH}` or `{env: VARIABLE}`".to_owned();
        return ("it is not of the form that is wanted".to_owned(), cure);
    }
    if let Some((reason, cure)) = message.split_once("; do: ") {
        return (hide_credentials(reason), cure.to_owned());
    }
    if let Some(("invalid type" | "invalid value" | "invalid length", rest)) =
        message.split_once(": ")
        && let Some((found, expected)) = rest.rsplit_once(", expected ")
    {
        let found = match found {
            "sequence" => "a list",
            "map" => "a mapping",
            "Option value" | "unit value" => "empty",
            other => other,
        };
        let expected = match expected {
            "a sequence" => "a list, such as `[a, b]`",
            "a map" => "a mapping, such as `{key: value}`",
            other if other.starts_with("struct ") => "keys and values, such as `key: value`",
            other => other,
        };
        let reason = format!("it is {}", hide_credentials(found));
        return (reason, format!("write {expected}"));
    }
    (
        hide_credentials(message),
        "compare it with the example in the guide".to_owned(),
    )
}

/// Masks the `user:password@` of URLs in a text.
pub(super) fn hide_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(['/', '"', '`', ' ', ',', '?'])
            .unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                out.push_str("***");
                &after[at..]
            }
            None => after,
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{HumanDuration, Secret, Size};

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Own {
        hosts: Vec<String>,
        #[serde(default)]
        concurrency: u32,
        password: Option<Secret>,
        size: Option<Size>,
        wait: Option<HumanDuration>,
    }

    fn own(yaml: &str) -> Result<Own, Problem> {
        from_value(
            &serde_yaml_ng::from_str(yaml).expect("the test's own YAML"),
            "outputs.es",
        )
    }

    #[test]
    fn an_unknown_key_is_named_with_its_path_and_the_nearest_key() {
        let problem = own("{hosts: [a], hostz: 1}").expect_err("a wrong key");
        assert_eq!(problem.key, "outputs.es.hostz");
        assert_eq!(problem.reason, "no key is called `hostz` here");
        assert!(problem.cure.starts_with("use `hosts`"), "{}", problem.cure);
    }

    #[test]
    fn every_wrong_key_is_told_at_once() {
        let yaml = "{hosts: [a], hostz: 1, wait: 5, size: many, concurrency: lots}";
        let mut problems = Vec::new();
        let value = serde_yaml_ng::from_str(yaml).expect("the test's own YAML");
        assert!(read::<Own>(&value, "outputs.es", &mut problems).is_some());
        let mut keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "outputs.es.concurrency",
                "outputs.es.hostz",
                "outputs.es.size",
                "outputs.es.wait"
            ]
        );
    }

    #[test]
    fn a_number_may_be_written_as_text_and_text_as_a_number() {
        let own = own("{hosts: [1], concurrency: '4', size: 4096, wait: 1m}").expect("good");
        assert_eq!((own.hosts, own.concurrency), (vec!["1".to_owned()], 4));
        assert_eq!(own.size, Some(Size(4096)));
        assert_eq!(own.wait.map(|wait| wait.0.as_secs()), Some(60));
        assert!(own.password.is_none());
    }

    #[test]
    fn a_missing_key_is_named_itself() {
        let problem = own("{concurrency: 3}").expect_err("hosts are missing");
        assert_eq!(
            (problem.key.as_str(), problem.cure.as_str()),
            ("outputs.es.hosts", "add `hosts:` there")
        );
    }

    #[test]
    fn no_problem_shows_a_secret() {
        for yaml in [
            "{hosts: [a], password: [hunter2]}",
            "{hosts: [a], password: {file: hunter2, env: hunter2}}",
            "{hosts: 'http://u:hunter2@es/'}",
        ] {
            let problem = own(yaml).expect_err("wrong");
            assert!(
                !format!("{problem:?} {problem}").contains("hunter2"),
                "{problem}"
            );
        }
    }
}
