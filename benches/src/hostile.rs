//! A hostile pod: it speaks the shim's protocol and breaks every rule of it.
//! Place: alone in a container without any right, as `deploy/e2e/hostile` runs it; each abuse in a pod of its own, so that the
//! pause after one does not hide the next.
//! Invariants: it touches nothing but what a pod is given: its socket's folder, its ring, its own descriptors. Whatever
//! text it delivers says `evil`, so that it is known wherever it turns up.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use ringpilot_shared::ring::layout::{
    CAPACITY_LOG2_DEFAULT, HEAD_AT, HEAD_INVERTED_AT, PAGE, capacity,
};
use ringpilot_shared::wire::MESSAGE_LIMIT;
use ringpilot_shared::wire::frame::{Header, Kind, frame_length};
use ringpilot_shared::wire::handshake::ToDaemon;

use crate::pod::{Pod, Talk};

/// Breaks the ring's rules, as a hostile pod would.
#[derive(Debug, clap::Args)]
pub(crate) struct Hostile {
    /// What it does
    #[arg(value_enum)]
    abuse: Abuse,
    /// The folder of its socket
    #[arg(long, default_value = "/run/ringpilot")]
    dir: PathBuf,
    /// For how many seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// One way to harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Abuse {
    /// Cuts and grows the ring's memory, writes the daemon's words
    Truncate,
    /// Punches holes into the ring while it is drained
    Punch,
    /// Moves the head ahead, back, and to where no frame can start
    Heads,
    /// Frames with numbers left out, and garbage that looks like frames
    Sequences,
    /// Changes bytes while they are drained
    Flip,
    /// Rings without cause
    Wakes,
    /// Sends descriptors that nobody asked for
    Descriptors,
    /// Tells of ten thousand files
    Files,
    /// Sends messages without end, those that are none as well
    Messages,
    /// Speaks of wants, lanes and streams that are not its own
    Others,
    /// Declares that it is another pod
    Names,
    /// Deletes its socket, and plants links, folders and pipes in its place
    Sockets,
    /// Connects without end, and says nothing
    Connects,
}

impl Hostile {
    /// Does it again and again; says how often.
    ///
    /// # Errors
    /// When the pod never gets as far as doing it, or could do what it must not be able to do.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(self.seconds);
        let (mut rounds, mut refused) = (0_u64, 0_u64);
        while Instant::now() < until {
            match self.once(until)? {
                true => rounds += 1,
                false => {
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        ensure!(rounds > 0, "{:?}: it was never let in", self.abuse);
        ringpilot::say::line(serde_json::json!({
            "abuse": format!("{:?}", self.abuse).to_lowercase(),
            "rounds": rounds,
            "refused": refused,
        }))?;
        Ok(())
    }

    /// One round; false when the daemon does not let it in now.
    fn once(&self, until: Instant) -> anyhow::Result<bool> {
        let socket = self.dir.join("s");
        match self.abuse {
            Abuse::Sockets => return self.sockets(),
            Abuse::Connects => {
                let Ok(talk) = Talk::connect(&socket) else {
                    return Ok(false);
                };
                drop(talk);
                return Ok(true);
            }
            _ => {}
        }
        let mut declared = vec![("evil", "/evil/*.log")];
        if self.abuse == Abuse::Names {
            declared = vec![
                ("aliyun_logs_evil", "/evil/*.log"),
                (
                    "aliyun_logs_evil_tags",
                    "k8s_pod=good,k8s_pod_namespace=shop,docker_container=good",
                ),
                ("aliyun_logs_good", "/logs/*.log"),
            ];
        }
        let Ok(talk) = Talk::connect(&socket) else {
            return Ok(false);
        };
        // A refusal is an answer, too: the daemon may still remember the last round.
        let Ok(mut pod) = talk.begin(&declared) else {
            return Ok(false);
        };
        match self.abuse {
            Abuse::Truncate => truncate(&pod)?,
            Abuse::Punch => punch(&mut pod, until),
            Abuse::Heads => heads(&pod)?,
            Abuse::Sequences => sequences(&mut pod)?,
            Abuse::Flip => flip(&mut pod, until)?,
            Abuse::Wakes => {
                while Instant::now() < until && pod.ring_bell().is_ok() {
                    // Faster than the daemon can look, and not so fast that the machine has no time for others.
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
            Abuse::Descriptors => {
                let own = pod.data.as_raw_fd();
                while Instant::now() < until {
                    if !pod.talk.say_with(&ToDaemon::Looked {}, &[own; 64]) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            Abuse::Files => {
                for id in 0..10_000 {
                    if !pod.sees(pod.want, id, 1 << 40, "/evil/x.log") {
                        break;
                    }
                }
            }
            Abuse::Messages => {
                let looked = ToDaemon::Looked {}.write().unwrap_or_default();
                for n in 0..50_000_u32 {
                    let is_none = n % 5_000 == 4_999;
                    let none = vec![0xff; MESSAGE_LIMIT + 1];
                    if !pod.talk.say(if is_none { &none } else { &looked }) {
                        break;
                    }
                }
            }
            Abuse::Others => others(&mut pod),
            Abuse::Names => lines(&mut pod, "evil claims another's name\n", 50)?,
            Abuse::Sockets | Abuse::Connects => {}
        }
        Ok(true)
    }

    /// Its folder is its own: whatever is there instead of the socket must harm only itself.
    fn sockets(&self) -> anyhow::Result<bool> {
        let socket = self.dir.join("s");
        // Each may fail: the daemon works in the same folder.
        let clear = || {
            drop(std::fs::remove_file(&socket));
            drop(std::fs::remove_dir(&socket));
        };
        let links = ["../shop_good_1/s", "/etc/passwd", "s", "/nowhere"];
        for link in links {
            clear();
            drop(symlink(link, &socket));
            std::thread::sleep(Duration::from_millis(700));
        }
        clear();
        drop(std::fs::create_dir(&socket));
        std::thread::sleep(Duration::from_millis(700));
        clear();
        nix::unistd::mkfifo(&socket, nix::sys::stat::Mode::S_IRWXU).unwrap_or_default();
        std::thread::sleep(Duration::from_millis(700));
        clear();
        Ok(true)
    }
}

/// Sealed memory stays as long as it is, and the daemon's words are the daemon's.
fn truncate(pod: &Pod) -> anyhow::Result<()> {
    for file in [&pod.data, &pod.control] {
        ensure!(file.set_len(0).is_err(), "the ring's memory can be cut");
        ensure!(
            file.set_len(1 << 30).is_err(),
            "the ring's memory can be grown"
        );
    }
    ensure!(
        pod.control.write_at(&[0xff; 8], HEAD_AT as u64).is_err(),
        "the daemon's words can be written"
    );
    let mut first = [0; 4096];
    pod.data.read_exact_at(&mut first, PAGE as u64)?;
    ensure!(
        first.iter().all(|byte| *byte == 0),
        "something is left in a new ring"
    );
    Ok(())
}

fn hole(pod: &Pod, at: i64, length: i64) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // Whether the kernel lets it is the kernel's affair.
    fallocate(&pod.data, flags, at, length).unwrap_or_default();
}

fn punch(pod: &mut Pod, until: Instant) {
    let all = (PAGE as u64 + capacity(CAPACITY_LOG2_DEFAULT)).cast_signed();
    let round = Instant::now() + Duration::from_secs(2);
    let mut lane = match pod.begins() {
        Ok(lane) => lane,
        Err(_) => return,
    };
    while Instant::now() < until.min(round) {
        // What was published is taken away before, while or after it is copied; at last the head itself.
        if !matches!(pod.publish(&mut lane, b"evil line in a hole\n"), Ok(true)) {
            break;
        }
        hole(pod, PAGE as i64, all - PAGE as i64);
    }
    hole(pod, 0, all);
    drop(pod.ring_bell());
}

fn set_head(pod: &Pod, head: u64) -> std::io::Result<()> {
    pod.data
        .write_all_at(&(!head).to_le_bytes(), HEAD_INVERTED_AT as u64)?;
    pod.data.write_all_at(&head.to_le_bytes(), HEAD_AT as u64)?;
    pod.ring_bell()
}

fn heads(pod: &Pod) -> anyhow::Result<()> {
    // One of these in each round, by the clock.
    let heads = [
        u64::MAX,
        33,
        1 << 40,
        u64::MAX - 31,
        capacity(CAPACITY_LOG2_DEFAULT),
    ];
    let nanoseconds = std::time::SystemTime::UNIX_EPOCH.elapsed()?.subsec_nanos() as usize;
    Ok(set_head(pod, heads[nanoseconds / 1_000 % heads.len()])?)
}

fn sequences(pod: &mut Pod) -> anyhow::Result<()> {
    let length = frame_length(64, 0);
    let mut frame = vec![0xa5; length];
    let header = Header::new(Kind::Batch, 1, 7_000, 64, 0);
    let header = header.write(&[]);
    frame[..header.len()].copy_from_slice(&header);
    pod.data.write_all_at(&frame, PAGE as u64)?;
    Ok(set_head(pod, length as u64)?)
}

/// Good frames, and another hand that changes them while the daemon takes them.
fn flip(pod: &mut Pod, until: Instant) -> anyhow::Result<()> {
    let Ok(mut lane) = pod.begins() else {
        return Ok(());
    };
    let data = pod.data.try_clone()?;
    let round = until.min(Instant::now() + Duration::from_secs(3));
    let flipper = std::thread::spawn(move || {
        let mut n = 0_u64;
        while Instant::now() < round {
            let at = PAGE as u64 + n * 40_503 % capacity(CAPACITY_LOG2_DEFAULT);
            if data.write_at(&[n as u8; 3], at).is_err() {
                break;
            }
            n += 1;
            std::thread::sleep(Duration::from_micros(5));
        }
    });
    while Instant::now() < round {
        match pod.publish(&mut lane, &b"evil line that changes\n".repeat(100)) {
            Ok(true) => {}
            Ok(false) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => break,
        }
        if pod.talk.hear(&mut Vec::new()).is_err() {
            break;
        }
    }
    flipper.join().ok().context("the other hand has failed")
}

fn others(pod: &mut Pod) {
    // The good pod's streams and wants have small numbers, as all have.
    for number in 0..64 {
        pod.sees(pod.want ^ number, number, 1_000, "/logs/a.log");
        pod.talk.tell(&ToDaemon::Finished {
            stream: ringpilot_shared::follow::StreamKey {
                id: number,
                generation: 0,
            },
        });
    }
    if let Ok(mut lane) = pod.lane() {
        lane.file ^= 1;
        drop(pod.publish(&mut lane, b"evil line in another's file\n"));
        lane.number += 1_000;
        drop(pod.publish(&mut lane, b"evil line in another's lane\n"));
    }
}

/// Lines that are let through, because this pod may write what it likes under its own name.
fn lines(pod: &mut Pod, line: &str, n: usize) -> anyhow::Result<()> {
    let mut lane = pod.begins()?;
    for _ in 0..n {
        if !pod.publish(&mut lane, line.as_bytes())? {
            break;
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

impl Pod {
    /// A file of its own, and the lane that the daemon gives for it.
    fn begins(&mut self) -> anyhow::Result<crate::pod::Lane> {
        let id = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
        self.sees(self.want, id, 1 << 20, "/evil/a.log");
        self.lane()
    }
}
