//! The server: OpenAI's and Anthropic's APIs over HTTP on one engine. Requests are checked and made
//! into prompts ([`mod@error`] says what was wrong), let in through the [`gate`], run by the
//! engine's thread, and told to their clients piece by piece. How models run and how text is read
//! is up to other crates; no other crate knows HTTP.

mod auth;
mod budget;
mod choice;
mod chorus;
mod clock;
mod dialects;
pub mod error;
mod handlers;
mod hosts;
mod left_out;
mod params;
mod routes;
mod said;
mod serve;
mod service;
mod socket;
mod sse;
mod tally;
mod tls;
mod trace;
mod unenforced;
pub mod wire;

pub use hosts::Hosts;
pub use routes::router;
pub use serve::{ServeError, serve};
pub use service::{ServerConfig, Service, TlsFiles};
