//! The JSON of the API, as types: what comes in, what goes out, and with it `/openapi.json`. Ranges
//! in the schemas are those that `params` checks. Knows nothing of how a reply comes about.
//!
//! A field that is `null` counts as absent, and an integer may be written 1.0. Replies are made of
//! borrowed or owned parts, whichever is at hand.

pub mod absent;
pub mod body;
pub mod chat;
pub mod chunk;
pub mod completions;
pub mod content;
pub mod control;
mod extent;
pub mod logprobs;
pub mod messages;
mod misfit;
pub mod models;
pub mod responses;
pub mod sampled;
pub mod sglang;
pub mod speed;
pub mod tokenize;
pub mod tools;
mod unknown;
pub mod usage;
mod whole;
