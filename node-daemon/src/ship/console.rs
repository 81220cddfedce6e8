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

/// A larger buffer is given back.
const KEPT_BYTES: usize = 64 << 10;

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
    /// The rest of a record that the reader took half of, and which one it is: its batch, and its number in it.
    rest: Vec<u8>,
    begun: Option<(u64, u32)>,
    text: Vec<u8>,
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
                begun: None,
                text: Vec::new(),
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
        let mut fates = Vec::with_capacity(load.len());
        if let Err(error) = inner.write(load, self.pretty, &mut fates) {
            let cause: Arc<str> = format!(
                "standard output cannot be written: {error}; do: start the daemon with a reader, or use another output"
            )
            .into();
            fates.resize(load.len(), Fate::Again { cause });
            return Verdict::Each(fates);
        }
        Verdict::All(Fate::Delivered)
    }
}

impl Inner {
    /// Finishes what was begun, then writes the load; `fates` gets one for each record that was taken whole.
    fn write(&mut self, load: &Load, pretty: bool, fates: &mut Vec<Fate>) -> io::Result<()> {
        while !self.rest.is_empty() {
            let taken = write_some(&mut *self.sink, &self.rest)?;
            self.rest.drain(..taken);
        }
        let begun = self.begun.take();
        // All of it at once: a write for each record would cost more than the copy.
        self.text.clear();
        let mut ends = Vec::with_capacity(load.len());
        for (n, _, record) in load.batch.iter() {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            let wanted = load.records.as_ref();
            if wanted.is_some_and(|wanted| wanted.binary_search(&n).is_err()) {
                continue;
            }
            // The one that has just been finished is there already.
            if begun != Some((load.batch.id, n)) {
                show(record, pretty, &mut self.text);
            }
            ends.push((self.text.len(), n));
        }
        let mut taken = 0;
        let mut result = Ok(());
        while result.is_ok() && taken < self.text.len() {
            match write_some(&mut *self.sink, &self.text[taken..]) {
                Ok(some) => taken += some,
                Err(error) => result = Err(error),
            }
        }
        let whole = ends.partition_point(|(end, _)| *end <= taken);
        fates.resize(whole, Fate::Delivered);
        if let Some((end, n)) = ends.get(whole) {
            let start = whole.checked_sub(1).map_or(0, |before| ends[before].0);
            if taken > start {
                self.rest.extend_from_slice(&self.text[taken..*end]);
                self.begun = Some((load.batch.id, *n));
            }
        }
        self.text.shrink_to(KEPT_BYTES);
        result.and_then(|()| self.sink.flush())
    }
}

fn write_some(sink: &mut dyn Write, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match sink.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Appends a record as it is, or spread over lines; what is no JSON is shown as it is.
fn show(record: &[u8], pretty: bool, text: &mut Vec<u8>) {
    if pretty
        && let Ok(value) = serde_json::from_slice::<serde_json::Value>(record)
        && let Ok(spread) = serde_json::to_vec_pretty(&value)
    {
        text.extend_from_slice(&spread);
        text.push(b'\n');
        return;
    }
    text.extend_from_slice(record);
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
        blocked: bool,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.blocked = !self.blocked && self.at_a_time < usize::MAX;
            if self.blocked {
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
            blocked: false,
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
            let numbers: Vec<u64> = read.iter().filter_map(|r| r["n"].as_u64()).collect();
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
        assert_eq!(pretty.write(&load), Verdict::All(Fate::Delivered));
        let taken = String::from_utf8(taken.lock().clone()).expect("text");
        assert!(
            taken.contains("{\n  \"message\": \"a\",\n  \"n\": 1\n}\n"),
            "{taken}"
        );
        assert!(taken.ends_with("no json\n"), "{taken}");
    }
}
