//! The families against what is published of them.

mod configs;
mod gpt_oss;
mod published;
mod qwen3_moe;
mod refusals;
