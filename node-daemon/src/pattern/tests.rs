use super::*;

fn groups(pattern: &Pattern, text: &[u8]) -> Option<Vec<Option<String>>> {
    let mut found = Vec::new();
    pattern.find_groups(text, &mut found).unwrap().then(|| {
        found
            .iter()
            .map(|group| group.map(|(from, to)| String::from_utf8_lossy(&text[from..to]).into()))
            .collect()
    })
}

#[test]
fn a_ruby_pattern_in_slashes_names_its_groups() {
    let pattern = Pattern::new(r"/^(?<time>[^ ]+) \[(?<level>\w+)\] (?<rest>.*)$/").unwrap();
    assert!(!pattern.is_hard());
    let names: Vec<_> = pattern.names().into_iter().flatten().collect();
    assert_eq!(names, ["time", "level", "rest"]);
    let found = groups(&pattern, b"12:00 [WARN] a b").unwrap();
    assert_eq!(
        found[1..],
        ["12:00", "WARN", "a b"].map(|text| Some(text.to_owned()))
    );
}
