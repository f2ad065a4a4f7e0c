//! Sampling: how a token is chosen from a row of logits, and which drafts are kept so that tokens
//! have the same distribution with drafts as without. Pure functions: no state but the arguments,
//! no clock, no hidden randomness. Every order and tie is defined, and all arithmetic is IEEE f32
//! operations and integers, so that a GPU computes the same tokens bit for bit. Knows no models,
//! pages or steps.
//!
//! An engine holds a [`Sampler`] per slot. Its parts are public for tests and oracles.

mod accept;
mod history;
mod logexp;
mod logprobs;
mod process;
mod ranking;
mod rng;
mod sampler;
mod setup;

pub use accept::{Acceptance, Proposal, Rule, TargetLaw, Verdict, assumed_accepted, match_drafts};
pub use history::History;
pub use logprobs::{Logprobs, logprobs};
pub use process::{Fault, probabilities, process};
pub use ranking::Ranking;
pub use rng::{Draws, winner};
pub use sampler::{Sampler, pick};
pub use setup::{Setup, SetupError};
