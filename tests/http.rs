//! Tests the server from outside: raw bytes in and out, with the real router and the real engine
//! thread. The engine repeats the prompt's text after `say:`, and otherwise replies at random, so
//! every reply is either known beforehand or the same for the same seed.
#![expect(clippy::unwrap_used, reason = "all of this is tests, also what tests share")]

#[path = "http/anthropic.rs"]
mod anthropic;
#[path = "http/bounds.rs"]
mod bounds;
#[path = "http/chat.rs"]
mod chat;
#[path = "http/clients.rs"]
mod clients;
#[path = "http/codex.rs"]
mod codex;
#[path = "http/completions.rs"]
mod completions;
#[path = "http/dice.rs"]
mod dice;
#[path = "http/drafts.rs"]
mod drafts;
#[path = "http/faults.rs"]
mod faults;
#[path = "http/garbage.rs"]
mod garbage;
#[path = "http/harmony.rs"]
mod harmony;
#[path = "http/hosted.rs"]
mod hosted;
#[path = "http/integers.rs"]
mod integers;
#[path = "http/leaving.rs"]
mod leaving;
#[path = "http/limits.rs"]
mod limits;
#[path = "http/load.rs"]
mod load;
#[path = "http/prompts.rs"]
mod prompts;
#[path = "http/refusals.rs"]
mod refusals;
#[path = "http/responses.rs"]
mod responses;
#[path = "http/router.rs"]
mod router;
#[path = "http/server.rs"]
mod server;
#[path = "http/shapes.rs"]
mod shapes;
#[path = "http/strict.rs"]
mod strict;
#[path = "http/surface.rs"]
mod surface;
#[path = "http/texts.rs"]
mod texts;
#[path = "http/tls.rs"]
mod tls;
#[path = "http/validity.rs"]
mod validity;
