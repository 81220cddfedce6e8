//! Find what a path stands for: on the host, or where a container sees it by its mounts and roots.
//! Place: within **sim**; plays the kernel's walk for the host's own paths, and that of `follow::open` for a view.
//! Invariants: at most 40 links; `..` and absolute links stop at the view's own root; a path that lies beneath a mount
//! goes there at once; what the first of a view's roots has not is sought in the next.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::disk::{Disk, NodeId, ROOT, What, errno};
use crate::follow::{Mount, View};

/// As many links as the kernel follows in one path.
const MOST_LINKS: u32 = 40;

/// What to make of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// Follow all.
    Follow,
    /// Follow those on the way, but not the last name.
    NotLast,
    /// Follow none that is among the last so many names.
    Refuse { last: usize },
}

/// Where a path ends.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// The directories above it, from the root on.
    pub(super) above: Vec<NodeId>,
    /// Its name; `None` where the path ends in the root, in `..` or in a mount.
    pub(super) name: Option<&'a OsStr>,
    /// What stands there.
    pub(super) node: Option<NodeId>,
}

impl Place<'_> {
    /// What stands there.
    pub(super) fn found(&self) -> io::Result<NodeId> {
        self.node.ok_or_else(|| errno(libc::ENOENT))
    }

    /// The directory that has, or would have, the name.
    pub(super) fn dir(&self) -> io::Result<NodeId> {
        self.above
            .last()
            .copied()
            .ok_or_else(|| errno(libc::ENOENT))
    }
}

/// What a view's path stands for.
#[derive(Debug)]
pub(super) struct Found {
    /// One for each root that has it, the best first.
    pub(super) nodes: Vec<NodeId>,
    /// Its path in the view, without links.
    pub(super) path: PathBuf,
}

/// A part of the path that was walked: `None` where only a mount below makes it one.
struct Step<'a> {
    name: &'a OsStr,
    node: Option<NodeId>,
}

enum Part<'a> {
    Root,
    Up,
    Name(&'a OsStr),
}

/// In whose eyes a path is walked.
struct Eyes<'a> {
    disk: &'a Disk,
    view: Option<&'a View>,
    /// Which root of the view.
    root: Option<&'a Path>,
    /// Whether what is forbidden stops the walk.
    obeys: bool,
}

impl Disk {
    /// Walks one of the host's own paths.
    pub(super) fn walk<'a>(&'a self, path: &'a Path, links: Links) -> io::Result<Place<'a>> {
        let eyes = Eyes {
            disk: self,
            view: None,
            root: None,
            obeys: false,
        };
        Ok(eyes.walk(path, links)?.0)
    }

    /// What a path stands for as the daemon sees it in a view, links followed, in the first root that has it.
    pub(super) fn find_in(&self, view: &View, path: &Path) -> io::Result<NodeId> {
        let mut missing = None;
        for result in self.walks_in(view, path) {
            match result {
                Ok((node, _)) => return Ok(node),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    missing.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(missing.unwrap_or_else(|| errno(libc::ENOENT)))
    }

    /// The same in each root that has it.
    pub(super) fn find_all_in(&self, view: &View, path: &Path) -> io::Result<Found> {
        let mut found: Option<Found> = None;
        let mut failed = None;
        for result in self.walks_in(view, path) {
            match (result, &mut found) {
                (Ok((node, path)), None) => {
                    let nodes = vec![node];
                    found = Some(Found { nodes, path });
                }
                (Ok((node, _)), Some(found)) if !found.nodes.contains(&node) => {
                    found.nodes.push(node);
                }
                (Ok(_), Some(_)) => {}
                (Err(error), _) => {
                    failed.get_or_insert(error);
                }
            }
        }
        found.ok_or_else(|| failed.unwrap_or_else(|| errno(libc::ENOENT)))
    }

    /// One walk for each root of the view; at least one.
    fn walks_in<'a>(
        &'a self,
        view: &'a View,
        path: &'a Path,
    ) -> impl Iterator<Item = io::Result<(NodeId, PathBuf)>> + 'a {
        let rootless = view.is_host || view.roots.is_empty();
        let roots: &[PathBuf] = if rootless { &[] } else { &view.roots };
        let roots = roots.iter().map(|root| Some(root.as_path()));
        roots.chain(rootless.then_some(None)).map(move |root| {
            if !path.is_absolute() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let eyes = Eyes {
                disk: self,
                view: (!view.is_host).then_some(view),
                root,
                obeys: true,
            };
            let (place, path) = eyes.walk(path, Links::Follow)?;
            Ok((place.found()?, path))
        })
    }

    /// What stands where a mount of a container comes from.
    pub(super) fn mounted(&self, mount: &Mount) -> io::Result<NodeId> {
        self.walk(&mount.host, Links::Follow)?.found()
    }
}

impl<'a> Eyes<'a> {
    /// Where a path ends, and which path without links that is.
    fn walk(&self, path: &'a Path, links: Links) -> io::Result<(Place<'a>, PathBuf)> {
        let mut ahead: Vec<Part<'a>> = Vec::with_capacity(8);
        push_parts(&mut ahead, path);
        let mut steps = Vec::with_capacity(8);
        steps.push(Step {
            name: OsStr::new("/"),
            node: self.root(),
        });
        let mut followed = 0;
        while let Some(part) = ahead.pop() {
            let name = match part {
                Part::Root => {
                    steps.truncate(1);
                    continue;
                }
                Part::Up => {
                    if steps.len() > 1 {
                        steps.pop();
                    }
                    continue;
                }
                Part::Name(name) => name,
            };
            if let Some((mount, depth)) = self.mount_ahead(&steps, name, &ahead) {
                ahead.push(Part::Name(name));
                while steps.len() <= depth
                    && let Some(Part::Name(name)) = ahead.pop()
                {
                    let node = self.outer(&steps, name);
                    steps.push(Step { name, node });
                }
                let node = self.disk.mounted(mount)?;
                if let Some(step) = steps.last_mut() {
                    step.node = Some(node);
                }
                continue;
            }
            let is_last = ahead.is_empty();
            let node = self.child(&steps, name);
            match node.map(|node| &self.disk.node(node).what) {
                None => match self.why_missing(&steps) {
                    libc::ENOENT if is_last => return Ok(self.place(&steps, name, None)),
                    why => return Err(errno(why)),
                },
                Some(What::Link(target)) if !(is_last && links == Links::NotLast) => {
                    followed += 1;
                    if matches!(links, Links::Refuse { last } if ahead.len() < last) {
                        return Err(io::ErrorKind::InvalidInput.into());
                    }
                    if followed > MOST_LINKS && self.obeys {
                        return Err(io::ErrorKind::InvalidInput.into());
                    }
                    if followed > MOST_LINKS {
                        return Err(errno(libc::ELOOP));
                    }
                    push_parts(&mut ahead, target);
                }
                Some(What::Directory(_)) => {
                    if self.obeys && node.is_some_and(|node| self.disk.node(node).forbidden) {
                        return Err(errno(libc::EACCES));
                    }
                    if is_last {
                        return Ok(self.place(&steps, name, node));
                    }
                    steps.push(Step { name, node });
                }
                Some(_) if is_last => return Ok(self.place(&steps, name, node)),
                Some(_) if matches!(links, Links::Refuse { last } if ahead.len() < last) => {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                Some(_) => return Err(errno(libc::ENOTDIR)),
            }
        }
        let path = self.path(&steps, None);
        let last = steps.pop().ok_or_else(|| errno(libc::ENOENT))?;
        let place = Place {
            above: steps.iter().filter_map(|step| step.node).collect(),
            name: None,
            node: last.node,
        };
        Ok((place, path))
    }

    fn root(&self) -> Option<NodeId> {
        match (self.view, self.root) {
            (None, _) => Some(ROOT),
            (Some(_), None) => None,
            (Some(_), Some(root)) => self.disk.walk(root, Links::Follow).ok()?.node,
        }
    }

    /// The mount that lies deepest on the way ahead, deeper than where we stand, and its depth.
    fn mount_ahead(
        &self,
        steps: &[Step<'a>],
        name: &'a OsStr,
        ahead: &[Part<'a>],
    ) -> Option<(&'a Mount, usize)> {
        let view = self.view.filter(|view| !view.mounts.is_empty())?;
        let mut best = None;
        let mut deepest = steps.len() - 1;
        for mount in &view.mounts {
            let depth = mount.container.components().skip(1).count();
            if depth <= deepest {
                continue;
            }
            let mut way = steps[1..].iter().map(|step| step.name).chain([name]).chain(
                ahead.iter().rev().map_while(|part| match part {
                    Part::Name(name) => Some(*name),
                    _ => None,
                }),
            );
            let mut parts = mount.container.components().skip(1);
            if parts.all(|part| way.next() == Some(part.as_os_str())) {
                deepest = depth;
                best = Some((mount, depth));
            }
        }
        best
    }

    /// What stands on the way to a mount: another one, or what the root has there.
    fn outer(&self, steps: &[Step<'a>], name: &OsStr) -> Option<NodeId> {
        let way = || steps[1..].iter().map(|step| step.name).chain([name]);
        let view = self.view?;
        let outer = view.mounts.iter().find(|mount| {
            let parts = mount.container.components().skip(1);
            parts.map(|part| part.as_os_str()).eq(way())
        });
        match outer {
            Some(outer) => self.disk.mounted(outer).ok(),
            None => self.child(steps, name),
        }
    }

    fn child(&self, steps: &[Step<'a>], name: &OsStr) -> Option<NodeId> {
        self.disk.child(steps.last()?.node?, name)
    }

    /// Nothing is beneath what is no directory: a mount may be a file.
    fn why_missing(&self, steps: &[Step<'a>]) -> i32 {
        let dir = steps.last().and_then(|step| step.node);
        match dir.map(|dir| &self.disk.node(dir).what) {
            Some(What::Directory(_)) | None => libc::ENOENT,
            Some(_) => libc::ENOTDIR,
        }
    }

    fn place(
        &self,
        steps: &[Step<'a>],
        name: &'a OsStr,
        node: Option<NodeId>,
    ) -> (Place<'a>, PathBuf) {
        let place = Place {
            above: steps.iter().filter_map(|step| step.node).collect(),
            name: Some(name),
            node,
        };
        (place, self.path(steps, Some(name)))
    }

    /// Wanted only where there are mounts.
    fn path(&self, steps: &[Step<'a>], name: Option<&OsStr>) -> PathBuf {
        if self.view.is_none_or(|view| view.mounts.is_empty()) {
            return PathBuf::new();
        }
        steps.iter().map(|step| step.name).chain(name).collect()
    }
}

/// Puts a path's parts before those that are ahead, the next one last.
fn push_parts<'a>(ahead: &mut Vec<Part<'a>>, path: &'a Path) {
    ahead.extend(path.components().rev().filter_map(|part| match part {
        Component::RootDir => Some(Part::Root),
        Component::ParentDir => Some(Part::Up),
        Component::Normal(name) => Some(Part::Name(name)),
        Component::CurDir | Component::Prefix(_) => None,
    }));
}
