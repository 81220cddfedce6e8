//! What an operator does to a running daemon, promised to the letter: the real program, real files, local sockets.

mod agents;
mod bulk;
mod dead_letters;
mod node;
mod rate;
mod reload;
mod secrets;
