//! Hear of new names in a few folders: what makes discovery fast; the periodic list makes it true.
//! Place: within **discover**, for a data-root's `containers` and for the pod log folder.
//! Invariant: only wakes. An overflow of the kernel's queue is one wake with no name, never an error.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// Watches folders for names that appear in them.
#[derive(Debug)]
pub(super) struct NewNames {
    inotify: AsyncFd<Watched>,
}

/// What appeared: in which watched folder, and its name; no name means "look at all".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Appeared {
    /// As returned by [`NewNames::add`].
    pub folder: WatchDescriptor,
    /// The new name, if the kernel told it.
    pub name: Option<OsString>,
}

#[derive(Debug)]
struct Watched(Inotify);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl NewNames {
    /// An empty watch.
    ///
    /// # Errors
    /// The kernel's, such as too many inotify instances of this user.
    pub(super) fn new() -> io::Result<NewNames> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is the same call, marked unsafe: the descriptor must be `inner`'s own and stay open, which `Watched` keeps"
        )]
        let inotify = AsyncFd::new(Watched(inotify))?;
        Ok(NewNames { inotify })
    }

    /// Watches `folder` too. Watch first, list it afterwards: then no name falls in between.
    ///
    /// # Errors
    /// The kernel's: not there, not permitted, no directory, or no watch left.
    pub(super) fn add(&self, folder: &Path) -> io::Result<WatchDescriptor> {
        Ok(self.inotify.get_ref().0.add_watch(
            folder,
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR,
        )?)
    }

    /// The next names to appear, at least one.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn next(&self) -> io::Result<Vec<Appeared>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.get_inner().0.read_events() {
                Ok(events) => {
                    let appeared: Vec<_> = events
                        .into_iter()
                        .filter(|event| !event.mask.contains(AddWatchFlags::IN_IGNORED))
                        .map(|event| Appeared {
                            folder: event.wd,
                            name: event.name,
                        })
                        .collect();
                    if !appeared.is_empty() {
                        return Ok(appeared);
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_folder_is_heard_by_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = NewNames::new().expect("inotify");
        let watch = names.add(folder.path()).expect("watched");
        std::fs::create_dir(folder.path().join("0123")).expect("made");
        let appeared = names.next().await.expect("heard");
        assert_eq!(
            appeared,
            [Appeared {
                folder: watch,
                name: Some("0123".into())
            }]
        );
    }
}
