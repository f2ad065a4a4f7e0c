//! Invalidation of pages that may hold numbers that are not finite.

use kilotok_engine::{RowFault, StepOutput};

use crate::request::{InFlightRow, Place, Rank, Request};
use crate::{Finish, RequestId, Scheduler};

fn is_not_finite(fault: Option<RowFault>) -> bool {
    matches!(fault, Some(RowFault::NotFinite { .. }))
}

/// The position beyond which a text in common with a failed request makes another request start
/// again. It is where the failed request began to write. It is 0 if the other request has found
/// pages in the prefix cache and computed nothing since, because it can still do without them.
fn suspect_from(other: &Request, failed: &Request) -> u32 {
    let only_found = other.place.as_ref().is_some_and(|place| place.fresh) && other.computed > 0;
    if only_found { 0 } else { failed.written_from }
}

impl Scheduler {
    /// Removes a request that has ended.
    pub(crate) fn finish(&mut self, id: RequestId, finish: Finish) {
        if matches!(finish, Finish::Fault(fault) if is_not_finite(Some(fault))) {
            self.invalidate(id);
        }
        self.leave(id, u32::MAX);
    }

    /// Of the requests that left while a row of theirs was computed, those whose row failed.
    pub(crate) fn take_departed(
        &mut self,
        flights: &[InFlightRow],
        output: &StepOutput,
    ) -> Vec<Request> {
        let mut departed = std::mem::take(&mut self.departed);
        departed.retain(|request| {
            let mut rows = flights.iter().zip(&output.rows);
            rows.any(|(row, out)| row.id == request.rank.id && is_not_finite(out.fault))
        });
        departed
    }

    /// The same as [`Self::invalidate`] for requests that left while their last row was computed.
    /// They have no pages any more, so their texts say which pages they read or wrote.
    pub(crate) fn invalidate_departed(&mut self, departed: &[Request]) {
        let stride = self.pages.stride as usize;
        for request in departed {
            let (salt, text) = (&request.asked.cache_salt, &request.known);
            let reads = |rank: &&Rank| {
                let other = &self.requests[&rank.id];
                // The text must be the same for one edge beyond that position.
                let edges = suspect_from(other, request) as usize / stride + 1;
                let beginning = text.get(..edges * stride);
                other.asked.cache_salt == *salt
                    && beginning.is_some_and(|beginning| other.known.starts_with(beginning))
            };
            let readers = self.running.iter().filter(reads).copied().collect();
            self.pages.invalidate_text(salt, text);
            self.restart(readers);
        }
    }

    /// Invalidates every page that the request read or wrote, as any of them may be the cause, so
    /// that no later request finds them in the prefix cache. Requests that may have read what this
    /// one wrote start again, and so do those that found pages and have not read them yet.
    fn invalidate(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        let Some(place) = &request.place else {
            return;
        };
        let reads = |rank: &&Rank| {
            let other = &self.requests[&rank.id];
            let from = suspect_from(other, request);
            let may_read = |own: &Place| self.pages.may_read(&own.holding, &place.holding, from);
            rank.id != id && other.place.as_ref().is_some_and(may_read)
        };
        let readers = self.running.iter().filter(reads).copied().collect();
        self.pages.invalidate(&place.holding);
        self.restart(readers);
    }

    fn restart(&mut self, readers: Vec<Rank>) {
        for reader in readers {
            self.preempt(reader);
        }
    }
}

#[cfg(test)]
mod tests {
    use kilotok_abi::TokenId;
    use kilotok_engine::{Engine, RowOutput};
    use kilotok_testkit::ScriptedEngine;

    use super::*;
    use crate::harness::{Harness, asked, text};
    use crate::{Limits, Plan, Submission};

    fn harness() -> Harness {
        Harness::new(ScriptedEngine::caps(), Limits::default())
    }

    /// Makes the output of the request's row a fault of logits that are not finite.
    fn fails(id: RequestId) -> impl FnOnce(&Plan, &mut StepOutput) {
        move |plan, output| {
            let row = plan.ids.iter().position(|other| *other == id).unwrap();
            let fault = Some(RowFault::NotFinite { position: 9 });
            output.rows[row] = RowOutput { fault, ..RowOutput::default() };
        }
    }

    /// How many tokens of a prompt a later request finds in the prefix cache.
    fn found(harness: &mut Harness, prompt: &[TokenId]) -> u32 {
        let id = harness.sched.admit(asked(prompt.to_vec(), 1)).unwrap();
        let advances = harness.step().1;
        advances.iter().find(|advance| advance.id == id).unwrap().cached_count
    }

    #[test]
    fn pages_of_a_failed_request_are_not_found() {
        let mut harness = harness();
        let prompt = text(41, 1);
        let id = harness.sched.admit(asked(prompt.clone(), 9)).unwrap();
        harness.step();
        harness.step_with(fails(id));
        assert_eq!(found(&mut harness, &prompt), 0);
        assert_eq!(found(&mut harness, &prompt), 40, "what others computed since is found");
    }

    #[test]
    fn nor_are_those_of_one_that_was_cancelled_while_it_failed() {
        let mut harness = harness();
        let prompt = text(41, 1);
        let id = harness.sched.admit(asked(prompt.clone(), 9)).unwrap();
        harness.step();
        let plan = harness.sched.plan().unwrap();
        let mut output = harness.engine.run(&plan.step).unwrap();
        fails(id)(&plan, &mut output);
        assert!(harness.sched.cancel(id));
        assert_eq!(harness.sched.absorb(output, 1000), Ok(Vec::new()));
        harness.sched.check().unwrap();
        assert_eq!(found(&mut harness, &prompt), 0);
        assert_eq!(found(&mut harness, &prompt), 40, "what others computed since is found");
    }

    #[test]
    fn nor_are_those_it_found_itself_though_others_use_them() {
        let mut harness = harness();
        let stem = text(40, 1);
        let with = |last: TokenId| [&stem[..], &[last; 20]].concat();
        found(&mut harness, &with(1));
        let [neighbour, failed] =
            [2, 3].map(|last| harness.sched.admit(asked(with(last), 40)).unwrap());
        let advances = harness.step().1;
        assert!(advances.iter().all(|advance| advance.cached_count == 40));
        harness.step_with(fails(failed));
        assert_eq!(harness.sched.running().collect::<Vec<_>>(), [neighbour], "it goes on");
        assert_eq!(harness.sched.stats().preemption_count, 0);
        assert_eq!(found(&mut harness, &with(4)), 0);
    }

    /// A request that has found pages and waits for its masks has not read them. It computes them
    /// again, whether the failed request still runs or was cancelled.
    #[test]
    fn those_who_found_its_pages_and_have_no_row_yet_begin_anew() {
        for cancelled in [false, true] {
            let mut harness = harness();
            let prompt = text(41, 1);
            found(&mut harness, &prompt);
            let masked = Submission { needs_masks: true, ..asked(prompt.clone(), 9) };
            let waits = harness.sched.admit(masked).unwrap();
            let failed = harness.sched.admit(asked([&prompt[..], &[2; 20]].concat(), 9)).unwrap();
            let plan = harness.sched.plan().unwrap();
            assert_eq!(plan.ids, [failed], "all but the last token of the other's prompt is there");
            let mut output = harness.engine.run(&plan.step).unwrap();
            fails(failed)(&plan, &mut output);
            assert!(!cancelled || harness.sched.cancel(failed));
            harness.sched.absorb(output, 1000).unwrap();
            assert_eq!(harness.sched.provide_masks(waits, 0, Vec::new()), Ok(true));
            let plan = harness.sched.plan().unwrap();
            let starts = plan.step.rows.iter().map(|row| row.start).collect::<Vec<_>>();
            assert_eq!((plan.ids, starts), (vec![waits], vec![0]));
        }
    }

    #[test]
    fn readers_of_what_it_wrote_begin_anew() {
        let prompt = text(41, 1);
        let mut alone = harness();
        let id = alone.sched.admit(asked(prompt.clone(), 60)).unwrap();
        let expected = alone.finish(id).1;
        let mut harness = harness();
        let failed = harness.sched.admit(asked(prompt.clone(), 60)).unwrap();
        harness.step();
        let reader = harness.sched.admit(asked(prompt.clone(), 60)).unwrap();
        let mut tokens: Vec<TokenId> = Vec::new();
        for step in 0..2 {
            let (_, advances) = match step {
                0 => harness.step(),
                _ => harness.step_with(fails(failed)),
            };
            let own = advances.into_iter().filter(|advance| advance.id == reader);
            own.for_each(|advance| tokens.extend(advance.tokens));
        }
        assert!(!tokens.is_empty() && harness.sched.running().next().is_none());
        // The pages that it read have left the prefix cache: a later request does not find them.
        let late = harness.sched.admit(asked([&prompt[..], &[7]].concat(), 1)).unwrap();
        let (rows, advances) = harness.step();
        assert_eq!(rows.len(), 2);
        for advance in advances {
            let cached = if advance.id == late { 0 } else { 40 };
            assert_eq!(advance.cached_count, cached, "when it first started");
            if advance.id == reader {
                tokens.extend(advance.tokens);
            }
        }
        tokens.extend(harness.finish(reader).1);
        assert_eq!(tokens, expected);
    }
}
