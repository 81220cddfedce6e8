//! Connections of an output that are kept between its batches, to one server or to several.
//! Invariants: a connection serves one attempt at a time; one that failed, or on which the server spoke or left while
//! nobody asked, is not used again; a server that cannot be reached costs one try in an attempt.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::connection::{Address, Connection, Way};

/// Connections to servers that are as good as each other.
#[derive(Debug)]
pub(super) struct Pool {
    servers: Vec<Address>,
    way: Way,
    /// Whether attempts go round the servers; otherwise all go to one until it fails.
    spread: bool,
    /// Where the next attempt begins.
    next: AtomicUsize,
    idle: Mutex<Vec<(usize, Connection)>>,
}

/// A connection that an attempt has to itself.
#[derive(Debug)]
pub(super) struct Taken {
    server: usize,
    pub(super) connection: Connection,
}

impl Pool {
    /// No connections yet. There is at least one server.
    pub(super) fn new(servers: Vec<Address>, way: Way, spread: bool) -> Self {
        Self {
            servers,
            way,
            spread,
            next: AtomicUsize::new(0),
            idle: Mutex::default(),
        }
    }

    pub(super) fn way(&self) -> &Way {
        &self.way
    }

    /// An open connection, kept or new.
    ///
    /// # Errors
    /// Why none of the servers can be reached.
    pub(super) async fn take(&self) -> Result<Taken, String> {
        let count = self.servers.len();
        let first = match self.spread {
            true => self.next.fetch_add(1, Ordering::Relaxed),
            false => self.next.load(Ordering::Relaxed),
        } % count.max(1);
        let mut whys = Vec::new();
        for server in (first..count).chain(0..first) {
            if let Some(connection) = self.kept(server) {
                return Ok(Taken { server, connection });
            }
            match self.way.connect(&self.servers[server]).await {
                Ok(connection) => {
                    if !self.spread {
                        self.next.store(server, Ordering::Relaxed);
                    }
                    return Ok(Taken { server, connection });
                }
                Err(why) => whys.push(why),
            }
        }
        Err(whys.join("; "))
    }

    /// A kept connection to this server that is still good.
    fn kept(&self, server: usize) -> Option<Connection> {
        let mut idle = self.idle.lock();
        while let Some(at) = idle.iter().rposition(|(of, _)| *of == server) {
            let (_, mut connection) = idle.swap_remove(at);
            if connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next attempt.
    pub(super) fn give_back(&self, taken: Taken) {
        self.idle.lock().push((taken.server, taken.connection));
    }

    /// The server's address, for people.
    pub(super) fn server(&self, taken: &Taken) -> &Address {
        &self.servers[taken.server]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn server() -> (TcpListener, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let host = "127.0.0.1".to_owned();
        (listener, Address { host, port })
    }

    fn pool(servers: &[&Address], spread: bool) -> Pool {
        let way = Way::new(None, Duration::from_secs(5));
        Pool::new(
            servers.iter().map(|to| (*to).clone()).collect(),
            way,
            spread,
        )
    }

    #[tokio::test]
    async fn a_connection_is_kept_until_its_server_speaks_or_leaves() {
        let (listener, to) = server().await;
        let pool = pool(&[&to], false);
        let taken = pool.take().await.expect("a connection");
        let (mut other, _) = listener.accept().await.expect("its other end");
        pool.give_back(taken);
        let taken = pool.take().await.expect("the same connection");
        pool.give_back(taken);
        other.write_all(b"?").await.expect("a word");
        other.shutdown().await.expect("an end");
        // The word is on its way through loopback.
        while pool.idle.lock()[0].1.is_idle() {
            tokio::task::yield_now().await;
        }
        let taken = pool.take().await.expect("another connection");
        let (_another, _) = listener.accept().await.expect("its other end");
        assert!(pool.idle.lock().is_empty());
        drop(taken);
    }

    #[tokio::test]
    async fn attempts_go_round_the_servers_or_stay_until_one_fails() {
        let ((one, a), (two, b)) = (server().await, server().await);
        let spread = pool(&[&a, &b], true);
        let order = |pool: &Pool, taken: &[Taken]| -> Vec<u16> {
            taken.iter().map(|taken| pool.server(taken).port).collect()
        };
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(spread.take().await.expect("a connection"));
        }
        assert_eq!(order(&spread, &taken), [a.port, b.port, a.port]);
        let sticky = pool(&[&a, &b], false);
        let mut taken = vec![sticky.take().await.expect("a connection")];
        drop(one);
        for _ in 0..2 {
            taken.push(sticky.take().await.expect("a connection"));
        }
        assert_eq!(order(&sticky, &taken), [a.port, b.port, b.port]);
        drop(two);
        let why = sticky.take().await.expect_err("nobody is left");
        assert!(
            why.contains(&a.to_string()) && why.contains(&b.to_string()),
            "{why}"
        );
    }
}
