//! What users are promised: on a whole simulated node, from seeds that a failure names, and of the real program.

mod hanging_mount;
mod no_line_is_lost;
mod whatever_goes_wrong;
