//! The parts from which tests of kilotok are built: the promises of every engine
//! ([`mod@conformance`]), the host that checks them ([`host`]), an engine without a model for tests
//! of everything above its interface ([`scripted`]), small models with real checkpoints ([`toy`]),
//! tests in a separate process ([`process`]), and tests that take turns ([`take_turn`]). Nothing
//! here serves requests.

pub mod conformance;
mod fields;
pub mod host;
mod mix;
pub mod process;
mod random;
pub mod scripted;
pub mod toy;
mod turns;

pub use fields::with_fields;
pub use random::Random;
pub use scripted::{DraftAccuracy, Script, ScriptedEngine, repeat_prompt};
pub use toy::Toy;
pub use turns::take_turn;
