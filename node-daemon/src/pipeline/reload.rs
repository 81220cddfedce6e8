//! What a new configuration changes, while everything else goes on.
//! Place: the reload calls it, between two steps of the others.
//! Invariants: an output keeps its number for the whole run, so that no answer on its way goes astray; a flow that is
//! retired keeps its cursor, and takes up from there if it is wanted again; what is not changed is not touched.

use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::WantId;
use ringpilot_shared::follow::identity::tail_at;

use super::save::save_flow;
use super::{OutputPlan, Pipeline, State};
use crate::checkpoint::{Entry, FlowKey};
use crate::declare::StartAt;
use crate::flow::{Flow, FlowTurn, Position};
use crate::follow::Spec;
use crate::settings::OutputSettings;
use crate::ship::Output;

/// Outputs that one run can know, those that were removed among them.
pub const MOST_OUTPUTS: usize = 192;

impl Pipeline {
    /// The number of an output that is there now.
    #[must_use]
    pub fn slot_of(&self, name: &str) -> Option<usize> {
        self.state.lock().slot_of(name)
    }

    /// Takes one more output; its number, and whether it is new in this run. `None` when there were too many.
    pub fn add_output(&self, plan: OutputPlan) -> Option<(usize, bool)> {
        let mut state = self.state.lock();
        let wall_ns = self.host.wall_ns();
        state.pending.push(Entry::Outputs(
            vec![Arc::clone(&plan.shipper.name)],
            wall_ns,
        ));
        state.must_save = true;
        let known = state.plan.outputs.iter().position(|old| {
            old.shipper.removed
                && old.shipper.name == plan.shipper.name
                && old.shipper.kind == plan.shipper.kind
                && old.codec == plan.codec
                && old.dated == plan.dated
        });
        if let Some(slot) = known {
            let old = &mut state.plan.outputs[slot];
            old.shipper.output = plan.shipper.output;
            old.shipper.removed = false;
            old.shipper.is_held_back = false;
            old.start_at = plan.start_at;
            return Some((slot, false));
        }
        let slot = state.plan.outputs.len();
        if slot >= self.shipping.len() {
            return None;
        }
        let mut plan = plan;
        plan.shipper.dated = plan.dated;
        state.plan.outputs.push(plan);
        state.starved.push(Vec::new());
        state.closed.push(Default::default());
        Some((slot, true))
    }

    /// From now on loads go there; `None`: as before. What is on its way ends where it was sent.
    pub fn change_output(
        &self,
        slot: usize,
        settings: &OutputSettings,
        batch_wait: Duration,
        share: usize,
        output: Option<Arc<dyn Output>>,
    ) {
        let mut state = self.state.lock();
        let plan = &mut state.plan.outputs[slot];
        plan.start_at = settings.start_at;
        if let Some(output) = output {
            plan.shipper.output = output;
            // What the old one was waiting for need not be waited for any more.
            plan.shipper.forgive();
        }
        plan.shipper.change(settings, batch_wait, share);
        drop(state);
        self.shipping[slot].notify_one();
    }

    /// Sends nothing more to an output until it is told otherwise; whether nothing is on its way.
    pub fn hold_output(&self, slot: usize, hold: bool) -> bool {
        let mut state = self.state.lock();
        let shipper = &mut state.plan.outputs[slot].shipper;
        shipper.is_held_back = hold;
        let is_quiet = shipper.nothing_in_flight();
        drop(state);
        if !hold {
            self.shipping[slot].notify_one();
        }
        is_quiet
    }

    /// An output has another name; its flows go on.
    pub fn rename_output(&self, slot: usize, name: &str) {
        let mut state = self.state.lock();
        let new: Arc<str> = name.into();
        let old = std::mem::replace(&mut state.plan.outputs[slot].shipper.name, Arc::clone(&new));
        let wall_ns = self.host.wall_ns();
        state
            .pending
            .push(Entry::Outputs(vec![Arc::clone(&new)], wall_ns));
        state.must_save = true;
        let keys: Vec<FlowKey> = state
            .known
            .flows
            .keys()
            .filter(|key| key.output == old)
            .cloned()
            .collect();
        for mut key in keys {
            if let Some(flow) = state.known.flows.remove(&key) {
                key.output = Arc::clone(&new);
                state.pending.push(Entry::Flow(key.clone(), flow.clone()));
                state.known.flows.insert(key, flow);
            }
        }
        for flow in state
            .sources
            .values_mut()
            .flat_map(|source| &mut source.flows)
        {
            flow.unsaved |= flow.output == slot;
        }
    }

    /// An output is no more. What is gathered for it leaves memory; its cursors stay.
    pub fn retire_output(&self, slot: usize) {
        let mut state = self.state.lock();
        let wall_ns = self.host.wall_ns();
        let shipper = &mut state.plan.outputs[slot].shipper;
        shipper.removed = true;
        let name = Arc::clone(&shipper.name);
        state.pending.push(Entry::Outputs(vec![name], wall_ns));
        state.must_save = true;
        let mut numbers = Vec::new();
        for source in state.sources.values_mut() {
            for flow in &mut source.flows {
                if flow.output == slot {
                    flow.retire();
                    numbers.push(source.number);
                }
            }
        }
        state.drop_gathered(slot);
        for number in numbers {
            state.settle_source(number);
        }
    }

    /// Where files begin from now on, and how long a record may wait.
    pub fn replan(&self, start_at: StartAt) {
        self.state.lock().plan.start_at = start_at;
    }

    /// A want means something else now. Its files go on where they are.
    pub fn respec(&self, want: WantId, spec: &Arc<Spec>) {
        let mut state = self.state.lock();
        if let Some(want) = state.wants.get_mut(&want) {
            want.spec = Arc::clone(spec);
        }
        let numbers: Vec<u64> = state.sources.keys().copied().collect();
        for number in numbers {
            let Some(source) = state.sources.get_mut(&number) else {
                continue;
            };
            let mut is_first = false;
            for (n, claim) in source.claims.iter_mut().enumerate() {
                if claim.want == want {
                    claim.spec = Arc::clone(spec);
                    is_first |= n == 0;
                }
            }
            if is_first {
                state.reconcile(number);
            }
        }
        drop(state);
        self.work.notify_all();
    }

    /// Nobody wants this any more: its files are left where they are read to.
    pub fn drop_want(&self, want: WantId) {
        let mut state = self.state.lock();
        state.wants.remove(&want);
        state.dropped_wants.insert(want);
        let numbers: Vec<u64> = state.sources.keys().copied().collect();
        for number in numbers {
            let Some(source) = state.sources.get_mut(&number) else {
                continue;
            };
            if source.claims.iter().all(|claim| claim.want != want) {
                continue;
            }
            if source.claims.len() > 1 {
                source.claims.retain(|claim| claim.want != want);
                state.reconcile(number);
                continue;
            }
            source.ended = true;
            for flow in &mut source.flows {
                flow.retire();
            }
            state.settle_source(number);
        }
        drop(state);
        if let Some(wakes) = self.follower.get() {
            wakes.wake();
        }
    }

    /// Who is held back by its rate, in its owner's words.
    #[must_use]
    pub fn held_back(&self) -> Vec<crate::problem::Problem> {
        let now = self.host.now();
        self.state.lock().rates.told(now)
    }
}

impl State {
    fn slot_of(&self, name: &str) -> Option<usize> {
        let mut outputs = self.plan.outputs.iter();
        outputs.position(|plan| !plan.shipper.removed && *plan.shipper.name == *name)
    }

    /// What is gathered for an output that is no more leaves memory; its flows stand before it.
    pub(super) fn drop_gathered(&mut self, slot: usize) {
        for span in self.plan.outputs[slot].shipper.drop_all() {
            let n = usize::try_from(span.source % 256).unwrap_or(usize::MAX);
            let flow = self.sources.get_mut(&(span.source / 256));
            if let Some(flow) = flow.and_then(|source| source.flows.get_mut(n)) {
                flow.rewind(span.span);
                flow.unsaved = true;
            }
        }
    }

    /// Gives a source the flows that its declaration wants now.
    pub(super) fn reconcile(&mut self, number: u64) {
        let Some(source) = self.sources.get(&number) else {
            return;
        };
        let spec = Arc::clone(source.spec());
        let wanted: Vec<usize> = spec.outputs.iter().map(|(output, _)| *output).collect();
        let mut new = Vec::new();
        for output in &wanted {
            if source.flows.iter().any(|flow| flow.output == *output) {
                continue;
            }
            let name = &self.plan.outputs[*output].shipper.name;
            let key = self.key(source, *output);
            // The same output under another number: its type or form has changed.
            let before = source
                .flows
                .iter()
                .find(|flow| flow.retired && self.plan.outputs[flow.output].shipper.name == *name);
            let saved = match before {
                Some(flow) => Some(save_flow(flow, &flow.cursor, source.stat.size)),
                None => self.known.flows.get(&key).cloned(),
            };
            let flow = match saved {
                Some(saved) => self.restore(*output, &key.declaration, &saved),
                None => self.begin(number, *output),
            };
            new.push((key, flow));
        }
        for (key, mut flow) in new {
            self.known.flows.remove(&key);
            flow.unsaved = true;
            if let Some(source) = self.sources.get_mut(&number)
                && source.flows.len() < 256
            {
                source.flows.push(flow);
            }
        }
        let Some(source) = self.sources.get_mut(&number) else {
            return;
        };
        source.ended = false;
        for flow in &mut source.flows {
            if !wanted.contains(&flow.output) {
                flow.retire();
            } else if flow.retired {
                flow.retired = false;
                flow.stuck_at = None;
                flow.turn = FlowTurn::Quiet;
            }
        }
        source.unsaved = true;
        self.wake(number);
    }

    /// A flow to an output that is new for a source that is there: at the end, unless the output says otherwise.
    fn begin(&self, number: u64, output: usize) -> Flow {
        let Some(source) = self.sources.get(&number) else {
            return Flow::at(output, 0, Position::start());
        };
        let furthest = source
            .flows
            .iter()
            .filter(|flow| flow.read.held.is_empty())
            .map(|flow| &flow.read)
            .max_by_key(|read| read.offset);
        let at_end = match self.plan.outputs[output].start_at {
            Some(StartAt::Beginning) => false,
            // What still grows is young.
            Some(StartAt::Age(age)) => self.now.saturating_sub(source.grew_at) > age,
            Some(StartAt::End) | None => true,
        };
        let position = match (at_end, furthest) {
            (false, _) => Position::start(),
            // The end of a line, as far as anybody has read.
            (true, Some(read)) => read.clone(),
            (true, None) => {
                let offset = source.stat.size;
                let tail = source
                    .file
                    .as_ref()
                    .and_then(|file| tail_at(&**file, offset).ok().flatten());
                Position {
                    offset,
                    tail: tail.unwrap_or(0),
                    held: Arc::default(),
                }
            }
        };
        Flow::at(output, position.offset, position)
    }
}
