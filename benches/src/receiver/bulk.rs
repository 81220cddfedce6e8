//! Elasticsearch's bulk API: every item is created.
//! Source: Elasticsearch 9, "Bulk index or delete documents" and "Response filtering" (`filter_path`).

use std::collections::HashMap;

use memchr::memchr;

/// What it says of itself at `/`.
pub(super) const WHO: &[u8] = br#"{"name":"receiver","cluster_name":"bench","version":{"number":"9.1.0","build_flavor":"default","build_type":"docker","lucene_version":"10.2.2","minimum_wire_compatibility_version":"8.19.0","minimum_index_compatibility_version":"8.0.0"},"tagline":"You Know, for Search"}"#;

/// The lines of a body but empty ones, without their ends.
pub(super) fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(line)
    })
    .filter(|line| !line.is_empty())
}

/// Appends the answer to a bulk request; `note` gets each document. Whether it was one.
pub(super) fn answer(
    out: &mut Vec<u8>,
    body: &[u8],
    filter: &Filter,
    index: &str,
    note: &mut dyn FnMut(&[u8]),
) -> bool {
    out.push(b'{');
    if filter.took {
        out.extend_from_slice(b"\"took\":1,");
    }
    if filter.errors {
        out.extend_from_slice(b"\"errors\":false,");
    }
    let start = out.len();
    out.extend_from_slice(b"\"items\":[");
    let mut lines = lines(body);
    while let Some(action) = lines.next() {
        let Some((kind, fields)) = filter.kinds.iter().find(|(kind, _)| is(kind, action)) else {
            return false;
        };
        if *kind != "delete" {
            let Some(document) = lines.next() else {
                return false;
            };
            note(document);
        }
        if !fields.is_any() {
            continue;
        }
        out.extend_from_slice(b"{\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\":{");
        if fields.index {
            let index = named(action, b"\"_index\":\"").unwrap_or(index.as_bytes());
            member(out, b"\"_index\":\"", index);
        }
        if fields.id {
            member(
                out,
                b"\"_id\":\"",
                named(action, b"\"_id\":\"").unwrap_or(b"1"),
            );
        }
        out.extend_from_slice(&fields.others);
        // The last comma.
        out.pop();
        out.extend_from_slice(b"}},");
    }
    if out.ends_with(b"[") {
        // Filtered away. An object without anything in it is left out as well.
        out.truncate(start);
    } else {
        out.pop();
        out.extend_from_slice(b"],");
    }
    if out.ends_with(b",") {
        out.pop();
    }
    out.push(b'}');
    true
}

fn member(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\",");
}

/// Whether an action line asks for this; blanks may stand before the name.
fn is(kind: &str, action: &[u8]) -> bool {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'{');
    let skipped = action.iter().take_while(|byte| blank(byte)).count();
    let Some((b'"', name)) = action.get(skipped..).and_then(<[u8]>::split_first) else {
        return false;
    };
    name.strip_prefix(kind.as_bytes())
        .is_some_and(|rest| rest.starts_with(b"\""))
}

/// A string in an action line, as it is written there.
fn named<'a>(action: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let value = action.get(memchr::memmem::find(action, key)? + key.len()..)?;
    value.get(..memchr(b'"', value)?)
}

/// Filters by query, made once each.
#[derive(Debug, Default)]
pub(super) struct Filters(HashMap<String, Filter>);

impl Filters {
    pub(super) fn of(&mut self, query: &str) -> &Filter {
        self.0
            .entry(query.to_owned())
            .or_insert_with(|| Filter::of(query))
    }
}

/// What of an answer is asked for.
#[derive(Debug)]
pub(super) struct Filter {
    took: bool,
    errors: bool,
    kinds: [(&'static str, Fields); 4],
}

/// What of an item is asked for.
#[derive(Debug)]
struct Fields {
    index: bool,
    id: bool,
    /// Those that are the same for each, a comma after each.
    others: Vec<u8>,
}

impl Fields {
    fn is_any(&self) -> bool {
        self.index || self.id || !self.others.is_empty()
    }
}

impl Filter {
    /// By `filter_path=PATTERN,…`: everything if none; `-` before a pattern takes away.
    fn of(query: &str) -> Self {
        let patterns: Vec<String> = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("filter_path="))
            .flat_map(|list| {
                list.replace("%2C", ",")
                    .replace("%2A", "*")
                    .split(',')
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect();
        let (without, with): (Vec<&str>, Vec<&str>) = (patterns.iter())
            .map(String::as_str)
            .partition(|pattern| pattern.starts_with('-'));
        let asked = |path: &[&str]| {
            let matches = |pattern: &str| {
                let words: Vec<&str> = pattern.trim_start_matches('-').split('.').collect();
                reaches(&words, path)
            };
            (with.is_empty() || with.iter().any(|pattern| matches(pattern)))
                && !without.iter().any(|pattern| matches(pattern))
        };
        let kinds = [
            ("create", "created", 201),
            ("index", "created", 201),
            ("update", "updated", 200),
            ("delete", "deleted", 200),
        ]
        .map(|(kind, result, status)| {
            let asked = |field: &[&str]| asked(&[&["items", kind], field].concat());
            let mut others = Vec::new();
            let result = format!("\"{result}\"");
            for (field, value) in [("_version", "1"), ("result", &result)] {
                if asked(&[field]) {
                    others.extend_from_slice(format!("\"{field}\":{value},").as_bytes());
                }
            }
            let shards: Vec<String> = [("total", 1), ("successful", 1), ("failed", 0)]
                .into_iter()
                .filter(|(field, _)| asked(&["_shards", field]))
                .map(|(field, value)| format!("\"{field}\":{value}"))
                .collect();
            if !shards.is_empty() {
                others
                    .extend_from_slice(format!("\"_shards\":{{{}}},", shards.join(",")).as_bytes());
            }
            for (field, value) in [("_seq_no", 0), ("_primary_term", 1), ("status", status)] {
                if asked(&[field]) {
                    others.extend_from_slice(format!("\"{field}\":{value},").as_bytes());
                }
            }
            let fields = Fields {
                index: asked(&["_index"]),
                id: asked(&["_id"]),
                others,
            };
            (kind, fields)
        });
        Self {
            took: asked(&["took"]),
            errors: asked(&["errors"]),
            kinds,
        }
    }
}

/// Whether a pattern names a field or an object that it is in. `*` stands for any part of a name, `**` for any names.
fn reaches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], _) => true,
        (["**", rest @ ..], _) => (0..=path.len()).any(|skip| reaches(rest, &path[skip..])),
        (_, []) => false,
        ([word, words @ ..], [name, names @ ..]) => is_like(word, name) && reaches(words, names),
    }
}

fn is_like(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|skip| rest.get(skip..).is_some_and(|end| is_like(after, end)))
        }),
    }
}
