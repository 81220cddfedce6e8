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
