//! Fluentd's pos files. Source: Fluentd `in_tail/position_file.rb`: `PATH\tPOSITION\tINODE\n`, both numbers as 16
//! hexadecimal digits; a position of all ones is that of a file no longer watched.

use std::path::Path;

use super::Noted;

/// The position of a file that is watched no longer.
const UNWATCHED: u64 = u64::MAX;

/// Whether this is a pos file, or a folder of them.
pub(super) fn is_pos(path: &Path) -> bool {
    if path.is_dir() {
        return files(path).is_ok_and(|files| !files.is_empty());
    }
    let text = std::fs::read(path).unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .next()
        .is_some_and(|line| one(line).is_some())
}

/// Reads a pos file, or every one in a folder.
pub(super) fn read(path: &Path) -> Result<Vec<Noted>, String> {
    let files = match path.is_dir() {
        true => files(path).map_err(|error| error.to_string())?,
        false => vec![path.to_owned()],
    };
    if files.is_empty() {
        return Err("there is no file that ends in `.pos` in it".to_owned());
    }
    let mut noted = Vec::new();
    for file in files {
        let text = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        for line in lines {
            let one = one(line).ok_or_else(|| format!("{} is no pos file", file.display()))?;
            if one.offset != UNWATCHED {
                noted.push(one);
            }
        }
    }
    Ok(noted)
}

fn files(dir: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "pos"))
        .collect();
    files.sort();
    Ok(files)
}

fn one(line: &[u8]) -> Option<Noted> {
    use std::os::unix::ffi::OsStrExt;
    let mut parts = line.rsplitn(3, |byte| *byte == b'\t');
    let mut number = || {
        let digits = std::str::from_utf8(parts.next()?).ok()?;
        u64::from_str_radix(digits.trim(), 16).ok()
    };
    let (inode, offset) = (number()?, number()?);
    let path = std::ffi::OsStr::from_bytes(parts.next()?);
    Some(Noted {
        path: path.into(),
        inode,
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pos_file_has_hexadecimal_positions_and_forgets_what_is_not_watched() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("app.pos");
        let text = "/host/a\tb.log\t00000000000000ff\t000000000010a2b3\n\
                    /gone.log\tffffffffffffffff\t0000000000000002\n";
        std::fs::write(&path, text).expect("a write");
        for place in [path.as_path(), dir.path()] {
            assert!(is_pos(place));
            let noted = read(place).expect("a pos file");
            assert_eq!(noted.len(), 1);
            assert_eq!(noted[0].path, Path::new("/host/a\tb.log"));
            assert_eq!((noted[0].offset, noted[0].inode), (255, 0x10a2b3));
        }
        std::fs::write(&path, "[]").expect("a write");
        assert!(!is_pos(&path));
        assert!(read(&path).is_err_and(|why| why.contains("is no pos file")));
    }
}
