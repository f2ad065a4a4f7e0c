//! The part of an engine that does not depend on the device: the page groups of the KV cache, the
//! batch that a plan's rows become, what slots hold between steps, and sampling from logits on the
//! host. Both engines use it. It computes no layer of a model.

mod batch;
mod groups;
mod in_flight;
mod sizes;
mod slots;
mod verify;

pub use batch::{Batch, BatchRow};
pub use groups::Grouping;
pub use in_flight::InFlight;
pub use sizes::{SLOTS_MAX, SizeError, Sizes};
pub use slots::{Held, Slots};
pub use verify::{Samplers, wanted, wanted_tokens};
