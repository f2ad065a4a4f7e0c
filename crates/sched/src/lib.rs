//! Continuous batching. A request has tokens that are known and positions that are computed, and
//! each step the computed ones chase the known ones: a prompt chunk, a decode row and a verify row
//! are the same thing. This crate decides who runs how many tokens, in which pages, and with how
//! many drafts. It is pure: no clock, thread, channel or file; the same calls give the same plans.
//! It knows no text, no HTTP and no model.
//!
//! The caller's loop: [`Scheduler::admit`] and [`Scheduler::cancel`] what came in,
//! [`Scheduler::plan`], have the engine run it, [`Scheduler::absorb`] what came out.
//!
//! Who goes first. Each request has a rank: its arrival number plus [`Limits::aging`] for every
//! level of priority. Ranks never change, so whatever arrives late enough ranks after it. Replies
//! that were asked for together count as one request: the first has its rank, the others are
//! copies, rank behind the requests of everyone else, and move up when one of them ends.
//! - Requests start in order of rank, none overtakes another in the queue. Without a place or pages
//!   for the next one, the last copy loses its own, if more replies of its request run.
//! - Every running request at its last known token gets a row in every step; drafts and prompts
//!   share the tokens that are left, and neither takes more than half while the other has use
//!   for them.
//! - Of the tokens for prompts, half go to the first rank, the rest to the shortest prompts.
//! - Without pages, the last rank loses its own to whoever ranks before it, and resumes later.
//!
//! So the first rank of those running always advances, and everything ends.

#[cfg(test)]
mod bench;
mod check;
mod cost;
mod distrust;
mod drafts;
mod families;
mod limits;
mod pages;
mod planning;
mod pool;
mod prefix;
mod request;
mod scheduler;
mod shares;
mod stats;
mod trials;

pub use cost::Cost;
pub use limits::Limits;
pub use request::{RequestId, Submission};
pub use scheduler::{Advance, Finish, Misuse, Plan, Refused, Scheduler};
pub use stats::{GroupUsage, Stats};
