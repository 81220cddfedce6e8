//! The messages on the node's socket.
