//! Write records to the daemon's own standard output, one a line, or spread over lines for people.
//! Place: batch -> **ship::console**.
//! Invariants: a record is never torn by another, also where the reader is slow and takes half of it; what the
//! kernel took counts as delivered, for nobody acknowledges more.

use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::batch::Codec;
use crate::problem::Problem;
use crate::settings::{OutputSettings, from_value};

/// The output's own keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    pretty: bool,
    codec: CodecWritten,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CodecWritten {
    #[default]
    Json,
    Raw,
}

/// The console output.
#[derive(Debug, Clone)]
pub struct ConsoleOutput {
    pretty: bool,
    codec: CodecWritten,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    sink: Box<dyn Write + Send>,
    /// The rest of a record that the reader took half of.
    rest: Vec<u8>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("rest", &self.rest.len())
            .finish_non_exhaustive()
    }
}

impl ConsoleOutput {
    /// An output as set, on standard output.
    ///
    /// # Errors
    /// What is wrong with its settings.
    pub fn new(settings: &OutputSettings) -> Result<Self, Vec<Problem>> {
        Self::to(settings, Box::new(io::stdout()))
    }

    /// The same, writing elsewhere.
    ///
    /// # Errors
    /// What is wrong with its settings.
    pub fn to(
        settings: &OutputSettings,
        sink: Box<dyn Write + Send>,
    ) -> Result<Self, Vec<Problem>> {
        let written: Written = match &settings.settings {
            value if value.is_null() => Written::default(),
            value => from_value(value, &settings.path()).map_err(|one| vec![one])?,
        };
        Ok(Self {
            pretty: written.pretty && written.codec == CodecWritten::Json,
            codec: written.codec,
            inner: Arc::new(Mutex::new(Inner {
                sink,
                rest: Vec::new(),
            })),
        })
    }

    /// How its batches are to be encoded.
    pub fn codec(&self) -> Codec {
        match self.codec {
            CodecWritten::Json => Codec::Json,
            CodecWritten::Raw => Codec::Raw,
        }
    }

    /// Writes a load. Blocking: as slow as its reader.
    pub fn write(&self, load: &Load) -> Verdict {
        let mut inner = self.inner.lock();
        let mut written = 0;
        let result = match (&load.records, self.pretty) {
            // The whole batch as it is: what a failure leaves open is found by the bytes that were taken.
            (None, false) => load.batch.chunks.iter().try_for_each(|chunk| {
                let (taken, result) = inner.write(&chunk.bytes);
                let whole = chunk
                    .records
                    .partition_point(|r| r.encoded_end as usize <= taken);
                written += whole;
                if let Some(next) = chunk.records.get(whole) {
                    let begun = whole
                        .checked_sub(1)
                        .map_or(0, |n| chunk.records[n].encoded_end);
                    if taken > begun as usize {
                        inner.rest = chunk.bytes[taken..next.encoded_end as usize].to_vec();
                    }
                }
                result
            }),
            (records, pretty) => load
                .batch
                .iter()
                .filter(|(n, ..)| {
                    let n = u32::try_from(*n).unwrap_or(u32::MAX);
                    records
                        .as_ref()
                        .is_none_or(|wanted| wanted.binary_search(&n).is_ok())
                })
                .try_for_each(|(_, _, record)| {
                    inner.write_record(record, pretty)?;
                    written += 1;
                    Ok(())
                }),
        };
        let result = result.and_then(|()| inner.sink.flush());
        match result {
            Ok(()) => Verdict::All(Fate::Delivered),
            Err(error) => {
                let cause: Arc<str> = format!(
                    "standard output cannot be written: {error}; do: start the daemon with a reader, or use another output"
                )
                .into();
                let fates = (0..load.len()).map(|n| match n < written {
                    true => Fate::Delivered,
                    false => Fate::Again {
                        cause: Arc::clone(&cause),
                    },
                });
                Verdict::Each(fates.collect())
            }
        }
    }
}

impl Inner {
    /// Finishes what was begun, then writes these. How many bytes of these were taken.
    fn write(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut taken = 0;
        loop {
            let begun = !self.rest.is_empty();
            let next = if begun {
                &self.rest[..]
            } else {
                &bytes[taken..]
            };
            if next.is_empty() {
                return (taken, Ok(()));
            }
            match self.sink.write(next) {
                Ok(0) => return (taken, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) if begun => drop(self.rest.drain(..n)),
                Ok(n) => taken += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (taken, Err(error)),
            }
        }
    }

    fn write_record(&mut self, record: &[u8], pretty: bool) -> io::Result<()> {
        let mut spread = None;
        if pretty && let Ok(value) = serde_json::from_slice::<serde_json::Value>(record) {
            spread = serde_json::to_vec_pretty(&value).ok().map(|mut spread| {
                spread.push(b'\n');
                spread
            });
        }
        // What is no JSON is shown as it is.
        let bytes = spread.as_deref().unwrap_or(record);
        let (taken, result) = self.write(bytes);
        if taken > 0 && taken < bytes.len() {
            self.rest = bytes[taken..].to_vec();
        }
        result
    }
}

impl Output for ConsoleOutput {
    fn guarantee(&self) -> Guarantee {
        Guarantee::NotAcknowledged
    }

    fn ordered(&self) -> bool {
        true
    }

    fn attempt<'a>(&'a self, load: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async move {
            let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                return self.write(load);
            };
            let (output, load) = (self.clone(), load.clone());
            let written = runtime.spawn_blocking(move || output.write(&load)).await;
            written.unwrap_or_else(|error| Verdict::Failed {
                cause: format!("writing to standard output ended before its end: {error}").into(),
            })
        })
    }

    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        // Whether anyone reads shows only when something is written.
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::file::tests::load_of;

    /// Takes so many bytes, then says it would block, by turns.
    struct Slow {
        taken: Arc<Mutex<Vec<u8>>>,
        at_a_time: usize,
        blocks: bool,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.blocks = !self.blocks;
            if self.blocks {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = bytes.len().min(self.at_a_time);
            self.taken.lock().extend_from_slice(&bytes[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn console(yaml: &str, at_a_time: usize) -> (ConsoleOutput, Arc<Mutex<Vec<u8>>>) {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let sink = Slow {
            taken: Arc::clone(&taken),
            at_a_time,
            blocks: at_a_time == usize::MAX,
        };
        let settings = serde_yaml_ng::from_str(yaml).expect("the test's own YAML");
        let settings = OutputSettings::of("console", settings);
        (
            ConsoleOutput::to(&settings, Box::new(sink)).expect("good settings"),
            taken,
        )
    }

    #[test]
    fn a_record_is_never_torn_by_another_though_the_reader_takes_a_few_bytes_at_a_time() {
        for yaml in ["{}", "{pretty: true}"] {
            let (console, taken) = console(yaml, 5);
            let mut load = load_of("web", &["{\"n\":1}\n", "{\"n\":22}\n", "{\"n\":333}\n"]);
            let mut open: Vec<u32> = vec![0, 1, 2];
            for _ in 0..100 {
                match console.write(&load) {
                    Verdict::All(Fate::Delivered) => break,
                    Verdict::Each(fates) => {
                        assert_eq!(fates.len(), open.len());
                        let still = open
                            .iter()
                            .zip(&fates)
                            .filter(|(_, f)| **f != Fate::Delivered);
                        open = still.map(|(n, _)| *n).collect();
                        load.records = Some(open.clone().into());
                    }
                    other => panic!("{other:?}"),
                }
            }
            let taken = String::from_utf8(taken.lock().clone()).expect("text");
            let read: Vec<serde_json::Value> = serde_json::Deserializer::from_str(&taken)
                .into_iter()
                .collect::<Result<_, _>>()
                .unwrap_or_else(|error| panic!("{error}: {taken}"));
            let mut numbers: Vec<u64> = read.iter().filter_map(|r| r["n"].as_u64()).collect();
            numbers.dedup();
            assert_eq!(numbers, [1, 22, 333], "{yaml}");
        }
    }

    #[test]
    fn records_come_out_as_they_were_encoded_or_spread_for_people() {
        let load = load_of("web", &["{\"message\":\"a\",\"n\":1}\n", "no json\n"]);
        let (plain, taken) = console("{codec: raw, pretty: true}", usize::MAX);
        assert_eq!(plain.write(&load), Verdict::All(Fate::Delivered));
        assert_eq!(*taken.lock(), b"{\"message\":\"a\",\"n\":1}\nno json\n");
        let (pretty, taken) = console("{pretty: true}", usize::MAX);
        // It says once that it would block, between the two.
        while pretty.write(&load) != Verdict::All(Fate::Delivered) {}
        let taken = String::from_utf8(taken.lock().clone()).expect("text");
        assert!(
            taken.contains("{\n  \"message\": \"a\",\n  \"n\": 1\n}\n"),
            "{taken}"
        );
        assert!(taken.ends_with("no json\n"), "{taken}");
    }
}
