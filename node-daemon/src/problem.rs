//! What is wrong, in the words of the person who can mend it: who, which key, why, what to do.
//! Place: every stage reports here; the log, `explain`, the metric and the status page read it.
//! Invariant: a problem stops the one thing it names and nothing else; foreign text is escaped.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// One thing that is wrong with what a workload or an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// Whom it concerns, for example `shop/web-7d4f (nginx), log access`; empty for the daemon.
    pub container: String,
    /// The key as the user wrote it, for example `aliyun_logs_access_format`.
    pub key: String,
    /// The value as the user wrote it.
    pub value: String,
    /// Why it cannot be done.
    pub reason: String,
    /// What to write or do instead.
    pub cure: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.container.is_empty() {
            write!(f, "{}: ", Escaped(&self.container))?;
        }
        if !self.key.is_empty() {
            write!(f, "{}", Escaped(&self.key))?;
            if !self.value.is_empty() {
                write!(f, "={}", Escaped(&self.value))?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}; do: {}", Escaped(&self.reason), Escaped(&self.cure))
    }
}

/// Text from outside, safe on a terminal and in one line. Quotes and backslashes stay, so that a pattern can be
/// copied as it is.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'text>(pub &'text str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write;
        for c in self.0.chars() {
            match c {
                '\'' | '"' | '\\' => f.write_char(c)?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        Ok(())
    }
}

/// Every problem there is now, by whom it concerns.
#[derive(Debug, Default)]
pub struct Problems(Mutex<BTreeMap<String, Vec<Problem>>>);

impl Problems {
    /// What is wrong with `owner` from now on; a new problem is logged once.
    pub fn set(&self, owner: &str, problems: Vec<Problem>) {
        let mut all = self.0.lock();
        let known = all.get(owner).map(Vec::as_slice).unwrap_or_default();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::warn!("{problem}");
        }
        if problems.is_empty() {
            all.remove(owner);
        } else {
            all.insert(owner.to_owned(), problems);
        }
    }

    /// Nothing is wrong with `owner` any more, or it has gone.
    pub fn clear(&self, owner: &str) {
        self.0.lock().remove(owner);
    }

    /// All of them.
    pub fn all(&self) -> Vec<Problem> {
        self.0.lock().values().flatten().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().values().map(Vec::len).sum()
    }
}

/// A problem of the daemon's own configuration, which concerns no container.
pub fn of_operator(
    key: impl Into<String>,
    value: impl Into<String>,
    reason: impl Into<String>,
    cure: impl Into<String>,
) -> Problem {
    Problem {
        container: String::new(),
        key: key.into(),
        value: value.into(),
        reason: reason.into(),
        cure: cure.into(),
    }
}

/// The known name that `wrong` was most likely meant to be, if one is near.
pub fn nearest<'known>(wrong: &str, known: &[&'known str]) -> Option<&'known str> {
    // A short word is near anything; a long foreign one would make the comparison costly.
    if wrong.len() > 200 {
        return None;
    }
    let wrong = wrong.to_ascii_lowercase();
    known
        .iter()
        .map(|name| {
            (
                strsim::jaro_winkler(&wrong, &name.to_ascii_lowercase()),
                *name,
            )
        })
        .filter(|(score, _)| *score >= 0.78)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// The cure for a wrong name: the nearest known one, and all that are known.
pub fn use_instead(wrong: &str, known: &[&str]) -> String {
    let all = known.join(", ");
    match nearest(wrong, known) {
        _ if known.is_empty() => "leave it out".to_owned(),
        Some(name) if known.len() == 1 => format!("use `{name}`"),
        Some(name) => format!("use `{name}`; known: {all}"),
        None => format!("use one of: {all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_cured_by_the_nearest_known_one() {
        let known = [
            "none",
            "json",
            "csv",
            "nginx",
            "apache2",
            "apache_error",
            "regexp",
        ];
        for (wrong, meant) in [
            ("ngnix", "nginx"),
            ("JSON", "json"),
            ("regex", "regexp"),
            ("apache", "apache2"),
        ] {
            assert_eq!(nearest(wrong, &known), Some(meant));
        }
        assert_eq!(nearest("xml", &known), None);
        assert_eq!(use_instead("a", &[]), "leave it out");
    }

    #[test]
    fn a_problem_names_container_key_reason_and_cure_and_escapes_what_is_foreign() {
        let problem = Problem {
            container: "shop/web (nginx), log `access`".into(),
            key: "aliyun_logs_access_format".into(),
            value: "ng\nix".into(),
            reason: "no format is called `ng\nix`".into(),
            cure: "use `nginx`".into(),
        };
        assert_eq!(
            problem.to_string(),
            "shop/web (nginx), log `access`: aliyun_logs_access_format=ng\\nix: \
             no format is called `ng\\nix`; do: use `nginx`"
        );
    }
}
