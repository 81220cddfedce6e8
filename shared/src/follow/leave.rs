//! Let files go: which are finished, which are settled, and which are held beyond their quotas.
//! Place: within **follow**, at the end of each look.
//! Invariants: a file that has a name is open; one that has none is closed when everything in it is settled, or when a
//! quota takes it; what is closed and has a name somewhere is known when it is seen again.

use std::sync::Arc;

use super::follower::{FINISHED_AFTER, File, Follower, Round};
use super::known::KnownStream;
use super::{Event, StreamKey};

impl Follower {
    /// Tells of files to which nothing more will be written.
    pub(super) fn finish(&mut self, round: &mut Round<'_>) {
        for (key, file) in &mut self.files {
            if file.finished {
                continue;
            }
            let is_named = file
                .names
                .iter()
                .any(|(want, _)| self.wants.get(want).is_some_and(|want| !want.gone));
            if is_named && file.successor.is_none() {
                continue;
            }
            let rested = round.now >= file.changed_at + FINISHED_AFTER;
            let changed_over = file.at_once && file.successor.is_some();
            if rested || changed_over {
                // Once more: what was written since it was last looked at is still to be read.
                if let Ok(stat) = file.handle.stat()
                    && (stat.size != file.stat.size || stat.modified_ns != file.stat.modified_ns)
                {
                    // One that became shorter is for the next look to judge.
                    if stat.size < file.stat.size {
                        continue;
                    }
                    file.stat = stat;
                    file.changed_at = round.now;
                    round.events.push(Event::Changed { stream: *key, stat });
                    if !changed_over {
                        continue;
                    }
                }
                file.finished = true;
                round.events.push(Event::Finished { stream: *key });
            }
        }
    }

    /// Takes note of what is settled, before anything new is seen of it: a file that has changed since is not.
    pub(super) fn note_released(&mut self, released: &[StreamKey], round: &mut Round<'_>) {
        for key in released {
            if let Some(file) = self.files.get(key) {
                if file.finished {
                    self.releasable.insert(*key);
                }
            } else if !self.known.contains(*key) {
                // Its file was truncated, and there is no copy: nobody will see it again.
                round.events.push(Event::Released {
                    stream: *key,
                    deleted: true,
                });
            }
        }
    }

    /// Lets files go that are finished and settled, as soon as nobody names them.
    pub(super) fn release(&mut self, round: &mut Round<'_>) {
        let mut closed = Vec::new();
        for key in &self.releasable {
            match self.files.get(key) {
                Some(file) if file.finished && file.names.is_empty() => closed.push(*key),
                _ => {}
            }
        }
        if closed.is_empty() {
            return;
        }
        for key in closed {
            self.let_go(key, round);
        }
        self.forget_wants();
    }

    fn let_go(&mut self, key: StreamKey, round: &mut Round<'_>) {
        let Some(file) = self.close(key) else {
            return;
        };
        let stat = file.handle.stat();
        let deleted = file.shed || stat.as_ref().map_or(true, |stat| stat.links == 0);
        // What waits because it may be a copy of this one holds nothing that was not read.
        let (of_it, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|one| {
                !file.shed
                    && one.base == file.last.1
                    && one
                        .head()
                        .is_ok_and(|head| super::rotation::is_within(one, &head, &*file.handle))
            });
        self.waiting = waiting;
        let of_it: Vec<_> = of_it;
        for one in of_it {
            self.pass(&one, false);
        }
        if !deleted {
            let known = KnownStream {
                key,
                identity: file.identity,
                path: file.last.1,
                modified_ns: file.stat.modified_ns,
                accounted_ns: file.accounted_ns,
                successor: file.successor,
                seen_ns: self.host.wall_ns(),
            };
            if let Some(stream) = self.known.insert(known, Some(file.stat.size)) {
                round.events.push(Event::Forgotten { stream });
            }
        }
        round.events.push(Event::Released {
            stream: key,
            deleted,
        });
    }

    /// Takes a file out of every table.
    pub(super) fn close(&mut self, key: StreamKey) -> Option<File> {
        let file = self.files.remove(&key)?;
        self.releasable.remove(&key);
        let node = (file.stat.device, file.stat.inode);
        if self.nodes.get(&node) == Some(&key) {
            self.nodes.remove(&node);
        }
        for home in &file.homes {
            if let Some(keys) = self.homes.get_mut(home) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.homes.remove(home);
                }
            }
        }
        Some(file)
    }

    /// Forgets wants whose container has gone and whose files are closed.
    fn forget_wants(&mut self) {
        let Self {
            wants,
            files,
            watches,
            wakes,
            ..
        } = self;
        wants.retain(|id, want| {
            let is_over = want.gone
                && want.looked
                && want.names.is_empty()
                && !files.values().any(|file| file.last.0 == *id);
            if is_over {
                let dirs = want.dirs.values().filter_map(|dir| dir.watch);
                let links = want.links.values().filter_map(|watch| *watch);
                for watch in dirs.chain(links) {
                    watches.remove(&watch);
                    if let Some(wakes) = wakes {
                        wakes.unwatch(watch);
                    }
                }
            }
            !is_over
        });
    }

    /// Gives up the oldest of what is held beyond its quotas. What has a name somewhere takes no room of ours.
    pub(super) fn shed(&mut self, events: &mut Vec<Event>) {
        let held: Vec<super::held::Held> = self
            .files
            .iter()
            .filter(|(_, file)| file.stat.links == 0 && !file.shed)
            .map(|(key, file)| super::held::Held {
                stream: *key,
                owner: Arc::clone(&file.owner),
                bytes: file.stat.disk_bytes,
                // What is deleted shall make room where there is little.
                quota: match file.handle.has_room() {
                    true => file.pinned_bytes,
                    false => 0,
                },
                modified_ns: file.stat.modified_ns,
            })
            .collect();
        for stream in super::held::shed(held, self.node_pinned_bytes) {
            if let Some(file) = self.files.get_mut(&stream) {
                file.shed = true;
                file.finished = true;
                events.push(Event::Shed { stream });
            }
        }
    }
}
