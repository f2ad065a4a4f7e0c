//! The families against what is published of them.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod configs;
mod gpt_oss;
mod published;
mod qwen3_moe;
mod refusals;
