//! What users are promised, each promise on a whole simulated node, from seeds that a failure names.

mod no_line_is_lost;
