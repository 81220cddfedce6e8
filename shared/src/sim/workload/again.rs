//! After a reboot: what is left of the lines, by the files themselves.
//! Place: within **workload**.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::{End, Rotation, Workload};
use crate::host::EntryKind;

impl Workload {
    /// After a reboot: looks what is left on the disk, and lets all writers begin anew there.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn start_again(&mut self) -> io::Result<()> {
        self.moment += 1;
        for dir in self.logs.iter().filter_map(|log| log.path.parent()) {
            self.machine.make_dir(dir)?;
        }
        let present = self.present()?;
        let mut number_to_line = BTreeMap::new();
        for (at, line) in self.lines.iter().enumerate() {
            number_to_line.insert(Self::name_of(&line.text), at);
        }
        self.named.clear();
        self.copies.fill(0);
        for (path, texts) in present {
            let body = self.name_body(&path);
            for text in texts {
                let line = number_to_line.get(&Self::name_of(&text)).copied();
                if let Some(line) = line.filter(|line| self.lines[*line].text == text) {
                    self.hold(body, line);
                }
            }
        }
        for (line, copies) in self.lines.iter_mut().zip(&self.copies) {
            match (copies, line.gone) {
                (0, None) if line.written.is_some() => {
                    line.gone = Some((self.moment, End::PowerLoss));
                }
                // What was removed is back: nobody can say what a daemon could see of it.
                (1.., Some(_)) => line.gone = None,
                _ => {}
            }
        }
        for log in 0..self.logs.len() {
            self.tear(log);
            let path = self.real_path(log);
            let writer = self.machine.writer(&path)?;
            self.logs[log].writer = Some(if self.logs[log].habits.keeps_position {
                writer.keeping_its_position()
            } else {
                writer
            });
            self.logs[log].body = match self.named.get(&path) {
                Some(body) => *body,
                None => self.name_body(&path),
            };
            // What the file ends with may be half a line.
            self.append(log, b"\n")?;
            if self.logs[log].habits.rotation == Rotation::SymlinkSwap {
                let target = path.file_name().unwrap_or_default().to_os_string();
                let link = self.logs[log].path.clone();
                self.machine.replace_symlink(target, link)?;
            }
            let machine = self.machine.clone();
            self.logs[log].old.retain(|old| machine.kind(old).is_some());
        }
        Ok(())
    }

    /// The whole lines in each file beside the logs.
    pub(super) fn present(&self) -> io::Result<BTreeMap<PathBuf, Vec<Vec<u8>>>> {
        let mut present = BTreeMap::new();
        for dir in self.logs.iter().filter_map(|log| log.path.parent()) {
            for name in self.machine.names(dir)? {
                let path = dir.join(name);
                if self.machine.kind(&path) != Some(EntryKind::File) {
                    continue;
                }
                let content = self.machine.content(&path)?;
                let texts = content
                    .split_inclusive(|byte| *byte == b'\n')
                    .filter_map(|line| line.strip_suffix(b"\n"))
                    .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
                    .map(|line| {
                        // A hole stands before the first line after a truncation under a writer's feet.
                        let text = line.iter().position(|byte| *byte != 0);
                        text.map_or(Vec::new(), |text| line[text..].to_vec())
                    });
                present.insert(path, texts.collect());
            }
        }
        Ok(present)
    }
}
