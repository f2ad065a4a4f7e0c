//! Ways to break a running engine, for tests of how failures are reported.

use crate::CudaEngine;
use crate::driver::DriverError;
use crate::driver::doorbell::Doorbell;

/// An offset that makes an address invalid for a copy.
const UNALIGNED_BYTES: u64 = 8;

/// All of these affect the last rank.
impl CudaEngine {
    /// Launches it with one CTA too few from now on: its other CTAs wait for that one, and the
    /// other ranks for them.
    pub fn stall(&mut self) {
        if let Some(rank) = self.ranks.last_mut() {
            rank.grid -= 1;
        }
    }

    /// Makes it read the head's weights at an invalid address: it fails without a fault record.
    pub fn kill(&mut self) {
        if let Some(rank) = self.ranks.last_mut() {
            rank.arguments.target.head += UNALIGNED_BYTES;
        }
    }

    /// Makes it wait for a doorbell that is never rung.
    ///
    /// # Errors
    /// There is no memory for that doorbell.
    pub fn deafen(&mut self) -> Result<(), DriverError> {
        if let Some(rank) = self.ranks.last_mut() {
            let devices = vec![rank.device.clone(); rank.index + 1];
            rank.doorbell = Doorbell::new(&devices)?;
        }
        Ok(())
    }
}
