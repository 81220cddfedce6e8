//! Which mounts there are, of what may hang, and what lies at a container's root: a process's mount table.
//! Place: the walk (`open`) asks it at every step where something may be mounted; `hang` has a thread for each it names.
//! Invariants: what is unreadable is left out, never guessed; our own table is read again as soon as it has changed.
//! Source: `/proc/PID/mountinfo`, proc(5); its change is told by POLLPRI. Types and numbers: statfs(2), linux/magic.h.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A whole mount table is taken up to this; a node with thousands of containers has a tenth of it.
const MOST_MOUNTINFO: u64 = 32 * 1024 * 1024;

/// The mount points whose file systems may hang, as one process sees them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Prone {
    points: HashMap<PathBuf, u64>,
}

impl Prone {
    /// From the text of a `mountinfo`.
    #[must_use]
    pub fn parse(mountinfo: &[u8]) -> Self {
        let mut points = HashMap::new();
        for line in mountinfo.split(|byte| *byte == b'\n') {
            let Some(mounted) = Mounted::parse(line) else {
                continue;
            };
            let point = unescape(mounted.point);
            // The last one mounted at a place is the one that is seen there.
            if may_hang_type(mounted.kind) {
                points.insert(PathBuf::from(point), mounted.device);
            } else if !points.is_empty() {
                points.remove(Path::new(&point));
            }
        }
        Self { points }
    }

    /// Whether there is none, so that nobody need know where he is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The device that is entered at exactly this path.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<u64> {
        self.points.get(path).copied()
    }

    /// The device at the nearest of these mount points at or above a path.
    #[must_use]
    pub fn above(&self, path: &Path) -> Option<u64> {
        path.ancestors().find_map(|path| self.at(path))
    }
}

/// One line of a mount table: `ID PARENT MAJ:MIN ROOT POINT OPTIONS [FIELDS] - TYPE SOURCE SUPER`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mounted<'line> {
    /// As st_dev has it.
    pub(super) device: u64,
    /// Where, escaped.
    pub(super) point: &'line [u8],
    /// The file system's type.
    pub(super) kind: &'line [u8],
    /// The file system's own options, escaped.
    pub(super) options: &'line [u8],
}

impl<'line> Mounted<'line> {
    pub(super) fn parse(line: &'line [u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let (major, minor) = std::str::from_utf8(words.nth(2)?).ok()?.split_once(':')?;
        let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        let point = words.nth(1)?;
        let mut after = words.skip_while(|word| *word != b"-").skip(1);
        Some(Self {
            device,
            point,
            kind: after.next()?,
            options: after.nth(1).unwrap_or_default(),
        })
    }
}

/// A mount table writes space, tab, newline and backslash as `\040` and so on.
pub(super) fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(*first));
        rest = match octal {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    OsString::from_vec(plain)
}

/// By the type's name in a mount table.
fn may_hang_type(kind: &[u8]) -> bool {
    const KINDS: [&[u8]; 27] = [
        b"9p",
        b"acfs",
        b"afs",
        b"autofs",
        b"beegfs",
        b"ceph",
        b"cifs",
        b"coda",
        b"fuse",
        b"fuseblk",
        b"gfs2",
        b"glusterfs",
        b"gpfs",
        b"hostfs",
        b"lustre",
        b"ncpfs",
        b"nfs",
        b"nfs4",
        b"ocfs2",
        b"orangefs",
        b"panfs",
        b"prl_fs",
        b"smb3",
        b"smbfs",
        b"vboxsf",
        b"virtiofs",
        b"vmhgfs",
    ];
    KINDS.contains(&kind) || kind.starts_with(b"fuse.")
}

/// By the number that fstatfs gives: for what a mount table did not tell, or told too late.
pub(crate) fn may_hang_number(number: u64) -> bool {
    matches!(
        number,
        0x6969          // NFS
            | 0xFF53_4D42 // CIFS
            | 0xFE53_4D42 // SMB2 and later
            | 0x517B      // SMB
            | 0x6573_5546 // FUSE, virtiofs
            | 0x00C3_6400 // Ceph
            | 0x0102_1997 // 9P
            | 0x5346_414F // OpenAFS
            | 0x6B41_4653 // the kernel's AFS
            | 0x7375_7245 // Coda
            | 0x564C      // NCP
            | 0x0116_1970 // GFS2
            | 0x7461_636F // OCFS2
            | 0x0BD0_0BD0 // Lustre
            | 0x2003_0528 // OrangeFS
            | 0x4750_4653 // GPFS
            | 0x1983_0326 // BeeGFS
            | 0xAAD7_AAEA // PanFS
            | 0x786F_4256 // VirtualBox
            | 0x00C0_FFEE // a user-mode kernel's host
            | 0x0187 // autofs
    )
}

/// This process's mount table, read again whenever the kernel says that it has changed.
#[derive(Debug)]
pub struct MountTable {
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    file: Option<File>,
    prone: Arc<Prone>,
}

impl MountTable {
    /// Opens `/proc/self/mountinfo`. Where there is none, only fstatfs tells what may hang.
    #[must_use]
    pub fn open() -> Self {
        let mut seen = Seen {
            file: File::open("/proc/self/mountinfo").ok(),
            prone: Arc::default(),
        };
        seen.read();
        Self {
            seen: Mutex::new(seen),
        }
    }

    /// What may hang now. One system call where nothing was mounted since.
    #[must_use]
    pub fn prone(&self) -> Arc<Prone> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = seen.file.as_ref().is_some_and(|file| {
            let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
        });
        if changed {
            seen.read();
        }
        Arc::clone(&seen.prone)
    }
}

impl Seen {
    fn read(&mut self) {
        let Some(file) = &mut self.file else { return };
        let mut text = Vec::new();
        // What could be read is better than nothing: the rest is found by fstatfs.
        if file.rewind().is_ok() && file.take(MOST_MOUNTINFO).read_to_end(&mut text).is_ok() {
            self.prone = Arc::new(Prone::parse(&text));
        }
    }
}

/// The upper directory of the overlay that is mounted at `/`, from the text of a mount table.
#[must_use]
pub fn upper_of_root(mountinfo: &[u8]) -> Option<PathBuf> {
    let root = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(Mounted::parse)
        .rfind(|mounted| mounted.point == b"/")?;
    if root.kind != b"overlay" {
        return None;
    }
    let upper = root
        .options
        .split(|byte| *byte == b',')
        .find_map(|option| option.strip_prefix(b"upperdir="))?;
    Some(PathBuf::from(unescape(upper)))
}

/// Whether a mount's own word for a directory means `path`: the whole of it, or its end where the overlay was mounted
/// from its parent, as runtimes do when its options would be too long.
pub(super) fn is_named(path: &Path, word: &Path) -> bool {
    path == word || (word.is_relative() && word != Path::new("") && path.ends_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"21 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 21 0:40 / /mnt/far rw - nfs4 server:/x rw\n\
        31 21 0:41 / /mnt/my\\040cloud rw - fuse.sshfs me@there rw\n\
        32 21 0:42 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n\
        33 21 0:43 / /mnt/was rw - cifs //server/x rw\n\
        34 21 253:1 / /mnt/was rw - xfs /dev/vdb rw\n\
        nonsense\n\
        35 21 x:y / /mnt/odd rw - nfs server:/y rw\n";

    #[test]
    fn mounts_that_may_hang_are_known_by_type_and_place() {
        let prone = Prone::parse(TABLE);
        let far = nix::sys::stat::makedev(0, 40);
        assert_eq!(prone.at(Path::new("/mnt/far")), Some(far));
        assert_eq!(prone.above(Path::new("/mnt/far/a/b")), Some(far));
        assert_eq!(prone.at(Path::new("/mnt/far/a")), None);
        assert!(prone.at(Path::new("/mnt/my cloud")).is_some());
        for other in ["/", "/sys/fs/fuse/connections", "/mnt/was", "/mnt/odd"] {
            assert_eq!(prone.above(Path::new(other)), None, "{other}");
        }
        assert!(!prone.is_empty() && Prone::parse(b"").is_empty());
    }

    #[test]
    fn the_upper_directory_of_the_root_is_known_as_the_runtime_named_it() {
        let table = b"619 585 0:58 / / rw,relatime shared:1 master:2 - overlay overlay \
            rw,lowerdir=/l/1:/l/2,upperdir=/srv/my\\040docker/7/diff,workdir=/w\n\
            620 619 0:60 / /proc rw - proc proc rw\n";
        let upper = upper_of_root(table).expect("an overlay");
        assert_eq!(upper, Path::new("/srv/my docker/7/diff"));
        assert_eq!(upper_of_root(TABLE), None);
        assert_eq!(upper_of_root(b""), None);
        let named = |path: &str, word: &str| is_named(Path::new(path), Path::new(word));
        assert!(named("/srv/7/diff", "/srv/7/diff") && named("/srv/7/diff", "7/diff"));
        assert!(!named("/srv/7/diff", "/7/diff") && !named("/srv/17/diff", "7/diff"));
        assert!(!named("/srv/7/diff", ""));
    }

    #[test]
    fn our_own_table_is_read_again_when_it_has_changed() {
        let table = MountTable::open();
        let before = table.prone();
        assert!(Arc::ptr_eq(&before, &table.prone()));
    }
}
