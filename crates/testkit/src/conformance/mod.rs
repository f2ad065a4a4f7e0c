//! The conformance kit: the promises of every engine, one function per promise. Each function makes
//! engines with a factory, runs the same requests in different ways, and reports which promise was
//! broken and how. It knows engines only through their interface, and checks only that results are
//! the same every time, not that they are right.
//!
//! Prompts are three windows long, so the engine under test is a toy with small windows. It has at
//! least 6 slots, and pages for as many such prompts.
//!
//! [`conformance!`](crate::conformance!) makes a test of each promise, so that testing a new engine
//! takes one line.

mod bad_plans;
mod cases;
mod counts;
mod invariance;
mod order;
mod refusals;
mod rejection;
mod slots;
#[cfg(test)]
mod tests;

use kilotok_engine::Engine;

/// Makes the engine under test; all engines that it makes are alike.
pub type Make<'m> = &'m dyn Fn() -> Box<dyn Engine>;

type Verdict = Result<(), String>;

/// Declares the promises: an enum of broken ones, a function for each, and the macro that makes
/// tests of them. The first argument is a dollar sign, for the inner macro.
macro_rules! promises {
    ($d:tt $( $(#[$doc:meta])* $name:ident, $broken:ident, $check:path; )*) => {
        /// A broken promise, with what happened instead.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum Broken {
            $(
                $(#[$doc])*
                #[error("promise {} broken: {}", stringify!($name), .0)]
                $broken(String),
            )*
        }

        $( $(#[$doc])*
        pub fn $name(make: Make<'_>) -> Result<(), Broken> {
            $check(make).map_err(Broken::$broken)
        } )*

        /// Every promise by name.
        pub const PROMISES: &[(&str, fn(Make<'_>) -> Result<(), Broken>)] =
            &[ $( (stringify!($name), $name), )* ];

        /// A module of this name with a test per promise, for engines made by the expression, a
        /// `fn() -> Box<dyn Engine>`. A third expression, an `Option` of a message, says why tests
        /// are skipped here, if they are.
        #[macro_export]
        macro_rules! conformance {
            ($d engine:ident, $d make:expr) => {
                $d crate::conformance!($d engine, $d make, None::<&str>);
            };
            ($d engine:ident, $d make:expr, $d absent:expr) => {
                mod $d engine {
                    use super::*;
                    $( #[test]
                    fn $name() {
                        if let Some(reason) = $d absent {
                            return println!("skipped: {reason}");
                        }
                        if let Err(broken) = $d crate::conformance::$name(&$d make) {
                            panic!("{broken}");
                        }
                    } )*
                }
            };
        }
    };
}

promises! { $
    /// A row advances by its own tokens, the drafts that were right up to the first wrong one, and
    /// one token more.
    counts, Counts, counts::exact;
    /// Acceptance that is assumed counts drafts as right or wrong, whatever they are.
    assumed, Assumed, counts::assumed;
    /// A plan at every limit is accepted.
    limits, Limits, counts::at_limits;
    /// A plan beyond any limit is refused without any effect.
    refusals, Refusals, refusals::all_spoiled;
    /// A row that refers to tokens or drafts that its slot does not hold is refused.
    held, Held, refusals::held_only;
    /// Steps are waited for in order, and no more of them are held than promised.
    order, Order, order::waits;
    /// A step submitted before the last one was waited for has the same results.
    ahead, Ahead, order::ahead;
    /// An engine may be dropped with a step in flight.
    drops, Drops, order::drops;
    /// A plan without rows is a step.
    empty, Empty, order::empty;
    /// The same plans on another engine of the same kind give the same bits.
    replays, Replays, order::replays;
    /// A cancelled request's slot and pages are free in the next step.
    cancelled, Cancelled, slots::cancelled;
    /// A paused request continues from what it left in its pages and slot.
    paused, Paused, slots::paused;
    /// Pages that left a sequence's window may hold anything.
    freed, Freed, slots::freed;
    /// A row for which no token is allowed reports a fault, and other rows are unaffected.
    faults, Faults, slots::faults;
    /// A row that ended with a fault behind accepted drafts has stored the keys of all tokens but
    /// the last, in the drafter's pages too.
    remains, Remains, slots::remains;
    /// Masks, bad words, biases and the other processors have their effect.
    processors, Processors, slots::processors;
    /// A reply does not depend on what else runs, joins or leaves.
    neighbours, Neighbours, invariance::neighbours;
    /// Nor on how the prompt was cut.
    chunks, Chunks, invariance::chunks;
    /// Nor on whether another request left its start in the pages.
    prefixes, Prefixes, invariance::prefixes;
    /// Nor on slot and page numbers, nor on what is in pages out of reach.
    places, Places, invariance::places;
    /// Nor on having lost its slot and pages halfway.
    preempted, Preempted, invariance::preempted;
    /// Nor on the engine's own drafts.
    drafted, Drafted, invariance::drafted;
    /// Nor on given drafts, right or wrong.
    guessed, Guessed, invariance::guessed;
    /// Under rejection sampling a reply depends on the numbers of its drafts, and on nothing else.
    rejection, Rejection, rejection::repeats;
    /// A prompt's tokens are scored as they would have been chosen.
    scores, Scores, invariance::scores;
}

/// Checks every promise, in order.
///
/// # Errors
/// The first broken one.
pub fn check(make: Make<'_>) -> Result<(), Broken> {
    PROMISES.iter().try_for_each(|(_, promise)| promise(make))
}
