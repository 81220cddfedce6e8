//! A pod played by hand: it speaks the shim's protocol, so far as the one who plays it wants.
//! Place: `ring` asks it how soon the daemon copies; `hostile` breaks every rule with it.
//! Invariants: nothing here reads a file; what it sends is what it was told to send.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ringpilot_shared::follow::{Identity, StreamKey};
use ringpilot_shared::host::Stat;
use ringpilot_shared::ring::layout::CAPACITY_LOG2_DEFAULT;
use ringpilot_shared::ring::memfd;
use ringpilot_shared::ring::produce::{Producer, Ring};
use ringpilot_shared::wire::frame::BatchMetadata;
use ringpilot_shared::wire::handshake::{ToDaemon, ToShim};
use ringpilot_shared::wire::socket::{self, Received};
use ringpilot_shared::wire::{MESSAGE_LIMIT, SCHEMA, VERSION};

/// How long it waits for the daemon's next word, and for a socket that is to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that has no ring yet.
#[derive(Debug)]
pub(crate) struct Talk {
    socket: OwnedFd,
}

impl Talk {
    /// Connects as soon as somebody listens.
    ///
    /// # Errors
    /// When nobody does within 20 s.
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Self> {
        let until = Instant::now() + PATIENCE;
        loop {
            match socket::connect_to(path) {
                Ok(socket) => return Ok(Self { socket }),
                Err(error) if Instant::now() >= until => {
                    return Err(error).context(format!("nobody listens at {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Sends bytes as one message; whether the daemon took them within 2 s.
    pub(crate) fn say(&self, bytes: &[u8]) -> bool {
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            match socket::send(self.socket.as_fd(), bytes, &[]) {
                Ok(true) => return true,
                Ok(false) => std::thread::sleep(Duration::from_micros(200)),
                Err(_) => return false,
            }
        }
        false
    }

    /// Sends a message with descriptors that nobody asked for.
    pub(crate) fn say_with(&self, message: &ToDaemon, descriptors: &[i32]) -> bool {
        let bytes = message.write();
        bytes.is_some_and(|bytes| {
            socket::send(self.socket.as_fd(), &bytes, descriptors).unwrap_or(false)
        })
    }

    /// Sends a message.
    pub(crate) fn tell(&self, message: &ToDaemon) -> bool {
        message.write().is_some_and(|bytes| self.say(&bytes))
    }

    /// The next message, if one is there now.
    ///
    /// # Errors
    /// When the daemon has closed, or says what is none.
    pub(crate) fn hear(&self, descriptors: &mut Vec<OwnedFd>) -> anyhow::Result<Option<ToShim>> {
        let mut buffer = [0; MESSAGE_LIMIT];
        match socket::receive(self.socket.as_fd(), &mut buffer, Some(descriptors))? {
            Received::Message(length) => Ok(Some(ToShim::read(&buffer[..length])?)),
            Received::Nothing => Ok(None),
            Received::Closed | Received::TooLong => bail!("the daemon has closed the link"),
        }
    }

    /// The next message, waited for.
    fn next(&self, descriptors: &mut Vec<OwnedFd>) -> anyhow::Result<ToShim> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.hear(descriptors)? {
                return Ok(message);
            }
            ensure!(Instant::now() < until, "the daemon says nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Goes on as a shim that declares these would, up to START.
    ///
    /// # Errors
    /// When the daemon refuses, or gives no sealed memory.
    pub(crate) fn begin(self, declared: &[(&str, &str)]) -> anyhow::Result<Pod> {
        let hello = ToDaemon::Hello {
            oldest: VERSION,
            newest: VERSION,
            schema: SCHEMA,
            epoch: 1,
            capacity_log2: CAPACITY_LOG2_DEFAULT,
        };
        ensure!(self.tell(&hello), "the daemon takes no HELLO");
        let mut descriptors = Vec::new();
        let welcome = self.next(&mut descriptors)?;
        let ToShim::Welcome { capacity_log2, .. } = welcome else {
            bail!("the daemon says {welcome:?}");
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().context("the ring is not a sealed memfd");
        let (data, control, bell) = (next()?, next()?, next()?);
        let copies = [data.try_clone()?, control.try_clone()?].map(File::from);
        let memory = memfd::open(data, control, capacity_log2)?;
        for (name, value) in declared {
            let declare = ToDaemon::Declare {
                name: name.as_bytes().to_vec(),
                value: value.as_bytes().to_vec(),
                more: false,
            };
            ensure!(self.tell(&declare), "the daemon takes no declaration");
        }
        ensure!(self.tell(&ToDaemon::Ready {}), "the daemon takes no READY");
        let mut want = 0;
        loop {
            match self.next(&mut Vec::new())? {
                ToShim::Follow { want: told, .. } => want = told,
                ToShim::Start {} => break,
                _ => {}
            }
        }
        let [data, control] = copies;
        Ok(Pod {
            talk: self,
            producer: Producer::new(memory, capacity_log2, 1),
            data,
            control,
            bell: File::from(bell),
            want,
        })
    }
}

/// A pod with a ring.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) talk: Talk,
    pub(crate) producer: Producer,
    /// The ring's data, which it may write.
    pub(crate) data: File,
    /// The daemon's words, which it may not.
    pub(crate) control: File,
    pub(crate) bell: File,
    /// The daemon's number of what is wanted.
    pub(crate) want: u64,
}

/// What the daemon wants of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) number: u32,
    pub(crate) file: u32,
    pub(crate) generation: u16,
    pub(crate) offset: u64,
}

impl Pod {
    /// Says that it sees a file of that many bytes; whether that was taken.
    pub(crate) fn sees(&self, want: u64, id: u64, size: u64, path: &str) -> bool {
        let stat = Stat {
            device: 1,
            inode: id,
            birth_ns: Some(1),
            size,
            disk_bytes: size,
            links: 1,
            modified_ns: 0,
            may_hang: false,
        };
        self.talk.tell(&ToDaemon::Seen {
            want,
            stream: StreamKey { id, generation: 0 },
            stat,
            identity: Identity::of(&stat, 1),
            after: None,
            known: false,
            existed: false,
            finished: false,
            path: path.into(),
        })
    }

    /// The lane that the daemon gives for what it was told of.
    ///
    /// # Errors
    /// When it gives none.
    pub(crate) fn lane(&self) -> anyhow::Result<Lane> {
        loop {
            if let ToShim::Resume {
                lane,
                file,
                stream,
                offset,
                ..
            } = self.talk.next(&mut Vec::new())?
            {
                return Ok(Lane {
                    number: lane,
                    file,
                    generation: stream.generation,
                    offset,
                });
            }
        }
    }

    /// Publishes bytes in a lane, and rings if the daemon sleeps; false when the ring is full.
    ///
    /// # Errors
    /// When the daemon's words make no sense.
    pub(crate) fn publish(&mut self, lane: &mut Lane, bytes: &[u8]) -> anyhow::Result<bool> {
        let end = lane.offset + bytes.len() as u64;
        let mut metadata = BatchMetadata {
            offset: lane.offset,
            size: end,
            read_ns: 0,
            file: lane.file,
            generation: lane.generation,
            lines: Vec::new(),
        };
        let Some(mut slot) = self.producer.slot(bytes.len())? else {
            return Ok(false);
        };
        let Some(to) = slot.payload().get_mut(..bytes.len()) else {
            return Ok(false);
        };
        to.copy_from_slice(bytes);
        if slot.publish(bytes.len(), lane.number, &mut metadata) == Ring::Needed {
            self.ring_bell()?;
        }
        lane.offset = end;
        Ok(true)
    }

    /// Rings, whether the daemon sleeps or not.
    ///
    /// # Errors
    /// `WouldBlock` when it was rung 2^64 times.
    pub(crate) fn ring_bell(&self) -> std::io::Result<()> {
        (&self.bell).write_all(&1_u64.to_ne_bytes())
    }
}
