//! The records of a load, one after the other.

use std::sync::Arc;

use super::{Fate, Load, Verdict};
use crate::batch::Chunk;

/// The records of a load, from [`Load::iter`].
#[derive(Debug, Clone)]
pub(crate) struct Records<'load> {
    load: &'load Load,
    /// How many were given.
    given: usize,
    /// The chunk that is read, and the number of its first record in the batch.
    chunk: usize,
    first: usize,
}

impl Load {
    /// Each record that is sent: its chunk, and its encoded bytes with line end. Allocates nothing.
    pub(crate) fn iter(&self) -> Records<'_> {
        Records {
            load: self,
            given: 0,
            chunk: 0,
            first: 0,
        }
    }
}

impl<'load> Iterator for Records<'load> {
    type Item = (&'load Arc<Chunk>, &'load [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let load = self.load;
        let number = match &load.records {
            Some(records) => *records.get(self.given)? as usize,
            None => self.given,
        };
        loop {
            let chunk = load.batch.chunks.get(self.chunk)?;
            // Numbers ascend; one that does not ends the load.
            let in_chunk = number.checked_sub(self.first)?;
            if in_chunk < chunk.records.len() {
                self.given += 1;
                return Some((chunk, chunk.record(in_chunk)));
            }
            self.first += chunk.records.len();
            self.chunk += 1;
        }
    }
}

/// An encoded record without its line end.
pub(super) fn text(record: &[u8]) -> &[u8] {
    record.strip_suffix(b"\n").unwrap_or(record)
}

/// The verdict on a load of which `delivered` records, from the front, have arrived and the rest has not.
pub(super) fn arrived(delivered: usize, of: usize, cause: &Arc<str>) -> Verdict {
    if delivered == 0 {
        return Verdict::Failed {
            cause: Arc::clone(cause),
        };
    }
    if delivered >= of {
        return Verdict::All(Fate::Delivered);
    }
    let again = Fate::Again {
        cause: Arc::clone(cause),
    };
    let mut fates = vec![Fate::Delivered; delivered];
    fates.resize(of, again);
    Verdict::Each(fates)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::batch::{Batch, Hold, Mark, SpanOf};

    /// A load of one batch; each inner list is a chunk.
    pub(crate) fn load(target: &str, chunks: &[&[&str]], records: Option<&[u32]>) -> Load {
        let (mut all, mut size) = (Vec::new(), 0);
        for (n, texts) in chunks.iter().enumerate() {
            let (mut bytes, mut marks) = (Vec::new(), Vec::new());
            for text in *texts {
                let start = bytes.len() as u64;
                bytes.extend_from_slice(text.as_bytes());
                bytes.push(b'\n');
                marks.push(Mark {
                    encoded_end: u32::try_from(bytes.len()).expect("a small chunk"),
                    source_bytes: 1,
                    lines: 1,
                    start,
                });
            }
            size += bytes.len();
            all.push(Arc::new(Chunk {
                total: crate::ledger::Tally::default(),
                bytes: bytes.into(),
                records: marks,
                day: 0,
                source_hash: 0x1000 + n as u64,
                generation: 0,
                hold: Hold::new(&Arc::default(), 0),
            }));
        }
        Load {
            batch: Arc::new(Batch {
                id: 1,
                target: target.into(),
                day: 0,
                spans: vec![SpanOf { source: 0, span: 0 }; all.len()],
                records: all.iter().map(|chunk| chunk.records.len()).sum(),
                bytes: size,
                chunks: all,
            }),
            records: records.map(Into::into),
            after: Arc::default(),
        }
    }

    fn texts(load: &Load) -> Vec<(u64, String)> {
        load.iter()
            .map(|(chunk, bytes)| {
                let text = String::from_utf8_lossy(text(bytes)).into_owned();
                (chunk.source_hash, text)
            })
            .collect()
    }

    #[test]
    fn a_load_gives_the_records_it_names_with_their_chunks_in_order() {
        let chunks: &[&[&str]] = &[&["a", "b"], &[], &["c"], &["d", "", "f"]];
        let of = |records| texts(&load("t", chunks, records));
        let all = of(None);
        assert_eq!(all.len(), 6);
        assert_eq!(all[2], (0x1002, "c".to_owned()));
        assert_eq!(all[4], (0x1003, String::new()));
        assert_eq!(
            of(Some(&[1, 3, 5])),
            [all[1].clone(), all[3].clone(), all[5].clone()]
        );
        assert_eq!(of(Some(&[0, 9])), [all[0].clone()]);
        assert_eq!(of(Some(&[3, 0])), [all[3].clone()]);
        assert_eq!(of(Some(&[])), []);
    }

    #[test]
    fn what_arrived_is_told_from_what_did_not() {
        let cause: Arc<str> = "gone".into();
        let again = Fate::Again {
            cause: Arc::clone(&cause),
        };
        assert_eq!(
            arrived(0, 2, &cause),
            Verdict::Failed {
                cause: Arc::clone(&cause)
            }
        );
        assert_eq!(
            arrived(1, 2, &cause),
            Verdict::Each(vec![Fate::Delivered, again])
        );
        assert_eq!(arrived(2, 2, &cause), Verdict::All(Fate::Delivered));
    }
}
