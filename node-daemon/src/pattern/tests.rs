use proptest::prelude::*;

use super::*;

fn ruby(written: &str) -> Pattern {
    Pattern::new(written).unwrap_or_else(|told| panic!("{written}: {told}"))
}

fn go(written: &str) -> Pattern {
    Pattern::filebeat(written).unwrap_or_else(|told| panic!("{written}: {told}"))
}

/// What the groups hold, by number, after the whole match.
fn groups(pattern: &Pattern, text: impl AsRef<[u8]>) -> Option<Vec<Option<String>>> {
    let text = text.as_ref();
    // What stood there before has no say.
    let mut found = vec![Some((7, 9)); 3];
    let matched = pattern.find_groups(text, &mut found).expect("decided");
    assert_eq!(
        matched,
        pattern.is_match(text).expect("decided"),
        "{pattern:?}"
    );
    if !matched {
        assert!(found.is_empty());
        return None;
    }
    assert_eq!(found.len(), pattern.names().len());
    let part = |(from, to): (usize, usize)| String::from_utf8_lossy(&text[from..to]).into_owned();
    Some(found.into_iter().map(|group| group.map(part)).collect())
}

/// The whole match.
fn found(pattern: &Pattern, text: impl AsRef<[u8]>) -> Option<String> {
    groups(pattern, text)?.swap_remove(0)
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|&text| Some(text.to_owned())).collect()
}

#[test]
fn a_ruby_pattern_in_slashes_names_its_groups() {
    let pattern = ruby(r"/^(?<time>[^ ]+) \[(?<level>\w+)\] (?<rest>.*)$/");
    assert!(!pattern.is_hard());
    let names: Vec<_> = pattern.names().into_iter().flatten().collect();
    assert_eq!(names, ["time", "level", "rest"]);
    let found = groups(&pattern, "12:00 [WARN] a b").expect("a match");
    assert_eq!(found[1..], some(&["12:00", "WARN", "a b"]));
    assert_eq!(groups(&pattern, "nothing of it"), None);
}

/// Patterns people have in their manifests, with what they find.
#[test]
fn patterns_as_log_pilot_users_write_them_stay_plain() {
    let nginx = ruby(
        r#"/^(?<remote>[^ ]*) (?<host>[^ ]*) (?<user>[^ ]*) \[(?<time>[^\]]*)\] "(?<method>\S+)(?: +(?<path>[^\"]*?)(?: +\S*)?)?" (?<code>[^ ]*) (?<size>[^ ]*)(?: "(?<referer>[^\"]*)" "(?<agent>[^\"]*)"(?:\s+(?<http_x_forwarded_for>[^ ]+))?)?$/"#,
    );
    assert!(!nginx.is_hard());
    let line =
        r#"10.0.0.1 - bob [10/Oct/2000:13:55:36 -0700] "GET /a b HTTP/1.0" 200 2326 "-" "curl""#;
    let found = groups(&nginx, line).expect("a match");
    assert_eq!(
        found[1..9],
        some(&[
            "10.0.0.1",
            "-",
            "bob",
            "10/Oct/2000:13:55:36 -0700",
            "GET",
            "/a b",
            "200",
            "2326"
        ])
    );
    assert_eq!(found[11], None, "a group that took no part");
    let spring = ruby(
        r"^(?<time>\d{4}-\d{1,2}-\d{1,2} \d{1,2}:\d{1,2}:\d{1,2}\.\d{3})\s+(?<level>[A-Z]+) (?<pid>\d+) --- \[\s*(?<thread>[\w\-]+)\] (?<class>[^\s]+)\s*: (?<message>[\s\S]*)\Z",
    );
    assert!(!spring.is_hard());
    let line = "2024-01-02 03:04:05.678  INFO 1 --- [           main] c.e.App  : hello\nworld";
    let found = groups(&spring, line).expect("a match");
    assert_eq!(found[4..], some(&["main", "c.e.App", "hello\nworld"]));
    let pairs = ruby(r#"level=(?<level>\w+)(?=.*msg="(?<msg>[^"]*)")"#);
    assert!(pairs.is_hard());
    let found = groups(&pairs, r#"t=1 level=info a=b msg="it is""#).expect("a match");
    assert_eq!(found[1..], some(&["info", "it is"]));
}

#[test]
fn slashes_are_taken_off_in_ruby_only_and_their_flags_count() {
    assert_eq!(found(&ruby("/A.b/i"), "xa_B"), Some("a_B".into()));
    assert_eq!(found(&ruby("/a.b/m"), "a\nb"), Some("a\nb".into()));
    assert_eq!(found(&ruby("/a.b/"), "a\nb"), None);
    assert_eq!(
        found(&ruby(" / a \n b # the end ) \n c/x "), "abc"),
        Some("abc".into())
    );
    assert_eq!(found(&ruby(r"/a\/b/"), "a/b"), Some("a/b".into()));
    // No flags, no slashes of a literal.
    assert_eq!(
        found(&ruby("/var/log"), "/var/log"),
        Some("/var/log".into())
    );
    assert_eq!(found(&ruby("/"), "a/b"), Some("/".into()));
    assert_eq!(
        found(&go("/healthz/"), "GET /healthz/ x"),
        Some("/healthz/".into())
    );
    assert_eq!(found(&go("/healthz/"), "GET healthz"), None);
}

#[test]
fn line_ends_are_each_dialects_own() {
    assert_eq!(found(&ruby("^b$"), "a\nb\nc"), Some("b".into()));
    assert_eq!(found(&go("^b$"), "a\nb\nc"), None);
    assert_eq!(found(&go("(?m)^b$"), "a\nb\nc"), Some("b".into()));
    assert_eq!(found(&ruby(r"\Ab"), "a\nb"), None);
    assert_eq!(found(&ruby(r"b\z"), "b\n"), None);
    assert_eq!(found(&ruby(r"b\Z"), "a\nb\n"), Some("b\n".into()));
    assert_eq!(found(&ruby(r"(?:b\Z|c)"), "a\nb\n"), Some("b".into()));
    assert_eq!(
        found(&ruby("(?m)a.b"), "a\nb"),
        Some("a\nb".into()),
        "Ruby's `m` is of the dot"
    );
    assert_eq!(found(&go("(?s)a.b"), "a\nb"), Some("a\nb".into()));
    assert_eq!(found(&ruby(r"a\Rb"), "a\r\nb"), Some("a\r\nb".into()));
}

#[test]
fn short_classes_are_ascii() {
    for pattern in [ruby(r"\w+"), go(r"\w+")] {
        assert_eq!(found(&pattern, "中ab_1é"), Some("ab_1".into()));
    }
    assert_eq!(found(&ruby(r"(?u)\w+"), " 中é "), Some("中é".into()));
    assert_eq!(found(&ruby(r"(?u:\w)\w*"), "中é"), Some("中".into()));
    assert_eq!(found(&ruby(r"\d+"), "٣ 3"), Some("3".into()));
    assert_eq!(found(&ruby(r"\D+"), "1中2"), Some("中".into()));
    assert_eq!(found(&ruby(r"\h+\H"), "zBEEFg"), Some("BEEFg".into()));
    assert_eq!(found(&ruby(r"[\h:]+"), "x a0:ff"), Some("a0:ff".into()));
    assert_eq!(found(&ruby(r"[^\W_]+"), "__ab__"), Some("ab".into()));
    assert_eq!(found(&ruby(r"\s"), "\u{b}"), Some("\u{b}".into()));
    assert_eq!(found(&go(r"\s"), "\u{b}"), None);
    assert_eq!(found(&go(r"\bERROR\b"), "错误ERROR"), Some("ERROR".into()));
    assert_eq!(
        found(&ruby(r"\bERROR\b"), "错误ERROR"),
        None,
        "as Onigmo has it"
    );
    assert_eq!(
        found(&go(r"\bERROR\b(?! x)"), "an ERROR"),
        Some("ERROR".into())
    );
}

#[test]
fn classes_mean_what_their_dialect_says() {
    for pattern in [ruby(r"[]a]+"), go(r"[]a]+")] {
        assert_eq!(found(&pattern, "x]a]"), Some("]a]".into()));
    }
    for pattern in [ruby(r"[^]a]+"), go(r"[^]a]+")] {
        assert_eq!(found(&pattern, "]xy]"), Some("xy".into()));
    }
    for pattern in [
        ruby(r"[\w.-]+"),
        go(r"[\w.-]+"),
        ruby(r"[-\w.]+"),
        ruby(r"[\w\-.]+"),
    ] {
        assert_eq!(found(&pattern, "!a-b.c!"), Some("a-b.c".into()));
    }
    // Set operations of the plain engine that neither dialect has.
    for pattern in [
        ruby(r"[a~~b]+"),
        go(r"[a~~b]+"),
        ruby(r"[+--~]+"),
        ruby(r"[\w--~]+"),
    ] {
        assert!(found(&pattern, "~").is_some(), "{pattern:?}");
    }
    assert_eq!(found(&ruby("[a-c--]+"), "-b-"), Some("-b-".into()));
    assert_eq!(
        found(&ruby("[a-z&&[^aeiou]]+"), "aeixyz"),
        Some("xyz".into())
    );
    assert_eq!(found(&ruby("[a[0-9]]+"), "xa1"), Some("a1".into()));
    assert_eq!(found(&go("[[a]+"), "x[a"), Some("[a".into()));
    assert_eq!(found(&go("[a&&b]+"), "x&&b"), Some("&&b".into()));
    for pattern in [
        ruby("[[:digit:]x]+"),
        go("[[:digit:]x]+"),
        ruby("[[:^alpha:]]+"),
    ] {
        assert!(found(&pattern, "12").is_some());
    }
    assert_eq!(
        found(&ruby(r"[\x41\u4e2d\t]+"), "A中\t"),
        Some("A中\t".into())
    );
    assert_eq!(found(&ruby(r"[\b]"), "a\u{8}"), Some("\u{8}".into()));
    assert_eq!(found(&ruby("[ #]+"), "a # b"), Some(" # ".into()));
    assert_eq!(
        found(&ruby("/[ #]+/x"), "a # b"),
        Some(" # ".into()),
        "spaces count in a class"
    );
    assert_eq!(
        found(&ruby(r"[\p{Alnum}\p{^L}]+"), "中1"),
        Some("中1".into())
    );
}

#[test]
fn flags_hold_to_the_end_of_their_group() {
    let pattern = ruby("^a(?i)b|c$");
    for (text, matches) in [("aB", true), ("aC", true), ("AB", false), ("C", false)] {
        assert_eq!(found(&pattern, text).is_some(), matches, "{text}");
    }
    assert_eq!(
        found(&go("^a(?i)b|c$"), "C"),
        Some("C".into()),
        "Go's bar parts the whole"
    );
    assert_eq!(found(&ruby("(?:(?i)a)b"), "Ab"), Some("Ab".into()));
    assert_eq!(found(&ruby("(?:(?i)a)b"), "AB"), None);
    assert_eq!(found(&ruby("(?i:a(?-i)b)"), "Ab"), Some("Ab".into()));
    assert_eq!(found(&ruby("(?i:a(?-i)b)"), "AB"), None);
    assert_eq!(
        found(&ruby("(?x: a  b # c )\n )d"), "abd"),
        Some("abd".into())
    );
    assert_eq!(found(&ruby("(?mi-x:A.B)"), "a\nb"), Some("a\nb".into()));
}

#[test]
fn signs_that_count_nothing_are_themselves() {
    for pattern in [ruby(r#"^{"a":{1}"#), go(r#"^{"a":{1}"#)] {
        assert_eq!(found(&pattern, r#"{"a":"#), Some(r#"{"a":"#.into()));
    }
    for pattern in [ruby("a{x}{,}b]"), go("a{x}{,}b]")] {
        assert_eq!(found(&pattern, "a{x}{,}b]"), Some("a{x}{,}b]".into()));
    }
    assert_eq!(found(&ruby("^a{,2}$"), "aa"), Some("aa".into()));
    assert_eq!(found(&go("^a{,2}$"), "a{,2}"), Some("a{,2}".into()));
    assert_eq!(found(&ruby("a{2,3}"), "aaaa"), Some("aaa".into()));
    assert_eq!(found(&ruby("a{2,}?"), "aaaa"), Some("aa".into()));
    assert_eq!(
        found(&ruby("^ba{2}?$"), "b"),
        Some("b".into()),
        "`a{{2}}` is optional"
    );
    assert_eq!(found(&go(r"\Qa.b[\E+"), "a.b[["), Some("a.b[[".into()));
    assert_eq!(found(&go(r"\Qa.b("), "a.b("), Some("a.b(".into()));
}

#[test]
fn characters_can_be_written_by_number() {
    let text = "\t\u{1b}é中\0\u{1}A";
    assert_eq!(
        found(&ruby(r"\t\e\u00e9\x{4e2d}\0\cA\x41"), text),
        Some(text.into())
    );
    assert_eq!(
        found(&ruby(r"\u{4e2d}\C-a?\012"), "中\n"),
        Some("中\n".into())
    );
    assert_eq!(
        found(&ruby(r"\<\>\#\-\/\y\i"), "<>#-/yi"),
        Some("<>#-/yi".into())
    );
    assert_eq!(
        found(&go(r"\x41\x{4e2d}\a"), "A中\u{7}"),
        Some("A中\u{7}".into())
    );
}

#[test]
fn what_only_the_hard_engine_knows_is_left_to_it() {
    for (pattern, text, expected) in [
        (r"a(?=b)", "ab", Some("a")),
        (r"a(?!b)", "ab", None),
        (r"(?<=a)b", "ab", Some("b")),
        (r"(?<!a)b", "ab", None),
        (r"(?>a+)ab", "aaab", None),
        (r"a++ab", "aaab", None),
        (r"a*+b", "aab", Some("aab")),
        (r"a?+ab", "ab", None),
        (r"(a|b)\1", "abb", Some("bb")),
        (r"(?<x>a|b)\k<x>", "abb", Some("bb")),
        (r"(?'x'a|b)\k'x'", "abb", Some("bb")),
        (r"(?<x>\((?:[^()]|\g<x>)*\))", "a(b(c)d)", Some("(b(c)d)")),
        (r"a\Kb", "ab", Some("b")),
        (r"(?<x>a)?(?(<x>)b|c)", "ab", Some("ab")),
        (r"x/\*(?~\*/)\*/", "x/* a */ b */", Some("x/* a */")),
    ] {
        let compiled = ruby(pattern);
        assert!(compiled.is_hard(), "{pattern}");
        assert_eq!(found(&compiled, text).as_deref(), expected, "{pattern}");
    }
    let twice = ruby(r"^(?:a=(?<v>\w+)|b=(?<v>\w+))$");
    assert_eq!(
        twice.names().iter().flatten().count(),
        2,
        "one name may stand twice"
    );
    assert_eq!(
        groups(&twice, "b=1").expect("a match")[1..],
        [None, Some("1".to_owned())]
    );
}

#[test]
fn beside_named_groups_others_are_not_captured_in_ruby() {
    let pattern = ruby("(a|b)(?<x>c)(?#a comment ( )(d)");
    assert_eq!(pattern.names(), [None, Some("x".to_owned())]);
    assert_eq!(groups(&pattern, "acd"), Some(some(&["acd", "c"])));
    assert_eq!(ruby("(a)(b)").names().len(), 3);
    assert_eq!(
        go("(a|b)(?P<x>c)").names(),
        [None, None, Some("x".to_owned())]
    );
    assert_eq!(
        ruby(r"(a)\(?<x>").names().len(),
        2,
        "an escaped bracket opens nothing"
    );
    assert_eq!(
        ruby(r"(a)(?<=a)(?<!b)").names().len(),
        2,
        "look-behind is no name"
    );
}

#[test]
fn text_that_is_no_utf8_is_matched_at_its_own_offsets() {
    let text = b"a\xff\xfe b\xe4\xb8\xff c";
    for pattern in [
        ruby(r"^(?<x>\S+) (?<y>.*)$"),
        ruby(r"^(?<x>\S+)(?=.) (?<y>.*)$"),
    ] {
        let mut places = Vec::new();
        assert_eq!(pattern.find_groups(text, &mut places), Ok(true));
        assert_eq!(places, [Some((0, 10)), Some((0, 3)), Some((4, 10))]);
    }
    assert!(!ruby(r"a\w").is_match(text).expect("decided"));
    assert!(
        go("^a.. b... c$").is_match(text).expect("decided"),
        "each byte is one character"
    );
}

#[test]
fn a_pattern_that_takes_too_long_gives_up() {
    let hard = ruby(r"^(a|aa)+\1c");
    let text = "a".repeat(100) + "b";
    assert_eq!(hard.is_match(text.as_bytes()), Err(TooHard::Steps));
    let mut groups = vec![None];
    assert_eq!(
        hard.find_groups(text.as_bytes(), &mut groups),
        Err(TooHard::Steps)
    );
    assert!(groups.is_empty());
    let long = vec![b'a'; LONGEST_TEXT_FOR_HARD + 1];
    assert_eq!(ruby("b(?=c)").is_match(&long), Err(TooHard::Long));
    assert_eq!(
        ruby("b(?=c)").find_groups(&long, &mut groups),
        Err(TooHard::Long)
    );
    assert_eq!(
        ruby("(a*)*c").is_match(&long),
        Ok(false),
        "no limit where the time is linear"
    );
}

#[test]
fn hostile_patterns_are_refused() {
    let nested = "(".repeat(10_000) + &")".repeat(10_000);
    let classes = "[".repeat(10_000) + &"]".repeat(10_000);
    for written in [
        r"(?:(?:(?:\w{1000}){1000}){1000}){1000}",
        r"(?:\p{L}{500}){500}",
        r"(?:(?=a\p{L}{900}){900}){900}",
        &nested,
        &nested[9_000..11_000],
        &classes,
        &"a".repeat(LONGEST + 1),
        &"(?=".repeat(5_000),
        r"(?<x>a\g<x>*\g<x>*\g<x>*)",
        r"(?<a>\g<b>\g<b>)(?<b>\g<c>\g<c>)(?<c>\g<d>\g<d>){0}(?<d>\g<a>?)",
    ] {
        for dialect in [Dialect::Ruby, Dialect::Go] {
            let short: String = written.chars().take(40).collect();
            let told = Pattern::of(dialect, written).expect_err(&short);
            assert!(!told.is_empty() && !told.contains('\n'), "{short}: {told}");
        }
    }
}

#[test]
fn what_cannot_be_compiled_says_why_in_one_line() {
    let told = [
        "(a",
        "a)",
        "(?:a|(b)",
        "[a",
        "[a[b]",
        "a\\",
        "*a",
        "a{3,2}",
        "(?<>a)",
        "(?<a b>c)",
        "(?q)a",
        "(?",
        "(?<x>a",
        r"\k<x",
        r"\x{110000}",
        r"\u12",
        r"\p{Klingon}",
        r"\pé",
        r"\p{L",
        "[z-a]",
        r"[\d-z",
        r"(?<=a\1*)b",
        r"\1",
        "(?#",
        r"\X",
        r"\M-a",
        "[[:alfa:]]",
        "a{99999999}",
        r"[\R]",
        r"\g<none>",
    ]
    .map(|written| match Pattern::new(written) {
        Ok(_) => format!("{written}: compiles"),
        Err(told) => format!("{written}: {told}"),
    });
    insta::assert_snapshot!(told.join("\n"));
    for written in [r"\h", r"\Z", r"\e", r"\y", "(?'x'a)", "(?u)a", "(?z)"] {
        assert!(
            Pattern::filebeat(written).is_err(),
            "{written} is none of Go's"
        );
    }
}

#[test]
fn one_of_several_is_enough_and_none_is_none() {
    let of = |patterns: &[&str]| {
        let owned: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        AnyOf::new(&owned)
    };
    let any = of(&["^a", "(?i)B$", "c(?!d)"]).expect("patterns");
    for (text, matches) in [
        ("ax", true),
        ("xb", true),
        ("xc", true),
        ("xcd", false),
        ("", false),
    ] {
        assert_eq!(any.is_match(text.as_bytes()), Ok(matches), "{text}");
    }
    assert_eq!(of(&[]).expect("none").is_match(b"a"), Ok(false));
    let told = of(&["a", "(b"]).expect_err("an error");
    assert_eq!(told, "`(b`: `(` at character 1 has no `)`");
    let told = of(&["a\n(?\n)"]).expect_err("an error");
    assert_eq!(told, r"`a\n(?\n)`: no flag is called `\n` in `(?…)`");
}

proptest! {
    /// What is plain in both is what the `regex` crate says of it, wherever no translation is at work.
    #[test]
    fn plain_patterns_match_as_the_regex_crate_does(
        pattern in r"(a|b|c|\.|\(a\|b\)|\(\?:ab\)|\[a-c\]|\[\^b\])([*+?]|\*\?|\{2\}|\{1,2\})?(b|c|\(c\)|\[bc\]\*|\$)?",
        text in "[abc.]{0,12}",
    ) {
        let Ok(theirs) = regex::bytes::Regex::new(&pattern) else { return Ok(()) };
        for ours in [Pattern::filebeat(&pattern), Pattern::new(&pattern)] {
            let ours = ours.map_err(TestCaseError::fail)?;
            let mut places = Vec::new();
            ours.find_groups(text.as_bytes(), &mut places).expect("decided");
            let expected: Vec<_> = theirs
                .captures(text.as_bytes())
                .map(|found| found.iter().map(|part| part.map(|part| (part.start(), part.end()))).collect())
                .unwrap_or_default();
            prop_assert_eq!(places, expected, "{}", pattern);
        }
    }

    #[test]
    fn no_pattern_and_no_text_panic(
        pattern in prop_oneof![
            any::<String>(),
            r"([()\[\]{}|*+?^$.a1\\/,:<>=!#&~-]|\\[a-zA-Z0-9<{]|\(\?[<'a-zP#~>:=!-]|\[\^?|&&|é){0,20}",
        ],
        text in proptest::collection::vec(any::<u8>(), 0..30),
    ) {
        for dialect in [Dialect::Ruby, Dialect::Go] {
            match Pattern::of(dialect, &pattern) {
                Ok(compiled) => {
                    let mut places = Vec::new();
                    let found = compiled.find_groups(&text, &mut places);
                    prop_assert_eq!(found, compiled.is_match(&text));
                    for (from, to) in places.into_iter().flatten() {
                        prop_assert!(from <= to && to <= text.len());
                    }
                }
                Err(told) => prop_assert!(!told.is_empty() && !told.contains('\n'), "{}", told),
            }
        }
    }
}
