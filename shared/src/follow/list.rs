//! List what a want names, and open what is new.
//! Place: within **follow**; a look lists, then `judge` finds out what was opened.
//! Invariants: a folder is watched before it is listed, so that nothing falls in between; names that are no more, or are
//! another file's, are known before any new file is judged; a listing that failed takes no name away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::follower::{Dir, Follower, Round, tell};
use super::glob::{Pattern, walk};
use super::rotation::{Candidate, base_of, is_compressed, may_be_rotated};
use super::{Event, StreamKey, View, WantId};
use crate::host::{EntryKind, WatchId};

/// Rotated forms in the folders of one want that are looked at, for each file that it may have.
const MOST_SIBLINGS: usize = 4;

/// What one listing found.
#[derive(Default)]
struct Listing {
    /// Names that the want means, with their inodes, and whether they are links.
    found: BTreeMap<PathBuf, (u64, bool)>,
    /// Other names that may be rotated forms.
    others: Vec<(PathBuf, u64)>,
    dirs: Vec<PathBuf>,
    fresh_dirs: Vec<(PathBuf, Option<WatchId>)>,
    too_many: bool,
    failed: bool,
}

impl Follower {
    /// Lists what a want names, and opens what is new.
    pub(super) fn list(&mut self, id: WantId, round: &mut Round<'_>) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        let (view, pattern) = (want.wanted.view.clone(), want.wanted.pattern.clone());
        round.listed.push((id, self.host.wall_ns()));
        let mut listing = self.walk(id, &view, &pattern, round);
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        let first = !want.looked;
        want.looked |= !listing.failed;
        want.failed = listing.failed;
        want.must_list = false;
        let most = want.wanted.most_files();
        if listing.too_many && !want.full {
            want.full = true;
            let error = io::Error::other(format!(
                "more than {most} files match; the first {most} are followed"
            ));
            tell(want, id, pattern.literal_dir(), &error, &mut round.events);
        }
        let fresh = self.compare_names(id, &view, &listing, round);
        // Where a name is another file's now, a number that was given out again may hide among those that are not.
        if !fresh.is_empty()
            && let Some(want) = self.wants.get_mut(&id)
        {
            want.verifies = true;
        }
        self.note_bases(id, first, &pattern, &listing);
        let found = listing.found.values().map(|(inode, _)| *inode);
        let others = listing.others.iter().map(|(_, inode)| *inode);
        let there: HashSet<u64> = found.chain(others).collect();
        let is_whole =
            !listing.failed && !listing.too_many && listing.others.len() < MOST_SIBLINGS * most;
        let has_fresh_dirs = !listing.fresh_dirs.is_empty();
        let siblings = self.siblings(id, &mut listing);
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        if !listing.failed && !want.passed.is_empty() {
            let found = listing.found.values().map(|(inode, _)| inode);
            let there: HashSet<&u64> = found.chain(want.siblings.values()).collect();
            want.passed.retain(|inode, _| there.contains(inode));
        }
        if has_fresh_dirs {
            // What is in a folder that was not listed before may have been there all the time.
            want.there = None;
        }
        // What was heard is looked at again where not all could be seen.
        want.verifies &= listing.failed;
        let existed = first && want.wanted.from_start;
        let opened_from = round.found.len();
        for path in fresh {
            let base = self.base_in(id, &path).unwrap_or_else(|| path.clone());
            self.open(id, &view, path, base, true, first, existed, round);
        }
        for (path, base) in siblings {
            self.open(id, &view, path, base, false, first, existed, round);
        }
        self.note_there(id, there, is_whole, &round.found[opened_from..]);
    }

    /// Notes which inode numbers are taken. One that was free stays so until its new file was opened.
    fn note_there(
        &mut self,
        id: WantId,
        mut there: HashSet<u64>,
        is_whole: bool,
        opened: &[Candidate],
    ) {
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        let opened = opened.iter().map(|one| one.stat.inode);
        want.there = match (want.there.take(), is_whole) {
            (None, false) => None,
            (None, true) => Some(there),
            (Some(mut before), false) => {
                before.extend(opened);
                Some(before)
            }
            (Some(before), true) => {
                there.retain(|inode| before.contains(inode));
                there.extend(opened);
                Some(there)
            }
        };
    }

    fn walk(
        &mut self,
        id: WantId,
        view: &View,
        pattern: &Pattern,
        round: &mut Round<'_>,
    ) -> Listing {
        let mut listing = Listing::default();
        let Some(want) = self.wants.get(&id) else {
            return listing;
        };
        let most = want.wanted.most_files();
        let wakes = self.wakes.clone();
        let (dirs, fresh_dirs) = (&mut listing.dirs, &mut listing.fresh_dirs);
        let (found, others) = (&mut listing.found, &mut listing.others);
        let too_many = &mut listing.too_many;
        let mut fresh = 0;
        let walked = walk(
            &*self.host,
            view,
            pattern,
            &mut |dir| {
                dirs.push(dir.to_path_buf());
                if !want.dirs.contains_key(dir) {
                    let watch = wakes.as_ref().and_then(|wakes| wakes.watch(view, dir).ok());
                    fresh_dirs.push((dir.to_path_buf(), watch));
                }
            },
            &mut |one| {
                let is_link = one.kind == EntryKind::Link;
                if one.matches && (is_link || one.kind == EntryKind::File) {
                    let path = one.dir.join(one.name);
                    let is_new = !want.names.contains_key(&path);
                    if is_new && want.names.len() + fresh >= most {
                        *too_many = true;
                    } else {
                        fresh += usize::from(is_new);
                        found.insert(path, (one.inode, is_link));
                    }
                } else if one.kind == EntryKind::File
                    && others.len() < MOST_SIBLINGS * most
                    && may_be_rotated(one.name)
                    && !is_compressed(one.name)
                {
                    others.push((one.dir.join(one.name), one.inode));
                }
                ControlFlow::Continue(())
            },
        );
        let Some(want) = self.wants.get_mut(&id) else {
            return listing;
        };
        for (dir, watch) in &listing.fresh_dirs {
            if let Some(watch) = watch {
                self.watches.insert(*watch, (id, dir.clone()));
            }
            let dir_of = Dir {
                watch: *watch,
                listed_at: round.now,
                dirty: false,
            };
            want.dirs.insert(dir.clone(), dir_of);
        }
        match walked {
            Ok(()) => {
                let seen: HashSet<&PathBuf> = listing.dirs.iter().collect();
                let watches = &mut self.watches;
                want.dirs.retain(|path, dir| {
                    let is_there = seen.contains(path);
                    if let (false, Some(watch)) = (is_there, dir.watch) {
                        watches.remove(&watch);
                        if let Some(wakes) = &wakes {
                            wakes.unwatch(watch);
                        }
                    }
                    is_there
                });
            }
            Err(error) => {
                listing.failed = true;
                tell(want, id, &error.dir, &error.source, &mut round.events);
            }
        }
        for dir in want.dirs.values_mut() {
            dir.listed_at = round.now;
            dir.dirty = false;
        }
        listing
    }

    /// Takes away the names that are no more, or are another file's; the names whose files are to be opened.
    fn compare_names(
        &mut self,
        id: WantId,
        view: &View,
        listing: &Listing,
        round: &mut Round<'_>,
    ) -> Vec<PathBuf> {
        let Some(want) = self.wants.get(&id) else {
            return Vec::new();
        };
        let mut fresh: Vec<PathBuf> = Vec::new();
        let mut left: Vec<PathBuf> = Vec::new();
        for (path, (inode, is_link)) in &listing.found {
            let Some(key) = want.names.get(path) else {
                // What is known and not read is opened again only where it may be another file.
                let passed = want.passed.get(inode);
                let is_passed = !want.verifies && passed.is_some_and(|one| one.path == *path);
                if !is_passed {
                    fresh.push(path.clone());
                }
                continue;
            };
            let is_same = match is_link {
                true => self.is_same_link(view, path, *key),
                false => {
                    let file = self.files.get(key);
                    file.is_some_and(|file| file.stat.inode == *inode)
                }
            };
            if !is_same {
                fresh.push(path.clone());
                left.push(path.clone());
            }
        }
        if !listing.failed {
            let names = want.names.keys();
            left.extend(
                names
                    .filter(|path| !listing.found.contains_key(*path))
                    .cloned(),
            );
        }
        for path in left {
            let want = self.wants.get_mut(&id);
            let Some(key) = want.and_then(|want| want.names.remove(&path)) else {
                continue;
            };
            if let Some(file) = self.files.get_mut(&key) {
                file.names
                    .retain(|(want, name)| (want, name) != (&id, &path));
            }
            round.left.push((id, path, key));
        }
        fresh
    }

    /// A symbolic link has an inode of its own: whether what it points to is still this stream's file.
    fn is_same_link(&self, view: &View, path: &Path, key: StreamKey) -> bool {
        let Some(file) = self.files.get(&key) else {
            return false;
        };
        self.host
            .open_log(view, path)
            .and_then(|handle| handle.stat())
            .is_ok_and(|stat| (stat.device, stat.inode) == (file.stat.device, file.stat.inode))
    }

    /// Notes the names whose rotated forms are looked for.
    fn note_bases(&mut self, id: WantId, first: bool, pattern: &Pattern, listing: &Listing) {
        let literal = pattern
            .literal_name()
            .map(|name| pattern.literal_dir().join(name));
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        if first {
            for dir in &listing.dirs {
                let known = self.known.of_dir(dir);
                want.bases.extend(
                    known
                        .map(|stream| &stream.path)
                        .filter(|path| matches(pattern, path))
                        .cloned(),
                );
            }
        }
        for (path, (_, is_link)) in &listing.found {
            let Some(want) = self.wants.get_mut(&id) else {
                return;
            };
            if !want.bases.contains(path) {
                want.bases.insert(path.clone());
            }
            match is_link {
                true => drop(want.links.entry(path.clone()).or_default()),
                false if want.links.is_empty() => {}
                false => self.unwatch_link(id, path),
            }
        }
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        want.bases.extend(literal.clone());
        // A name that is gone counts as long as a file of its chain is open, or known since the start.
        if want.bases.len() > 2 * listing.found.len() + 64 && !listing.failed {
            let (files, newest) = (&self.files, &want.newest);
            want.bases.retain(|path| {
                listing.found.contains_key(path)
                    || Some(path) == literal.as_ref()
                    || newest.get(path).is_some_and(|key| files.contains_key(key))
            });
            want.newest.retain(|path, _| want.bases.contains(path));
            let gone = want.links.keys().filter(|path| !want.bases.contains(*path));
            for path in gone.cloned().collect::<Vec<_>>() {
                self.unwatch_link(id, &path);
            }
        }
    }

    fn unwatch_link(&mut self, id: WantId, path: &Path) {
        let want = self.wants.get_mut(&id);
        if let Some(Some(watch)) = want.and_then(|want| want.links.remove(path)) {
            self.watches.remove(&watch);
            if let Some(wakes) = &self.wakes {
                wakes.unwatch(watch);
            }
        }
    }

    /// Watches what a link leads to.
    fn watch_link(&mut self, id: WantId, view: &View, path: &Path) {
        let is_link = self
            .wants
            .get(&id)
            .is_some_and(|want| want.links.contains_key(path));
        if !is_link {
            return;
        }
        self.unwatch_link(id, path);
        let watch = self
            .wakes
            .as_ref()
            .and_then(|wakes| wakes.watch(view, path).ok());
        if let Some(watch) = watch {
            self.watches.insert(watch, (id, path.to_path_buf()));
        }
        if let Some(want) = self.wants.get_mut(&id) {
            want.links.insert(path.to_path_buf(), watch);
        }
    }

    /// The name that another may be a rotated form of.
    fn base_in(&self, id: WantId, path: &Path) -> Option<PathBuf> {
        let want = self.wants.get(&id)?;
        base_of(path, &|base| want.bases.contains(base), &|base| {
            want.links.contains_key(base)
        })
    }

    /// Rotated forms that are to be opened, each with its base: those that are new under their names, and, if anything
    /// happened to names, all.
    fn siblings(&mut self, id: WantId, listing: &mut Listing) -> Vec<(PathBuf, PathBuf)> {
        let wall_ns = self.host.wall_ns();
        let mut present: HashMap<PathBuf, u64> = HashMap::new();
        let mut open = Vec::new();
        for (path, inode) in std::mem::take(&mut listing.others) {
            let Some(want) = self.wants.get(&id) else {
                continue;
            };
            let is_unchanged = !want.verifies && want.siblings.get(&path) == Some(&inode);
            if is_unchanged {
                self.known.touch(inode, wall_ns);
                present.insert(path, inode);
            } else if let Some(base) = self.base_in(id, &path) {
                present.insert(path.clone(), inode);
                open.push((path, base));
            }
        }
        if let Some(want) = self.wants.get_mut(&id) {
            want.siblings = present;
        }
        open
    }

    #[expect(clippy::too_many_arguments, reason = "one name's own facts")]
    fn open(
        &mut self,
        id: WantId,
        view: &View,
        path: PathBuf,
        base: PathBuf,
        is_meant: bool,
        first: bool,
        existed: bool,
        round: &mut Round<'_>,
    ) {
        if is_meant {
            self.watch_link(id, view, &path);
        }
        let opened = self
            .host
            .open_log(view, &path)
            .and_then(|handle| Ok((handle.stat()?, handle)));
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        match opened {
            Ok((stat, handle)) => {
                if want.troubles.remove(&path).is_some() {
                    round.events.push(Event::Trouble {
                        want: id,
                        path: path.clone(),
                        trouble: None,
                    });
                }
                // What a link leads to may be in no folder that is listed.
                let is_link = want.links.contains_key(&path);
                let there = want.there.as_ref().filter(|_| !is_link);
                round.found.push(Candidate {
                    came: there.is_some_and(|there| !there.contains(&stat.inode)),
                    want: id,
                    path,
                    base,
                    matches: is_meant,
                    existed,
                    passed_by: false,
                    first,
                    waits_since: None,
                    handle,
                    stat,
                });
            }
            // It is looked for again in the next listing.
            Err(error) => {
                want.siblings.remove(&path);
                if error.kind() != io::ErrorKind::NotFound {
                    want.failed = true;
                    if is_meant {
                        tell(want, id, &path, &error, &mut round.events);
                    }
                }
            }
        }
    }
}

/// Whether a want's pattern means a path.
pub(super) fn matches(pattern: &Pattern, path: &Path) -> bool {
    let name: Option<&OsStr> = path.file_name();
    path.parent()
        .zip(name)
        .is_some_and(|(dir, name)| pattern.matches_name(dir, name))
}
