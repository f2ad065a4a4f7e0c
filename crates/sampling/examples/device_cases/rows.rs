//! Rows of logits and masks that both sides make from a few words.

use kilotok_abi::{TokenId, philox};

/// Splitmix64: which cases there are.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5bf0_3635_dcd7_1a0f)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        (self.bits() % u64::from(end)) as u32
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u32) as usize]
    }

    /// Up to `max` random tokens.
    pub(crate) fn tokens(&mut self, vocab: u32, max: u32) -> Vec<TokenId> {
        (0..self.below(max + 1)).map(|_| self.below(vocab)).collect()
    }
}

/// A row of logits: a formula, and single logits in the place of its own.
#[derive(Clone)]
pub(crate) struct Logits {
    kind: u32,
    seed: u32,
    scale: f32,
    offset: f32,
    instead: Vec<(TokenId, u32)>,
}

impl Logits {
    pub(crate) fn random(random: &mut Random, vocab: u32) -> Self {
        let kind = random.of(&[0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 5]);
        let mut row = Self {
            kind,
            seed: random.bits() as u32,
            scale: random.of(&[1.0, 8.0, 30.0, 30.0, 60.0, 0.5]),
            offset: random.of(&[0.0, 0.0, -10.0, 3.5]),
            instead: Vec::new(),
        };
        if random.chance(20) {
            let value = random.of(&[-0.0f32, 0.0, 40.0, -50.0, f32::MAX, f32::MIN, 1e-40]);
            let tokens = random.tokens(vocab, 4);
            row.instead.extend(tokens.into_iter().map(|token| (token, value.to_bits())));
        }
        if random.chance(3) {
            let value = random.of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            row.instead.push((random.below(vocab), value.to_bits()));
        }
        row
    }

    pub(crate) fn values(&self, vocab: u32) -> Vec<f32> {
        let mut values = Vec::with_capacity(vocab as usize + 4);
        for quad in 0..vocab.div_ceil(4) {
            values
                .extend(philox([quad, 0, self.kind, 0xc0de], [self.seed, 7]).map(|b| self.one(b)));
        }
        values.truncate(vocab as usize);
        for &(token, bits) in &self.instead {
            values[token as usize] = f32::from_bits(bits);
        }
        values
    }

    fn one(&self, bits: u32) -> f32 {
        let unit = (bits >> 8) as f32 * 2.0f32.powi(-24);
        match self.kind {
            0 => unit * self.scale + self.offset,
            1 => (unit * unit) * (unit * unit) * self.scale + self.offset,
            2 => (bits & 7) as f32 * self.scale + self.offset,
            3 => self.offset,
            4 if bits >> 23 & 255 == 255 => f32::from_bits(bits & 0xbfff_ffff),
            4 => f32::from_bits(bits),
            _ if bits.trailing_zeros() >= 10 => unit * self.scale,
            _ => self.offset,
        }
    }

    pub(crate) fn words(&self, words: &mut Vec<u32>) {
        words.extend([self.kind, self.seed, self.scale.to_bits(), self.offset.to_bits()]);
        words.push(self.instead.len() as u32);
        words.extend(self.instead.iter().flat_map(|&(token, bits)| [token, bits]));
    }
}

/// A mask: a formula, and tokens allowed besides.
#[derive(Clone)]
pub(crate) struct Mask {
    kind: u32,
    seed: u32,
    besides: Vec<TokenId>,
}

impl Mask {
    pub(crate) fn random(random: &mut Random, vocab: u32) -> Self {
        let kind = random.of(&[0, 0, 1, 1, 2, 3]);
        Self { kind, seed: random.bits() as u32, besides: random.tokens(vocab, 5) }
    }

    pub(crate) fn values(&self, vocab: u32) -> Vec<u32> {
        let word = |index| {
            let [a, b, c, _] = philox([index, 1, 0, 0xc0de], [self.seed, 9]);
            [a, a & b & c, 0, !0][self.kind as usize]
        };
        let mut words: Vec<u32> = (0..vocab.div_ceil(32)).map(word).collect();
        for &token in &self.besides {
            words[token as usize / 32] |= 1 << (token % 32);
        }
        words
    }

    pub(crate) fn words(&self, words: &mut Vec<u32>) {
        words.extend([self.kind, self.seed, self.besides.len() as u32]);
        words.extend(&self.besides);
    }
}
