//! Find what a path stands for: on the host, or where a container sees it by its mounts and roots.
//! Place: within **sim**; plays the kernel's walk for the host's own paths, and that of `follow::open` for a view.
//! Invariants: at most 40 links; `..` and absolute links stop at the view's own root; what the first of a view's roots
//! has not is sought in the next.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::disk::{Disk, NodeId, ROOT, What, errno};
use crate::follow::View;

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
    /// The directories above it on the host, from the root on.
    pub(super) above: Vec<NodeId>,
    /// Its name; `None` where the path ends in the root or in `..`.
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

/// A directory on the way: `None` where only a mount below makes it one.
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
        eyes.walk(path, links)
    }

    /// What a path stands for as the daemon sees it in a view, following links: one for each root of the view that
    /// has it, the best first.
    pub(super) fn find_in(&self, view: &View, path: &Path) -> io::Result<Vec<NodeId>> {
        let mut found = Vec::new();
        let mut failed = None;
        let roots = view.root.iter().map(|root| Some(root.as_path()));
        let without = (view.is_host || view.root.is_none()).then_some(None);
        for root in without.into_iter().chain(roots) {
            let eyes = Eyes {
                disk: self,
                view: (!view.is_host).then_some(view),
                root,
                obeys: true,
            };
            match eyes
                .walk(path, Links::Follow)
                .and_then(|place| place.found())
            {
                Ok(node) if found.contains(&node) => {}
                Ok(node) => found.push(node),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
            if view.is_host {
                break;
            }
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }
}

impl<'a> Eyes<'a> {
    fn walk(&self, path: &'a Path, links: Links) -> io::Result<Place<'a>> {
        let mut ahead: Vec<Part<'a>> = Vec::with_capacity(8);
        push_parts(&mut ahead, path);
        let mut steps = vec![self.root()];
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
            let is_last = ahead.is_empty();
            let Some(step) = self.child(&steps, name) else {
                if is_last {
                    return Ok(place(&steps, name, None));
                }
                return Err(errno(libc::ENOENT));
            };
            match step.node.map(|node| &self.disk.node(node).what) {
                Some(What::Link(target)) if !(is_last && links == Links::NotLast) => {
                    followed += 1;
                    if matches!(links, Links::Refuse { last } if ahead.len() < last) {
                        return Err(io::ErrorKind::InvalidInput.into());
                    }
                    if followed > MOST_LINKS {
                        return Err(errno(libc::ELOOP));
                    }
                    push_parts(&mut ahead, target);
                }
                None | Some(What::Directory(_)) => {
                    if self.obeys && step.node.is_some_and(|node| self.disk.node(node).forbidden) {
                        return Err(errno(libc::EACCES));
                    }
                    if is_last {
                        return Ok(place(&steps, name, step.node));
                    }
                    steps.push(step);
                }
                Some(_) if is_last => return Ok(place(&steps, name, step.node)),
                Some(_) => return Err(errno(libc::ENOTDIR)),
            }
        }
        // The path ended in the root or in `..`.
        let last = steps.pop().ok_or_else(|| errno(libc::ENOENT))?;
        Ok(Place {
            above: steps.iter().filter_map(|step| step.node).collect(),
            name: None,
            node: last.node,
        })
    }

    fn root(&self) -> Step<'a> {
        let node = match (self.view, self.root) {
            (None, _) => Some(ROOT),
            (Some(_), None) => None,
            (Some(_), Some(root)) => self
                .disk
                .walk(root, Links::Follow)
                .ok()
                .and_then(|place| place.node),
        };
        Step {
            name: OsStr::new("/"),
            node,
        }
    }

    /// What stands under `name` in the last step: a mount's root, else what the directory has.
    fn child(&self, steps: &[Step<'a>], name: &'a OsStr) -> Option<Step<'a>> {
        let mut leads_to_a_mount = false;
        if let Some(view) = self.view.filter(|view| !view.mounts.is_empty()) {
            let mut here = PathBuf::from("/");
            here.extend(steps.iter().skip(1).map(|step| step.name));
            here.push(name);
            if let Some(mount) = view.mounts.iter().find(|mount| mount.container == here) {
                let node = self.disk.walk(&mount.host, Links::Follow).ok()?.node?;
                return Some(Step {
                    name,
                    node: Some(node),
                });
            }
            leads_to_a_mount = view
                .mounts
                .iter()
                .any(|mount| mount.container.starts_with(&here));
        }
        let node = steps
            .last()
            .and_then(|dir| self.disk.child(dir.node?, name));
        (node.is_some() || leads_to_a_mount).then_some(Step { name, node })
    }
}

fn place<'a>(steps: &[Step<'a>], name: &'a OsStr, node: Option<NodeId>) -> Place<'a> {
    Place {
        above: steps.iter().filter_map(|step| step.node).collect(),
        name: Some(name),
        node,
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
