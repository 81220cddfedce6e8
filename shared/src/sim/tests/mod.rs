//! The simulated machine, held to what it stands for.

mod like_a_real_disk;
mod power;
mod views;
