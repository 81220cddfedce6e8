//! Sources: a stream as one declaration wants it, with a flow for every output.
//! Place: declare, the shared follower -> **follow** -> worker. The follower says which file; the pipeline holds the
//! sources and lets workers read them.
//! Invariants: a file that several containers declare under one name is one source, with the tags of the first that
//! still lives; what makes ids (hash, generation, days, cuts) is saved before it is used.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringpilot_shared::follow::{Identity, StreamKey};
use ringpilot_shared::host::{LogFile, Stat};

use crate::batch::Day;
use crate::batch::json::Names;
use crate::checkpoint::SavedCut;
use crate::decode::Envelope;
use crate::decode::charset::Charset;
use crate::decode::lines::Unit;
use crate::decode::multiline::Rule;
use crate::filter::Filter;
use crate::flow::{Flow, FlowTurn};
use crate::ledger::Lost;
use crate::parse::Parser;
use crate::tag::Tags;

/// A declaration of one workload, compiled: everything a worker needs to make records of bytes.
#[derive(Debug)]
pub struct Spec {
    /// The declaration's name.
    pub name: Arc<str>,
    /// Whose it is, for people: `shop/web-7d4f (nginx)`.
    pub who: String,
    /// The container's id; empty for the host.
    pub owner: Arc<str>,
    /// When the container was made: the earliest that lives reads a shared file.
    pub created_ns: i64,
    /// What stands around the text.
    pub envelope: Envelope,
    /// How the text is encoded, if not UTF-8.
    pub charset: Option<Charset>,
    /// Which lines make one record.
    pub multiline: Option<Rule>,
    /// How long an open group may rest at the end of its file.
    pub timeout: Duration,
    /// Which records are wanted.
    pub filter: Filter,
    /// Text into fields.
    pub parser: Parser,
    /// The source's own fields.
    pub tags: Tags,
    /// The parser's own names, rendered beside the tags.
    pub names: Names,
    /// Longest record in bytes.
    pub max_bytes: usize,
    /// To which outputs, by index, and to which target of each.
    pub outputs: Vec<(usize, Arc<str>)>,
    /// Bytes per second that may be read of its container.
    pub limits: crate::policy::Limits,
    /// What the status page shows of it.
    pub shown: Shown,
}

/// What people see of a spec.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Shown {
    /// The declared target.
    pub target: String,
    /// The format's name.
    pub format: &'static str,
    /// `docker`, `cri`, `static`…
    pub runtime: String,
    /// Container name.
    pub container: String,
    /// Pod name.
    pub pod: String,
    /// Namespace.
    pub namespace: String,
    /// `file`, `stdout` or `ring`.
    pub via: &'static str,
    /// Which way it is read, and why, as half a sentence; empty where `via` says all.
    pub way: String,
}

impl Spec {
    /// In what unit its line ends are found.
    pub fn unit(&self) -> Unit {
        self.charset.as_ref().map_or(Unit::One, Charset::unit)
    }
    /// How problems name it.
    pub fn called(&self) -> String {
        match self.who.as_str() {
            "" => format!("source `{}`", self.name),
            who => format!("{who}, log `{}`", self.name),
        }
    }
    /// Whether several physical lines may become one record, so that a group may be open at a file's end.
    pub fn joins(&self) -> bool {
        self.multiline.is_some() || self.envelope != Envelope::Plain
    }
}

/// A stream as one declaration wants it.
#[derive(Debug)]
pub struct Source {
    /// Its number in this run.
    pub number: u64,
    /// Which file life.
    pub stream: StreamKey,
    /// What the file is recognised by.
    pub identity: Identity,
    /// Where it was last seen, in its owner's view.
    pub path: PathBuf,
    /// Who wants it under this name, the one that counts first.
    pub claims: Vec<Claim>,
    /// The open file; `None` while it cannot be read.
    pub file: Option<Arc<dyn LogFile>>,
    /// What it was when last looked at.
    pub stat: Stat,
    /// When it last grew, by the host's monotonic clock.
    pub grew_at: Duration,
    /// When it was first seen in this run.
    pub seen_at: Duration,
    /// Nothing more will be written to it.
    pub finished: bool,
    /// The configuration does not want it any more.
    pub ended: bool,
    /// The size at which an open group was last looked at because it had rested.
    pub rested_at: Option<u64>,
    /// What is not read up to there is lost, once who reads now has finished.
    pub given_up: Option<(u64, Lost)>,
    /// It was truncated, or may have been: nobody reads until the follower has judged.
    pub suspended: bool,
    /// First 8 bytes of every record id.
    pub source_hash: u64,
    /// From which offset on which day counts as the read day.
    pub days: Arc<[(u64, Day)]>,
    /// Where time, not text, ended a group.
    pub cuts: Arc<[SavedCut]>,
    /// What makes its ids has changed since the save of this number; nobody reads before it.
    pub gate: Option<u64>,
    /// One for each output.
    pub flows: Vec<Flow>,
    /// The stream that took its name.
    pub successor: Option<StreamKey>,
    /// The stream whose name it took.
    pub predecessor: Option<StreamKey>,
    /// What it had handed over before a restart may come back to it.
    pub may_take_back: bool,
    /// Something of it besides cursors must be saved.
    pub unsaved: bool,
    /// The last trouble with reading it.
    pub trouble: Option<String>,
    /// Until when what lies beside it is accounted for, as the checkpoint keeps it.
    pub accounted_ns: Option<i64>,
    /// What of that was handed to the checkpoint together with all that it speaks of.
    pub accounted_before: Option<i64>,
}

/// One workload's wish for a source.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The follower's want.
    pub want: ringpilot_shared::follow::WantId,
    /// The compiled declaration.
    pub spec: Arc<Spec>,
    /// Its container has gone.
    pub gone: bool,
}

impl Source {
    /// The spec that counts: the first claim's.
    pub fn spec(&self) -> &Arc<Spec> {
        &self.claims[0].spec
    }
    /// Whether nothing of it is left to be done.
    pub fn is_over(&self) -> bool {
        (self.finished || self.ended)
            && !self.may_take_back
            && self
                .flows
                .iter()
                .all(|flow| flow.turn == FlowTurn::Done && flow.spans.is_empty())
    }
    /// Closes what is open at a place, for every output alike; durable (the save of this number) before it is read.
    /// Whether that is news.
    pub fn cut(&mut self, cut: SavedCut, save: u64) -> bool {
        if self.cuts.contains(&cut) {
            return false;
        }
        let mut cuts = self.cuts.to_vec();
        cuts.push(cut);
        cuts.sort_by_key(|cut| (cut.at, cut.end));
        self.cuts = cuts.into();
        self.gate = Some(save);
        self.unsaved = true;
        true
    }
    /// Bytes that a flow has not settled, of what is known to be there.
    pub fn lag(&self, flow: &Flow) -> u64 {
        let settled = flow.cursor.offset - flow.cursor.held_bytes().min(flow.cursor.offset);
        if flow.retired || (flow.turn == FlowTurn::Done && flow.spans.is_empty()) {
            return 0;
        }
        self.stat.size.saturating_sub(settled)
    }
    /// The read day at an offset.
    pub fn day_at(days: &[(u64, Day)], offset: u64) -> Day {
        days.iter()
            .rev()
            .find(|(from, _)| *from <= offset)
            .or(days.first())
            .map_or(0, |(_, day)| *day)
    }
}
