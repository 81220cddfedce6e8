//! A node played by hand for one real shim: it gives it a ring and drains that as the daemon's drain thread does.
//! Place: `ring` measures with it what the shim and the ring cost by themselves.
//! Invariants: what it takes has been judged by every rule and stands in private memory; it sleeps and wakes by the
//! daemon's own policy (a tick while there is a little, the bell when there is much).

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ringpilot_shared::ring::consume::{Consumer, Frame, PrivateCopy, frames, private_copy};
use ringpilot_shared::ring::lanes::{Judged, Lanes};
use ringpilot_shared::ring::layout::CAPACITY_LOG2_DEFAULT;
use ringpilot_shared::ring::{Offer, memfd};
use ringpilot_shared::wire::handshake::{ToDaemon, ToShim};
use ringpilot_shared::wire::socket::{self, Received};
use ringpilot_shared::wire::{MESSAGE_LIMIT, VERSION};

/// How often the daemon looks at a busy ring.
const TICK: Duration = Duration::from_millis(20);
/// Bytes that it takes of one ring in a turn.
const QUANTUM: usize = 256 * 1024;
/// Bytes in one look after which it waits for the bell, not for the tick; and for how long.
const HOT: usize = 32 * 1024;
const HOT_FOR: Duration = Duration::from_millis(50);
/// How long a shim may take to come and to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon's end of one ring.
#[derive(Debug)]
pub(super) struct Node {
    socket: OwnedFd,
    consumer: Consumer,
    bell: EventFd,
    lanes: Lanes,
    copy: PrivateCopy,
    files: u32,
    hot_until: Instant,
}

/// What one look took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Took {
    /// Log bytes.
    pub(super) bytes: u64,
    more: bool,
    hot: bool,
}

/// A socket that a shim will connect to.
///
/// # Errors
/// As the file system gives them.
pub(super) fn listen(path: &Path) -> anyhow::Result<OwnedFd> {
    Ok(socket::listen_at(path, 0o666)?)
}

impl Node {
    /// Meets the shim that connects, and tells it to follow `pattern` under the name that it declares.
    ///
    /// # Errors
    /// When none comes, or it does not speak as it should.
    pub(super) fn meet(listener: &OwnedFd, pattern: &str) -> anyhow::Result<Self> {
        let until = Instant::now() + PATIENCE;
        let end = loop {
            if let Some(end) = socket::accept(listener.as_fd())? {
                break end;
            }
            ensure!(Instant::now() < until, "no shim connects");
            std::thread::sleep(Duration::from_millis(5));
        };
        let hello = listened(&end)?;
        ensure!(matches!(hello, ToDaemon::Hello { .. }), "it says {hello:?}");
        let log2 = CAPACITY_LOG2_DEFAULT;
        let made = memfd::make(log2, 1)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let Offer::Memfd { data, control } = made.offer else {
            bail!("a memfd was asked for");
        };
        let welcome = ToShim::Welcome {
            version: VERSION,
            backend: 0,
            capacity_log2: log2,
            generation: 1,
            data: Vec::new(),
            control: Vec::new(),
        };
        let descriptors = [
            data.as_raw_fd(),
            control.as_raw_fd(),
            bell.as_fd().as_raw_fd(),
        ];
        let bytes = welcome.write().context("WELCOME is too long")?;
        ensure!(
            socket::send(end.as_fd(), &bytes, &descriptors)?,
            "the shim takes no WELCOME"
        );
        let mut name = Vec::new();
        loop {
            match listened(&end)? {
                ToDaemon::Declare { name: told, .. } => name = told,
                ToDaemon::Ready {} => break,
                other => bail!("the shim says {other:?} before READY"),
            }
        }
        let node = Self {
            socket: end,
            consumer: Consumer::new(made.daemon, log2),
            bell,
            lanes: Lanes::default(),
            copy: private_copy(QUANTUM),
            files: 0,
            hot_until: Instant::now(),
        };
        node.say(&ToShim::Follow {
            want: 1,
            name,
            pinned_bytes: 1 << 40,
            pattern: pattern.into(),
        })?;
        node.say(&ToShim::Start {})?;
        Ok(node)
    }

    fn say(&self, message: &ToShim) -> anyhow::Result<()> {
        let bytes = message.write().context("a message is too long")?;
        while !socket::send(self.socket.as_fd(), &bytes, &[])? {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Hears what the shim has to say; each file that it sees gets a lane from its start, without end.
    ///
    /// # Errors
    /// When the shim is gone, or says what is no message.
    pub(super) fn hear(&mut self) -> anyhow::Result<()> {
        while let Some(message) = heard(&self.socket)? {
            if let ToDaemon::Seen { stream, .. } = message {
                self.files += 1;
                let lane = self.lanes.give(self.files, stream.generation, 0);
                self.say(&ToShim::Resume {
                    lane,
                    file: self.files,
                    stream,
                    offset: 0,
                    limit: i64::MAX.unsigned_abs(),
                })?;
            }
        }
        Ok(())
    }

    /// One turn: what is in the ring, copied, judged, attributed; `each` gets file, offset and bytes of every frame.
    ///
    /// # Errors
    /// The first rule that was broken.
    pub(super) fn drain(&mut self, mut each: impl FnMut(u32, u64, &[u8])) -> anyhow::Result<Took> {
        let drained = self.consumer.drain(&mut self.copy)?;
        let now = Instant::now();
        if drained.nudge || drained.bytes >= HOT {
            self.hot_until = now + HOT_FOR;
        }
        let mut took = Took {
            more: drained.more,
            hot: now < self.hot_until,
            bytes: 0,
        };
        for frame in frames(&self.copy[..drained.bytes]) {
            let frame = frame?;
            let judged = self.lanes.judge(&frame)?;
            if let (Judged::Bytes { lane, offset }, Frame::Batch { payload, .. }) = (judged, frame)
            {
                took.bytes += payload.len() as u64;
                each(lane.file, offset, &self.copy[payload]);
            }
        }
        if drained.nudge {
            self.say(&ToShim::Space {})?;
        }
        Ok(took)
    }

    /// Sleeps after a turn as long as the daemon would: until the bell where there was much, else until the next tick.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub(super) fn sleep(&mut self, took: Took) -> anyhow::Result<()> {
        let is_armed = took.hot && !took.more && self.consumer.arm();
        if took.more || (took.hot && !is_armed) {
            return Ok(());
        }
        let ms = u16::try_from(TICK.as_millis()).unwrap_or(u16::MAX);
        let mut ends = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ends, PollTimeout::from(ms))?;
        let says = ends[0].any().unwrap_or(false);
        if ends[1].any().unwrap_or(false) {
            self.bell.read()?;
        }
        if is_armed {
            self.consumer.disarm();
        }
        if says {
            self.hear()?;
        }
        Ok(())
    }
}

fn heard(end: &OwnedFd) -> anyhow::Result<Option<ToDaemon>> {
    let mut buffer = [0; MESSAGE_LIMIT];
    match socket::receive(end.as_fd(), &mut buffer, None)? {
        Received::Message(length) => Ok(Some(ToDaemon::read(&buffer[..length])?)),
        Received::Nothing => Ok(None),
        Received::Closed | Received::TooLong => bail!("the shim has closed the link"),
    }
}

fn listened(end: &OwnedFd) -> anyhow::Result<ToDaemon> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(message) = heard(end)? {
            return Ok(message);
        }
        ensure!(Instant::now() < until, "the shim says nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
}
