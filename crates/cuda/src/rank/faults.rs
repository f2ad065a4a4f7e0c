//! Ways to break a running engine, for tests of how failures are reported, and of what is read.

use kilotok_model::Part;

use crate::CudaEngine;
use crate::driver::DriverError;
use crate::driver::doorbell::Doorbell;

/// A BF16 of two such bytes is NaN.
const NAN_BYTE: u8 = 0xFF;
/// An offset that makes an address invalid for a copy.
const UNALIGNED_BYTES: u64 = 8;

impl CudaEngine {
    /// Makes all keys and values in the drafter's pages NaN, on all ranks.
    ///
    /// # Errors
    /// Those of the copies.
    pub fn spoil_context(&mut self) -> Result<(), DriverError> {
        for rank in &self.ranks {
            let (memory, layout) = rank.memory();
            let drafter = format!("{:?}", Part::Drafter);
            let pages = layout.map.regions().iter().filter(|region| region.part == "pages");
            for pages in pages.filter(|region| region.name.starts_with(&drafter)) {
                memory.write(pages.offset as usize, &vec![NAN_BYTE; pages.bytes as usize])?;
            }
        }
        Ok(())
    }
}

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
    pub fn disconnect_doorbell(&mut self) -> Result<(), DriverError> {
        if let Some(rank) = self.ranks.last_mut() {
            let devices = vec![rank.device.clone(); rank.index + 1];
            rank.doorbell = Doorbell::new(&devices)?;
        }
        Ok(())
    }
}
