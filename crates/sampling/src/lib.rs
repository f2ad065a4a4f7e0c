//! How a token is chosen by a row of logits, and which drafts are kept so that the choice follows
//! the same law with drafts as without. Pure functions: no state but the one passed in, no clock,
//! no hidden randomness. Every order and tie is defined, and every number is made of IEEE f32
//! operations and integers, so that a GPU can give the same tokens bit for bit. Knows nothing of
//! models, pages or steps.
//!
//! An engine holds a [`Sampler`] per slot; what it is made of is public for tests and oracles.

mod accept;
mod history;
mod logexp;
mod logprobs;
mod process;
mod ranking;
mod rng;
mod sampler;
mod setup;

pub use accept::{Proposal, Rule, Verdict, match_drafts};
pub use history::History;
pub use logprobs::{Logprobs, logprobs};
pub use process::{Fault, probabilities, process};
pub use ranking::Ranking;
pub use rng::Draws;
pub use sampler::{Sampler, pick};
pub use setup::{Setup, SetupError};
