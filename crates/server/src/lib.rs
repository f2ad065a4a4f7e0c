//! The server: OpenAI's and Anthropic's APIs over HTTP, and the chat page. [`router`] has all
//! routes. Each API has a folder, which turns a request into parameters and a prompt, and the
//! increments of the replies into JSON. The replies themselves come from `generation`. No other
//! crate serves HTTP.

mod auth;
mod budget;
pub mod chat;
pub mod completions;
mod date;
mod encoder;
pub mod error;
mod handler_runtime;
mod hosts;
mod left_out;
pub mod messages;
mod metrics;
mod middleware;
mod params;
pub mod responses;
mod routes;
mod serve;
mod service;
mod socket;
mod sse;
mod tls;
mod unenforced;
pub mod wire;

pub use hosts::Hosts;
pub use routes::router;
pub use serve::{ServeError, serve};
pub use service::{ServerConfig, Service, TlsFiles};
