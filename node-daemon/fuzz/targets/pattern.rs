//! Any pattern on any text: it is compiled or refused in one line, and its groups lie in the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpilot::pattern::{Dialect, Pattern};

fuzz_target!(|input: (bool, &str, &[u8])| {
    let (ruby, written, text) = input;
    let dialect = if ruby { Dialect::Ruby } else { Dialect::Go };
    let pattern = match Pattern::of(dialect, written) {
        Ok(pattern) => pattern,
        Err(told) => {
            assert!(!told.is_empty() && !told.contains('\n'), "{told}");
            return;
        }
    };
    let mut groups = Vec::new();
    let found = pattern.find_groups(text, &mut groups);
    if let (Ok(found), Ok(matches)) = (found, pattern.is_match(text)) {
        assert_eq!(found, matches);
    }
    match found {
        Ok(true) => assert_eq!(groups.len(), pattern.names().len()),
        _ => assert!(groups.is_empty()),
    }
    for (from, to) in groups.into_iter().flatten() {
        assert!(from <= to && to <= text.len());
    }
});
