//! Random ids of the simulated cluster, from its seed.

use crate::executor::Handle;

/// A random id.
pub(super) fn random_id(handle: &Handle) -> u128 {
    u128::from(handle.random(1..u64::MAX)) << 64 | u128::from(handle.random(0..u64::MAX))
}
