//! The pipeline as it stands, for the status page, the metrics and the tests.
//! Place: beside **pipeline**; asked under its lock, changes nothing.

use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::WantId;

use super::{State, Totals};
use crate::follow::{Source, Spec};
use crate::ledger::Ledger;
use crate::ship::retry::Shipper;

/// The pipeline as it stands, for those who tell of it.
#[derive(Debug)]
pub struct View<'a> {
    pub(super) state: &'a State,
    /// The monotonic clock.
    pub now: Duration,
}

impl View<'_> {
    /// Every source.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.state.sources.values()
    }
    /// What is wanted and cannot be read, in words.
    pub fn troubles(&self) -> impl Iterator<Item = &str> {
        self.state.troubles.values().map(String::as_str)
    }
    /// Every declaration that is wanted now, whether its files are there or not.
    pub fn wants(&self) -> impl Iterator<Item = (WantId, &Arc<Spec>)> {
        self.state.wants.iter().map(|(id, want)| (*id, &want.spec))
    }
    /// Every output.
    pub fn outputs(&self) -> impl Iterator<Item = &Shipper> {
        self.state.plan.outputs.iter().map(|output| &output.shipper)
    }
    /// Where everything of an output went, over all flows, those of an earlier run included.
    #[must_use]
    pub fn ledger(&self, output: usize) -> (Ledger, u64) {
        let mut all = Ledger::default();
        let mut in_flight = 0;
        for flow in self.state.sources.values().flat_map(|source| &source.flows) {
            if flow.output == output {
                all.add(&flow.ledger);
                in_flight += flow.in_flight();
            }
        }
        let name = &self.state.plan.outputs[output].shipper.name;
        for (key, flow) in &self.state.known.flows {
            if key.output == *name {
                all.add(&self.state.ledger_of_known(flow));
            }
        }
        all.add(&self.state.closed[output]);
        (all, in_flight)
    }
    /// How old the last save is.
    #[must_use]
    pub fn checkpoint_age(&self) -> Duration {
        self.now.saturating_sub(self.state.saved_at)
    }
    /// Why saving fails, if it does.
    #[must_use]
    pub fn save_failing(&self) -> Option<&Arc<str>> {
        self.state.save_failing.as_ref()
    }
    /// Counts of this run.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.state.totals
    }
    /// The first flow whose ledger does not close, as a sentence; there must never be one.
    #[must_use]
    pub fn unbalanced(&self) -> Option<String> {
        self.state.sources.values().find_map(|source| {
            let flow = source.flows.iter().find(|flow| !flow.ledger_closes())?;
            Some(format!(
                "{}: cursor {} + brought {} is not start {} + held {} + handed {} + accounted {}",
                source.path.display(),
                flow.cursor.offset,
                flow.brought,
                flow.start,
                flow.cursor.held_bytes(),
                flow.handed,
                flow.ledger.accounted(),
            ))
        })
    }
}
