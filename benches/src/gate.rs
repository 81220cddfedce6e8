//! A door before a server: shut, open, or so narrow that only some bytes a second get through.
//! Place: between the daemon and a server, where the server itself cannot be made slow or absent.
//! Invariants: it changes no byte; shut, it ends every connection that there is and that comes.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A door, for as long as this process lives.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Where it listens, on 127.0.0.1.
    pub(crate) port: u16,
    door: Arc<Door>,
}

#[derive(Debug)]
struct Door {
    is_open: AtomicBool,
    /// Bytes per second towards the server; 0 is as many as come.
    rate: AtomicU64,
    /// When the next bytes may pass.
    next: Mutex<Option<Instant>>,
    through: Mutex<Vec<TcpStream>>,
}

impl Gate {
    /// Listens before `server`, open or not.
    ///
    /// # Errors
    /// When there is no port to listen at.
    pub(crate) fn before(server: SocketAddr, is_open: bool, rate: u64) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let door = Arc::new(Door {
            is_open: AtomicBool::new(is_open),
            rate: AtomicU64::new(rate),
            next: Mutex::new(None),
            through: Mutex::default(),
        });
        let at = Arc::clone(&door);
        std::thread::spawn(move || {
            // A connection that failed before it was taken is its client's to make again.
            for client in listener.incoming().flatten() {
                if at.is_open.load(Ordering::SeqCst) {
                    // So is one that the server does not take.
                    drop(at.pass(client, server));
                }
            }
        });
        Ok(Self { port, door })
    }

    /// Lets everybody through, as fast as they come.
    pub(crate) fn open(&self) {
        self.door.rate.store(0, Ordering::SeqCst);
        self.door.is_open.store(true, Ordering::SeqCst);
    }
}

impl Door {
    fn pass(self: &Arc<Self>, client: TcpStream, server: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(server)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let mut through = self.through.lock().unwrap_or_else(PoisonError::into_inner);
        through.push(client.try_clone()?);
        drop(through);
        let (door, from, to) = (Arc::clone(self), client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || door.carry(from, to, true));
        let door = Arc::clone(self);
        std::thread::spawn(move || door.carry(server, client, false));
        Ok(())
    }

    /// Carries bytes until either end is gone; then both are.
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, is_slow: bool) {
        let mut block = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut block) {
            if is_slow {
                std::thread::sleep(self.wait_for(length));
            }
            if to.write_all(&block[..length]).is_err() {
                break;
            }
        }
        for end in [&from, &to] {
            // The other direction may have ended it.
            drop(end.shutdown(Shutdown::Both));
        }
    }

    /// How long so many bytes must wait, all connections together.
    fn wait_for(&self, length: usize) -> Duration {
        let rate = self.rate.load(Ordering::SeqCst);
        if rate == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let from = next.unwrap_or(now).max(now);
        *next = Some(from + Duration::from_secs_f64(length as f64 / rate as f64));
        from - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shut_door_ends_connections_and_a_narrow_one_takes_its_time() -> io::Result<()> {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let gate = Gate::before(server.local_addr()?, false, 100_000)?;
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.port))?;
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));

        gate.door.is_open.store(true, Ordering::SeqCst);
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, gate.port))?;
        let begun = Instant::now();
        std::thread::spawn(move || client.write_all(&[7; 50_000]));
        let mut got = Vec::new();
        server.accept()?.0.read_to_end(&mut got)?;
        assert_eq!(got, [7; 50_000]);
        // The last block need not wait for its own time.
        assert!(begun.elapsed() > Duration::from_millis(250));
        Ok(())
    }
}
