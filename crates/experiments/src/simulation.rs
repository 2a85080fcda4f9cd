//! How often the tests are wrong and how long they take to be right, with outcomes drawn from a seed.
//!
//! A run draws requests one after the other, gives each to the arm with the planned probability, draws its outcome,
//! and looks after every single one. The same outcomes are shown to a fixed-horizon z-test at the same α that looks
//! as often: what peeking does to it is the reason for this room.

mod detection;
mod false_alarm;
mod outcome;

pub use detection::{Detection, detection, fixed_horizon};
pub use false_alarm::{Alarms, binomial_limit, coverage, false_alarms, split_false_alarms};
pub use outcome::{Outcome, Test};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// The chance of one run: two seeds have no run in common.
fn chance(seed: u64, run: u32) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..12].copy_from_slice(&run.to_le_bytes());
    StdRng::from_seed(bytes)
}
