//! A file system in user space that answers, or does not, as a test wants. Source: linux/fuse.h, protocol 7.31.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What the one file in it holds.
pub(crate) const TEXT: &[u8] = b"a line far away\n";

/// It is called `app.log`.
const FILE: u64 = 2;

#[derive(Default)]
struct State {
    /// Which requests wait: by number of operation.
    hold: Vec<u32>,
    /// Those that do.
    held: Vec<Vec<u8>>,
}

pub(crate) struct HangingMount {
    folder: tempfile::TempDir,
    device: Arc<File>,
    state: Arc<Mutex<State>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub(crate) const LOOKUP: u32 = 1;
pub(crate) const READ: u32 = 15;

impl HangingMount {
    /// Mounts one; `None` where this machine lets nobody do so.
    pub(crate) fn new() -> Option<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .ok()?;
        let folder = tempfile::tempdir().ok()?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let none = MsFlags::empty();
        mount(
            Some("test"),
            folder.path(),
            Some("fuse"),
            none,
            Some(options.as_str()),
        )
        .ok()?;
        let device = Arc::new(device);
        let state = Arc::<Mutex<State>>::default();
        let thread = std::thread::spawn({
            let (device, state) = (Arc::clone(&device), Arc::clone(&state));
            move || serve(&device, &state)
        });
        Some(Self {
            folder,
            device,
            state,
            thread: Some(thread),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves requests of this kind without an answer from now on.
    pub(crate) fn hold(&self, operation: u32) {
        self.state.lock().unwrap().hold.push(operation);
    }

    /// How many wait.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().unwrap().held.len()
    }

    /// Answers everything again.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock().unwrap();
        state.hold.clear();
        for request in std::mem::take(&mut state.held) {
            answer(&self.device, &request);
        }
    }
}

impl Drop for HangingMount {
    fn drop(&mut self) {
        self.release();
        umount2(
            self.folder.path(),
            MntFlags::MNT_FORCE | MntFlags::MNT_DETACH,
        )
        .unwrap_or_default();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}

fn serve(device: &File, state: &Mutex<State>) {
    let mut buffer = vec![0; 1 << 20];
    // It ends when the mount does.
    while let Ok(len) = { device }.read(&mut buffer) {
        let request = &buffer[..len];
        let mut state = state.lock().unwrap();
        if state.hold.contains(&word(request, 4)) {
            state.held.push(request.to_owned());
        } else {
            answer(device, request);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn attributes(node: u64) -> Vec<u8> {
    let (size, mode) = if node == FILE {
        (TEXT.len() as u64, 0o100_644)
    } else {
        (0, 0o040_755)
    };
    let longs = [node, size, 1, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let words = [0_u32, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    [longs, words.map(u32::to_ne_bytes).concat()].concat()
}

fn answer(device: &File, request: &[u8]) {
    const HEADER: usize = 40;
    let (operation, unique, node) = (word(request, 4), long(request, 8), long(request, 16));
    let body = &request[HEADER..];
    let reply: Result<Vec<u8>, i32> = match operation {
        // forget, interrupt, batch_forget: these want none.
        2 | 36 | 42 => return,
        // init
        26 => {
            let mut words = [0_u32; 16];
            words[..6].copy_from_slice(&[7, 31, 0, 0, 0, 1 << 17]);
            words[6] = 1;
            Ok(words.map(u32::to_ne_bytes).concat())
        }
        LOOKUP if body.starts_with(b"app.log\0") => {
            // Valid for no time at all: the kernel shall ask each time.
            let longs = [FILE, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
            Ok([longs, attributes(FILE)].concat())
        }
        LOOKUP => Err(2),
        // getattr
        3 => Ok([vec![0; 16], attributes(node)].concat()),
        // open and opendir; the file past the page cache (FOPEN_DIRECT_IO)
        14 | 27 => Ok([0_u64, u64::from(u32::from_ne_bytes([1, 0, 0, 0]))]
            .map(u64::to_ne_bytes)
            .concat()),
        READ => {
            let from = usize::try_from(long(body, 8)).unwrap().min(TEXT.len());
            let to = (from + word(body, 16) as usize).min(TEXT.len());
            Ok(TEXT[from..to].to_owned())
        }
        // readdir
        28 if long(body, 8) == 0 => {
            let longs = [FILE, 1, 7 | 8 << 32].map(u64::to_ne_bytes).concat();
            Ok([longs, b"app.log\0".to_vec()].concat())
        }
        28 => Ok(Vec::new()),
        // statfs
        17 => Ok(vec![0; 80]),
        // flush, release, releasedir, access
        25 | 18 | 29 | 34 => Ok(Vec::new()),
        _ => Err(38),
    };
    let (error, data) = match reply {
        Ok(data) => (0, data),
        Err(error) => (-error, Vec::new()),
    };
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(16 + data.len()).unwrap().to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(data);
    // A request whose asker is gone takes no answer.
    { device }.write_all(&bytes).unwrap_or_default();
}
