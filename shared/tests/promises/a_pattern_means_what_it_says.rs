//! A declared path means the files that its user would list by it in the container, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::hint::black_box;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use ringpilot_shared::follow::glob::{
    Found, GlobError, MOST_DEPTH, Pattern, WalkError, is_rotated_sibling, walk,
};
use ringpilot_shared::follow::{Mount, View};
use ringpilot_shared::host::{EntryKind, RealHost};

/// Whether a pattern for one name takes it.
fn takes(pattern: &str, name: impl AsRef<[u8]>) -> bool {
    let pattern = Pattern::new(&format!("/logs/{pattern}")).unwrap();
    pattern.matches_name(Path::new("/logs"), OsStr::from_bytes(name.as_ref()))
}

#[test]
fn wildcards_take_what_they_say() {
    for (pattern, yes, no) in [
        (
            "app.log",
            &["app.log"][..],
            &["app.log.1", "xapp.log", "app-log"][..],
        ),
        (
            "*.log",
            &["a.log", ".log", ".hidden.log"],
            &["a.log.1", "log"],
        ),
        (
            "a*b*c",
            &["abc", "aXbYc", "abbcc", "abcbc"],
            &["ab", "acb", "abcd"],
        ),
        ("a**b", &["ab", "axb"], &["a"]),
        (
            "?.log",
            &["a.log", "é.log", "世.log", "..log"],
            &[".log", "ab.log"],
        ),
        ("[a-c].log", &["a.log", "c.log"], &["d.log", "-.log"]),
        ("[!a-c].log", &["d.log", "é.log"], &["a.log"]),
        ("[^a-c].log", &["d.log"], &["b.log"]),
        ("[]x].log", &["].log", "x.log"], &["a.log"]),
        ("[a-]", &["a", "-"], &["b"]),
        ("[à-é].log", &["â.log", "é.log"], &["z.log", "ê.log"]),
        ("{a,b*,}.log", &["a.log", "bb.log", ".log"], &["c.log"]),
        ("x{a,{b,c}d}y", &["xay", "xbdy", "xcdy"], &["xdy", "xby"]),
        ("{a,b}{c,d}", &["ac", "ad", "bc", "bd"], &["ab"]),
        ("{a}", &["{a}"], &["a"]),
        ("{a}{b,c}", &["{a}b", "{a}c"], &["ab"]),
        ("[{,}]", &["{", ",", "}"], &["a"]),
        (r"\*\[a\]\{b,c\}", &["*[a]{b,c}"], &["x[a]{b,c}"]),
        (r"[\]\-]", &["]", "-"], &["\\"]),
        ("**", &["anything", ".x"], &[]),
    ] {
        for name in yes {
            assert!(takes(pattern, name), "{pattern} should take {name}");
        }
        for name in no {
            assert!(!takes(pattern, name), "{pattern} should not take {name}");
        }
    }
    // Names are any bytes: what is no character counts by bytes.
    assert!(takes("a?.log", b"a\xFF.log"));
    assert!(takes("a??.log", b"a\xE4\xB8.log"));
    assert!(takes("a[!b].log", b"a\x80.log"));
    assert!(takes("*.log", b"\xFF\xFE.log"));
}

#[test]
fn a_wrong_pattern_is_told_with_its_cure() {
    let long = format!("/{}", "a/".repeat(63) + "a");
    let wide = format!("/{}", "{a,b}".repeat(7));
    for (text, wanted) in [
        ("logs/a.log", GlobError::NotAbsolute),
        ("", GlobError::NotAbsolute),
        ("/", GlobError::Directory),
        ("/logs/", GlobError::Directory),
        ("/logs/*/", GlobError::Directory),
        ("/logs/.", GlobError::Directory),
        ("/logs/../a.log", GlobError::Parent),
        ("/logs/[a.log", GlobError::Unclosed('[')),
        ("/logs/[]", GlobError::Unclosed('[')),
        ("/logs/{a/x,b/y}.log", GlobError::Unclosed('{')),
        ("/logs/[z-a].log", GlobError::EmptyClass),
        ("/logs/a\\", GlobError::Escape),
        (wide.as_str(), GlobError::TooMany),
        (long.as_str(), GlobError::TooLong),
    ] {
        let error = Pattern::new(text).unwrap_err();
        assert_eq!(error, wanted, "{text}");
        assert!(!error.to_string().is_empty() && !error.cure().is_empty());
    }
}

#[test]
fn the_literal_directory_is_the_longest_without_a_wildcard() {
    for (text, dir, name) in [
        ("/logs/app.log", "/logs", Some("app.log")),
        ("/a.log", "/", Some("a.log")),
        ("//logs//./app.log", "/logs", Some("app.log")),
        ("/logs/*.log", "/logs", None),
        ("/logs/*/deep/a.log", "/logs", None),
        (r"/lo\*gs/\[x\]/*.log", "/lo*gs/[x]", None),
        ("/**/a.log", "/", None),
        ("/logs/**", "/logs", None),
    ] {
        let pattern = Pattern::new(text).unwrap();
        assert_eq!(pattern.literal_dir(), Path::new(dir), "{text}");
        assert_eq!(pattern.literal_name(), name.map(OsStr::new), "{text}");
    }
}

#[test]
fn what_a_rotation_leaves_is_known_by_its_name_and_nothing_else_is() {
    let siblings = [
        ("app.log", "app.log.1"),
        ("app.log", "app.log.2.gz"),
        ("app.log", "app.log.gz"),
        ("app.log", "app.log-20261124"),
        ("app.log", "app.log-20261124.gz"),
        ("app.log", "app.log-20261124-1795484796.zst"),
        ("app.log", "app.log.20261124-103000"),
        ("app.log", "app.log.2026-11-24T10:30:00Z"),
        ("app.log", "app.log.2026-11-24T10:30:00+01:00"),
        ("app.log", "app.log_2026-11-24_10"),
        ("app.log", "app-2026-11-24.log"),
        ("app.log", "app-2026-11-24.1.log.gz"),
        ("app.log", "app-2026-11-24T10-30-00.000.log"),
        ("app.log", "app.2026-11-24.log"),
        ("app.log", "app.1.log"),
        ("app.log", "app_20261124.log"),
        ("abc-json.log", "abc-json.log.1"),
        ("0.log", "0.log.20261124-103000"),
        ("0.log", "0.log.20261124-103000.gz"),
        ("access", "access.1"),
        ("access", "access-20261124.bz2"),
        (".log", ".log.1"),
    ];
    for (base, name) in siblings {
        assert!(
            is_rotated_sibling(base.as_ref(), name.as_ref()),
            "{base}: {name}"
        );
    }
    let strangers = [
        ("app.log", "app.log"),
        ("app.log", "app.log1"),
        ("app.log", "app.log."),
        ("app.log", "app.log-"),
        ("app.log", "app.log.gz.tmp"),
        ("app.log", "app.log.1.gz.tmp"),
        ("app.log", "app.log.swp"),
        ("app.log", "app.log..1"),
        ("app.log", "app.log.1."),
        ("app.log", "app.log.old"),
        ("app.log", "app.logs"),
        ("app.log", "app-error.log"),
        ("app.log", "app2.log"),
        ("app.log", "app-1.log"),
        ("app.log", "app_12.log"),
        ("app.log", "application.log"),
        ("app.log", "app.txt"),
        ("app.log", "App.log.1"),
        ("app.log", "my-app.log.1"),
        ("app.log", "app.1.txt"),
        ("app-1", "app-10"),
        ("0.log", "1.log"),
        ("0.log", "10.log"),
        (".log", "20261124.log"),
        ("", ".1"),
    ];
    for (base, name) in strangers {
        assert!(
            !is_rotated_sibling(base.as_ref(), name.as_ref()),
            "{base}: {name}"
        );
    }
}

/// A container whose root is a folder.
struct Tree {
    folder: tempfile::TempDir,
    host: RealHost,
    view: View,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Walked {
    dirs: BTreeSet<String>,
    files: BTreeSet<String>,
    others: BTreeSet<String>,
}

impl Tree {
    fn new(files: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let view = View {
            host_root: folder.path().to_owned(),
            roots: vec!["/".into()],
            ..View::default()
        };
        let tree = Self {
            folder,
            host: RealHost::new(),
            view,
        };
        for file in files {
            let path = tree.at(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    fn walk(&self, pattern: &str) -> Result<Walked, WalkError> {
        let pattern = Pattern::new(pattern).unwrap();
        let mut walked = Walked::default();
        let mut dirs = BTreeSet::new();
        let mut names = BTreeMap::new();
        walk(
            &self.host,
            &self.view,
            &pattern,
            &mut |dir| assert!(dirs.insert(text(dir)), "{} twice", dir.display()),
            &mut |found: Found<'_>| {
                let path = text(&found.dir.join(found.name));
                assert!(found.kind != EntryKind::Directory && found.inode > 0);
                assert!(names.insert(path, found.matches).is_none());
                ControlFlow::Continue(())
            },
        )?;
        walked.dirs = dirs;
        for (path, matches) in names {
            if matches {
                walked.files.insert(path);
            } else {
                walked.others.insert(path);
            }
        }
        Ok(walked)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[test]
fn a_walk_tells_the_directories_to_watch_the_files_meant_and_the_others_beside_them() {
    let tree = Tree::new(&[
        "/logs/a/app-1.log",
        "/logs/a/app-1.log.1",
        "/logs/a/deep/app-9.log",
        "/logs/b/app-2.log",
        "/logs/b/other.txt",
        "/logs/beside.log",
        "/elsewhere/c/app-3.log",
    ]);
    symlink("../elsewhere/c", tree.at("/logs/c")).unwrap();
    symlink("beside.log", tree.at("/logs/link")).unwrap();
    symlink("nowhere", tree.at("/logs/dangling")).unwrap();
    let walked = tree.walk("/logs/*/app-*.log").unwrap();
    assert_eq!(
        walked,
        Walked {
            dirs: set(&["/logs", "/logs/a", "/logs/b", "/logs/c"]),
            files: set(&[
                "/logs/a/app-1.log",
                "/logs/b/app-2.log",
                "/logs/c/app-3.log"
            ]),
            others: set(&["/logs/a/app-1.log.1", "/logs/b/other.txt"]),
        }
    );
    let walked = tree.walk("/logs/{a,b}/app-?.log").unwrap();
    assert_eq!(
        walked.files,
        set(&["/logs/a/app-1.log", "/logs/b/app-2.log"])
    );
    let walked = tree.walk("/logs/b/app-2.log").unwrap();
    assert_eq!(walked.dirs, set(&["/logs/b"]));
    assert_eq!(walked.files, set(&["/logs/b/app-2.log"]));
    assert_eq!(walked.others, set(&["/logs/b/other.txt"]));
}

#[test]
fn any_depth_goes_down_sixteen_levels_and_through_no_link() {
    let deep = |levels: usize| format!("/logs{}/x.log", "/d".repeat(levels));
    let paths: Vec<_> = (0..MOST_DEPTH + 3).map(deep).collect();
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    let tree = Tree::new(&paths);
    symlink("..", tree.at("/logs/d/up")).unwrap();
    symlink("/logs", tree.at("/logs/round")).unwrap();
    let walked = tree.walk("/logs/**/x.log").unwrap();
    assert_eq!(walked.files, set(&paths[..=MOST_DEPTH]));
    assert_eq!(walked.dirs.len(), MOST_DEPTH + 1);
    let walked = tree.walk("/logs/**/*/x.log").unwrap();
    // One level by the star, a link there too, and none in a circle.
    assert!(
        walked.files.contains("/logs/round/x.log") && walked.files.contains("/logs/d/up/x.log")
    );
    assert!(
        !walked
            .files
            .iter()
            .any(|file| file.contains("/up/d/d/") || file.contains("/round/d/d"))
    );
    let all = tree.walk("/logs/**").unwrap().files;
    assert!(all.contains("/logs/x.log") && all.contains(&deep(3)));
}

#[test]
fn where_a_directory_is_still_missing_the_nearest_one_above_it_is_watched() {
    let mut tree = Tree::new(&["/logs/app/today/a.log"]);
    assert_eq!(
        tree.walk("/logs/web/sub/*.log").unwrap().dirs,
        set(&["/logs"])
    );
    assert_eq!(tree.walk("/none/*.log").unwrap().dirs, set(&["/"]));
    assert_eq!(
        tree.walk("/logs/app/*/a.log").unwrap().dirs,
        set(&["/logs/app", "/logs/app/today"])
    );
    // A container of which nothing but a volume is known.
    tree.view.roots.clear();
    tree.view.mounts = vec![Mount {
        container: "/data/logs".into(),
        host: "/logs".into(),
    }];
    let walked = tree.walk("/data/*/app/**/*.log").unwrap();
    assert_eq!(walked.files, set(&["/data/logs/app/today/a.log"]));
    assert_eq!(tree.walk("/etc/*.log").unwrap().files, set(&[]));
}

#[test]
fn a_directory_that_cannot_be_listed_is_told_and_hides_no_other() {
    let tree = Tree::new(&["/logs/a/x.log", "/logs/z/x.log", "/file"]);
    let error = tree.walk("/file/x/*.log").unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::NotADirectory);
    // A link in a circle, where a directory is named.
    symlink("m", tree.at("/logs/m")).unwrap();
    assert_eq!(tree.walk("/logs/*/x.log").unwrap().files.len(), 2);
    let error = tree.walk("/logs/m/x.log").unwrap_err();
    assert_eq!(
        (error.dir.as_path(), error.others),
        (Path::new("/logs/m"), 0)
    );
    assert!(error.to_string().contains("more than 40 links"), "{error}");
}

#[test]
fn a_walk_ends_when_it_is_told_to() {
    let tree = Tree::new(&["/logs/a/1.log", "/logs/a/2.log", "/logs/b/3.log"]);
    let mut count = 0;
    walk(
        &tree.host,
        &tree.view,
        &Pattern::new("/logs/**").unwrap(),
        &mut |_| {},
        &mut |_| {
            count += 1;
            ControlFlow::Break(())
        },
    )
    .unwrap();
    assert_eq!(count, 1);
}

/// By definition, without wit.
fn naive(pattern: &[char], name: &[char]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|taken| naive(rest, &name[taken..])),
        ['?', rest @ ..] => !name.is_empty() && naive(rest, &name[1..]),
        ['[', '!', 'a', '-', 'b', ']', rest @ ..] => {
            name.first().is_some_and(|char| !('a'..='b').contains(char)) && naive(rest, &name[1..])
        }
        ['[', 'a', 'é', ']', rest @ ..] => {
            name.first().is_some_and(|char| "aé".contains(*char)) && naive(rest, &name[1..])
        }
        [char, rest @ ..] => name.first() == Some(char) && naive(rest, &name[1..]),
    }
}

proptest! {
    #[test]
    fn one_name_is_taken_as_the_definition_says(
        parts in prop::collection::vec(
            prop::sample::select(vec!["*", "?", "a", "b", "é", ".", "[!a-b]", "[aé]"]), 1..8),
        name in "[abé.]{0,8}",
    ) {
        let pattern = parts.concat();
        // These have meanings of their own.
        prop_assume!(!matches!(pattern.as_str(), "." | ".." | "**"));
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        prop_assert_eq!(takes(&pattern, &name), naive(&chars(&pattern), &chars(&name)), "{} {}", pattern, name);
    }

    #[test]
    fn a_name_of_plain_letters_is_taken_as_globset_takes_it(
        parts in prop::collection::vec(
            prop::sample::select(vec!["*", "?", "a", "b", ".", "[ab]", "[!a]", "[^b]", "[a-c]", "{a,bc}", "{a,{b,*.c}}", "\\*", "\\["]),
            1..7),
        name in "[abc.*\\[]{1,8}",
    ) {
        let pattern = parts.concat();
        prop_assume!(!matches!(pattern.as_str(), "." | ".." | "**"));
        let globset = globset::GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build().unwrap();
        prop_assert_eq!(takes(&pattern, &name), globset.compile_matcher().is_match(&name), "{} {}", pattern, name);
    }

    #[test]
    fn no_text_makes_a_pattern_panic(text in "[/a*?{},\\[\\]!\\\\-]{0,20}", any in ".{0,20}", name in prop::collection::vec(any::<u8>(), 0..20)) {
        for text in [format!("/{text}"), any] {
            if let Ok(pattern) = Pattern::new(&text) {
                black_box(pattern.matches_name(pattern.literal_dir(), OsStr::from_bytes(&name)));
                black_box(pattern.enters(Path::new("/a/b")));
            }
        }
        black_box(is_rotated_sibling(OsStr::new("a.log"), OsStr::from_bytes(&name)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// The walk finds exactly the files whose whole path matches, by globset's rules and by its own for new names.
    #[test]
    fn a_walk_finds_what_matches_by_its_path(
        files in prop::collection::btree_set("(/[ab]{1,2}){0,3}/[ab]\\.log", 0..12),
        parts in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "?", "a*", "**", "{a,bb}"]), 0..4),
        last in prop::sample::select(vec!["a.log", "*.log", "?.log", "**"]),
    ) {
        let rooted: Vec<_> = files.iter().map(|file| format!("/r{file}")).collect();
        let tree = Tree::new(&rooted.iter().map(String::as_str).collect::<Vec<_>>());
        let pattern = format!("/r/{}", [parts.as_slice(), &[last]].concat().join("/"));
        let walked = tree.walk(&pattern).unwrap();
        let globset = globset::GlobBuilder::new(&pattern).literal_separator(true).build().unwrap().compile_matcher();
        let wanted: BTreeSet<_> = rooted.iter().filter(|file| globset.is_match(file)).cloned().collect();
        prop_assert_eq!(&walked.files, &wanted, "{}", pattern);
        let pattern = Pattern::new(&pattern).unwrap();
        for file in rooted.iter().map(Path::new) {
            let (dir, name) = (file.parent().unwrap(), file.file_name().unwrap());
            prop_assert_eq!(pattern.matches_name(dir, name), wanted.contains(&text(file)));
            if wanted.contains(&text(file)) {
                prop_assert!(pattern.enters(dir) && walked.dirs.contains(&text(dir)));
            }
        }
    }
}
