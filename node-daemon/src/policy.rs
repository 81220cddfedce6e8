//! What a workload may ask for: targets, bytes per second, bytes held open.
//! Place: declare -> **policy** -> follow; the operator says it, by namespace and container.
//! Invariant: what is refused stops that one log and is told in its owner's words; the configuration's own sources
//! are the operator's and are not asked.

use globset::{Glob, GlobMatcher, GlobSet, GlobSetBuilder};

use crate::declare::{Declaration, who};
use crate::discover::Workload;
use crate::problem::{Problem, of_operator};
use crate::settings::{OnExcess, PolicyRule, PolicySettings};

/// What one container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes per second that are read of it, over all its logs; any if `None`.
    pub rate: Option<u64>,
    /// What happens above that.
    pub on_excess: OnExcess,
    /// Most bytes of its deleted or rotated files that are held open.
    pub pinned_bytes: u64,
}

/// The operator's policy, ready to be asked.
#[derive(Debug, Clone)]
pub struct Policy {
    default: Rule,
    namespaces: Vec<(String, Rule)>,
    containers: Vec<(GlobMatcher, Rule)>,
}

#[derive(Debug, Clone)]
struct Rule {
    targets: GlobSet,
    /// As written, to tell an owner.
    written: Vec<String>,
    limits: Limits,
}

impl Policy {
    /// Makes a policy of its settings.
    ///
    /// # Errors
    /// The pattern that is none.
    pub fn new(settings: &PolicySettings) -> Result<Self, Problem> {
        let default = Rule::new(&settings.default, "policy.default")?;
        let namespaces = settings
            .namespaces
            .iter()
            .map(|(name, rule)| {
                let path = format!("policy.namespaces.{name}");
                Ok((name.clone(), Rule::new(rule, &path)?))
            })
            .collect::<Result<_, Problem>>()?;
        let containers = settings
            .containers
            .iter()
            .map(|(name, rule)| {
                let path = format!("policy.containers.{name}");
                let glob = Glob::new(name).map_err(|error| no_pattern(&path, name, &error))?;
                Ok((glob.compile_matcher(), Rule::new(rule, &path)?))
            })
            .collect::<Result<_, Problem>>()?;
        Ok(Self {
            default,
            namespaces,
            containers,
        })
    }

    /// What a workload may use, whatever it declares.
    pub fn limits(&self, workload: &Workload) -> Limits {
        self.rule(workload).limits
    }

    /// Judges a declaration: what its log may use.
    ///
    /// # Errors
    /// Which of its targets the workload may not name.
    pub fn allows(
        &self,
        workload: &Workload,
        declaration: &Declaration,
    ) -> Result<Limits, Problem> {
        let rule = self.rule(workload);
        let targets = [
            ("target", Some(declaration.target.as_str())),
            ("tags.index", declaration.tag("index")),
            ("tags.topic", declaration.tag("topic")),
        ];
        for (key, target) in targets {
            let Some(target) = target.filter(|target| !rule.targets.is_match(target)) else {
                continue;
            };
            let mine = match &workload.pod {
                Some(pod) => format!("the namespace {} may", pod.namespace),
                None => "this container may".to_owned(),
            };
            let allowed = match rule.written.as_slice() {
                [] => "none".to_owned(),
                some => some.join(", "),
            };
            return Err(Problem {
                container: format!("{}, log `{}`", who(workload), declaration.name),
                key: format!("{}.{key}", declaration.name),
                value: target.to_owned(),
                reason: format!("the node's policy does not let it write to the target `{target}`"),
                cure: format!("name a target that {mine} use ({allowed}), or ask the operator"),
            });
        }
        Ok(rule.limits)
    }

    /// The rule for a workload: its container's, else its namespace's, else the default.
    fn rule(&self, workload: &Workload) -> &Rule {
        let (namespace, name) = match &workload.pod {
            Some(pod) => (pod.namespace.as_str(), pod.container.as_str()),
            None => ("", workload.name.as_str()),
        };
        let qualified = format!("{namespace}/{name}");
        let by_container = self
            .containers
            .iter()
            .find(|(glob, _)| glob.is_match(name) || glob.is_match(&qualified));
        if let Some((_, rule)) = by_container {
            return rule;
        }
        let by_namespace = self.namespaces.iter().find(|(name, _)| name == namespace);
        by_namespace.map_or(&self.default, |(_, rule)| rule)
    }
}

impl Rule {
    fn new(rule: &PolicyRule, path: &str) -> Result<Self, Problem> {
        let mut targets = GlobSetBuilder::new();
        for (n, target) in rule.targets.iter().enumerate() {
            let glob = Glob::new(target);
            targets.add(glob.map_err(|e| no_pattern(&format!("{path}.targets[{n}]"), target, &e))?);
        }
        let targets = targets
            .build()
            .map_err(|error| no_pattern(&format!("{path}.targets"), "", &error))?;
        Ok(Self {
            targets,
            written: rule.targets.clone(),
            limits: Limits {
                rate: rule.rate,
                on_excess: rule.on_excess,
                pinned_bytes: rule.pinned_bytes,
            },
        })
    }
}

fn no_pattern(path: &str, pattern: &str, error: &globset::Error) -> Problem {
    let reason = format!("it is no pattern: {}", error.kind());
    of_operator(path, pattern, reason, "write for example `team-a-*`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::What;
    use crate::discover::{Pod, Runtime, State, Stdout};
    use crate::settings::Settings;

    fn policy() -> Policy {
        let yaml = r#"
policy:
  default: {pinned_bytes: 2GiB}
  namespaces: {team-a: {targets: ["team-a-*"], rate: 5MB/s}}
  containers: {"team-a/audit*": {targets: [audit], on_excess: drop}, quiet: {targets: []}}
"#;
        let settings = Settings::from_yaml(yaml, &|_| None).expect("good");
        Policy::new(&settings.policy).expect("good")
    }

    fn workload(namespace: &str, container: &str) -> Workload {
        Workload {
            runtime: Runtime::Cri,
            id: "1".to_owned(),
            name: container.to_owned(),
            labels: Default::default(),
            annotations: Default::default(),
            environment: Vec::new(),
            mounts: Vec::new(),
            stdout: Stdout::None("a test".to_owned()),
            roots: Vec::new(),
            pid: 0,
            created_ns: 0,
            state: State::Running,
            pod: (!namespace.is_empty()).then(|| Pod {
                name: "web-1".to_owned(),
                namespace: namespace.to_owned(),
                uid: String::new(),
                container: container.to_owned(),
            }),
        }
    }

    fn log(target: &str, tags: &[(&str, &str)]) -> Declaration {
        Declaration {
            target: target.to_owned(),
            tags: tags
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Declaration::new("access", What::Stdout)
        }
    }

    #[test]
    fn a_namespace_writes_to_its_own_targets_alone() {
        let (policy, team) = (policy(), workload("team-a", "nginx"));
        let limits = policy
            .allows(&team, &log("team-a-web", &[]))
            .expect("its own");
        assert_eq!(
            (limits.rate, limits.on_excess),
            (Some(5_000_000), OnExcess::Wait)
        );
        // What the namespace does not say, the default says.
        assert_eq!(limits.pinned_bytes, 2 << 30);
        for (other, key) in [
            (log("team-b-web", &[]), "access.target"),
            (
                log("team-a-web", &[("index", "team-b-web")]),
                "access.tags.index",
            ),
            (
                log("team-a-web", &[("topic", "secrets")]),
                "access.tags.topic",
            ),
        ] {
            let problem = policy.allows(&team, &other).expect_err("another's");
            assert_eq!(problem.key, key);
        }
        assert!(
            policy
                .allows(&workload("team-b", "nginx"), &log("anything", &[]))
                .is_ok()
        );
        assert!(
            policy
                .allows(&workload("", "nginx"), &log("anything", &[]))
                .is_ok()
        );
    }

    #[test]
    fn a_containers_rule_is_stronger_than_its_namespaces() {
        let policy = policy();
        let audit = workload("team-a", "audit-2");
        assert_eq!(policy.limits(&audit).on_excess, OnExcess::Drop);
        assert!(policy.allows(&audit, &log("audit", &[])).is_ok());
        assert!(policy.allows(&audit, &log("team-a-web", &[])).is_err());
        assert!(
            policy
                .allows(&workload("", "quiet"), &log("x", &[]))
                .is_err()
        );
    }

    #[test]
    fn a_refusal_tells_the_owner_what_is_allowed() {
        let problem = policy().allows(&workload("team-a", "nginx"), &log("web", &[]));
        assert_eq!(
            problem.expect_err("not its own").to_string(),
            "team-a/web-1 (nginx), log `access`: access.target=web: the node's policy does not let it write to the \
             target `web`; do: name a target that the namespace team-a may use (team-a-*), or ask the operator"
        );
    }

    #[test]
    fn a_wrong_pattern_is_told_by_its_place() {
        let wrong = "policy: {default: {targets: [good, 'a[']}}";
        let problems = Settings::from_yaml(wrong, &|_| None).expect_err("no pattern");
        assert_eq!(problems[0].key, "policy.default.targets[1]");
    }
}
