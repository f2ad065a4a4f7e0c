//! Replies that were asked for together: they count as one request. Its first reply has the rank of
//! a request; each further one is a copy, and ranks behind all requests that have fewer copies
//! before it. So one reply at a time has a place by right, and copies run in places that no
//! other request waits for. When a reply ends, the copies behind it move up.
//!
//! Of replies to one prompt one goes ahead and computes it; the others wait for its first token,
//! and find the prompt in pages.

use crate::request::{Rank, Request};
use crate::{Refused, RequestId, Scheduler, Submission};

impl Scheduler {
    /// Queues replies that were asked for together: all, or none. Those to one prompt stand next
    /// to each other. A reply for which there is no room is cut to what there is.
    ///
    /// # Errors
    /// What stands against the first that cannot be admitted.
    pub fn admit_all(&mut self, asked: Vec<Submission>) -> Result<Vec<RequestId>, Refused> {
        let waiting = (self.requests.len() - self.running.len()) as u32;
        asked.iter().try_for_each(|asked| self.refuse(asked))?;
        if waiting.saturating_add(asked.len() as u32) > self.limits.waiting_max {
            return Err(Refused::QueueFull { waiting });
        }
        let ids: Vec<RequestId> = (self.next_id..).take(asked.len()).map(RequestId).collect();
        let Some(&family) = ids.first() else {
            return Ok(ids);
        };
        let mut leader = family;
        for ((copy, id), mut asked) in (0..).zip(&ids).zip(asked) {
            let due = i64::from(asked.priority) * i64::from(self.limits.aging);
            let rank = Rank { copy, due: due.saturating_add(self.arrival_count as i64), id: *id };
            asked.token_max = asked.token_max.min(self.context_max - asked.prompt.len() as u32);
            let follows = *id != family && self.shares_prompt(&self.requests[&leader], &asked);
            let mut request = Request::new(rank, family, asked, self.acceptance.clone());
            if follows {
                request.follows = Some(leader);
            } else {
                leader = *id;
                self.waiting.insert(rank);
            }
            self.requests.insert(*id, request);
        }
        if ids.len() > 1 {
            self.families.insert(family, ids.clone());
        }
        self.next_id += ids.len() as u64;
        self.arrival_count += 1;
        self.shortage = None;
        Ok(ids)
    }

    /// Whether a reply would find the other's prompt in pages.
    fn shares_prompt(&self, first: &Request, other: &Submission) -> bool {
        self.pages.can_share(first.prompt_count())
            && !other.score_prompt
            && first.known == other.prompt
            && first.asked.cache_salt == other.cache_salt
    }

    /// The prompt of a reply is in pages: those that waited for it go into the queue.
    pub(crate) fn lead(&mut self, leader: RequestId) {
        for id in self.family_of(leader) {
            let request = self.requests.get_mut(&id).expect("a family's replies are known");
            if request.follows == Some(leader) {
                request.follows = None;
                self.waiting.insert(request.rank);
                self.shortage = None;
            }
        }
    }

    /// The other replies of a family, first ones first.
    fn family_of(&self, id: RequestId) -> Vec<RequestId> {
        let family = self.requests.get(&id).and_then(|own| self.families.get(&own.family));
        family.into_iter().flatten().copied().filter(|other| *other != id).collect()
    }

    /// A reply has left its family: the copies behind it move up, and one of those that waited for
    /// its prompt goes ahead in its stead.
    pub(crate) fn move_up(&mut self, gone: &Request) {
        let Some(mut members) = self.families.remove(&gone.family) else {
            return;
        };
        members.retain(|id| *id != gone.rank.id);
        let mut leader = None;
        for id in &members[gone.rank.copy as usize..] {
            let request = self.requests.get_mut(id).expect("a family's replies are known");
            let old = request.rank;
            request.rank.copy -= 1;
            if request.follows == Some(gone.rank.id) {
                request.follows = leader;
                if leader.is_none() {
                    leader = Some(*id);
                    self.waiting.insert(request.rank);
                }
                continue;
            }
            for ranks in [&mut self.waiting, &mut self.running] {
                if ranks.remove(&old) {
                    ranks.insert(request.rank);
                }
            }
        }
        if members.len() > 1 {
            self.families.insert(gone.family, members);
        }
    }

    /// Whether every reply knows its place in its family.
    pub(crate) fn check_families(&self) -> Result<(), String> {
        for (family, members) in &self.families {
            for (copy, id) in (0..).zip(members) {
                let request = self.requests.get(id);
                let request = request.ok_or_else(|| format!("family {family}: {id} is unknown"))?;
                let ahead = request.follows.is_none_or(|id| members[..copy as usize].contains(&id));
                if request.rank.copy != copy || request.family != *family || !ahead {
                    return Err(format!("family {family}: {id} is not copy {copy}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kilotok_abi::TokenId;
    use kilotok_testkit::ScriptedEngine;

    use super::*;
    use crate::bench::{Bench, asked, text};
    use crate::{Advance, Limits};

    fn bench(running_max: u32) -> Bench {
        Bench::new(ScriptedEngine::caps(), Limits { running_max, ..Limits::default() })
    }

    fn plain(prompt: Vec<TokenId>, token_max: u32) -> Submission {
        Submission { drafts: false, ..asked(prompt, token_max) }
    }

    /// Replies to a prompt of several pages.
    fn family(bench: &mut Bench, count: usize, token_max: u32) -> Vec<RequestId> {
        bench.sched.admit_all(vec![plain(text(50, 1), token_max); count]).unwrap()
    }

    fn running(bench: &Bench, family: &[RequestId]) -> usize {
        bench.sched.running().filter(|id| family.contains(id)).count()
    }

    fn ended(advances: &[Advance]) -> impl Iterator<Item = RequestId> {
        let ended = advances.iter().filter(|advance| advance.finish.is_some());
        ended.map(|advance| advance.id)
    }

    #[test]
    fn copies_leave_their_places_to_others() {
        let mut bench = bench(4);
        let many = family(&mut bench, 128, 100);
        (0..20).for_each(|_| drop(bench.step()));
        assert_eq!(running(&bench, &many), 4, "no other request waits");
        let small = bench.sched.admit(plain(text(9, 3), 8)).unwrap();
        assert_eq!(bench.finish(small).0, 8);
        (0..2).for_each(|_| drop(bench.step()));
        assert_eq!(running(&bench, &many), 4);
    }

    #[test]
    fn families_share_the_places() {
        let mut bench = bench(5);
        let first = family(&mut bench, 40, 100);
        (0..10).for_each(|_| drop(bench.step()));
        let second = family(&mut bench, 3, 100);
        let third = family(&mut bench, 40, 100);
        (0..10).for_each(|_| drop(bench.step()));
        let counts = [first, second, third].map(|family| running(&bench, &family));
        assert_eq!(counts, [2, 2, 1]);
    }

    #[test]
    fn a_family_waits_once() {
        let mut bench = bench(1);
        bench.sched.admit(plain(text(5, 1), 5)).unwrap();
        family(&mut bench, 2, 5);
        for first in 0..10 {
            bench.sched.admit(plain(text(5, first), 5)).unwrap();
        }
        let mut order = Vec::new();
        while order.len() < 5 {
            order.extend(ended(&bench.step().1));
        }
        assert_eq!(order, [0, 1, 2, 3, 4].map(RequestId));
    }

    #[test]
    fn a_stream_of_others_does_not_starve_a_family() {
        let mut bench = bench(2);
        let mut left = family(&mut bench, 6, 10);
        for step in 0..100 {
            bench.sched.admit(plain(text(9, step), 8)).unwrap();
            let ended: Vec<_> = ended(&bench.step().1).collect();
            left.retain(|id| !ended.contains(id));
            if left.is_empty() {
                // One after the other, each in a place of its own.
                assert!(step <= 6 * 12, "{step} steps");
                return;
            }
        }
        panic!("{} copies are left", left.len());
    }

    #[test]
    fn another_reply_goes_ahead_when_the_first_is_gone() {
        let mut bench = bench(8);
        let ids = bench.sched.admit_all(vec![plain(text(400, 1), 9); 4]).unwrap();
        assert_eq!(bench.step().0.len(), 1);
        bench.sched.cancel(ids[0]);
        assert_eq!(bench.step().0.len(), 1);
        assert_eq!((bench.sched.stats().running, bench.sched.stats().deferred), (1, 2));
        assert_eq!(bench.step().0.len(), 1, "the last chunk of the prompt");
        let cached = bench.step().1.iter().map(|advance| advance.cached_count).collect::<Vec<_>>();
        assert_eq!(cached, [192, 392, 392]);
    }

    #[test]
    fn other_prompts_of_a_family_do_not_wait() {
        let mut bench = bench(8);
        let prompts = [1, 1, 2, 2, 3].map(|first| plain(text(30, first), 9));
        let ids = bench.sched.admit_all(prompts.to_vec()).unwrap();
        let had: Vec<_> = bench.step().0.iter().map(|(id, _)| RequestId(*id)).collect();
        assert_eq!(had, [ids[0], ids[2], ids[4]]);
        assert_eq!(bench.step().0.len(), 5);
    }

    #[test]
    fn all_are_admitted_or_none() {
        let limits = Limits { waiting_max: 3, ..Limits::default() };
        let mut bench = Bench::new(ScriptedEngine::caps(), limits);
        let full = bench.sched.admit_all(vec![plain(text(5, 1), 5); 4]);
        assert_eq!(full, Err(Refused::QueueFull { waiting: 0 }));
        let some = vec![plain(text(5, 1), 5), plain(Vec::new(), 5)];
        assert_eq!(bench.sched.admit_all(some), Err(Refused::Nothing));
        assert!(bench.sched.is_idle());
        assert_eq!(bench.sched.admit_all(vec![plain(text(5, 1), 5); 3]).unwrap().len(), 3);
    }
}
