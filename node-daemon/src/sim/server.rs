//! Outputs of a simulated node: what they took, and what they say of it.
//! Invariant: a record that the server took stays taken, whatever became of the answer.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringpilot_shared::sim::Rng;

use crate::ship::{Fate, Guarantee, Load, Output, Verdict};

/// How a server treats what it has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// By id, as Elasticsearch: a replay is told as such.
    ById,
    /// As it comes, as Kafka: a replay is there twice.
    Plain,
}

/// A server's memory.
#[derive(Debug)]
pub(super) struct Server {
    kind: Kind,
    /// Everything it has: text of each record, by id or by order.
    by_id: HashMap<Vec<u8>, Vec<u8>>,
    plain: Vec<Vec<u8>>,
    /// It refuses everything.
    pub is_down: bool,
    /// How likely a request goes wrong in some way.
    pub trouble: f64,
    /// How likely a record is refused for good.
    pub refuses: f64,
    /// Records it refused for good.
    pub refused: u64,
}

impl Server {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            by_id: HashMap::new(),
            plain: Vec::new(),
            is_down: false,
            trouble: 0.0,
            refuses: 0.0,
            refused: 0,
        }
    }

    /// Every record it has.
    pub(super) fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.by_id.values().chain(&self.plain).map(Vec::as_slice)
    }

    /// Where the records stand that have this text: source hash, generation and start, as their ids say.
    pub(super) fn places_of(&self, text: &[u8]) -> Vec<String> {
        let found = self.by_id.iter().filter(|(_, document)| {
            let mut parts = document.windows(text.len().max(1));
            parts.any(|part| part == text)
        });
        let mut places: Vec<String> = found.map(|(action, _)| place_of(action)).collect();
        places.sort();
        places
    }

    /// Processes a request; what it answers, if the answer arrives.
    pub(super) fn serve(&mut self, load: &Load, rng: &mut Rng) -> Verdict {
        let failed = |cause: &str| Verdict::Failed {
            cause: cause.into(),
        };
        if self.is_down {
            return failed("connection refused");
        }
        if !rng.chance(self.trouble) {
            return Verdict::Each(self.take(load, load.len()));
        }
        match rng.below(5) {
            0 => failed("connection reset before the request"),
            1 => {
                self.take(load, load.len());
                failed("connection reset before the answer")
            }
            2 => {
                // It answers for half of what it was given.
                let half = load.len() / 2;
                let mut fates = self.take(load, half);
                fates.truncate(half);
                Verdict::Each(fates)
            }
            3 if load.len() > 1 => Verdict::TooLarge,
            _ => {
                let taken = rng.index(load.len() + 1);
                let mut fates = self.take(load, taken);
                fates.resize(
                    load.len(),
                    Fate::Again {
                        cause: "429 too many requests".into(),
                    },
                );
                Verdict::Each(fates)
            }
        }
    }

    fn take(&mut self, load: &Load, most: usize) -> Vec<Fate> {
        let wanted = |n: usize| match &load.records {
            Some(some) => some.contains(&u32::try_from(n).unwrap_or(u32::MAX)),
            None => true,
        };
        let mut fates = Vec::new();
        for (n, _, bytes) in load.batch.iter() {
            if !wanted(n) {
                continue;
            }
            if fates.len() >= most {
                break;
            }
            fates.push(self.take_one(bytes));
        }
        fates
    }

    fn take_one(&mut self, bytes: &[u8]) -> Fate {
        // What is refused is refused always: it is the document's own fault.
        let hash =
            xxhash_rust::xxh3::xxh3_64(bytes.rsplit(|b| *b == b'\n').nth(1).unwrap_or_default());
        if (hash >> 11) as f64 / (1_u64 << 53) as f64 <= self.refuses && self.refuses > 0.0 {
            self.refused += 1;
            return Fate::Refused {
                reason: "mapper_parsing_exception".into(),
                detail: "simulated".into(),
            };
        }
        match self.kind {
            Kind::Plain => {
                self.plain.push(bytes.to_vec());
                Fate::Delivered
            }
            Kind::ById => {
                let end = bytes
                    .iter()
                    .position(|b| *b == b'\n')
                    .unwrap_or(bytes.len());
                let (action, document) = bytes.split_at(end);
                // `create`: what has an id already is never replaced, so a false replay is a lost record.
                if self.by_id.contains_key(action) {
                    return Fate::Duplicate;
                }
                self.by_id.insert(action.to_vec(), document[1..].to_vec());
                Fate::Delivered
            }
        }
    }
}

fn place_of(action: &[u8]) -> String {
    let id = action
        .windows(7)
        .position(|part| part == b"\"_id\":\"")
        .and_then(|at| action.get(at + 7..at + 37))
        .and_then(|id| URL_SAFE_NO_PAD.decode(id).ok());
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |all, b| all << 8 | u64::from(*b));
    match id.as_deref() {
        Some(id) if id.len() >= 16 => format!(
            "{:x} generation {} start {}",
            number(&id[..8]),
            number(&id[8..10]),
            number(&id[10..16])
        ),
        _ => String::from_utf8_lossy(action).into_owned(),
    }
}

/// Stands in the pipeline for a server that the history calls by hand.
#[derive(Debug)]
pub(super) struct ByHand {
    /// What the real one would promise.
    pub guarantee: Guarantee,
}

impl Output for ByHand {
    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }
    fn ordered(&self) -> bool {
        false
    }
    fn attempt<'a>(&'a self, _: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async {
            Verdict::Failed {
                cause: "this server is called by hand".into(),
            }
        })
    }
    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { Ok(()) })
    }
}

/// Shared as the pipeline wants it.
pub(super) fn by_hand(kind: Kind) -> Arc<dyn Output> {
    Arc::new(ByHand {
        guarantee: match kind {
            Kind::ById => Guarantee::EffectivelyOnce,
            Kind::Plain => Guarantee::AtLeastOnce,
        },
    })
}
