//! Writes numbered lines, and knows them again.
//! Invariants: a line is a function of seed, source and number alone; it is plain ASCII and as long as asked for. Its
//! number stands in it, so that whoever gets a line, in whatever it was wrapped, can tell which it is.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use memchr::memmem::Finder;

/// Lines of one source: `seq=000000000042 src=0007 quick order cache …\n`.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Length of a line in bytes, its `\n` included; at least [`Load::SHORTEST`].
    line_bytes: usize,
    /// Tells the lines of one source from another's.
    source: u16,
    /// Words that every line takes its own part of.
    words: Vec<u8>,
}

/// Digits of a line's number.
const DIGITS: usize = 12;
/// Digits of its source's.
const SOURCE_DIGITS: usize = 4;
/// Where the source's digits begin.
const SOURCE_AT: usize = 4 + DIGITS + 5;
/// Where the words begin.
const WORDS_AT: usize = SOURCE_AT + SOURCE_DIGITS + 1;

impl Load {
    /// The shortest line that holds its numbers.
    pub(crate) const SHORTEST: usize = WORDS_AT + 1;

    /// Lines of `line_bytes`, or of [`Load::SHORTEST`] if that is more. Only the last four digits of `source` count.
    pub(crate) fn new(seed: u64, source: u16, line_bytes: usize) -> Self {
        const WORDS: [&str; 16] = [
            "order", "cache", "user", "request", "in", "done", "retry", "of", "shop", "region",
            "queue", "at", "payment", "slow", "a", "node",
        ];
        let line_bytes = line_bytes.max(Self::SHORTEST);
        let mut words = Vec::new();
        let mut state = seed;
        while words.len() < 2 * line_bytes + 4096 {
            state = mix(state);
            let word = WORDS.get((state % 16) as usize).copied().unwrap_or("a");
            words.extend_from_slice(word.as_bytes());
            words.push(b' ');
        }
        Self {
            line_bytes,
            source: source % 10_000,
            words,
        }
    }

    /// Appends line number `sequence`, of which the last 12 digits count.
    pub(crate) fn line(&self, out: &mut Vec<u8>, sequence: u64) {
        let start = out.len();
        out.extend_from_slice(b"seq=000000000000 src=0000 ");
        let line = &mut out[start..];
        put(&mut line[4..4 + DIGITS], sequence);
        put(
            &mut line[SOURCE_AT..SOURCE_AT + SOURCE_DIGITS],
            self.source.into(),
        );
        let length = self.line_bytes - Self::SHORTEST;
        let from = mix(sequence ^ u64::from(self.source)) as usize % (self.words.len() - length);
        out.extend_from_slice(&self.words[from..from + length]);
        out.push(b'\n');
    }

    /// Writes lines `0..lines`.
    ///
    /// # Errors
    /// As the writer gives them.
    pub(crate) fn write(&self, to: &mut impl Write, lines: u64) -> io::Result<()> {
        let mut block = Vec::new();
        for sequence in 0..lines {
            self.line(&mut block, sequence);
            if block.len() >= 256 * 1024 {
                to.write_all(&block)?;
                block.clear();
            }
        }
        to.write_all(&block)
    }
}

/// The generator's one step (SplitMix64).
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `digits` with a decimal number, zeros first.
fn put(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Finds the numbers of lines.
#[derive(Debug)]
pub(crate) struct Numbers(Finder<'static>);

impl Default for Numbers {
    fn default() -> Self {
        Self(Finder::new("seq="))
    }
}

impl Numbers {
    /// Source and number of the first line of a load in `record`, whatever stands around it.
    pub(crate) fn of(&self, record: &[u8]) -> Option<(u16, u64)> {
        let line = record.get(self.0.find(record)?..)?;
        let sequence = digits(line.get(4..4 + DIGITS)?)?;
        if line.get(4 + DIGITS..SOURCE_AT)? != b" src=" {
            return None;
        }
        let source = digits(line.get(SOURCE_AT..SOURCE_AT + SOURCE_DIGITS)?)?;
        Some((u16::try_from(source).ok()?, sequence))
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + u64::from(byte - b'0'))
    })
}

/// Which lines of one source have been seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// One bit each.
    lines: Vec<u64>,
    /// Seen at least once.
    pub(crate) distinct: u64,
    /// Seen once more.
    pub(crate) repeated: u64,
}

impl Seen {
    /// Highest number that is kept: 128 MiB of bits.
    const HIGHEST: u64 = 1 << 30;

    /// Notes a line; not one above a billion.
    pub(crate) fn note(&mut self, sequence: u64) {
        if sequence > Self::HIGHEST {
            return;
        }
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if word >= self.lines.len() {
            self.lines.resize((word + 1).next_power_of_two(), 0);
        }
        if self.lines[word] & bit == 0 {
            self.distinct += 1;
        } else {
            self.repeated += 1;
        }
        self.lines[word] |= bit;
    }

    /// How many lines below the highest seen are missing.
    pub(crate) fn missing(&self) -> u64 {
        let highest = self.lines.iter().rposition(|word| *word != 0);
        let Some(word) = highest else { return 0 };
        let after = 64 * (word as u64 + 1) - u64::from(self.lines[word].leading_zeros());
        after.saturating_sub(self.distinct)
    }
}

/// Writes a file of numbered lines.
#[derive(Debug, clap::Args)]
pub(crate) struct ToFile {
    /// The file; it is appended to
    file: PathBuf,
    /// How many lines
    #[arg(long, default_value_t = 1_000_000)]
    lines: u64,
    /// Length of a line, its end included
    #[arg(long, default_value_t = 200)]
    line_bytes: usize,
    /// Makes another text of the same numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tells the lines of several files apart, 0 to 9999
    #[arg(long, default_value_t = 0)]
    source: u16,
}

impl ToFile {
    /// Writes it.
    ///
    /// # Errors
    /// As the file system gives them.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = BufWriter::new(options.create(true).append(true).open(&self.file)?);
        Load::new(self.seed, self.source, self.line_bytes).write(&mut file, self.lines)?;
        Ok(file.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_long_as_asked_for_and_known_again_in_whatever_it_is_wrapped() {
        for line_bytes in [0, Load::SHORTEST, 200, 9_000] {
            let load = Load::new(1, 7, line_bytes);
            let mut out = b"{\"message\":\"".to_vec();
            let before = out.len();
            load.line(&mut out, 123_456);
            assert_eq!(out.len() - before, line_bytes.max(Load::SHORTEST));
            assert!(out.ends_with(b"\n") && out.is_ascii());
            assert_eq!(Numbers::default().of(&out), Some((7, 123_456)));
        }
        for other in [&b""[..], b"seq=", b"seq=12", b"seq=00000000000x src=0000"] {
            assert_eq!(Numbers::default().of(other), None);
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_lines() {
        let write = |seed| {
            let mut out = Vec::new();
            Load::new(seed, 0, 200).write(&mut out, 3_000).map(|()| out)
        };
        let (one, again, other) = (write(1), write(1), write(2));
        assert_eq!(one.as_ref().ok(), again.as_ref().ok());
        assert_ne!(one.as_ref().ok(), other.as_ref().ok());
        assert_eq!(one.map(|out| out.len()).ok(), Some(600_000));
    }

    #[test]
    fn what_is_missing_and_what_came_twice_is_counted() {
        let mut seen = Seen::default();
        assert_eq!(seen.missing(), 0);
        for sequence in [0, 5, 64, 5, 200, u64::MAX] {
            seen.note(sequence);
        }
        assert_eq!((seen.distinct, seen.repeated), (4, 1));
        assert_eq!(seen.missing(), 201 - 4);
    }
}
