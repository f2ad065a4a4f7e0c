//! Continuous batching: which requests run, how many tokens of each a step has, in which pages of
//! the KV cache, and with how many drafts. A request has known tokens and computed positions, and
//! every step computes more of the known ones. So prefill (a prompt chunk), decode and verification
//! of drafts are the same kind of row, and chunked prefill, prefix hits and speculation are no
//! special cases.
//!
//! The crate is pure: no clock, thread, channel or file; the same calls give the same plans. It
//! knows no text, no HTTP and no model.
//!
//! The caller's loop: [`Scheduler::admit`] and [`Scheduler::cancel`] what came in,
//! [`Scheduler::plan`], run the plan on an engine, [`Scheduler::absorb`] the output.
//!
//! # Order
//!
//! Each request has a rank: its arrival number plus [`Limits::aging`] for every level of priority.
//! Ranks never change, so every later arrival ranks behind it after a while, whatever its priority.
//! Replies to one HTTP request count as one: the first has its rank, the others are copies, rank
//! behind the requests of other users, and move up when one of them ends.
//!
//! - Requests start in order of rank; none overtakes another in the queue. If there is no slot or
//!   no page for the next one, the last running copy is preempted, provided that it has more
//!   replies of its own request before it than the next one has.
//! - Every running request whose prompt is computed has a row in every step, unless more requests
//!   decode than a narrow step takes: then the first has a row, and the others may take turns.
//!   Drafts and prompts share the tokens that are left; neither takes more than half while the
//!   other can use them.
//! - Of the prompt tokens of a step, half go to the request first in order of rank, the rest to the
//!   shortest prompts.
//! - When pages run out, the request with the last rank is preempted, and resumes later.
//!
//! So the first running request always advances, and every request ends.

mod check;
mod cost;
mod draft_costs;
mod drafts;
mod families;
mod fit;
#[cfg(test)]
mod harness;
mod invalidate;
mod limits;
mod pages;
mod planning;
mod pool;
mod prefix;
mod request;
mod scheduler;
mod shares;
mod stats;
mod tails;
mod trials;

pub use cost::Cost;
pub use limits::Limits;
pub use request::{RequestId, Submission};
pub use scheduler::{Advance, Finish, Misuse, Plan, Refused, Scheduler};
pub use stats::{DraftCounts, GroupUsage, Stats};
pub use tails::TAIL_INTERVAL;
