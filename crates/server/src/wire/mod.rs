//! The JSON types that the APIs share in requests and responses, and with them `/openapi.json`.
//! Ranges in the schemas are those that `params` checks. Types that only one API has are in its own
//! folder.
//!
//! A field that is `null` counts as absent, and an integer may be written 1.0. Responses hold
//! borrowed or owned values, whichever is at hand.

pub mod body;
pub mod chunk;
pub mod content;
pub mod control;
pub mod generation;
mod json_size;
pub(crate) mod lenient;
pub mod logprobs;
pub mod metrics;
pub mod models;
pub mod sglang;
pub mod tokenize;
pub mod tools;
mod type_error;
mod unknown;
pub mod unsupported;
pub mod usage;
