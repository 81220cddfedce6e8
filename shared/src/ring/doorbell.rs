//! The two wake-up protocols: the daemon sleeps until there are frames, the shim until there is space.
//! Place: `produce` and `consume` call these on mapped words; the loom test calls the same on its own.
//! Invariant: each side stores its word, fences, then loads the other's. Acquire and release alone lose wake-ups:
//! both loads may be satisfied before either store is seen, and both sides sleep. The loom test shows it.
//!
//! A waiter's word is odd while it waits, and each wait is a new number: the other side, which cannot write that
//! word, wakes it once per number.

/// The shim's view of the shared words.
pub trait ShimWords {
    /// Makes everything before `head` visible (release).
    fn store_head(&self, head: u64);
    /// The daemon's armed word.
    fn armed(&self) -> u32;
    /// How far space has been released (acquire); `None` while the word is being written.
    fn released(&self) -> Option<u64>;
    /// Says that the shim waits for space (odd) or no longer (even).
    fn store_wanted(&self, number: u32);
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// The daemon's view of the shared words.
pub trait DaemonWords {
    /// How far frames are published (acquire).
    fn head(&self) -> Head;
    /// Says that the daemon sleeps (odd) or no longer (even).
    fn store_armed(&self, number: u32);
    /// Gives space back (release).
    fn store_released(&self, released: u64);
    /// The shim's wanted word.
    fn wanted(&self) -> u32;
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// What a look at `head` gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A position; not judged.
    At(u64),
    /// It is being written just now: look again.
    Unsettled,
    /// It cannot be read: the memory was taken away.
    Gone,
}

/// The shim's half of the protocols.
#[derive(Debug, Default)]
pub struct ShimBell {
    rung: u32,
    wanted: u32,
}

impl ShimBell {
    /// Publishes `head`; true when the eventfd must be rung.
    #[must_use = "the daemon sleeps for ever when it is not rung"]
    pub fn publish(&mut self, words: &impl ShimWords, head: u64) -> bool {
        words.store_head(head);
        words.fence();
        let armed = words.armed();
        if armed % 2 == 1 && armed != self.rung {
            self.rung = armed;
            return true;
        }
        false
    }

    /// Asks to be told when space is released; true when `released` has reached `needed` already, so that there is
    /// nothing to wait for.
    #[must_use = "true means: do not wait"]
    pub fn want(&mut self, words: &impl ShimWords, needed: u64) -> bool {
        self.wanted = (self.wanted | 1).wrapping_add(2);
        words.store_wanted(self.wanted);
        words.fence();
        if words.released().is_some_and(|released| released >= needed) {
            self.stop_wanting(words);
            return true;
        }
        false
    }

    /// Takes the wish back.
    pub fn stop_wanting(&mut self, words: &impl ShimWords) {
        if self.wanted % 2 == 1 {
            self.wanted = self.wanted.wrapping_add(1);
            words.store_wanted(self.wanted);
        }
    }
}

/// The daemon's half of the protocols.
#[derive(Debug, Default)]
pub struct DaemonBell {
    armed: u32,
    nudged: u32,
}

impl DaemonBell {
    /// Arms the bell; true when the daemon may sleep, false when there is more than `tail` and it is not armed.
    #[must_use = "false means: do not sleep"]
    pub fn arm(&mut self, words: &impl DaemonWords, tail: u64) -> bool {
        self.armed = (self.armed | 1).wrapping_add(2);
        words.store_armed(self.armed);
        words.fence();
        if words.head() == Head::At(tail) {
            return true;
        }
        self.disarm(words);
        false
    }

    /// Says that the daemon is awake.
    pub fn disarm(&mut self, words: &impl DaemonWords) {
        if self.armed % 2 == 1 {
            self.armed = self.armed.wrapping_add(1);
            words.store_armed(self.armed);
        }
    }

    /// Gives space back; true when the shim waits for it and must be told.
    #[must_use = "the shim waits for ever when it is not told"]
    pub fn release(&mut self, words: &impl DaemonWords, released: u64) -> bool {
        words.store_released(released);
        words.fence();
        let wanted = words.wanted();
        if wanted % 2 == 1 && wanted != self.nudged {
            self.nudged = wanted;
            return true;
        }
        false
    }
}
