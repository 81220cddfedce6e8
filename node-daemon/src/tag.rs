//! A source's own fields: what log-pilot adds to every record, the workload's tags, and the labels an operator wants.
//! Place: declare -> **tag** -> batch. Rendered once when a source is opened; per record it is one copy.
//! Invariants: each name once, only fields that are not empty; ours wins, what a workload calls so moves to
//! `NAME_original`. Source: log-pilot's `container()`, `extension()` and its fluentd template; ECS 9.
//!
//! What is ours, and what it is called with `fields: ecs`:
//!
//! | log-pilot | ECS | from |
//! |---|---|---|
//! | `docker_app` | `labels.docker_app` | label `com.docker.stack.namespace`, else `com.docker.compose.project` |
//! | `docker_service` | `labels.docker_service` | label `com.docker.swarm.service.name`, else `com.docker.compose.service` |
//! | `docker_container` | `container.name` | the container's name |
//! | `k8s_pod` | `kubernetes.pod.name` | the pod, or label `io.kubernetes.pod.name` |
//! | `k8s_pod_namespace` | `kubernetes.namespace` | the pod, or label `io.kubernetes.pod.namespace` |
//! | `k8s_container_name` | `kubernetes.container.name` | the pod, or label `io.kubernetes.container.name` |
//! | `k8s_node_name` | `kubernetes.node.name` | the node's name |
//! | `index` | `event.dataset` | the tag `index`, else the target |
//! | `topic` | `labels.topic` | the tag `topic`, else the target |
//! | `host` | `host.name` | the node's name |
//!
//! Labels `com.aliyun.access.*` keep their names, with `_` for each dot. `data_stream.dataset` is not written: in a data
//! stream it is a constant that a target does not have to equal, and a document that differs is refused.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use crate::batch::escape;
use crate::declare::Declaration;
use crate::discover::Workload;
use crate::settings::{FieldShape, FieldsFrom};

/// Names that the writer of records itself uses, whatever a record is like.
pub const WRITTEN: [&str; 7] = [
    "@timestamp",
    "stream",
    "parse_error",
    "time_error",
    "time_suspect",
    "incomplete",
    "split",
];

/// What a record without fields of its own has its text under. A record with fields may have one of this name.
pub const MESSAGE: &str = "message";

/// Bytes of a source's own fields as they are written, at most: they go with each of its records.
pub const MOST_BYTES: usize = 32 * 1024;

/// A source's own fields, ready to append to a record, and the names that are ours.
#[derive(Debug, Clone)]
pub struct Tags {
    /// Fields that were left out because of [`MOST_BYTES`]; 0 but for a workload that means harm.
    pub left_out: usize,
    json: Box<[u8]>,
    owned: Vec<Owned>,
    /// Numbers of `owned` by hash, open addressing, at most a quarter full.
    slots: Box<[u32]>,
}

/// A name of ours, and where a workload's field of that name goes.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    name: Box<[u8]>,
    hash: u64,
    /// No field of ours, but an object that fields of ours are in, as an index sees it: `host` for `host.name`. A
    /// workload's field of this name moves unless it is an object, too.
    pub(crate) parent: bool,
    /// The name it moves to; never one of ours.
    pub(crate) moved: Box<[u8]>,
    /// `name_hash` of `moved`.
    pub(crate) moved_hash: u64,
    /// `,"MOVED":`
    pub(crate) member: Box<[u8]>,
}

/// An empty slot.
const NONE: u32 = u32::MAX;

/// What a field's name is found by.
pub(crate) fn name_hash(name: &[u8]) -> u64 {
    xxh3_64(name)
}

/// The name of what a workload calls like one of ours: `NAME_original`, once more where that is ours as well.
fn moved(name: &str, ours: impl Fn(&str) -> bool) -> String {
    let mut name = format!("{name}_original");
    while ours(&name) {
        name += "_original";
    }
    name
}

impl Tags {
    /// Renders what every record of a source has. `from` adds labels and annotations of the workload.
    #[must_use]
    pub fn render(
        workload: &Workload,
        declaration: &Declaration,
        node_name: &str,
        shape: FieldShape,
        from: &FieldsFrom,
    ) -> Self {
        let mut fields = Fields::default();
        for name in WRITTEN.iter().chain([&MESSAGE]) {
            fields.values.insert((*name).to_owned(), String::new());
        }
        for (log_pilot, ecs, value) in ours(workload, declaration, node_name) {
            match shape {
                FieldShape::LogPilot => fields.add(log_pilot, value),
                FieldShape::Ecs => fields.add_dotted(ecs, value),
            }
        }
        for (name, value) in &workload.labels {
            if name.starts_with("com.aliyun.access.") {
                fields.add(&name.replace('.', "_"), value);
            }
        }
        for (name, value) in &declaration.tags {
            // These two say what the fields of their names hold.
            if !matches!(name.as_str(), "index" | "topic") {
                fields.add(name, value);
            }
        }
        for (names, values) in [
            (&from.labels, &workload.labels),
            (&from.annotations, &workload.annotations),
        ] {
            for name in names {
                fields.add(name, values.get(name).map_or("", String::as_str));
            }
        }
        fields.into_tags()
    }

    /// The fields, each with a comma before it: `,"docker_container":"web","index":"access"`.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The name of ours that equals `name`, and its number.
    pub(crate) fn owned(&self, name: &[u8], hash: u64) -> Option<(u32, &Owned)> {
        let mask = self.slots.len() - 1;
        // Only the low bits say where to look, and three of four slots are empty, where the search ends.
        let mut at = hash as usize;
        loop {
            let number = *self.slots.get(at & mask)?;
            let owned = self.numbered(number)?;
            if owned.hash == hash && *owned.name == *name {
                return Some((number, owned));
            }
            at = at.wrapping_add(1);
        }
    }

    /// The name of ours with this number.
    pub(crate) fn numbered(&self, number: u32) -> Option<&Owned> {
        self.owned.get(number as usize)
    }
}

/// The fields that log-pilot adds: its name, the ECS's, and the value, maybe empty.
fn ours<'a>(
    workload: &'a Workload,
    declaration: &'a Declaration,
    node_name: &'a str,
) -> [(&'static str, &'static str, &'a str); 10] {
    let label = |key: &str| workload.labels.get(key).map_or("", String::as_str);
    let or = |first: &'a str, second: &'a str| if first.is_empty() { second } else { first };
    let app = or(
        label("com.docker.stack.namespace"),
        label("com.docker.compose.project"),
    );
    let service = or(
        label("com.docker.swarm.service.name"),
        label("com.docker.compose.service"),
    );
    let (name, namespace, container) = match &workload.pod {
        Some(pod) => (&*pod.name, &*pod.namespace, &*pod.container),
        None => ("", "", ""),
    };
    let pod = or(name, label("io.kubernetes.pod.name"));
    let namespace = or(namespace, label("io.kubernetes.pod.namespace"));
    let container = or(container, label("io.kubernetes.container.name"));
    let target = |tag: &str| or(declaration.tag(tag).unwrap_or(""), &declaration.target);
    [
        ("docker_app", "labels.docker_app", app),
        ("docker_service", "labels.docker_service", service),
        ("docker_container", "container.name", &workload.name),
        ("k8s_pod", "kubernetes.pod.name", pod),
        ("k8s_pod_namespace", "kubernetes.namespace", namespace),
        ("k8s_container_name", "kubernetes.container.name", container),
        ("k8s_node_name", "kubernetes.node.name", node_name),
        ("index", "event.dataset", target("index")),
        ("topic", "labels.topic", target("topic")),
        ("host", "host.name", node_name),
    ]
}

/// Fields while they are gathered.
#[derive(Debug, Default)]
struct Fields {
    /// What is written of them.
    json: Vec<u8>,
    /// Every name that is taken, with its value.
    values: BTreeMap<String, String>,
    /// Objects that dotted names of ours are in.
    parents: BTreeSet<String>,
    left_out: usize,
}

impl Fields {
    /// Adds a field of ours that an index takes as one within objects.
    fn add_dotted(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            let dots = name.match_indices('.').map(|(at, _)| name[..at].to_owned());
            self.parents.extend(dots);
            self.add(name, value);
        }
    }

    /// Adds a field unless it is empty; under another name if that one is taken.
    fn add(&mut self, name: &str, value: &str) {
        let there = self.values.get(name);
        if value.is_empty() || there.is_some_and(|there| there == value) {
            return;
        }
        // Names grow when they move, and all when they are escaped; before anything is copied.
        if self.json.len() + name.len() + value.len() > MOST_BYTES {
            self.left_out += 1;
            return;
        }
        let taken = |name: &str| self.values.contains_key(name) || self.parents.contains(name);
        let name = if taken(name) {
            moved(name, taken)
        } else {
            name.to_owned()
        };
        let before = self.json.len();
        escape::member(&mut self.json, name.as_bytes());
        escape::string(&mut self.json, value.as_bytes());
        if self.json.len() > MOST_BYTES {
            self.json.truncate(before);
            self.left_out += 1;
            return;
        }
        self.values.insert(name, value.to_owned());
    }

    fn into_tags(mut self) -> Tags {
        // A record that has fields is written without its text.
        self.values.remove(MESSAGE);
        let taken = |name: &str| self.values.contains_key(name) || self.parents.contains(name);
        let parents = self
            .parents
            .iter()
            .filter(|name| !self.values.contains_key(*name));
        let owned: Vec<Owned> = (self.values.keys().map(|name| (name, false)))
            .chain(parents.map(|name| (name, true)))
            .map(|(name, parent)| {
                let moved = moved(name, taken).into_bytes();
                let mut member = Vec::new();
                escape::member(&mut member, &moved);
                Owned {
                    name: name.as_bytes().into(),
                    hash: name_hash(name.as_bytes()),
                    parent,
                    moved_hash: name_hash(&moved),
                    moved: moved.into(),
                    member: member.into(),
                }
            })
            .collect();
        let mut slots = vec![NONE; (owned.len() * 4).next_power_of_two()].into_boxed_slice();
        let mask = slots.len() - 1;
        for (number, owned) in (0..).zip(&owned) {
            let mut at = owned.hash as usize;
            while slots[at & mask] != NONE {
                at = at.wrapping_add(1);
            }
            slots[at & mask] = number;
        }
        Tags {
            left_out: self.left_out,
            json: self.json.into(),
            owned,
            slots,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::What;
    use crate::discover::{Pod, fixed};

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        (pairs.iter())
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn workload() -> Workload {
        Workload {
            name: "k8s_web_shop".to_owned(),
            labels: map(&[
                ("com.docker.compose.project", "compose"),
                ("com.docker.stack.namespace", "stack"),
                ("com.docker.compose.service", "front"),
                ("com.docker.swarm.service.name", ""),
                ("com.aliyun.access.team.name", "pay"),
                ("com.aliyun.accessory", "no"),
                ("io.kubernetes.pod.namespace", "shop"),
                ("app", "shop-web"),
                ("host", "a label"),
            ]),
            annotations: map(&[("owner", "ann \"a\""), ("app", "annotated")]),
            pod: Some(Pod {
                name: "web-7d4f".to_owned(),
                ..Pod::default()
            }),
            ..fixed::workload()
        }
    }

    fn render(shape: FieldShape, tags: &[(&str, &str)]) -> String {
        let mut declaration = Declaration::new("access", What::Stdout);
        declaration.tags = map(tags).into_iter().collect();
        let from = FieldsFrom {
            labels: vec!["app".to_owned(), "host".to_owned(), "absent".to_owned()],
            annotations: vec!["owner".to_owned(), "app".to_owned()],
        };
        let tags = Tags::render(&workload(), &declaration, "node-1", shape, &from);
        assert_eq!(tags.left_out, 0);
        let json = String::from_utf8(tags.json().to_vec()).expect("UTF-8");
        json.replace(",\"", "\n\"")
    }

    #[test]
    fn a_source_has_log_pilots_fields_its_tags_and_what_the_operator_wants() {
        insta::assert_snapshot!(render(
            FieldShape::LogPilot,
            &[
                ("env", "prod"),
                ("topic", "other"),
                ("docker_app", "mine"),
                ("empty", "")
            ]
        ));
    }

    #[test]
    fn with_ecs_they_have_the_names_of_the_elastic_common_schema() {
        insta::assert_snapshot!(render(
            FieldShape::Ecs,
            &[
                ("env", "prod"),
                ("index", "other"),
                ("docker_app", "mine"),
                ("kubernetes", "k")
            ]
        ));
    }

    #[test]
    fn what_is_empty_is_not_written() {
        let declaration = Declaration::new("access", What::Stdout);
        let from = FieldsFrom::default();
        for (shape, want) in [
            (
                FieldShape::LogPilot,
                r#","index":"access","topic":"access""#,
            ),
            (
                FieldShape::Ecs,
                r#","event.dataset":"access","labels.topic":"access""#,
            ),
        ] {
            let tags = Tags::render(&fixed::workload(), &declaration, "", shape, &from);
            assert_eq!(String::from_utf8_lossy(tags.json()), want);
        }
    }

    #[test]
    fn a_name_of_ours_is_found_and_no_other() {
        let declaration = Declaration::new("access", What::Stdout);
        let from = FieldsFrom::default();
        let tags = Tags::render(&workload(), &declaration, "n", FieldShape::LogPilot, &from);
        let moved = |name: &[u8]| {
            let (_, owned) = tags.owned(name, name_hash(name))?;
            Some(String::from_utf8_lossy(&owned.moved).into_owned())
        };
        for ours in [
            "@timestamp",
            "split",
            "host",
            "index",
            "com_aliyun_access_team_name",
        ] {
            assert_eq!(moved(ours.as_bytes()), Some(format!("{ours}_original")));
        }
        for other in ["message", "", "hos", "hostt", "app", "host_original"] {
            assert_eq!(moved(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_workload_cannot_make_its_records_large_by_tags() {
        let mut workload = workload();
        for n in 0..20_000 {
            let key = format!("com.aliyun.access.{n}");
            workload.labels.insert(key, "\u{1}".repeat(n % 90));
        }
        let long = "l".repeat(MOST_BYTES);
        workload
            .labels
            .insert("com.aliyun.access.long".to_owned(), long);
        let declaration = Declaration::new("access", What::Stdout);
        let from = FieldsFrom::default();
        let tags = Tags::render(&workload, &declaration, "n", FieldShape::LogPilot, &from);
        assert!(tags.json().len() <= MOST_BYTES);
        assert!(tags.left_out > 19_000);
        let object = [b"{\"a\":0".as_slice(), tags.json(), b"}"].concat();
        assert!(serde_json::from_slice::<serde_json::Value>(&object).is_ok());
    }
}
