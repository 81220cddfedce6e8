//! The simulated machine, held to what it stands for.

mod like_a_real_disk;
mod like_the_real_host;
mod power;
mod views;
