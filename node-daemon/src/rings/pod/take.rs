//! What a pod's ring brings: frames drained, judged, and put into the windows of their files; lanes asked for.
//! Place: within one pod; `drain` gives each its turn.
//! Invariants: nothing but a private copy is judged; space is given back as soon as it is copied.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ringpilot_shared::follow::{Event, StreamKey};
use ringpilot_shared::ring::consume::{Frame, frames};
use ringpilot_shared::ring::lanes::Judged;
use ringpilot_shared::wire::LANES_LIMIT;
use ringpilot_shared::wire::handshake::ToShim;

use super::{Around, Fault, Pod, Took, broke};
use crate::rings::window::{Order, Refused, RingFile};

/// So many bytes in one look make a ring hot: a shim that has more would fill it long before the next tick.
const HOT: usize = 32 * 1024;
/// It stays so for a while: at full speed a look may find just the small frame before the ring's end.
const HOT_FOR: Duration = Duration::from_millis(50);

impl Pod {
    /// Takes what is in the ring, at most what `copy` holds.
    pub(in crate::rings) fn drain(
        &mut self,
        around: &Around,
        copy: &mut [u8],
    ) -> Result<Took, Fault> {
        let Some(link) = &mut self.link else {
            return Ok(Took::default());
        };
        let Some(consumer) = &mut link.consumer else {
            return Ok(Took::default());
        };
        if link.armed {
            link.armed = false;
            consumer.disarm();
        }
        let drained = consumer.drain(copy).map_err(broke)?;
        let mut changed = BTreeSet::new();
        let mut payloads = 0;
        for frame in frames(&copy[..drained.bytes]) {
            let frame = frame.map_err(broke)?;
            let judged = link.lanes.judge(&frame).map_err(broke)?;
            let (
                Judged::Bytes { lane, offset },
                Frame::Batch {
                    lane: number,
                    payload,
                    ..
                },
            ) = (judged, &frame)
            else {
                continue;
            };
            payloads += payload.len();
            let Some(key) = self.numbers.get(&lane.file) else {
                continue;
            };
            let Some(one) = self.streams.get(key) else {
                continue;
            };
            match one
                .file
                .append(*number, offset, &copy[payload.clone()], lane.size)
            {
                Ok(_) => drop(changed.insert(*key)),
                Err(Refused::Stale) => {}
                Err(Refused::BeyondLimit) => {
                    return Err(broke(format!(
                        "lane {number} goes beyond what it was granted"
                    )));
                }
            }
        }
        self.frames += drained.frames as u64;
        self.bytes += payloads as u64;
        let frames = drained.frames as u64;
        around.shared.frames.fetch_add(frames, Ordering::Relaxed);
        let now = around.host.now();
        if drained.bytes > 0 {
            link.busy_at = now;
            link.empty_wakes = 0;
        }
        if drained.nudge || drained.bytes >= HOT {
            link.hot_until = now + HOT_FOR;
        }
        let hot = now < link.hot_until;
        if drained.nudge {
            self.say(&ToShim::Space {})?;
        }
        let mut events = Vec::new();
        for key in &changed {
            let one = &self.streams[key];
            let stat = one.file.now();
            events.push(Event::Changed { stream: *key, stat });
            // Who continues this one's last group reads here, too.
            if let Some((next, one)) = one
                .successor
                .and_then(|next| self.streams.get_key_value(&next))
            {
                let stat = one.file.now();
                events.push(Event::Changed {
                    stream: *next,
                    stat,
                });
            }
        }
        around.pipeline.apply(events);
        for key in changed {
            if self.streams[&key].file.held() > 64 * 1024 {
                self.service(key, around)?;
            }
        }
        Ok(Took {
            more: drained.more,
            hot,
        })
    }

    /// Before sleeping on this ring; false when there is something to take.
    pub(in crate::rings) fn arm(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return true;
        };
        let Some(consumer) = &mut link.consumer else {
            return true;
        };
        link.armed = consumer.arm();
        link.armed
    }

    /// Looks where one file's readers stand, and asks the shim for what they want.
    pub(in crate::rings) fn service(
        &mut self,
        key: StreamKey,
        around: &Around,
    ) -> Result<(), Fault> {
        let Some(one) = self.streams.get(&key) else {
            return Ok(());
        };
        let (needs, _) = around.pipeline.needs(key);
        let linked = one.is_told && self.link.as_ref().is_some_and(|link| link.started);
        let file = Arc::clone(&one.file);
        let orders = file.service(&needs, linked);
        self.carry_out(Some(key), &file, orders, around)
    }

    pub(super) fn carry_out(
        &mut self,
        key: Option<StreamKey>,
        file: &Arc<RingFile>,
        orders: Vec<Order>,
        _around: &Around,
    ) -> Result<(), Fault> {
        for order in orders {
            let Some(link) = &mut self.link else {
                return Ok(());
            };
            match order {
                Order::Stop(lane) => {
                    link.lanes.take(lane);
                    self.say(&ToShim::Stop { lane })?;
                }
                Order::Grant(lane, limit) => self.say(&ToShim::Grant { lane, limit })?,
                Order::Begin(offset, limit) => {
                    let number = key.and_then(|key| Some((key, self.streams.get(&key)?.number)));
                    let Some((stream, number)) = number.filter(|_| link.lanes.len() < LANES_LIMIT)
                    else {
                        continue;
                    };
                    let lane = link.lanes.give(number, stream.generation, offset);
                    file.begun(lane, offset, limit);
                    self.say(&ToShim::Resume {
                        lane,
                        file: number,
                        stream,
                        offset,
                        limit,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The window whose output seems to be stuck for longest.
    pub(in crate::rings) fn stuck(&self) -> Option<(std::time::Instant, StreamKey)> {
        let windows = self.streams.iter();
        windows
            .filter_map(|(key, one)| Some((one.file.stuck()?.1, *key)))
            .min_by_key(|(at, _)| *at)
    }

    /// Drops it: its flow reads again in a lane of its own.
    pub(in crate::rings) fn evict(
        &mut self,
        key: StreamKey,
        at: std::time::Instant,
    ) -> Result<(), Fault> {
        let lane = self.streams.get(&key).and_then(|one| one.file.evict(at));
        if let (Some(lane), Some(link)) = (lane, &mut self.link) {
            link.lanes.take(lane);
            self.say(&ToShim::Stop { lane })?;
        }
        Ok(())
    }
}
