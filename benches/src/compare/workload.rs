//! The pods' programs: files that get numbered lines of several lengths, and when each line was written.
//! Invariants: every line is a write of its own while pods log steadily, as programs do; pods take turns.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::load::Load;

/// How often lines are written.
const TICK: Duration = Duration::from_millis(10);
/// Bytes of one write at full speed.
const BLOCK: usize = 256 * 1024;

/// All files of all pods.
#[derive(Debug)]
pub(super) struct Workload {
    files: Vec<Written>,
    /// Files of one pod; a pod's files follow one another.
    of_a_pod: usize,
    dir: PathBuf,
}

#[derive(Debug)]
struct Written {
    /// One for each length of line.
    loads: Vec<Load>,
    file: File,
    /// When each line was written; empty for those at full speed.
    at: Vec<Option<Instant>>,
    bytes: u64,
}

impl Workload {
    /// A first line in each file, so that everybody can find it.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(super) fn new(
        dir: &Path,
        pods: u16,
        of_a_pod: u16,
        lengths: &[usize],
    ) -> anyhow::Result<Self> {
        let mut workload = Self {
            files: Vec::new(),
            of_a_pod: usize::from(of_a_pod),
            dir: dir.to_owned(),
        };
        for pod in 0..pods {
            std::fs::create_dir_all(workload.folder(pod))?;
            for n in 0..of_a_pod {
                let path = workload.folder(pod).join(format!("{n}.log"));
                let source = pod * of_a_pod + n;
                let loads = lengths.iter().map(|length| Load::new(1, source, *length));
                workload.files.push(Written {
                    loads: loads.collect(),
                    file: File::options().create(true).append(true).open(path)?,
                    at: Vec::new(),
                    bytes: 0,
                });
            }
        }
        let mut block = Vec::new();
        for file in &mut workload.files {
            file.one(&mut block)?;
        }
        Ok(workload)
    }

    /// A pod's folder.
    pub(super) fn folder(&self, pod: u16) -> PathBuf {
        self.dir.join(format!("pod-{pod}"))
    }

    /// Lines of all files.
    pub(super) fn lines(&self) -> u64 {
        self.files.iter().map(|file| file.at.len() as u64).sum()
    }

    /// Lines of one file.
    pub(super) fn lines_of(&self, source: u16) -> u64 {
        self.files
            .get(usize::from(source))
            .map_or(0, |file| file.at.len() as u64)
    }

    /// How many files there are.
    pub(super) fn sources(&self) -> u16 {
        u16::try_from(self.files.len()).unwrap_or(u16::MAX)
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// When a line was written, if it was one of the steady ones.
    pub(super) fn written_at(&self, source: u16, sequence: u64) -> Option<Instant> {
        let file = self.files.get(usize::from(source))?;
        *file.at.get(usize::try_from(sequence).ok()?)?
    }

    /// Every pod writes `rate` lines a second, over its files.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(super) fn steady(&mut self, rate: u64, lasting: Duration) -> anyhow::Result<()> {
        let pods = (self.files.len() / self.of_a_pod) as u64;
        let (begun, mut block, mut next) = (Instant::now(), Vec::new(), 0);
        let of_all = self.files.len() as u64;
        while begun.elapsed() < lasting {
            let due = (begun.elapsed().as_secs_f64() * (rate * pods) as f64) as u64;
            while next < due {
                // At most as many as there are files, which is a u16.
                self.files[(next % of_all) as usize].one(&mut block)?;
                next += 1;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// The first `pods` write so many lines together, as fast as they can; the others write nothing.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(super) fn full(&mut self, pods: u16, lines: u64) -> anyhow::Result<()> {
        let busy = (usize::from(pods) * self.of_a_pod).min(self.files.len());
        let (mut block, mut left) = (Vec::new(), lines);
        while left > 0 {
            for file in &mut self.files[..busy] {
                block.clear();
                while block.len() < BLOCK && left > 0 {
                    file.line(&mut block);
                    file.at.push(None);
                    left -= 1;
                }
                file.put(&block)?;
            }
        }
        Ok(())
    }
}

impl Written {
    fn line(&self, block: &mut Vec<u8>) {
        let sequence = self.at.len();
        self.loads[sequence % self.loads.len()].line(block, sequence as u64);
    }

    fn one(&mut self, block: &mut Vec<u8>) -> std::io::Result<()> {
        block.clear();
        self.line(block);
        // Before the write: a reader may be quicker than we are.
        self.at.push(Some(Instant::now()));
        self.put(block)
    }

    fn put(&mut self, block: &[u8]) -> std::io::Result<()> {
        self.bytes += block.len() as u64;
        self.file.write_all(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_take_turns_and_every_line_has_its_number_and_length() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut workload = Workload::new(dir.path(), 3, 2, &[60, 100])?;
        assert_eq!((workload.lines(), workload.sources()), (6, 6));
        workload.steady(100, Duration::from_millis(40))?;
        assert!(workload.written_at(0, 0).is_some());
        let steady = workload.lines();
        workload.full(1, 1_000)?;
        assert_eq!(workload.lines(), steady + 1_000);
        assert_eq!(workload.written_at(0, workload.lines_of(0) - 1), None);
        let mut bytes = 0;
        for source in 0..6_u16 {
            let path = workload
                .folder(source / 2)
                .join(format!("{}.log", source % 2));
            let text = std::fs::read_to_string(path)?;
            bytes += text.len() as u64;
            for (n, line) in text.lines().enumerate() {
                assert!(
                    line.starts_with(&format!("seq={n:012} src={source:04} ")),
                    "{line}"
                );
                assert_eq!(line.len() + 1, [60, 100][n % 2]);
            }
        }
        assert_eq!(bytes, workload.bytes());
        Ok(())
    }
}
