//! Philox4x32-10 (Salmon et al., 2011): 16 random bytes from a counter and a key, by 32-bit
//! integer steps alone, so that every machine and every GPU makes the same ones in any order.

/// Bytes that one counter gives.
const DRAW_BYTES: usize = 16;

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        let [a, b] = [
            u64::from(counter[0]) * u64::from(MULTIPLIERS[0]),
            u64::from(counter[2]) * u64::from(MULTIPLIERS[1]),
        ];
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

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

    /// Writes the bytes from number `first` on.
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

    /// The known answers of the authors' Random123 library.
    #[test]
    fn philox_is_philox() {
        let ones = u32::MAX;
        for (counter, key, answer) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), answer);
        }
    }

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
