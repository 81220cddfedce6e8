//! Workloads as manifests describe them: Kubernetes objects and compose files, before anything runs.
//! Place: `check --manifest`; what it makes is read by `declare` as what a runtime tells.
//! Invariants: kinds that run no container are passed over; a value known only in the cluster is told, not guessed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};

use crate::discover::{Pod, Runtime, State, Stdout, Workload};

/// The workloads of a manifest, and what can be known only where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// One per container.
    pub workloads: Vec<Workload>,
    /// Variables whose value comes from elsewhere: whose, and which.
    pub unknown: Vec<(String, String)>,
}

/// Reads a manifest of one or more YAML (or JSON) documents.
///
/// # Errors
/// Why it is none, with the place.
pub fn read(text: &str) -> Result<Manifest, String> {
    let mut manifest = Manifest::default();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let mut value = Value::deserialize(document).map_err(|error| error.to_string())?;
        value.apply_merge().map_err(|error| error.to_string())?;
        manifest.take(&value, 0);
    }
    Ok(manifest)
}

/// How deep a list of lists may be.
const MOST_LISTS: usize = 8;

impl Manifest {
    fn take(&mut self, document: &Value, depth: usize) {
        let kind = text(document.get("kind")).unwrap_or_default();
        if kind == "List" && depth < MOST_LISTS {
            for item in document
                .get("items")
                .and_then(Value::as_sequence)
                .into_iter()
                .flatten()
            {
                self.take(item, depth + 1);
            }
            return;
        }
        let template = match kind.as_str() {
            "Pod" => Some(document),
            "CronJob" => at(document, &["spec", "jobTemplate", "spec", "template"]),
            "" => {
                self.compose(document);
                None
            }
            _ => at(document, &["spec", "template"]).filter(|t| t.get("spec").is_some()),
        };
        if let Some(template) = template {
            self.pod(document, template);
        }
    }

    fn pod(&mut self, owner: &Value, template: &Value) {
        let name = text(at(owner, &["metadata", "name"])).unwrap_or_else(|| "unnamed".to_owned());
        let namespace =
            text(at(owner, &["metadata", "namespace"])).unwrap_or_else(|| "default".to_owned());
        let pairs = |key: &str| map(at(template, &["metadata", key]));
        for list in ["initContainers", "containers"] {
            let containers = at(template, &["spec", list]).and_then(Value::as_sequence);
            for container in containers.into_iter().flatten() {
                let container_name =
                    text(container.get("name")).unwrap_or_else(|| "unnamed".to_owned());
                let mut workload = blank(Runtime::Cri, &container_name);
                workload.labels = pairs("labels");
                workload.annotations = pairs("annotations");
                workload.pod = Some(Pod {
                    name: name.clone(),
                    namespace: namespace.clone(),
                    uid: String::new(),
                    container: container_name,
                });
                let variables = container.get("env").and_then(Value::as_sequence);
                for variable in variables.into_iter().flatten() {
                    let Some(key) = text(variable.get("name")) else {
                        continue;
                    };
                    if variable.get("valueFrom").is_some() {
                        self.unknown.push((crate::declare::who(&workload), key));
                        continue;
                    }
                    let value = text(variable.get("value")).unwrap_or_default();
                    let value = substitute(&value, &workload.environment);
                    workload.environment.push((key, value));
                }
                self.workloads.push(workload);
            }
        }
    }

    fn compose(&mut self, document: &Value) {
        let project = text(document.get("name"));
        let services = document.get("services").and_then(Value::as_mapping);
        for (service, settings) in services.into_iter().flatten() {
            let Some(service) = text(Some(service)) else {
                continue;
            };
            let name = text(settings.get("container_name")).unwrap_or_else(|| service.clone());
            let mut workload = blank(Runtime::Docker, &name);
            workload.labels = map(settings.get("labels"));
            workload
                .labels
                .insert("com.docker.compose.service".to_owned(), service);
            if let Some(project) = &project {
                workload
                    .labels
                    .insert("com.docker.compose.project".to_owned(), project.clone());
            }
            // `NAME` without a value is taken from the shell that runs compose.
            let environment = settings.get("environment");
            for name in names_without_value(environment) {
                self.unknown.push((crate::declare::who(&workload), name));
            }
            workload.environment = map(environment).into_iter().collect();
            self.workloads.push(workload);
        }
    }
}

fn blank(runtime: Runtime, name: &str) -> Workload {
    Workload {
        runtime,
        id: String::new(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        environment: Vec::new(),
        mounts: Vec::new(),
        stdout: Stdout::None("it does not run".to_owned()),
        roots: Vec::new(),
        pid: 0,
        created_ns: 0,
        state: State::Created,
        pod: None,
    }
}

/// What stands at a path of keys.
pub(crate) fn at<'value>(value: &'value Value, path: &[&str]) -> Option<&'value Value> {
    path.iter().try_fold(value, |value, key| value.get(*key))
}

/// A scalar as text: people forget the quotes of `"8080"` and `"true"`.
pub(crate) fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A mapping, or compose's list of `key=value`.
fn map(value: Option<&Value>) -> BTreeMap<String, String> {
    match value {
        Some(Value::Mapping(map)) => mapping(map),
        Some(Value::Sequence(items)) => items
            .iter()
            .filter_map(|item| text(Some(item)))
            .filter_map(|item| {
                let (key, value) = item.split_once('=')?;
                Some((key.to_owned(), value.to_owned()))
            })
            .collect(),
        _ => BTreeMap::new(),
    }
}

fn mapping(map: &Mapping) -> BTreeMap<String, String> {
    map.iter()
        .filter_map(|(key, value)| Some((text(Some(key))?, text(Some(value))?)))
        .collect()
}

fn names_without_value(environment: Option<&Value>) -> Vec<String> {
    match environment {
        Some(Value::Mapping(map)) => map
            .iter()
            .filter(|(_, value)| value.is_null())
            .filter_map(|(key, _)| text(Some(key)))
            .collect(),
        Some(Value::Sequence(items)) => items
            .iter()
            .filter_map(|item| text(Some(item)))
            .filter(|item| !item.contains('='))
            .collect(),
        _ => Vec::new(),
    }
}

/// Kubernetes' `$(NAME)`: an earlier variable of the container; what it does not know stays as written.
fn substitute(value: &str, known: &[(String, String)]) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = rest
            .strip_prefix("$(")
            .and_then(|after| after.split_once(')'));
        let found = reference.and_then(|(name, after)| {
            let (_, value) = known.iter().rev().find(|(key, _)| key == name)?;
            Some((value, after))
        });
        match found {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_that_runs_containers_is_read() {
        let template = "{metadata: {labels: {app: x}, annotations: {aliyun.logs.a: stdout}}, \
                        spec: {initContainers: [{name: i}], containers: [{name: c, env: [{name: A, value: 1}, \
                        {name: B, value: $(A)-$(C)-$$(A)}, {name: D, valueFrom: {}}]}]}}";
        let mut documents = vec![
            format!(
                "{{kind: CronJob, metadata: {{name: n}}, spec: {{jobTemplate: {{spec: {{template: {template}}}}}}}}}"
            ),
            template.replacen('{', "{kind: Pod, ", 1),
            "{kind: Service, spec: {ports: []}}".to_owned(),
            String::new(),
        ];
        for kind in ["Deployment", "DaemonSet", "StatefulSet", "Job"] {
            documents.push(format!("{{kind: {kind}, metadata: {{name: n, namespace: s}}, spec: {{template: {template}}}}}"));
        }
        let list = format!("{{kind: List, items: [{}]}}", documents[0]);
        let manifest = read(&(documents.join("\n---\n") + "\n---\n" + &list)).expect("good");
        assert_eq!(manifest.workloads.len(), 7 * 2);
        assert_eq!(manifest.unknown.len(), 7);
        let container = &manifest.workloads[1];
        assert_eq!(container.environment[1].1, "1-$(C)-$(A)");
        assert_eq!(container.annotations["aliyun.logs.a"], "stdout");
        let pod = container.pod.as_ref().expect("a pod");
        assert_eq!(
            (
                pod.namespace.as_str(),
                pod.name.as_str(),
                pod.container.as_str()
            ),
            ("default", "n", "c")
        );
    }

    #[test]
    fn a_compose_file_is_read_with_both_of_its_forms() {
        let yaml = r#"
name: shop
services:
  web:
    labels: [aliyun.logs.access=/logs/*.log, "aliyun.logs.access.tags=a=b"]
    environment: {aliyun_logs_out: stdout, EMPTY: }
  db:
    container_name: mysql
    labels: {aliyun.logs.slow: /logs/slow.log}
    environment: [A=b, FROM_SHELL]
"#;
        let manifest = read(yaml).expect("good");
        let [web, db] = manifest.workloads.as_slice() else {
            panic!("two services")
        };
        assert_eq!(web.labels["aliyun.logs.access.tags"], "a=b");
        assert_eq!(web.labels["com.docker.compose.project"], "shop");
        assert_eq!(
            web.environment,
            [("aliyun_logs_out".to_owned(), "stdout".to_owned())]
        );
        assert_eq!(db.name, "mysql");
        let unknown: Vec<&str> = manifest
            .unknown
            .iter()
            .map(|(_, name)| name.as_str())
            .collect();
        assert_eq!(unknown, ["EMPTY", "FROM_SHELL"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,80}|(kind: [A-Z][a-z]+\n)?(spec|services|items):\n( *[a-z]+:( \\PC{0,9})?\n){0,9}") {
            drop(read(&text));
        }
    }
}
