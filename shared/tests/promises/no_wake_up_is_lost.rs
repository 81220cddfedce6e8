//! Neither side sleeps while the other believes it to be awake.

use std::panic::AssertUnwindSafe;

use loom::sync::Arc;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;
use ringpilot_shared::ring::doorbell::{DaemonBell, DaemonWords, Head, ShimBell, ShimWords};

/// The shared words as loom sees them; `fenced` is what makes the protocol right.
struct Words {
    head: AtomicU64,
    released: AtomicU64,
    armed: AtomicU32,
    wanted: AtomicU32,
    fenced: bool,
}

impl Words {
    fn new(fenced: bool) -> Arc<Self> {
        Arc::new(Self {
            head: AtomicU64::new(0),
            released: AtomicU64::new(0),
            armed: AtomicU32::new(0),
            wanted: AtomicU32::new(0),
            fenced,
        })
    }
    fn maybe_fence(&self) {
        if self.fenced {
            fence(Ordering::SeqCst);
        }
    }
}

impl ShimWords for Words {
    fn store_head(&self, head: u64) {
        self.head.store(head, Ordering::Release);
    }
    fn armed(&self) -> u32 {
        self.armed.load(Ordering::Acquire)
    }
    fn released(&self) -> Option<u64> {
        Some(self.released.load(Ordering::Acquire))
    }
    fn store_wanted(&self, number: u32) {
        self.wanted.store(number, Ordering::Release);
    }
    fn fence(&self) {
        self.maybe_fence();
    }
}

impl DaemonWords for Words {
    fn head(&self) -> Head {
        Head::At(self.head.load(Ordering::Acquire))
    }
    fn store_armed(&self, number: u32) {
        self.armed.store(number, Ordering::Release);
    }
    fn store_released(&self, released: u64) {
        self.released.store(released, Ordering::Release);
    }
    fn wanted(&self) -> u32 {
        self.wanted.load(Ordering::Acquire)
    }
    fn fence(&self) {
        self.maybe_fence();
    }
}

/// A shim publishes `publishes` times and leaves; the daemon sleeps whenever it may, and must see the last one.
fn publish_and_sleep(fenced: bool, publishes: u64) {
    let words = Words::new(fenced);
    let bell = Arc::new(Notify::new());
    let shim = {
        let (words, bell) = (Arc::clone(&words), Arc::clone(&bell));
        thread::spawn(move || {
            let mut shim = ShimBell::default();
            for head in 1..=publishes {
                if shim.publish(&*words, head) {
                    bell.notify();
                }
            }
        })
    };
    let mut daemon = DaemonBell::default();
    let mut tail = 0;
    while tail < publishes {
        if daemon.arm(&*words, tail) {
            bell.wait();
            daemon.disarm(&*words);
        }
        if let Head::At(head) = DaemonWords::head(&*words) {
            tail = head;
        }
    }
    shim.join().unwrap();
}

/// The daemon releases once and forgets; a shim that waits for that space must be told of it.
fn release_and_wait(fenced: bool) {
    let words = Words::new(fenced);
    let nudge = Arc::new(Notify::new());
    let daemon = {
        let (words, nudge) = (Arc::clone(&words), Arc::clone(&nudge));
        thread::spawn(move || {
            let mut daemon = DaemonBell::default();
            if daemon.release(&*words, 1) {
                nudge.notify();
            }
        })
    };
    let mut shim = ShimBell::default();
    if !shim.want(&*words, 1) {
        // A wait may end for no reason.
        while ShimWords::released(&*words) != Some(1) {
            nudge.wait();
        }
        shim.stop_wanting(&*words);
    }
    assert_eq!(ShimWords::released(&*words), Some(1));
    daemon.join().unwrap();
}

/// Whether loom finds an execution in which `body` deadlocks or fails.
fn loom_refutes(body: impl Fn() + Sync + Send + 'static) -> bool {
    std::panic::catch_unwind(AssertUnwindSafe(|| loom::model(body))).is_err()
}

#[test]
fn a_daemon_that_arms_while_the_shim_publishes_is_woken() {
    loom::model(|| publish_and_sleep(true, 2));
}

#[test]
fn a_shim_that_waits_while_the_daemon_releases_is_told() {
    loom::model(|| release_and_wait(true));
}

#[test]
fn without_the_fences_the_daemon_sleeps_for_ever() {
    assert!(loom_refutes(|| publish_and_sleep(false, 1)));
}

#[test]
fn without_the_fences_the_shim_waits_for_ever() {
    assert!(loom_refutes(|| release_and_wait(false)));
}
