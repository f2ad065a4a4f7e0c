//! The map of a rank's memory, which is complete before any memory is allocated.

use std::fmt;

/// Copies and tensor cores need 128; more costs nothing.
const ALIGNMENT: u64 = 256;
/// Left to the driver for contexts, code and stacks.
pub const RESERVE_BYTES: u64 = 512 << 20;

/// One buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// The part of the printed table to which it belongs.
    pub(crate) part: &'static str,
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// All buffers of a rank, one after the other from an aligned address on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    base: u64,
    regions: Vec<Region>,
    end: u64,
}

/// A map that is larger than the memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model does not fit a GPU: {needed} bytes are needed, {free} of {total} are free. Take \
     fewer pages (--kv-gib), a shorter context (--context-max) or more GPUs (--ranks)\n{table}"
)]
pub struct DoesNotFit {
    pub needed: u64,
    pub free: u64,
    pub total: u64,
    table: String,
}

impl MemoryMap {
    pub(crate) fn new(base: u64) -> Self {
        Self { base, regions: Vec::new(), end: 0 }
    }

    /// Adds a buffer after the others. Returns its address.
    pub(crate) fn add(&mut self, part: &'static str, name: String, bytes: u64) -> u64 {
        let offset = self.end;
        let end = offset.saturating_add(bytes);
        self.end = end.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        self.regions.push(Region { part, name, offset, bytes });
        self.base.saturating_add(offset)
    }

    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// # Errors
    /// The map and the driver's own needs exceed the free memory.
    pub(crate) fn check(&self, free: u64, total: u64) -> Result<(), DoesNotFit> {
        let needed = self.end.saturating_add(RESERVE_BYTES);
        if needed <= free {
            return Ok(());
        }
        Err(DoesNotFit { needed, free, total, table: self.to_string() })
    }

    #[cfg(any(test, feature = "faults"))]
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }
}

/// A line for each part; `{:#}` has one for each buffer.
impl fmt::Display for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.regions.as_slice();
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|region| region.part == first.part).count();
            let (part, others) = rest.split_at(count);
            rest = others;
            let bytes: u64 = part.iter().map(|region| region.bytes).sum();
            let offset = first.offset;
            writeln!(f, "  {offset:#014x} {bytes:>16}  {} ({count} buffers)", first.part)?;
            if f.alternate() {
                for Region { name, offset, bytes, .. } in part {
                    writeln!(f, "  {offset:#014x} {bytes:>16}    {name}")?;
                }
            }
        }
        writeln!(f, "  {:#014x} {:>16}  together", 0, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> MemoryMap {
        let mut map = MemoryMap::new(0);
        for (part, name, bytes) in
            [("weights", "head", 1000), ("weights", "nothing", 0), ("pages", "keys", 1 << 30)]
        {
            map.add(part, name.to_owned(), bytes);
        }
        map
    }

    #[test]
    fn buffers_do_not_overlap_and_are_aligned() {
        let map = map();
        for pair in map.regions().windows(2) {
            assert!(pair[0].offset + pair[0].bytes <= pair[1].offset);
        }
        assert!(map.regions().iter().all(|region| region.offset.is_multiple_of(ALIGNMENT)));
        let last = map.regions().last().unwrap();
        assert!(map.bytes() >= last.offset + last.bytes);
    }

    #[test]
    fn the_table_has_a_line_for_each_part_or_buffer() {
        let map = map();
        assert_eq!(map.to_string().lines().count(), 3);
        assert!(map.to_string().contains("weights (2 buffers)"), "{map}");
        assert_eq!(format!("{map:#}").lines().count(), 6);
        assert!(format!("{map:#}").contains("keys"));
    }

    #[test]
    fn what_does_not_fit_is_said_in_numbers() {
        let map = map();
        let all = map.bytes() + RESERVE_BYTES;
        assert_eq!(map.check(all, 2 * all), Ok(()));
        let text = map.check(all - 1, 2 * all).unwrap_err().to_string();
        for part in [&all.to_string(), &(all - 1).to_string(), "--kv-gib", "--ranks", "pages"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_size_beyond_all_numbers_does_not_wrap() {
        let mut map = MemoryMap::new(0);
        map.add("pages", "keys".into(), u64::MAX - 1000);
        assert!(map.check(u64::MAX - 2, u64::MAX).is_err());
    }
}
