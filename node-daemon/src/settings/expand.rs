//! Replace `${VAR}` and `${VAR:-default}` in the values of a configuration.
//! Invariants: keys are left alone; what a variable holds is not looked at again; `$$` is one `$`.

use serde_yaml_ng::Value;

/// Replaces in every string of `value`. A variable that is neither set nor given a default is named to `missing`
/// with the path of the value it stands in.
pub(super) fn expand(
    value: &mut Value,
    path: &str,
    env: &dyn Fn(&str) -> Option<String>,
    missing: &mut dyn FnMut(&str, &str),
) {
    match value {
        Value::String(text) if text.contains('$') => {
            *text = expand_text(text, env, &mut |name| missing(path, name));
        }
        Value::Sequence(items) => {
            for (n, item) in items.iter_mut().enumerate() {
                expand(item, &format!("{path}[{n}]"), env, missing);
            }
        }
        Value::Mapping(map) => {
            for (key, item) in map.iter_mut() {
                let inner = match (key.as_str(), path) {
                    (Some(key), "") => key.to_owned(),
                    (Some(key), path) => format!("{path}.{key}"),
                    (None, path) => path.to_owned(),
                };
                expand(item, &inner, env, missing);
            }
        }
        _ => {}
    }
}

/// Replaces in one text. A `$` that starts no reference (as regular expressions have it) stays.
fn expand_text(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    missing: &mut dyn FnMut(&str),
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$${") {
            out.push_str("${");
            rest = after;
            continue;
        }
        let Some((reference, after)) = rest.strip_prefix("${").and_then(|r| r.split_once('}'))
        else {
            out.push('$');
            rest = &rest[1..];
            continue;
        };
        let (name, default) = match reference.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (reference, None),
        };
        let is_name = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.as_bytes()[0].is_ascii_digit();
        if !is_name {
            out.push_str("${");
            rest = &rest[2..];
            continue;
        }
        // As in a shell, `:-` also replaces what is set but empty.
        match (
            env(name).filter(|v| default.is_none() || !v.is_empty()),
            default,
        ) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => missing(name),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> (String, Vec<String>) {
        let env = |name: &str| match name {
            "HOST" => Some("es".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICK" => Some("${HOST}".to_owned()),
            _ => None,
        };
        let mut missing = Vec::new();
        let text = expand_text(text, &env, &mut |name| missing.push(name.to_owned()));
        (text, missing)
    }

    #[test]
    fn variables_are_replaced_once_and_a_missing_one_is_named() {
        assert_eq!(
            expanded("http://${HOST}:${PORT:-9200}"),
            ("http://es:9200".into(), vec![])
        );
        assert_eq!(expanded("${EMPTY:-x}${EMPTY}"), ("x".into(), vec![]));
        assert_eq!(expanded("${TRICK}"), ("${HOST}".into(), vec![]));
        assert_eq!(expanded("a${GONE}b"), ("ab".into(), vec!["GONE".into()]));
    }

    #[test]
    fn a_dollar_of_a_regular_expression_stays() {
        for same in [r"^\d{4}$", "a$", "$", "${", "${}", "${a b}", "$1"] {
            assert_eq!(expanded(same), (same.into(), vec![]));
        }
        assert_eq!(expanded("$${HOST}"), ("${HOST}".into(), vec![]));
    }
}
