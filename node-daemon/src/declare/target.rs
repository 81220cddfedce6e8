//! What a target may be called: it becomes an index, a topic, a logstore or a file name.

/// What to write instead of a wrong target.
pub(crate) const CURE: &str = "write 1 to 200 letters, digits, `.`, `_` and `-`, beginning with a letter or digit, without `..`";

/// Judges a target.
///
/// # Errors
/// Why it is none.
pub(crate) fn check(target: &str) -> Result<(), String> {
    let reason = if target.is_empty() {
        "a target is not empty".to_owned()
    } else if target.len() > 200 {
        format!(
            "a target has at most 200 characters, this one {}",
            target.len()
        )
    } else if !target.as_bytes()[0].is_ascii_alphanumeric() {
        "a target begins with a letter or digit".to_owned()
    } else if target.contains("..") {
        "a target never holds `..`".to_owned()
    } else if let Some(wrong) = target
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
    {
        format!("a target never holds `{}`", wrong.escape_debug())
    } else {
        return Ok(());
    };
    Err(reason)
}

/// The target that is most like a name: what a target may not hold becomes `-`.
pub(crate) fn made_of(name: &str) -> String {
    let mut made = String::with_capacity(name.len());
    for c in name.chars().take(200) {
        match c {
            '.' if made.ends_with('.') => {}
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') => made.push(c),
            _ => made.push('-'),
        }
    }
    let made = made.trim_start_matches(['.', '_', '-']);
    if made.is_empty() {
        "stdout".to_owned()
    } else {
        made.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_target_can_never_leave_its_place() {
        for good in ["a", "web-2026.01", "A_b", "0"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "..",
            "a..b",
            ".a",
            "-a",
            "_a",
            "a/b",
            "a b",
            "a\0",
            "a*",
            "日志",
            &"a".repeat(201),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_container_is_called_it_has_a_target(name in "\\PC{0,300}") {
            prop_assert_eq!(check(&made_of(&name)), Ok(()));
        }
    }
}
