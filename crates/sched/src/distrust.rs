//! What is done about pages that may hold numbers that are not finite.

use kilotok_engine::RowFault;

use crate::request::Rank;
use crate::{Finish, RequestId, Scheduler};

impl Scheduler {
    /// Takes out a request that has ended.
    pub(crate) fn finish(&mut self, id: RequestId, finish: Finish) {
        if matches!(finish, Finish::Fault(RowFault::NotFinite { .. })) {
            self.distrust(id);
        }
        self.leave(id, u32::MAX);
    }

    /// Any page that the request has read or written may be the cause, so later requests are not to
    /// find it. Requests that read what this one wrote begin anew.
    fn distrust(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        let Some(place) = &request.place else {
            return;
        };
        let written = self.pages.distrust(&place.holding, request.written_from);
        let reads = |rank: &&Rank| {
            let place = self.requests[&rank.id].place.as_ref();
            rank.id != id && place.is_some_and(|place| place.holding.has_any(&written))
        };
        let readers: Vec<Rank> = self.running.iter().filter(reads).copied().collect();
        for reader in readers {
            self.preempt(reader);
        }
    }
}

#[cfg(test)]
mod tests {
    use kilotok_abi::TokenId;
    use kilotok_engine::{RowOutput, StepOutput};
    use kilotok_testkit::ScriptedEngine;

    use super::*;
    use crate::bench::{Bench, asked, text};
    use crate::{Limits, Plan};

    fn bench() -> Bench {
        Bench::new(ScriptedEngine::caps(), Limits::default())
    }

    /// The request's row has numbers that are not finite.
    fn fails(id: RequestId) -> impl FnOnce(&Plan, &mut StepOutput) {
        move |plan, output| {
            let row = plan.ids.iter().position(|other| *other == id).unwrap();
            let fault = Some(RowFault::NotFinite { position: 9 });
            output.rows[row] = RowOutput { fault, ..RowOutput::default() };
        }
    }

    /// How many tokens of a prompt a later request finds in pages.
    fn found(bench: &mut Bench, prompt: &[TokenId]) -> u32 {
        let id = bench.sched.admit(asked(prompt.to_vec(), 1)).unwrap();
        let advances = bench.step().1;
        advances.iter().find(|advance| advance.id == id).unwrap().cached_count
    }

    #[test]
    fn pages_of_a_failed_request_are_not_found() {
        let mut bench = bench();
        let prompt = text(41, 1);
        let id = bench.sched.admit(asked(prompt.clone(), 9)).unwrap();
        bench.step();
        bench.step_with(fails(id));
        assert_eq!(found(&mut bench, &prompt), 0);
        assert_eq!(found(&mut bench, &prompt), 40, "what others computed since is found");
    }

    #[test]
    fn nor_are_those_it_found_itself_though_others_use_them() {
        let mut bench = bench();
        let stem = text(40, 1);
        let with = |last: TokenId| [&stem[..], &[last; 20]].concat();
        found(&mut bench, &with(1));
        let [neighbour, failed] =
            [2, 3].map(|last| bench.sched.admit(asked(with(last), 40)).unwrap());
        let advances = bench.step().1;
        assert!(advances.iter().all(|advance| advance.cached_count == 40));
        bench.step_with(fails(failed));
        assert_eq!(bench.sched.running().collect::<Vec<_>>(), [neighbour], "it goes on");
        assert_eq!(bench.sched.stats().preemption_count, 0);
        assert_eq!(found(&mut bench, &with(4)), 0);
    }

    #[test]
    fn readers_of_what_it_wrote_begin_anew() {
        let prompt = text(41, 1);
        let mut alone = bench();
        let id = alone.sched.admit(asked(prompt.clone(), 60)).unwrap();
        let expected = alone.finish(id).1;
        let mut bench = bench();
        let failed = bench.sched.admit(asked(prompt.clone(), 60)).unwrap();
        bench.step();
        let reader = bench.sched.admit(asked(prompt.clone(), 60)).unwrap();
        let mut tokens: Vec<TokenId> = Vec::new();
        for step in 0..2 {
            let (_, advances) = match step {
                0 => bench.step(),
                _ => bench.step_with(fails(failed)),
            };
            let own = advances.into_iter().filter(|advance| advance.id == reader);
            own.for_each(|advance| tokens.extend(advance.tokens));
        }
        assert!(!tokens.is_empty() && bench.sched.running().next().is_none());
        // It names nothing that it read before: another one beside it finds nothing.
        let late = bench.sched.admit(asked([&prompt[..], &[7]].concat(), 1)).unwrap();
        let (rows, advances) = bench.step();
        assert_eq!(rows.len(), 2);
        for advance in advances {
            let cached = if advance.id == late { 0 } else { 40 };
            assert_eq!(advance.cached_count, cached, "when it first started");
            if advance.id == reader {
                tokens.extend(advance.tokens);
            }
        }
        tokens.extend(bench.finish(reader).1);
        assert_eq!(tokens, expected);
    }
}
