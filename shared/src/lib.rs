//! What the daemon and the shim are both made of: the file follower, the ring, the wire types.
//!
//! Read the modules in this order. Nothing here uses tokio, opens a network connection other than
//! the node's own socket, or allocates per line.

pub mod host;

pub mod follow;

pub mod wire;

pub mod ring;

#[cfg(any(test, feature = "sim"))]
pub mod sim;
