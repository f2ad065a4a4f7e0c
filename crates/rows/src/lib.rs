//! What every engine does with rows, whatever computes the model: the page groups that it promises,
//! the tokens that a plan's rows become, what slots hold between steps, and the choice of tokens by
//! logits on the host. Computes nothing of a model and knows no machine.

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
pub use verify::{Samplers, likeliest, wanted, wanted_tokens};
