//! Find a host's path where this process sees the host: beneath `host_root`, absolute links restarting there.
//! Place: the parts of **discover** that open something themselves (a socket, a data-root, `/proc`).
//! Invariant: never leaves `host_root`, however links and `..` point. These are the host's own paths, not a
//! container's: for those the follower has a walk that races with nobody.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows in one path.
const MOST_LINKS: usize = 40;

/// Where the host's `path` is seen beneath `host_root`, all links resolved; a last part that does not exist is
/// kept as named.
///
/// # Errors
/// `InvalidInput` for a path that is not absolute or runs through more than 40 links.
pub(super) fn beneath(host_root: &Path, path: &Path) -> io::Result<PathBuf> {
    if !path.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{}` is not an absolute path", path.display()),
        ));
    }
    if host_root == Path::new("/") || host_root.as_os_str().is_empty() {
        return Ok(path.to_path_buf());
    }
    let mut resolved = host_root.to_path_buf();
    let mut depth = 0_usize;
    let mut links = 0;
    let mut ahead: VecDeque<Step> = steps(path).collect();
    while let Some(step) = ahead.pop_front() {
        let name = match step {
            Step::Root => {
                resolved = host_root.to_path_buf();
                depth = 0;
                continue;
            }
            Step::Up => {
                if depth > 0 {
                    resolved.pop();
                    depth -= 1;
                }
                continue;
            }
            Step::Down(name) => name,
        };
        let next = resolved.join(&name);
        match std::fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("`{}` runs through too many links", path.display()),
                    ));
                }
                for step in steps(&target).collect::<Vec<_>>().into_iter().rev() {
                    ahead.push_front(step);
                }
            }
            // Not a link, or not there: the caller's own open says which.
            Err(_) => {
                resolved = next;
                depth += 1;
            }
        }
    }
    Ok(resolved)
}

enum Step {
    Root,
    Up,
    Down(OsString),
}

fn steps(path: &Path) -> impl Iterator<Item = Step> + '_ {
    path.components().filter_map(|component| match component {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Down(name.to_os_string())),
        Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_data_root_behind_an_absolute_link_is_found_beneath_the_hosts_root() {
        let host = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(host.path().join("mnt/big/docker")).expect("made");
        std::fs::create_dir_all(host.path().join("var/lib")).expect("made");
        symlink("/mnt/big/docker", host.path().join("var/lib/docker")).expect("linked");
        assert_eq!(
            beneath(host.path(), Path::new("/var/lib/docker/containers")).expect("found"),
            host.path().join("mnt/big/docker/containers")
        );
    }

    #[test]
    fn a_link_upwards_ends_at_the_hosts_root() {
        let host = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(host.path().join("var")).expect("made");
        symlink("../../../../etc", host.path().join("var/up")).expect("linked");
        assert_eq!(
            beneath(host.path(), Path::new("/var/up/x")).expect("found"),
            host.path().join("etc/x")
        );
    }

    #[test]
    fn a_circle_of_links_is_an_error() {
        let host = tempfile::tempdir().expect("a folder");
        symlink("/b", host.path().join("a")).expect("linked");
        symlink("/a", host.path().join("b")).expect("linked");
        let error = beneath(host.path(), Path::new("/a")).expect_err("a circle");
        assert!(error.to_string().contains("too many links"), "{error}");
    }

    #[test]
    fn a_path_is_left_as_it_is_where_the_host_is_here() {
        assert_eq!(
            beneath(Path::new("/"), Path::new("/var/run/docker.sock")).expect("found"),
            Path::new("/var/run/docker.sock")
        );
    }
}
