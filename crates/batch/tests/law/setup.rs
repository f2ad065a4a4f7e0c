//! The requests of these tests: every combination of processors, after a history, in a vocabulary
//! of 8 tokens.

use kilotok_abi::{Sampling, TokenId};
use kilotok_sampling::Setup;

pub(super) const VOCAB: usize = 8;
pub(super) const PROMPT_COUNT: u32 = 3;
pub(super) const HISTORY: [TokenId; 5] = [2, 5, 2, 1, 5];

pub(super) const BIAS: u32 = 1;
pub(super) const REPETITION: u32 = 1 << 1;
pub(super) const PRESENCE: u32 = 1 << 2;
pub(super) const FREQUENCY: u32 = 1 << 3;
pub(super) const BAD_WORDS: u32 = 1 << 4;
pub(super) const MIN_TOKENS: u32 = 1 << 5;
pub(super) const MASK: u32 = 1 << 6;
pub(super) const TEMPERATURE: u32 = 1 << 7;
pub(super) const MIN_P: u32 = 1 << 8;
pub(super) const TOP_K: u32 = 1 << 9;
pub(super) const TOP_P: u32 = 1 << 10;
pub(super) const COMBINATIONS: u32 = 1 << 11;

/// Probabilities, logits or weights of the vocabulary.
pub(super) type Row<T> = [T; VOCAB];

/// The request of a combination of processors. Even all of them together allow two tokens or more.
pub(super) fn setup_of(combination: u32) -> Setup {
    fn choose<T>(set: bool, value: T, neutral: T) -> T {
        if set { value } else { neutral }
    }
    let set = |processor| combination & processor != 0;
    let sampling = Sampling {
        seed: 0,
        temperature: choose(set(TEMPERATURE), 0.7, 1.0),
        top_p: choose(set(TOP_P), 0.83, 1.0),
        min_p: choose(set(MIN_P), 0.15, 0.0),
        repetition_penalty: choose(set(REPETITION), 1.7, 1.0),
        presence_penalty: choose(set(PRESENCE), 0.6, 0.0),
        frequency_penalty: choose(set(FREQUENCY), 0.45, 0.0),
        top_k: choose(set(TOP_K), 3, 0),
        min_tokens: choose(set(MIN_TOKENS), 3, 0),
    };
    let bias = vec![(1, 1.5), (4, f32::NEG_INFINITY), (6, -0.75)];
    let setup = Setup {
        sampling,
        prompt_count: PROMPT_COUNT,
        logit_bias: choose(set(BIAS), bias, Vec::new()),
        bad_words: choose(set(BAD_WORDS), vec![vec![3], vec![5, 1], vec![2, 2]], Vec::new()),
        end_tokens: vec![0],
    };
    setup.check(VOCAB).expect("values with a meaning");
    setup
}

/// The tokens that the grammar of a combination allows after a token.
pub(super) fn mask_of(combination: u32, last: TokenId) -> u32 {
    let forbidden = 1 << ((last + 1) % 8) | 1 << ((last + 3) % 8);
    if combination & MASK == 0 { !0 } else { !forbidden }
}
