//! Sampling on the GPU: the state of a slot, the request of a step, and its results. Tables have
//! the lengths of the limits here, and are allocated at start.

use crate::layout::{abi_constants, abi_struct};
use crate::{Memory, Sampling, TokenId};

/// Bad words of a request: the server takes 1,024, each with and without a space before it.
pub const BAD_WORDS_MAX: usize = 2048;
/// Tokens of all bad words of a request together: eight for each, on average.
pub const BAD_TOKENS_MAX: usize = 16_384;
/// The newest tokens of a slot that are kept, and so the length of the longest bad word. The server
/// takes bad words of up to 256 bytes and a space, which fit.
pub const RECENT_MAX: usize = 512;
/// Tokens that end a request: the server takes 1,024, to which a model adds a few.
pub const END_TOKENS_MAX: usize = 1152;
/// Alternatives reported beside a token.
pub const TOPS_MAX: usize = 20;
/// CTAs that share the choice at one position, if that choice takes a single pass over the logits.
pub const PARTS_MAX: usize = 16;
/// Under rejection sampling a draft is drawn from this many of the drafter's likeliest tokens. A
/// draft may be drawn from any distribution (its law), as long as it is verified with the same one.
/// These tokens have nearly all of the probability, and are few enough to be kept and exchanged
/// between ranks.
pub const CANDIDATES_MAX: usize = 64;

/// The values of [`SampleRow::verified`] for sample and match and for rejection sampling. They are
/// larger than any number of drafts.
pub const BY_MATCH: usize = 1 << 16;
pub const BY_REJECTION: usize = BY_MATCH + 1;
/// The most tokens of a step whose logits are wanted: those of 256 rows with seven drafts each.
pub const WANTED_MAX: usize = 2048;
/// The bit of a slot's 16 bits for a token which is set if it occurred in prompt or output.
pub const SEEN: u32 = 0x8000;
/// The other bits count its occurrences in the output; a penalty grows no further.
pub const OUTPUT_COUNT_MAX: u32 = 0x7fff;

abi_constants! {
    /// Why no token was chosen.
    pub enum ChoiceFault {
        None = 0,
        NotFinite = 1,
        NothingAllowed = 2,
    }
}

abi_struct! {
    /// The sampling settings of a slot's request, and its progress. The slot also has a row of each
    /// table of [`SampleMemory`].
    pub struct Slot : 72 {
        pub sampling: Sampling,
        pub prompt_count: u32,
        /// Positions whose tokens are counted.
        pub known: u32,
        /// The token chosen last.
        pub anchor: u32,
        /// Whether a token has been chosen.
        pub held: u32,
        pub bad_word_count: u32,
        pub end_token_count: u32,
        /// Whether the slot's row of biases is used.
        pub biased: u32,
        /// If drafts are drawn, their temperature is the request's times this.
        pub draft_temperature: f32,
    }
}

abi_struct! {
    /// An entry of a request's logit bias.
    pub struct Bias : 8 {
        pub token: u32,
        pub bias: f32,
    }
}

abi_struct! {
    /// A token that a draft could have been, and the probability with which it was drawn.
    pub struct Candidate : 8 {
        pub token: u32,
        pub probability: f32,
    }
}

abi_struct! {
    /// The sampling request of a row of the batch, beside its [`crate::BatchRow`].
    pub struct SampleRow : 64 {
        pub slot: u32,
        /// The row's tokens that are not drafts; they come first.
        pub known_count: u32,
        /// The most tokens to choose: one after the last known token and one after each draft; none
        /// follows the last draft if its mask is missing. 0 if the row chooses none.
        pub choice_count: u32,
        /// Whether a request enters the slot. The host has written the [`Slot`], bad words and end
        /// tokens; the tables of counts and biases follow from the lists below.
        pub fresh: u32,
        /// The row's first wanted token. Those after which a token is chosen are the last ones of
        /// the row.
        pub wanted_first: u32,
        pub wanted_count: u32,
        /// The mask of the first token to choose, others follow; `!0` for none.
        pub mask_first: u32,
        /// Alternatives to report with each log-probability; `!0` reports no log-probability of
        /// chosen tokens.
        pub top_count: u32,
        /// Tokens known so far, of a fresh slot.
        pub history: u64,
        /// [`Bias`] entries of a fresh slot.
        pub biases: u64,
        pub history_count: u32,
        pub bias_count: u32,
        /// Which of the step's drafts begins with the row's newest token; `!0` for none.
        pub draft: u32,
        /// How drafts are verified: [`BY_MATCH`], [`BY_REJECTION`], or the number of drafts that
        /// count as accepted, whatever the target would choose.
        pub verified: u32,
    }
}

abi_struct! {
    /// The target's logit and log-probability of a candidate of a draft that is judged.
    pub struct Judged : 12 {
        /// The processed logit.
        pub logit: f32,
        /// The report of the model's own logit, if one is wanted.
        pub logprob: f32,
        pub rank: u32,
    }
}

abi_struct! {
    /// A token of the batch after which logits are needed.
    pub struct Wanted : 16 {
        pub row: u32,
        /// The token's index in its row.
        pub token: u32,
        /// The token whose log-probability to report as its successor; `!0` for none.
        pub scored: u32,
        pub reserved: u32,
    }
}

abi_struct! {
    /// The result of one CTA for its part of a position's logits. Parts are combined by taking the
    /// smallest `best` and the smallest `winner`, and adding the masses.
    pub struct ChoicePart : 32 {
        /// The most likely token: above its id, its logit's bits, inverted so that the highest
        /// logit is the smallest number.
        pub best: u64,
        /// The token that finishes the race first: its time above its id. Where a draft is judged,
        /// only tokens that are not candidates take part.
        pub winner: u64,
        /// Where a draft is judged: the sum of e^(logit - highest logit), in units of 2^-40.
        pub mass: u64,
        /// 0 if a logit was not finite.
        pub finite: u32,
        pub reserved: u32,
    }
}

abi_struct! {
    /// The result of a row.
    pub struct RowChoice : 16 {
        /// Accepted drafts and the target's token.
        pub token_count: u32,
        /// Scored tokens before the first fault.
        pub scored_count: u32,
        /// A [`ChoiceFault`].
        pub fault: u32,
        pub fault_position: u32,
    }
}

abi_struct! {
    /// Log-probabilities at a wanted token, of the chosen and of the scored successor.
    pub struct Report : 16 {
        pub chosen: f32,
        pub chosen_rank: u32,
        pub scored: f32,
        pub scored_rank: u32,
    }
}

abi_struct! {
    /// One of the likeliest tokens.
    pub struct Top : 8 {
        pub token: u32,
        pub logprob: f32,
    }
}

abi_struct! {
    /// The memory of sampling on a rank.
    pub struct SampleMemory : 176 {
        /// Valid entries of a row of logits.
        pub vocab: u32,
        /// Entries of a row of logits, biases and counts, a multiple of 16.
        pub stride: u32,
        /// Words of a mask.
        pub mask_words: u32,
        pub reserved: u32,
        /// `[slots]` of [`Slot`].
        pub slots: u64,
        /// `[slots, stride]`, F32.
        pub biases: u64,
        /// `[slots, stride]`, 16 bits.
        pub counts: u64,
        /// `[slots, RECENT_MAX]`: the token of position p at p modulo the length.
        pub recent: u64,
        /// `[slots, BAD_TOKENS_MAX]`: the bad words one after the other.
        pub bad_tokens: u64,
        /// `[slots, BAD_WORDS_MAX]`: where each ends.
        pub bad_ends: u64,
        /// `[slots, END_TOKENS_MAX]`.
        pub end_tokens: u64,
        /// `[rows]` of [`SampleRow`].
        pub rows: u64,
        /// `[wanted]` of [`Wanted`].
        pub wanted: u64,
        /// `[masks, mask_words]`: bit t % 32 of word t / 32 allows token t.
        pub masks: u64,
        /// `[wanted, stride]`, F32: logits that more than one pass reads.
        pub processed: u64,
        /// `[wanted, PARTS_MAX]` of [`ChoicePart`].
        pub choice_parts: u64,
        /// `[rows]` of [`RowChoice`], in the host's memory as are the next three.
        pub row_choices: u64,
        /// `[wanted]`: tokens chosen.
        pub chosen: u64,
        /// `[wanted]` of [`Report`].
        pub reports: u64,
        /// `[wanted, TOPS_MAX]` of [`Top`].
        pub tops: u64,
        /// `[wanted, stride]`, F32: the model's logits, of all ranks.
        pub logits: u64,
        /// Batches of drafts, complete except for each row's newest token and its position, see
        /// `kernels/step/verify.cuh`.
        pub drafts: u64,
        /// `[slots, DRAFT_ROWS, CANDIDATES_MAX]` of [`Candidate`]: the laws of drafts that were
        /// drawn.
        pub proposals: u64,
        /// `[wanted, CANDIDATES_MAX]` of [`Judged`].
        pub judged: u64,
    }
}

abi_struct! {
    /// The argument of the verify kernel.
    pub struct VerifyMemory : 488 {
        pub memory: Memory,
        pub sampling: SampleMemory,
    }
}

abi_struct! {
    /// The memory in which drafts are chosen, and what they are drawn with.
    pub struct DraftMemory : 32 {
        /// `[TOKENS_MAX, PARTS_MAX]`, 64 bits: the best of each part of a draft's logits.
        pub parts: u64,
        /// `[TOKENS_MAX, PARTS_MAX, CANDIDATES_MAX]`, 64 bits: the same of drafts that are drawn.
        pub candidates: u64,
        /// As in [`SampleMemory`].
        pub slots: u64,
        pub proposals: u64,
    }
}

/// A bias of this or less forbids its token. Plans and traces are written as text, which has no
/// infinity.
pub const FORBIDDEN: f32 = -1e6;

impl Bias {
    /// One bias for each token, in the order of tokens: where a request has several for one, their
    /// sum.
    pub fn of_each(logit_bias: &[(TokenId, f32)]) -> Vec<Self> {
        let mut biases: Vec<_> =
            logit_bias.iter().map(|&(token, bias)| Self { token, bias }).collect();
        biases.sort_by_key(|bias| bias.token);
        let one = |same: &[Self]| {
            let sum = same[1..].iter().fold(same[0].bias, |sum, bias| sum + bias.bias);
            Self { bias: if sum <= FORBIDDEN { f32::NEG_INFINITY } else { sum }, ..same[0] }
        };
        biases.chunk_by(|a, b| a.token == b.token).map(one).collect()
    }
}

/// A request that the slots' tables cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {count}, the GPU's tables hold {max}")]
pub struct SlotLimit {
    pub name: &'static str,
    pub count: usize,
    pub max: usize,
}

/// A request as the host writes it into the tables.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotLists {
    pub slot: Slot,
    pub biases: Vec<Bias>,
    pub bad_tokens: Vec<u32>,
    pub bad_ends: Vec<u32>,
    pub end_tokens: Vec<u32>,
}

impl SlotLists {
    /// # Errors
    /// A list is longer than its table.
    pub fn new(
        sampling: Sampling,
        prompt_count: u32,
        logit_bias: &[(TokenId, f32)],
        bad_words: &[Vec<TokenId>],
        end_tokens: &[TokenId],
    ) -> Result<Self, SlotLimit> {
        let longest = bad_words.iter().map(Vec::len).max().unwrap_or(0);
        for (name, count, max) in [
            ("bad_words", bad_words.len(), BAD_WORDS_MAX),
            ("tokens of a bad word", longest, RECENT_MAX),
            ("tokens of all bad_words", bad_words.iter().map(Vec::len).sum(), BAD_TOKENS_MAX),
            ("end_tokens", end_tokens.len(), END_TOKENS_MAX),
        ] {
            if count > max {
                return Err(SlotLimit { name, count, max });
            }
        }
        let ends = bad_words.iter().scan(0, |end, word| {
            *end += word.len() as u32;
            Some(*end)
        });
        Ok(Self {
            slot: Slot {
                sampling,
                prompt_count,
                known: 0,
                anchor: 0,
                held: 0,
                bad_word_count: bad_words.len() as u32,
                end_token_count: end_tokens.len() as u32,
                biased: u32::from(!logit_bias.is_empty()),
                draft_temperature: 1.0,
            },
            biases: Bias::of_each(logit_bias),
            bad_tokens: bad_words.concat(),
            bad_ends: ends.collect(),
            end_tokens: end_tokens.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(words: &[Vec<TokenId>], end: &[TokenId]) -> String {
        let lists = SlotLists::new(Sampling::GREEDY, 1, &[], words, end);
        lists.expect_err("a list is too long").to_string()
    }

    #[test]
    fn what_the_tables_cannot_hold_is_refused_by_name() {
        let words = vec![vec![1]; BAD_WORDS_MAX + 1];
        assert_eq!(refusal(&words, &[]), "bad_words: 2049, the GPU's tables hold 2048");
        let long = refusal(&[vec![1; RECENT_MAX + 1]], &[]);
        assert_eq!(long, "tokens of a bad word: 513, the GPU's tables hold 512");
        let many = refusal(&vec![vec![1; 512]; 33], &[]);
        assert_eq!(many, "tokens of all bad_words: 16896, the GPU's tables hold 16384");
        let end = refusal(&[], &[7; END_TOKENS_MAX + 1]);
        assert_eq!(end, "end_tokens: 1153, the GPU's tables hold 1152");
    }

    #[test]
    fn biases_of_a_token_are_added_up() {
        let biases = Bias::of_each(&[(4, 1.0), (3, 0.5), (4, 2.0), (9, -1.0), (4, -0.25)]);
        let told: Vec<_> = biases.iter().map(|bias| (bias.token, bias.bias)).collect();
        assert_eq!(told, [(3, 0.5), (4, 2.75), (9, -1.0)]);
        assert_eq!(Bias::of_each(&[]), []);
        let never = Bias { token: 4, bias: f32::NEG_INFINITY };
        assert_eq!(Bias::of_each(&[(4, FORBIDDEN)]), [never]);
    }

    #[test]
    fn bad_words_lie_end_to_end() {
        let words = [vec![5, 6], vec![7], vec![8, 9, 10]];
        let lists = SlotLists::new(Sampling::GREEDY, 1, &[], &words, &[]).expect("they fit");
        assert_eq!(lists.bad_tokens, [5, 6, 7, 8, 9, 10]);
        assert_eq!(lists.bad_ends, [2, 3, 6]);
        assert_eq!((lists.slot.bad_word_count, lists.slot.biased), (3, 0));
    }
}
