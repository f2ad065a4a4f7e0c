//! Random bytes of tensors. They depend only on seed, name and position, so every machine and every
//! GPU makes the same ones, in any order.

use kilotok_abi::philox;

/// Number of bytes from one value of the counter.
const DRAW_BYTES: usize = 16;

/// The random bytes of one tensor. Byte i is byte i % 16 of `philox` with the counter
/// `[low half of i / 16, high half of i / 16, low half of name, high half of name]` and the key
/// `[low half of seed, high half of seed]`, its four words in order, each little-endian. `name` is
/// the 64-bit FNV-1a hash of the tensor's name.
pub(crate) struct Stream {
    name: [u32; 2],
    key: [u32; 2],
}

impl Stream {
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        Self { name: halves(fnv1a(name.as_bytes())), key: halves(seed) }
    }

    /// Writes the bytes starting with number `first`.
    pub(crate) fn fill(&self, first: usize, out: &mut [u8]) {
        let lead = (DRAW_BYTES - first % DRAW_BYTES) % DRAW_BYTES;
        let (head, rest) = out.split_at_mut(lead.min(out.len()));
        let mut index = first / DRAW_BYTES;
        if !head.is_empty() {
            let start = first % DRAW_BYTES;
            head.copy_from_slice(&self.draw(index)[start..start + head.len()]);
            index += 1;
        }
        for out in rest.chunks_mut(DRAW_BYTES) {
            out.copy_from_slice(&self.draw(index)[..out.len()]);
            index += 1;
        }
    }

    fn draw(&self, index: usize) -> [u8; DRAW_BYTES] {
        let [low, high] = halves(index as u64);
        let words = philox([low, high, self.name[0], self.name[1]], self.key);
        bytemuck::cast(words.map(u32::to_le))
    }
}

fn halves(n: u64) -> [u32; 2] {
    [n as u32, (n >> 32) as u32]
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hashed_by_fnv1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn any_run_of_bytes_is_the_same_run_of_the_whole() {
        let stream = Stream::new(7, "a");
        let mut whole = [0; 100];
        stream.fill(0, &mut whole);
        for first in 0..100 {
            for end in first..100 {
                let mut run = vec![0; end - first];
                stream.fill(first, &mut run);
                assert_eq!(run, whole[first..end]);
            }
        }
        let mut other = [0; 100];
        Stream::new(7, "b").fill(0, &mut other);
        assert_ne!(whole, other);
        Stream::new(8, "a").fill(0, &mut other);
        assert_ne!(whole, other);
    }
}
