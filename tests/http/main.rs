//! Tests the server from outside: raw bytes in and out, with the real router and the real engine
//! thread. The engine repeats the prompt's text after `say:`, and otherwise replies at random, so
//! every reply is either known beforehand or the same for the same seed.
#![expect(clippy::unwrap_used, reason = "all of this is tests, also what tests share")]

mod anthropic;
mod bounds;
mod chat;
mod clients;
mod codex;
mod completions;
mod drafts;
mod faults;
mod garbage;
mod harmony;
mod hosted;
mod integers;
mod leaving;
mod limits;
mod load;
mod prompts;
mod refusals;
mod responses;
mod router;
mod server;
mod shapes;
mod strict;
mod surface;
mod texts;
mod tls;
mod validity;
