//! A row's tokens in the one order that every part of sampling uses, sorted only as far as needed.

use kilotok_abi::TokenId;

/// Tokens by logit, highest first, of equals the lower id first. Keeps its memory between rows.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    /// Ascending keys are descending tokens: the logit's bits, turned over, above the id.
    keys: Vec<u64>,
    /// How many keys from the front are final.
    sorted: usize,
}

impl Ranking {
    /// Reads all tokens of a row but those of -infinity.
    pub(crate) fn fill(&mut self, logits: &[f32]) {
        self.keys.clear();
        self.sorted = 0;
        let tokens = logits.iter().zip(0..);
        self.keys.extend(
            tokens
                .filter(|&(&logit, _)| logit > f32::NEG_INFINITY)
                .map(|(&logit, token): (&f32, TokenId)| key(logit, token)),
        );
    }

    /// All tokens left, in order as far as sorted.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = TokenId> {
        self.keys.iter().map(|&key| key as TokenId)
    }

    /// The first `count` tokens, fewer if fewer are left.
    pub(crate) fn first(&mut self, count: usize) -> impl Iterator<Item = TokenId> {
        self.sort(count);
        self.tokens().take(count)
    }

    /// The token of rank `rank`, 0 for the best.
    pub(crate) fn nth(&mut self, rank: usize) -> Option<TokenId> {
        if rank >= self.sorted {
            self.sort((2 * rank).max(64));
        }
        self.keys.get(rank).map(|&key| key as TokenId)
    }

    /// Drops all but the first `count` tokens, here and, as -infinity, from the row.
    pub(crate) fn keep(&mut self, count: usize, logits: &mut [f32]) {
        self.sort(count);
        for key in self.keys.drain(count.min(self.keys.len())..) {
            logits[key as TokenId as usize] = f32::NEG_INFINITY;
        }
    }

    fn sort(&mut self, count: usize) {
        let rest = &mut self.keys[self.sorted..];
        let more = count.saturating_sub(self.sorted).min(rest.len());
        if more == 0 {
            return;
        }
        if more < rest.len() {
            rest.select_nth_unstable(more);
        }
        rest[..more].sort_unstable();
        self.sorted += more;
    }
}

fn key(logit: f32, token: TokenId) -> u64 {
    let bits = (logit + 0.0).to_bits(); // -0 becomes 0
    let descending = if bits >> 31 == 0 { !bits ^ 0x8000_0000 } else { bits };
    u64::from(descending) << 32 | u64::from(token)
}
