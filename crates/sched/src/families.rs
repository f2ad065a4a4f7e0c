//! Replies that one HTTP request asked for together (`n`, or several prompts): a family. It counts
//! as one request. Its first reply has the rank of a request. Each further reply is a copy, and its
//! rank is behind all replies that have fewer replies of their own family before them. So one reply
//! at a time has a slot by right, and copies run in slots that no other request waits for. When a
//! reply ends, the copies behind it move up.
//!
//! Of several replies to one prompt, the first computes it. The others wait for its first token,
//! and then find the prompt in the prefix cache.

use crate::request::{Rank, Request};
use crate::{Refused, RequestId, Scheduler, Submission};

impl Scheduler {
    /// Queues all replies of a family, or none. Replies to one prompt are next to each other. A
    /// reply longer than the context is cut to it.
    ///
    /// # Errors
    /// Why the first reply that cannot be admitted was refused.
    pub fn admit_all(&mut self, asked: Vec<Submission>) -> Result<Vec<RequestId>, Refused> {
        let waiting = (self.requests.len() - self.running.len()) as u32;
        asked.iter().try_for_each(|asked| self.refuse(asked))?;
        if waiting.saturating_add(asked.len() as u32) > self.limits.queue_max {
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
            let acceptance = self.acceptance.of(asked.setup.verification).clone();
            let mut request = Request::new(rank, family, asked, acceptance);
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

    /// Whether a reply would find the other's prompt in the prefix cache.
    fn shares_prompt(&self, first: &Request, other: &Submission) -> bool {
        self.pages.can_share(first.prompt_count())
            && !other.score_prompt
            && first.known == other.prompt
            && first.asked.cache_salt == other.cache_salt
    }

    /// Queues the replies that waited for this one's prompt, which is in the prefix cache now.
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

    /// Moves up the copies behind a reply that has left its family. If others waited for its
    /// prompt, one of them computes it instead.
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

    /// Checks that every reply knows its number in its family.
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
    use crate::harness::{Harness, asked, text};
    use crate::{Advance, Limits};

    fn harness(running_max: u32) -> Harness {
        Harness::new(ScriptedEngine::caps(), Limits { running_max, ..Limits::default() })
    }

    fn plain(prompt: Vec<TokenId>, token_max: u32) -> Submission {
        Submission { drafts: false, ..asked(prompt, token_max) }
    }

    /// Replies to a prompt of several pages.
    fn family(harness: &mut Harness, count: usize, token_max: u32) -> Vec<RequestId> {
        harness.sched.admit_all(vec![plain(text(50, 1), token_max); count]).unwrap()
    }

    fn running(harness: &Harness, family: &[RequestId]) -> usize {
        harness.sched.running().filter(|id| family.contains(id)).count()
    }

    fn ended(advances: &[Advance]) -> impl Iterator<Item = RequestId> {
        let ended = advances.iter().filter(|advance| advance.finish.is_some());
        ended.map(|advance| advance.id)
    }

    #[test]
    fn copies_leave_their_places_to_others() {
        let mut harness = harness(4);
        let many = family(&mut harness, 128, 100);
        (0..20).for_each(|_| drop(harness.step()));
        assert_eq!(running(&harness, &many), 4, "no other request waits");
        let small = harness.sched.admit(plain(text(9, 3), 8)).unwrap();
        assert_eq!(harness.finish(small).0, 8);
        (0..2).for_each(|_| drop(harness.step()));
        assert_eq!(running(&harness, &many), 4);
    }

    #[test]
    fn families_share_the_places() {
        let mut harness = harness(5);
        let first = family(&mut harness, 40, 100);
        (0..10).for_each(|_| drop(harness.step()));
        let second = family(&mut harness, 3, 100);
        let third = family(&mut harness, 40, 100);
        (0..10).for_each(|_| drop(harness.step()));
        let counts = [first, second, third].map(|family| running(&harness, &family));
        assert_eq!(counts, [2, 2, 1]);
    }

    #[test]
    fn a_family_waits_once() {
        let mut harness = harness(1);
        harness.sched.admit(plain(text(5, 1), 5)).unwrap();
        family(&mut harness, 2, 5);
        for first in 0..10 {
            harness.sched.admit(plain(text(5, first), 5)).unwrap();
        }
        let mut order = Vec::new();
        while order.len() < 5 {
            order.extend(ended(&harness.step().1));
        }
        assert_eq!(order, [0, 1, 2, 3, 4].map(RequestId));
    }

    #[test]
    fn a_stream_of_others_does_not_starve_a_family() {
        let mut harness = harness(2);
        let mut left = family(&mut harness, 6, 10);
        for step in 0..100 {
            harness.sched.admit(plain(text(9, step), 8)).unwrap();
            let ended: Vec<_> = ended(&harness.step().1).collect();
            left.retain(|id| !ended.contains(id));
            if left.is_empty() {
                // One after the other, each in a slot of its own.
                assert!(step <= 6 * 12, "{step} steps");
                return;
            }
        }
        panic!("{} copies are left", left.len());
    }

    #[test]
    fn another_reply_goes_ahead_when_the_first_is_gone() {
        let mut harness = harness(8);
        let ids = harness.sched.admit_all(vec![plain(text(400, 1), 9); 4]).unwrap();
        assert_eq!(harness.step().0.len(), 1);
        harness.sched.cancel(ids[0]);
        assert_eq!(harness.step().0.len(), 1);
        assert_eq!((harness.sched.stats().running, harness.sched.stats().deferred), (1, 2));
        assert_eq!(harness.step().0.len(), 1, "the last chunk of the prompt");
        let cached =
            harness.step().1.iter().map(|advance| advance.cached_count).collect::<Vec<_>>();
        assert_eq!(cached, [192, 392, 392]);
    }

    #[test]
    fn other_prompts_of_a_family_do_not_wait() {
        let mut harness = harness(8);
        let prompts = [1, 1, 2, 2, 3].map(|first| plain(text(30, first), 9));
        let ids = harness.sched.admit_all(prompts.to_vec()).unwrap();
        let had: Vec<_> = harness.step().0.iter().map(|(id, _)| RequestId(*id)).collect();
        assert_eq!(had, [ids[0], ids[2], ids[4]]);
        assert_eq!(harness.step().0.len(), 5);
    }

    #[test]
    fn all_are_admitted_or_none() {
        let limits = Limits { queue_max: 3, ..Limits::default() };
        let mut harness = Harness::new(ScriptedEngine::caps(), limits);
        let full = harness.sched.admit_all(vec![plain(text(5, 1), 5); 4]);
        assert_eq!(full, Err(Refused::QueueFull { waiting: 0 }));
        let some = vec![plain(text(5, 1), 5), plain(Vec::new(), 5)];
        assert_eq!(harness.sched.admit_all(some), Err(Refused::Nothing));
        assert!(harness.sched.is_idle());
        assert_eq!(harness.sched.admit_all(vec![plain(text(5, 1), 5); 3]).unwrap().len(), 3);
    }
}
