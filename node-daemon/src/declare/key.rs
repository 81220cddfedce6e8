//! Which declared log a key speaks of: the longest declared name wins.
//! Place: declare, before any value is judged; knows no workload and no daemon.
//! Invariants: whatever the keys are, each ends up in exactly one place, and none can change what another declares
//! but by the order environment > annotation > label.
//!
//! log-pilot turns each `_` of a variable into `.`, so that a name with an underscore breaks the whole container. Here
//! a variable is an attribute only if it ends in a known attribute and what stands before is a declared name;
//! otherwise the whole rest is a name.

use std::collections::BTreeMap;

/// Every attribute, as a label writes it.
pub const ATTRIBUTES: &[&str] = &[
    "tags",
    "target",
    "format",
    "format.pattern",
    "format.time_key",
    "format.time_format",
    "format.time_zone",
    "format.keys",
];

/// Where a key was found; the later wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Found {
    /// A container label.
    Label,
    /// A pod annotation.
    Annotation,
    /// The container's environment.
    Environment,
}

/// A key with its value, as the workload wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'text> {
    /// The whole key.
    pub key: &'text str,
    /// Its value.
    pub value: &'text str,
    /// Where it was found.
    pub found: Found,
}

/// One declared log with what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared<'text> {
    /// The key that names it; its value says what is read.
    pub entry: Entry<'text>,
    /// Its attributes by the names in [`ATTRIBUTES`].
    pub attributes: BTreeMap<&'static str, Entry<'text>>,
}

/// A key that declares nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray<'text> {
    /// The key.
    pub entry: Entry<'text>,
    /// The log that it seems to speak of.
    pub name: &'text str,
    /// The attribute that it seems to be.
    pub attribute: &'text str,
}

/// Every key, in its place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys<'text> {
    /// By name.
    pub declared: BTreeMap<&'text str, Declared<'text>>,
    /// `custom.config`, wherever it was found.
    pub custom: Option<Entry<'text>>,
    /// Attributes that are unknown, or of a log that nobody declares.
    pub strays: Vec<Stray<'text>>,
}

/// What stands after the prefix, and how strong its prefix is (0 is the strongest).
struct Rest<'text> {
    entry: Entry<'text>,
    rest: &'text str,
    weakness: usize,
}

/// Puts every key in its place. Of keys that say the same, the environment's wins over an annotation's, that over a
/// label's; within one of them the earlier prefix, then the later key.
pub fn resolve<'text>(
    prefixes: &[String],
    entries: impl IntoIterator<Item = Entry<'text>>,
) -> Keys<'text> {
    let mut rests: Vec<Rest<'text>> = entries
        .into_iter()
        .filter_map(|entry| {
            let (weakness, rest) = strip(prefixes, entry)?;
            Some(Rest {
                entry,
                rest,
                weakness,
            })
        })
        .collect();
    // Weakest first, so that a later one may simply replace an earlier; stable, so that a later key wins.
    rests.sort_by_key(|rest| (rest.entry.found, std::cmp::Reverse(rest.weakness)));

    let mut keys = Keys::default();
    let mut attributes: Vec<(&str, &str, Entry<'text>)> = Vec::new();
    let mut variables = Vec::new();
    for Rest { entry, rest, .. } in rests {
        if matches!(rest, "custom.config" | "custom_config") {
            keys.custom = Some(entry);
        } else if entry.found == Found::Environment {
            variables.push((entry, rest));
        } else if let Some((name, attribute)) = rest.split_once('.') {
            attributes.push((name, attribute, entry));
        } else {
            declare(&mut keys.declared, rest, entry);
        }
    }
    // Shorter names first: a name is declared before any attribute of it is looked at. Stable, as above.
    variables.sort_by_key(|(_, rest)| rest.len());
    for (entry, rest) in variables {
        let split = attribute_of(rest, |name| keys.declared.contains_key(name));
        match (split, rest.split_once('.')) {
            (Some((name, attribute)), _) => attributes.push((name, attribute, entry)),
            (None, Some((name, attribute))) => attributes.push((name, attribute, entry)),
            (None, None) => declare(&mut keys.declared, rest, entry),
        }
    }
    for (name, attribute, entry) in attributes {
        match (keys.declared.get_mut(name), known(attribute)) {
            (Some(declared), Some(attribute)) => {
                declared.attributes.insert(attribute, entry);
            }
            _ => keys.strays.push(Stray {
                entry,
                name,
                attribute,
            }),
        }
    }
    keys
}

fn declare<'text>(
    declared: &mut BTreeMap<&'text str, Declared<'text>>,
    name: &'text str,
    entry: Entry<'text>,
) {
    declared.insert(
        name,
        Declared {
            entry,
            attributes: BTreeMap::new(),
        },
    );
}

/// What stands after `P.logs.` (or in the environment also `P_logs_`), and which prefix it was.
fn strip<'text>(prefixes: &[String], entry: Entry<'text>) -> Option<(usize, &'text str)> {
    prefixes.iter().enumerate().find_map(|(n, prefix)| {
        let rest = entry.key.strip_prefix(prefix.as_str())?;
        let rest = match rest.strip_prefix(".logs.") {
            None if entry.found == Found::Environment => rest.strip_prefix("_logs_"),
            rest => rest,
        }?;
        (!rest.is_empty()).then_some((n, rest))
    })
}

/// The longest declared name that `rest` is a known attribute of.
fn attribute_of(rest: &str, is_declared: impl Fn(&str) -> bool) -> Option<(&str, &str)> {
    rest.match_indices(['_', '.'])
        .map(|(at, _)| (&rest[..at], &rest[at + 1..]))
        .rfind(|(name, attribute)| known(attribute).is_some() && is_declared(name))
}

/// The attribute that is written so, with `.` or `_` between its words.
pub(super) fn known(written: &str) -> Option<&'static str> {
    ATTRIBUTES.iter().copied().find(|attribute| {
        attribute.len() == written.len()
            && attribute
                .bytes()
                .zip(written.bytes())
                .all(|(a, b)| a == b || (a == b'.' && b == b'_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env<'text>(key: &'text str, value: &'text str) -> Entry<'text> {
        Entry {
            key,
            value,
            found: Found::Environment,
        }
    }

    fn prefixes() -> Vec<String> {
        vec!["aliyun".to_owned(), "custom".to_owned()]
    }

    #[test]
    fn a_name_with_underscores_is_a_name_and_its_attributes_are_found() {
        let prefixes = prefixes();
        let keys = resolve(
            &prefixes,
            [
                env("aliyun_logs_my_app_format_time_key", "ts"),
                env("aliyun_logs_my_app_format", "json"),
                env("aliyun_logs_my_app", "/logs/a.log"),
                env("aliyun_logs_my", "stdout"),
                env("aliyun_logs_my_tags", "a=b"),
                env("aliyun_logs_my_app.target", "t"),
                env("aliyun.logs.my_app.tags", "c=d"),
            ],
        );
        assert_eq!(
            keys.declared.keys().copied().collect::<Vec<_>>(),
            ["my", "my_app"]
        );
        let of = |name: &str| {
            let attributes = &keys.declared[name].attributes;
            attributes
                .iter()
                .map(|(k, e)| (*k, e.value))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("my"), [("tags", "a=b")]);
        assert_eq!(
            of("my_app"),
            [
                ("format", "json"),
                ("format.time_key", "ts"),
                ("tags", "c=d"),
                ("target", "t")
            ]
        );
        assert!(keys.strays.is_empty());
    }

    #[test]
    fn the_environment_wins_over_an_annotation_and_that_over_a_label() {
        let prefixes = prefixes();
        let key = "aliyun.logs.web";
        let at = |found, value| Entry { key, value, found };
        let all = [
            at(Found::Environment, "/env"),
            at(Found::Label, "/label"),
            at(Found::Annotation, "/annotation"),
        ];
        for (some, value) in [
            (&all[..], "/env"),
            (&all[1..], "/annotation"),
            (&all[1..2], "/label"),
        ] {
            assert_eq!(
                resolve(&prefixes, some.iter().copied()).declared["web"]
                    .entry
                    .value,
                value
            );
        }
    }

    #[test]
    fn an_earlier_prefix_wins_and_a_label_may_carry_the_name_of_a_variables_attribute() {
        let prefixes = prefixes();
        let keys = resolve(
            &prefixes,
            [
                env("aliyun_logs_web", "/a"),
                env("custom_logs_web", "/c"),
                Entry {
                    key: "custom.logs.my_app",
                    value: "/m",
                    found: Found::Label,
                },
                env("aliyun_logs_my_app_tags", "x=y"),
                env("other_logs_web", "/o"),
                env("aliyun_logs_", "/empty"),
            ],
        );
        assert_eq!(keys.declared["web"].entry.value, "/a");
        assert_eq!(keys.declared["my_app"].attributes["tags"].value, "x=y");
        assert_eq!(keys.declared.len(), 2);
    }

    #[test]
    fn what_is_no_attribute_or_of_no_log_is_told() {
        let prefixes = prefixes();
        let keys = resolve(
            &prefixes,
            [
                Entry {
                    key: "aliyun.logs.web",
                    value: "/a",
                    found: Found::Label,
                },
                Entry {
                    key: "aliyun.logs.web.tagz",
                    value: "a=b",
                    found: Found::Label,
                },
                Entry {
                    key: "aliyun.logs.gone.tags",
                    value: "a=b",
                    found: Found::Label,
                },
                env("aliyun_logs_none.format", "json"),
            ],
        );
        let strays: Vec<_> = keys.strays.iter().map(|s| (s.name, s.attribute)).collect();
        assert_eq!(
            strays,
            [("web", "tagz"), ("gone", "tags"), ("none", "format")]
        );
    }

    proptest! {
        /// No key a workload can write makes us panic, and none is lost.
        #[test]
        fn every_key_has_one_place(
            keys in proptest::collection::vec(("(aliyun|custom|x)[._]logs[._][a-z_.-]{0,20}|\\PC{0,20}", "\\PC{0,10}", 0..3_u8), 0..40)
        ) {
            let prefixes = prefixes();
            let entries: Vec<Entry<'_>> = keys.iter().map(|(key, value, found)| Entry {
                key, value,
                found: [Found::Label, Found::Annotation, Found::Environment][*found as usize],
            }).collect();
            let ours = entries.iter().filter(|entry| strip(&prefixes, **entry).is_some()).count();
            let keys = resolve(&prefixes, entries.iter().copied());
            let placed = keys.declared.values().map(|d| 1 + d.attributes.len()).sum::<usize>()
                + keys.strays.len() + usize::from(keys.custom.is_some());
            prop_assert!(placed <= ours);
            prop_assert!(ours == 0 || placed > 0);
        }

        /// Names that do not end in an attribute always resolve, with every attribute, in any order.
        #[test]
        fn declared_names_resolve_with_all_their_attributes(
            names in proptest::collection::btree_set("[a-z]{1,3}(_[a-z]{1,3}){0,3}", 1..6),
            seed in any::<u64>(),
        ) {
            let prefixes = prefixes();
            let mut written: Vec<String> = Vec::new();
            for name in &names {
                written.push(format!("aliyun_logs_{name}"));
                written.extend(ATTRIBUTES.iter().map(|a| format!("aliyun_logs_{name}_{}", a.replace('.', "_"))));
            }
            let turn = usize::try_from(seed % written.len() as u64).expect("small");
            written.rotate_left(turn);
            let keys = resolve(&prefixes, written.iter().map(|key| env(key, "v")));
            prop_assert_eq!(keys.declared.keys().map(|n| (*n).to_owned()).collect::<std::collections::BTreeSet<_>>(), names);
            prop_assert!(keys.declared.values().all(|d| d.attributes.len() == ATTRIBUTES.len()));
            prop_assert!(keys.strays.is_empty());
        }
    }
}
