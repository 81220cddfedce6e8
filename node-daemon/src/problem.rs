//! What is wrong, in the words of the person who can mend it: who, which key, why, what to do.
//! Place: every stage reports here; the log, `explain`, the metric and the status page read it.
//! Invariant: a problem stops the one thing it names and nothing else; foreign text is escaped.

use serde::Serialize;

/// One thing that is wrong with what a workload or an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
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
            write!(f, "{}: ", self.container.escape_debug())?;
        }
        write!(f, "{}", self.key.escape_debug())?;
        if !self.value.is_empty() {
            write!(f, "={}", self.value.escape_debug())?;
        }
        write!(
            f,
            ": {}; do: {}",
            self.reason.escape_debug(),
            self.cure.escape_debug()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
