//! Ids and plain structs that host and GPU share. Everything here that the GPU reads is declared
//! once with [`abi_struct!`] or [`abi_constants!`]; [`header::text`] makes the CUDA header from
//! these declarations. Host and GPU both draw their random bits with [`philox`]. This crate knows
//! nothing of models, requests or engines.

mod fault;
pub mod header;
mod layout;
mod philox;
mod slot;
mod stamp;
mod step;

pub use fault::{Fault, Launch, Waits};
pub use layout::{Field, Layout};
pub use philox::philox;
pub use slot::{
    BAD_TOKENS_MAX, BAD_WORDS_MAX, BY_MATCH, BY_REJECTION, Bias, CANDIDATES_MAX, Candidate,
    ChoiceFault, ChoicePart, DraftMemory, END_TOKENS_MAX, FORBIDDEN, Judged, OUTPUT_COUNT_MAX,
    PARTS_MAX, RECENT_MAX, Report, RowChoice, SEEN, SampleMemory, SampleRow, Slot, SlotLimit,
    SlotLists, TOPS_MAX, Top, VerifyMemory, WANTED_MAX, Wanted,
};
pub use stamp::{STAMPS_MAX, Stamp, Stamped};
pub use step::{
    Batch, BatchRow, BatchToken, COUNTER_BYTES, COUNTERS, GROUPS_MAX, LayerMemory, Memory,
    PLAN_CTA_BYTES, PLAN_THREAD_BYTES, Peers, PlanMemory, RANKS_MAX, ReadMemory, SPAN_TOKENS,
    Timestamps, WideCollective, WideMemory,
};

use layout::{abi_constants, abi_struct};

/// A vocabulary entry.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// A running sequence's place in the engine's tables.
    SlotId
}
id! {
    /// A fixed run of K/V positions within one page group.
    PageId
}

abi_struct! {
    /// How the tokens of one request are chosen. Every field has a neutral value, see
    /// [`Sampling::GREEDY`]; the meaning of each is defined by the `sampling` crate.
    pub struct Sampling : 40 {
        /// Key of the counter-based random numbers.
        pub seed: u64,
        /// 0 chooses the likeliest token; otherwise logits are divided by it.
        pub temperature: f32,
        /// Keep the likeliest tokens until their probabilities sum to this; 1 keeps all.
        pub top_p: f32,
        /// Drop tokens less likely than this fraction of the likeliest one; 0 drops none.
        pub min_p: f32,
        /// Divides positive and multiplies negative logits of tokens seen in prompt or output.
        pub repetition_penalty: f32,
        /// Subtracted once from the logit of a token that the output contains.
        pub presence_penalty: f32,
        /// Subtracted for each time the output contains the token.
        pub frequency_penalty: f32,
        /// Keep this many of the likeliest tokens; 0 keeps all.
        pub top_k: u32,
        /// End tokens are impossible before this many tokens were generated.
        pub min_tokens: u32,
    }
}

impl Sampling {
    /// The likeliest token, nothing processed.
    pub const GREEDY: Self = Self {
        seed: 0,
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        top_k: 0,
        min_tokens: 0,
    };

    /// Below this, a temperature counts as 0: logits divided by less would leave no room in an
    /// f32 for the random part of a score.
    pub const TEMPERATURE_MIN: f32 = 1e-5;

    /// Whether the likeliest token is always chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature < Self::TEMPERATURE_MIN
    }

    /// Whether the choice depends on which tokens came before.
    pub fn has_penalty(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

abi_constants! {
    /// What a random number is drawn for. Draws for different purposes are independent, which
    /// lossless verification needs.
    pub enum Purpose {
        /// The target's own token at a position.
        Target = 0,
        /// A sampled draft at a position.
        Draft = 1,
        /// Whether a sampled draft is accepted.
        Accept = 2,
        /// The token that replaces a refused draft.
        Residual = 3,
        /// Dummy weights.
        Weight = 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_names_every_byte() {
        let layout = Sampling::layout();
        let mut end = 0;
        for field in layout.fields {
            assert_eq!(field.offset, end, "gap before {}", field.name);
            end += field.bytes;
        }
        assert_eq!(end, layout.bytes);
    }

    #[test]
    fn greedy_is_neutral() {
        assert!(!Sampling::GREEDY.has_penalty());
        assert!(Sampling { presence_penalty: 0.5, ..Sampling::GREEDY }.has_penalty());
    }
}
