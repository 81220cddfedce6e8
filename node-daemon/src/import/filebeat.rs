//! Filebeat's registry. Source: Filebeat 6.8 `registrar` (one JSON array), 7.0 `data.json` (the same in a folder),
//! 7.9 and later `libbeat/statestore/backend/memlog`: `active.dat` names the last checkpoint `N.json` (a JSON array whose
//! objects have `_key`), `log.json` has what came after, an operation and its entry on two lines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Noted;

/// Reads a registry: the file of Filebeat 6, or the folder of later ones, or one above it.
pub(super) fn read(path: &Path) -> Result<Vec<Noted>, String> {
    if !path.is_dir() {
        if path.file_name().is_some_and(|name| name == "log.json") {
            return store(path.parent().unwrap_or(Path::new(".")));
        }
        return array(path);
    }
    let folders = [
        "",
        "filebeat",
        "registry/filebeat",
        "data/registry/filebeat",
    ];
    for dir in folders.map(|folder| path.join(folder)) {
        if dir.join("log.json").is_file() || dir.join("active.dat").is_file() {
            return store(&dir);
        }
        if dir.join("data.json").is_file() {
            return array(&dir.join("data.json"));
        }
    }
    match path.join("registry").is_file() {
        true => array(&path.join("registry")),
        false => Err("there is no `log.json`, `data.json` or `registry` in it".to_owned()),
    }
}

fn text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn array(path: &Path) -> Result<Vec<Noted>, String> {
    let states: Vec<Value> = serde_json::from_str(&text(path)?)
        .map_err(|error| format!("{} is no list of states: {error}", path.display()))?;
    Ok(states.iter().filter_map(|state| noted("", state)).collect())
}

fn store(dir: &Path) -> Result<Vec<Noted>, String> {
    let mut states: BTreeMap<String, Value> = BTreeMap::new();
    if let Some(path) = checkpoint(dir) {
        let entries: Vec<Value> = serde_json::from_str(&text(&path)?)
            .map_err(|error| format!("{} is no checkpoint: {error}", path.display()))?;
        for entry in entries {
            if let Some(key) = entry.get("_key").and_then(Value::as_str) {
                states.insert(key.to_owned(), entry);
            }
        }
    }
    let log = dir.join("log.json");
    let log = if log.is_file() {
        text(&log)?
    } else {
        String::new()
    };
    let mut lines = log.lines();
    while let Some(line) = lines.next() {
        // The last operation may be cut off by a crash; nothing follows it.
        let Ok(operation) = serde_json::from_str::<Value>(line) else {
            break;
        };
        let Some(Ok(mut entry)) = lines.next().map(serde_json::from_str::<Value>) else {
            break;
        };
        let Some(key) = entry.get("k").and_then(Value::as_str).map(str::to_owned) else {
            continue;
        };
        match operation.get("op").and_then(Value::as_str) {
            Some("set") => {
                states.insert(key, entry["v"].take());
            }
            Some("remove") => drop(states.remove(&key)),
            _ => {}
        }
    }
    Ok(states
        .iter()
        .filter_map(|(key, state)| noted(key, state))
        .collect())
}

/// The last checkpoint: the one that `active.dat` names, which may have been moved with its folder; else the highest.
fn checkpoint(dir: &Path) -> Option<PathBuf> {
    let named = std::fs::read_to_string(dir.join("active.dat")).ok();
    let named = named.and_then(|name| Some(dir.join(Path::new(name.trim()).file_name()?)));
    if let Some(path) = named.filter(|path| path.is_file()) {
        return Some(path);
    }
    let numbered = |path: PathBuf| {
        let number: u64 = path
            .file_name()?
            .to_str()?
            .strip_suffix(".json")?
            .parse()
            .ok()?;
        Some((number, path))
    };
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let paths = entries.filter_map(|entry| numbered(entry.path()));
    paths
        .max_by_key(|(number, _)| *number)
        .map(|(_, path)| path)
}

/// One state: of the `log` input, or of `filestream`, whose key ends in `native::INODE-DEVICE`.
fn noted(key: &str, state: &Value) -> Option<Noted> {
    let number = |value: Option<&Value>| value.and_then(Value::as_u64);
    let of_log = || {
        Some(Noted {
            path: state.get("source")?.as_str()?.into(),
            offset: number(state.get("offset"))?,
            inode: number(state.get("FileStateOS")?.get("inode"))?,
        })
    };
    let of_filestream = || {
        let (_, native) = key.rsplit_once("native::")?;
        Some(Noted {
            path: state.get("meta")?.get("source")?.as_str()?.into(),
            offset: number(state.get("cursor")?.get("offset"))?,
            inode: native.split('-').next()?.parse().ok()?,
        })
    };
    of_log().or_else(of_filestream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(mut noted: Vec<Noted>) -> Vec<(String, u64, u64)> {
        noted.sort_by_key(|one| one.inode);
        let one = |one: Noted| (one.path.display().to_string(), one.inode, one.offset);
        noted.into_iter().map(one).collect()
    }

    #[test]
    fn the_registry_of_filebeat_6_is_one_list() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("registry");
        let state = r#"[{"source":"/host/a.log","offset":120,"timestamp":"2024-02-29T10:00:00.000000001Z","ttl":-1,
            "type":"log","meta":null,"FileStateOS":{"inode":7,"device":2049}}]"#;
        std::fs::write(&path, state).expect("a write");
        let a = vec![("/host/a.log".to_owned(), 7, 120)];
        assert_eq!(told(read(&path).expect("a registry")), a);
        assert_eq!(told(read(dir.path()).expect("a registry")), a);
    }

    #[test]
    fn of_later_ones_the_log_counts_after_the_checkpoint_and_a_cut_operation_does_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = dir.path().join("registry/filebeat");
        std::fs::create_dir_all(&store).expect("a folder");
        let write =
            |name: &str, text: &str| std::fs::write(store.join(name), text).expect("a write");
        write("meta.json", r#"{"version":"1"}"#);
        write(
            "active.dat",
            "/usr/share/filebeat/data/registry/filebeat/21.json",
        );
        write("3.json", "[]");
        write(
            "21.json",
            r#"[
            {"_key":"filebeat::logs::native::7-2049","source":"/a.log","offset":10,"FileStateOS":{"inode":7,"device":2049}},
            {"_key":"filebeat::logs::native::8-2049","source":"/b.log","offset":20,"FileStateOS":{"inode":8,"device":2049}}]"#,
        );
        write(
            "log.json",
            concat!(
                "{\"op\":\"set\",\"id\":22}\n",
                "{\"k\":\"filebeat::logs::native::7-2049\",\"v\":{\"source\":\"/a.log\",\"offset\":30,\"ttl\":-1,\"FileStateOS\":{\"inode\":7,\"device\":2049}}}\n",
                "{\"op\":\"set\",\"id\":23}\n",
                "{\"k\":\"filestream::my-id::native::9-2049\",\"v\":{\"cursor\":{\"offset\":40},\"meta\":{\"source\":\"/c.log\",\"identifier_name\":\"native\"},\"ttl\":0,\"updated\":[1,2]}}\n",
                "{\"op\":\"remove\",\"id\":24}\n",
                "{\"k\":\"filebeat::logs::native::8-2049\"}\n",
                "{\"op\":\"set\",\"id\":25}\n",
                "{\"k\":\"filebeat::logs::native::7-2049\",\"v\":{\"sou",
            ),
        );
        let found = told(read(dir.path()).expect("a registry"));
        assert_eq!(
            found,
            [("/a.log".to_owned(), 7, 30), ("/c.log".to_owned(), 9, 40)]
        );
    }

    #[test]
    fn what_is_no_registry_says_so() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(read(dir.path()).is_err_and(|why| why.contains("`log.json`")));
        std::fs::write(dir.path().join("x"), "{}").expect("a write");
        assert!(read(&dir.path().join("x")).is_err_and(|why| why.contains("no list of states")));
    }
}
