//! Ways to break an engine that runs, for tests of what runs on one.

use crate::CudaEngine;
use crate::driver::DriverError;
use crate::driver::doorbell::Doorbell;

/// Away from a place from which a copy may begin.
const UNALIGNED_BYTES: u64 = 8;

/// Of the last rank.
impl CudaEngine {
    /// It has one CTA too few from now on: the others wait for it, and the other ranks for them.
    pub fn stall(&mut self) {
        if let Some(rank) = self.ranks.last_mut() {
            rank.grid -= 1;
        }
    }

    /// It reads the head's weights where they are not: it dies without a word.
    pub fn kill(&mut self) {
        if let Some(rank) = self.ranks.last_mut() {
            rank.arguments.target.head += UNALIGNED_BYTES;
        }
    }

    /// It waits for a bell that nobody rings.
    ///
    /// # Errors
    /// If there is no memory for that bell.
    pub fn deafen(&mut self) -> Result<(), DriverError> {
        if let Some(rank) = self.ranks.last_mut() {
            let devices = vec![rank.device.clone(); rank.index + 1];
            rank.doorbell = Doorbell::new(&devices)?;
        }
        Ok(())
    }
}
