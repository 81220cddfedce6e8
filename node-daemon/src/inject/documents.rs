//! Manifests of many documents: find the pods in them, and leave what needs nothing as it was written.
//! Place: between a file and [`super::pod`].
//! Invariant: a document in which nothing is added comes out byte for byte, comments included.

use serde::Deserialize;
use serde_yaml_ng::Value;

use super::{Options, text};
use crate::problem::Problem;

/// A manifest with its shims.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Injected {
    /// The whole manifest.
    pub text: String,
    /// Which workloads got a shim.
    pub changed: Vec<String>,
    /// What is wrong with what they declare.
    pub problems: Vec<Problem>,
}

/// How deep a list of lists may be.
const MOST_LISTS: usize = 8;

/// Adds the shim to every workload of a manifest that needs it.
///
/// # Errors
/// Why it is no manifest, with the place.
pub fn manifest(written: &str, options: &Options) -> Result<Injected, String> {
    let mut injected = Injected::default();
    for (number, document) in documents(written).into_iter().enumerate() {
        let (marker, body) = document;
        let is_empty = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if body.lines().all(is_empty) {
            injected.text.push_str(marker);
            injected.text.push_str(body);
            continue;
        }
        let mut value =
            Value::deserialize(serde_yaml_ng::Deserializer::from_str(body)).map_err(|error| {
                match number {
                    0 => error.to_string(),
                    _ => format!("in document {}: {error}", number + 1),
                }
            })?;
        value.apply_merge().map_err(|error| error.to_string())?;
        let before = injected.changed.len();
        workload(&mut value, options, 0, &mut injected);
        injected.text.push_str(marker);
        if injected.changed.len() == before {
            injected.text.push_str(body);
            continue;
        }
        let text = serde_yaml_ng::to_string(&value).map_err(|error| error.to_string())?;
        injected.text.push_str(&text);
    }
    Ok(injected)
}

/// Each document with the marker before it. A `---` at the beginning of a line is always one.
fn documents(written: &str) -> Vec<(&str, &str)> {
    let mut documents = Vec::new();
    let (mut marker, mut start, mut at) = ("", 0, 0);
    for line in written.split_inclusive('\n') {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- #") {
            if at > 0 {
                documents.push((marker, &written[start..at]));
            }
            (marker, start) = (line, at + line.len());
        }
        at += line.len();
    }
    documents.push((marker, &written[start..]));
    documents
}

fn workload(document: &mut Value, options: &Options, depth: usize, injected: &mut Injected) {
    let kind = text(document.get("kind")).unwrap_or_default();
    if kind == "List" && depth < MOST_LISTS {
        let items = document.get_mut("items").and_then(Value::as_sequence_mut);
        for item in items.into_iter().flatten() {
            workload(item, options, depth + 1, injected);
        }
        return;
    }
    let metadata = |key: &str| text(document.get("metadata").and_then(|m| m.get(key)));
    let who = format!(
        "{}/{}",
        metadata("namespace").unwrap_or_else(|| "default".to_owned()),
        metadata("name")
            .or_else(|| metadata("generateName"))
            .unwrap_or_else(|| "unnamed".to_owned()),
    );
    let path: &[&str] = match kind.as_str() {
        "Pod" => &[],
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        // Whatever has a pod template: Deployment, DaemonSet, StatefulSet, ReplicaSet, Job, and others' own kinds.
        _ => &["spec", "template"],
    };
    let template = path
        .iter()
        .try_fold(document, |value, key| value.get_mut(*key))
        .filter(|template| template.get("spec").is_some());
    let Some(template) = template else { return };
    let (is_changed, problems) = super::pod(template, &who, options);
    injected.problems.extend(problems);
    if is_changed {
        injected.changed.push(format!("{kind} {who}"));
    }
}
