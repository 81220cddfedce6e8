//! A listener with so many connections at most, none of them for ever.
//! Place: between a socket and the status server.
//! Invariant: whoever connects and says nothing, or reads nothing, costs a place for a while and no more.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at a time; further ones wait.
const CONNECTIONS: usize = 64;
/// A connection may live no longer: whoever still wants something connects again.
const CONNECTION_LIVES: Duration = Duration::from_secs(60);
/// The same for the owner of the control socket.
const LONG_LIVES: Duration = Duration::from_secs(24 * 3_600);

/// A listener that has so many connections at most, none of them for ever.
#[derive(Debug)]
pub(super) struct Limited<L> {
    inner: L,
    places: Arc<Semaphore>,
    lives: Duration,
}

impl<L> Limited<L> {
    pub(super) fn new(inner: L) -> Self {
        Self {
            inner,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
            lives: CONNECTION_LIVES,
        }
    }

    /// The same for those who may stay: who looks on, or waits for what takes long.
    pub(super) fn lasting(inner: L) -> Self {
        Self {
            lives: LONG_LIVES,
            ..Self::new(inner)
        }
    }
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Placed<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (io, address) = self.inner.accept().await;
        let until = Box::pin(tokio::time::sleep(self.lives));
        (
            Placed {
                io,
                until,
                _place: place,
            },
            address,
        )
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A connection and its place.
#[derive(Debug)]
pub(super) struct Placed<Io> {
    io: Io,
    until: Pin<Box<tokio::time::Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Placed<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Placed<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
