//! Fluent Bit's database. Source: Fluent Bit `plugins/in_tail/tail_sql.h`: the table `in_tail_files` with `name`,
//! `offset`, `inode`, `rotated`; a file that was rotated keeps its row under its new name.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::Noted;

/// Reads a database; it is only read.
pub(super) fn read(path: &Path) -> Result<Vec<Noted>, String> {
    let read = || -> rusqlite::Result<Vec<Noted>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags)?;
        let mut rows =
            database.prepare("SELECT name, offset, inode FROM in_tail_files ORDER BY id")?;
        let noted = rows.query_map([], |row| {
            let (offset, inode): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok(Noted {
                path: row.get::<_, String>(0)?.into(),
                offset: u64::try_from(offset).unwrap_or(0),
                inode: inode.cast_unsigned(),
            })
        })?;
        noted.collect()
    };
    read().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_read_as_fluent_bit_makes_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tail.db");
        let database = Connection::open(&path).expect("a database");
        let made = database.execute_batch(
            "CREATE TABLE IF NOT EXISTS in_tail_files (id INTEGER PRIMARY KEY, name TEXT NOT NULL, offset INTEGER,
             inode INTEGER, created INTEGER, rotated INTEGER DEFAULT 0);
             INSERT INTO in_tail_files (name, offset, inode, created) VALUES ('/var/log/a.log', 512, 99, 1700000000);",
        );
        made.expect("a table");
        drop(database);
        let noted = read(&path).expect("a database");
        assert_eq!(noted.len(), 1);
        assert_eq!((noted[0].offset, noted[0].inode), (512, 99));
        std::fs::write(&path, "no database at all").expect("a write");
        assert!(read(&path).is_err());
    }
}
