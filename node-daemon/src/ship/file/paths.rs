//! Where the file output writes: its pattern, the names of rotated files, and whether two outputs would meet.
//! Place: within **ship::file**.
//! Invariants: what a workload may choose fills only the pattern's places; two different targets never have one path,
//! nor is a target's path another one's rotated name.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use crate::batch::{Day, target};
use crate::problem::{Problem, of_operator};
use crate::settings::OutputSettings;

const TARGET: &str = "{target}";
const DATE: &str = "{date}";

/// A path with `{target}` and `{date}`.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    /// The folder of its literal part: above it, links are the operator's own.
    pub beneath: PathBuf,
}

/// What is wrong with a path, and what to write.
type Wrong = (String, &'static str);

impl Pattern {
    /// Judges a path as written.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let wrong = |reason: &str, cure| Err((reason.to_owned(), cure));
        if !text.starts_with('/') {
            return wrong(
                "it is no absolute path",
                "begin it with `/`, such as `/data/{target}.ndjson`",
            );
        }
        if text.ends_with('/') || text.contains('\0') {
            return wrong(
                "it names no file",
                "end it in a file name, such as `/data/{target}.ndjson`",
            );
        }
        let path = Path::new(text);
        if path.components().any(|part| part == Component::ParentDir) {
            return wrong("it contains `..`", "write the folder itself");
        }
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            rest = &rest[at..];
            rest = rest
                .strip_prefix(TARGET)
                .or_else(|| rest.strip_prefix(DATE))
                .ok_or_else(|| {
                    let end = rest.find('}').map_or(rest.len(), |end| end + 1);
                    let reason = format!("`{}` stands for nothing here", &rest[..end]);
                    (
                        reason,
                        "use `{target}` and `{date}`, or leave the braces out",
                    )
                })?;
        }
        let literal = &text[..text.find('{').unwrap_or(text.len())];
        let folder = &literal[..literal.rfind('/').map_or(0, |at| at + 1)];
        Ok(Self {
            // As other paths are compared: without `//` and `/./`.
            text: path.components().collect::<PathBuf>().display().to_string(),
            beneath: Path::new(folder).components().collect(),
        })
    }

    /// The path of one target on one day.
    pub(super) fn path(&self, target: &str, day: Day) -> PathBuf {
        target::render(&self.text, target, day).into()
    }

    /// Whether a rotated file of one target may have the path of another.
    pub(super) fn rotates_into_another(&self) -> bool {
        let (folder, name) = self.text.rsplit_once('/').unwrap_or(("", &self.text));
        let Some((_, after)) = name.rsplit_once(TARGET) else {
            return false;
        };
        !folder.contains(TARGET)
            && (after.is_empty()
                || after.ends_with(|c: char| c.is_ascii_digit())
                || ".gz".ends_with(after)
                || after.ends_with(".gz"))
    }
}

/// The name of the `n`-th newest rotated file.
pub(super) fn rotated(path: &Path, n: u32, compressed: bool) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{n}"));
    if compressed {
        name.push(".gz");
    }
    name.into()
}

/// Which rotated file of `file_name` is called `name`: its number, and whether it is compressed.
pub(super) fn parse_rotated(file_name: &OsStr, name: &OsStr) -> Option<(u32, bool)> {
    let rest = name
        .as_encoded_bytes()
        .strip_prefix(file_name.as_encoded_bytes())?;
    let rest = std::str::from_utf8(rest).ok()?.strip_prefix('.')?;
    let (digits, compressed) = match rest.strip_suffix(".gz") {
        Some(digits) => (digits, true),
        None => (rest, false),
    };
    let plain = digits.bytes().all(|c| c.is_ascii_digit()) && !digits.starts_with('0');
    Some((digits.parse().ok().filter(|_| plain)?, compressed))
}

/// A hidden file beside `path`, for `purpose`.
fn beside(path: &Path, purpose: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(purpose);
    path.with_file_name(name)
}

/// Stands beside a file while it is written without a checkpoint: then the file is not cut at the next start.
pub(super) fn unnoted(path: &Path) -> PathBuf {
    beside(path, ".unnoted")
}

/// What is being compressed.
pub(super) fn half_compressed(path: &Path) -> PathBuf {
    beside(path, ".gz.part")
}

/// One piece of all the paths that a pattern may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// This byte.
    Exactly(u8),
    /// One of these bytes.
    One(Class),
    /// Any number of these bytes.
    Any(Class),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Digit,
    Alphanumeric,
    InTarget,
}

impl Class {
    fn has(self, byte: u8) -> bool {
        match self {
            Self::Digit => byte.is_ascii_digit(),
            Self::Alphanumeric => byte.is_ascii_alphanumeric(),
            Self::InTarget => byte.is_ascii_alphanumeric() || b"._-".contains(&byte),
        }
    }
}

impl Piece {
    fn has(self, byte: u8) -> bool {
        match self {
            Self::Exactly(own) => own == byte,
            Self::One(class) | Self::Any(class) => class.has(byte),
        }
    }
    fn meets(self, other: Self) -> bool {
        (0..=u8::MAX).any(|byte| self.has(byte) && other.has(byte))
    }
}

fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.bytes().next() {
        if let Some(after) = rest.strip_prefix(TARGET) {
            pieces.extend([Piece::One(Class::Alphanumeric), Piece::Any(Class::InTarget)]);
            rest = after;
        } else if let Some(after) = rest.strip_prefix(DATE) {
            let date = b"dddd.dd.dd".iter().map(|c| match c {
                b'd' => Piece::One(Class::Digit),
                dot => Piece::Exactly(*dot),
            });
            pieces.extend(date);
            rest = after;
        } else {
            pieces.push(Piece::Exactly(first));
            // A byte of a longer character is compared as itself.
            let length = rest.chars().next().map_or(1, char::len_utf8);
            pieces.extend(
                rest.as_bytes()[1..length]
                    .iter()
                    .map(|byte| Piece::Exactly(*byte)),
            );
            rest = &rest[length..];
        }
    }
    pieces
}

/// Whether some path is described by both.
fn meet(a: &[Piece], b: &[Piece]) -> bool {
    let mut seen = vec![false; (a.len() + 1) * (b.len() + 1)];
    let mut open = vec![(0, 0)];
    while let Some((i, j)) = open.pop() {
        if std::mem::replace(&mut seen[i * (b.len() + 1) + j], true) {
            continue;
        }
        let (here, there) = (a.get(i).copied(), b.get(j).copied());
        if here.is_none() && there.is_none() {
            return true;
        }
        if matches!(here, Some(Piece::Any(_))) {
            open.push((i + 1, j));
        }
        if matches!(there, Some(Piece::Any(_))) {
            open.push((i, j + 1));
        }
        if let (Some(x), Some(y)) = (here, there)
            && x.meets(y)
        {
            let next = |piece: Piece, at: usize| match piece {
                Piece::Any(_) => at,
                _ => at + 1,
            };
            open.push((next(x, i), next(y, j)));
        }
    }
    false
}

/// Everything an output may call a file: as it writes it, and as it rotates it.
fn all_names(pattern: &Pattern, rotates: bool) -> Vec<Vec<Piece>> {
    let plain = pieces(&pattern.text);
    let mut names = vec![plain.clone()];
    if rotates {
        let digits = [Piece::One(Class::Digit), Piece::Any(Class::Digit)];
        let numbered: Vec<Piece> = [&plain[..], &[Piece::Exactly(b'.')], &digits].concat();
        names.push([&numbered[..], &pieces(".gz")].concat());
        names.push(numbered);
    }
    names
}

/// Says for each file output whether it might write to a path of an earlier one. What else is wrong with them is for
/// `FileOutput::new` to say.
pub fn collisions(outputs: &[OutputSettings]) -> Vec<Problem> {
    let files: Vec<(&OutputSettings, Pattern, Vec<Vec<Piece>>)> = outputs
        .iter()
        .filter(|output| output.kind == "file")
        .filter_map(|output| {
            let pattern = Pattern::parse(output.settings.get("path")?.as_str()?).ok()?;
            let names = all_names(&pattern, output.settings.get("rotate_size").is_some());
            Some((output, pattern, names))
        })
        .collect();
    let mut problems = Vec::new();
    for (n, (output, pattern, names)) in files.iter().enumerate() {
        let other = files[..n]
            .iter()
            .find(|(_, _, others)| names.iter().any(|a| others.iter().any(|b| meet(a, b))));
        if let Some((other, _, _)) = other {
            problems.push(of_operator(
                format!("{}.path", output.path()),
                pattern.text.clone(),
                format!("`{}` may write to the same file", other.path()),
                "give each output a folder of its own",
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &str, yaml: &str) -> OutputSettings {
        let settings = serde_yaml_ng::from_str(yaml).expect("the test's own YAML");
        OutputSettings {
            name: name.to_owned(),
            ..OutputSettings::of("file", settings)
        }
    }

    fn meets(a: &str, b: &str) -> bool {
        let yaml = |path: &str| match path.strip_suffix('+') {
            Some(path) => format!("{{path: '{path}', rotate_size: 1MiB}}"),
            None => format!("{{path: '{path}'}}"),
        };
        !collisions(&[output("a", &yaml(a)), output("b", &yaml(b))]).is_empty()
    }

    #[test]
    fn two_outputs_that_could_write_to_one_file_are_told_and_others_are_not() {
        for (a, b) in [
            ("/data/all.log", "/data/all.log"),
            ("/data//x/./all.log", "/data/x/all.log"),
            ("/data/{target}.log", "/data/web.log"),
            ("/data/{target}.log", "/data/{target}.log"),
            ("/data/{target}-{date}.log", "/data/{target}.log"),
            ("/data/{date}/{target}", "/data/2024.02.29/web"),
            // A rotated file may have a target's name.
            ("/data/all+", "/data/{target}"),
            ("/data/{target}.gz", "/data/all.log+"),
        ] {
            assert!(meets(a, b), "{a} {b}");
            assert!(meets(b, a), "{b} {a}");
        }
        for (a, b) in [
            ("/data/all.log", "/data/every.log"),
            ("/data/{target}.log", "/data/{target}.ndjson"),
            ("/data/{target}.log", "/data/{target}/x.log"),
            ("/data/{target}.log", "/data/-web.log"),
            ("/data/x-{date}.log", "/data/x-yesterday.log"),
            ("/data/all+", "/data/all.log+"),
            ("/data/é/{target}", "/data/è/{target}"),
        ] {
            assert!(!meets(a, b), "{a} {b}");
        }
        let told = collisions(&[output("a", "{path: /x}"), output("b", "{path: /x}")]);
        assert_eq!(
            told[0].to_string(),
            "outputs.b.path=/x: `outputs.a` may write to the same file; do: give each output a folder of its own"
        );
    }

    #[test]
    fn a_path_that_cannot_be_written_to_is_told_with_its_cure() {
        for (text, reason) in [
            ("data/x", "no absolute path"),
            ("/data/", "no file"),
            ("/data/../x", "`..`"),
            ("/data/{index}.log", "`{index}` stands for nothing"),
            ("/data/{target.log", "`{target.log` stands for nothing"),
            ("/data/target}.log", "`}` stands for nothing"),
        ] {
            let (told, _) = Pattern::parse(text).expect_err(text);
            assert!(told.contains(reason), "{text}: {told}");
        }
        let pattern = Pattern::parse("/data//logs/x-{target}/{date}.log").expect("good");
        assert_eq!(pattern.beneath, Path::new("/data/logs"));
        assert_eq!(
            pattern.path("web", 0),
            Path::new("/data/logs/x-web/1970.01.01.log")
        );
        assert_eq!(
            Pattern::parse("/x.log").expect("good").beneath,
            Path::new("/")
        );
    }

    #[test]
    fn a_rotated_name_is_no_other_targets_name() {
        for (text, bad) in [
            ("/data/{target}", true),
            ("/data/{target}.1", true),
            ("/data/{target}.gz", true),
            ("/data/{target}.log", false),
            ("/data/{target}-{date}", false),
            ("/data/{target}/{target}", false),
            ("/data/all", false),
        ] {
            assert_eq!(
                Pattern::parse(text).expect("good").rotates_into_another(),
                bad,
                "{text}"
            );
        }
        let parse = |name: &str| parse_rotated("a.log".as_ref(), name.as_ref());
        assert_eq!(parse("a.log.1"), Some((1, false)));
        assert_eq!(parse("a.log.12.gz"), Some((12, true)));
        for name in [
            "a.log",
            "a.log.",
            "a.log.01",
            "a.log.x",
            "a.log.+1",
            "b.log.1",
            "a.log.1.gz.gz",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(
            rotated(Path::new("/d/a.log"), 3, true),
            Path::new("/d/a.log.3.gz")
        );
        assert_eq!(
            unnoted(Path::new("/d/a.log")),
            Path::new("/d/.a.log.unnoted")
        );
    }
}
