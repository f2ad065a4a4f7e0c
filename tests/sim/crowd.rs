//! Long prompts and many users on an engine with two passes, with simulated step times: measures
//! how long users wait for their next tokens and prompts for their first, and checks that plans
//! change no token.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::collections::BTreeMap;

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{Caps, Engine, PageGroup, PageKind, SlotSetup};
use kilotok_sched::{Limits, RequestId, Scheduler, Submission};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};

/// Smallest number of tokens with which a step takes the wide pass.
const WIDE_FROM: u32 = 65;
const STEP_US_MAX: u32 = 35_000;
/// How much longer than planned a step may take, since the planned cost is an estimate.
const LATE_MAX: f64 = 1.05;

/// Slots for many users, with pages for all of their tokens.
fn caps(token_max: u32, wide_from: Option<u32>) -> Caps {
    let group = |kind, page_count, window| PageGroup {
        kind,
        page_tokens: 64,
        page_count,
        window,
        page_bytes: 64,
    };
    Caps {
        slot_count: 256,
        row_max: 256,
        position_max: 1 << 18,
        token_max,
        wanted_max: 256,
        wide_from,
        groups: vec![
            group(PageKind::Full, 8192, None),
            group(PageKind::Window, 8192, Some(128)),
            group(PageKind::Draft, 8192, Some(128)),
        ],
        ..ScriptedEngine::caps()
    }
}

fn wide() -> Caps {
    caps(8192, Some(WIDE_FROM))
}

fn limits() -> Limits {
    Limits { step_us_max: STEP_US_MAX, ..Limits::default() }
}

/// Base time and time per token of each pass, in microseconds.
#[derive(Clone, Copy)]
struct Speed {
    narrow: (u32, f64),
    wide: (u32, f64),
}

/// One rank's eighth of MiMo-V2.5-Pro on an H200: as measured, and below, as it is intended to
/// become.
const MEASURED: Speed = Speed { narrow: (4000, 190.0), wide: (31_000, 40.0) };
const MEANT: Speed = Speed { narrow: (3100, 250.0), wide: (18_000, 26.0) };

impl Speed {
    fn step_us(self, caps: &Caps, token_count: u32) -> u32 {
        let is_wide = caps.wide_from.is_some_and(|from| token_count >= from);
        let (base_us, token_us) = if is_wide { self.wide } else { self.narrow };
        base_us + (token_us * f64::from(token_count)) as u32
    }
}

/// A request with its own prompt, without drafts, so that every step produces one token.
fn asked(user: u32, prompt_count: u32, reply_count: u32) -> Submission {
    let token = |index: u32| (index * 7 + index / 256 * 3 + user * 31) % 256;
    let setup = SlotSetup::new(Sampling::GREEDY, 0);
    let mut asked = Submission::new((0..prompt_count).map(token).collect(), setup, reply_count);
    asked.drafts = false;
    asked
}

/// A reply as its user sees it.
#[derive(Default)]
struct Reply {
    tokens: Vec<TokenId>,
    joined_us: u64,
    first_us: u64,
    last_us: u64,
    /// Times between tokens.
    gaps_us: Vec<u64>,
}

struct Simulation {
    speed: Speed,
    engine: ScriptedEngine,
    sched: Scheduler,
    now_us: u64,
    step_count: u32,
    /// Most prompts that were computed in one step.
    prompts_max: usize,
    replies: BTreeMap<RequestId, Reply>,
}

impl Simulation {
    fn new(speed: Speed, caps: Caps, limits: Limits) -> Self {
        let sched = Scheduler::new(&caps, limits);
        Self {
            speed,
            engine: ScriptedEngine::new(caps, DraftAccuracy::Percent(70)),
            sched,
            now_us: 0,
            step_count: 0,
            prompts_max: 0,
            replies: BTreeMap::new(),
        }
    }

    fn admit(&mut self, asked: Submission) -> RequestId {
        let id = self.sched.admit(asked).unwrap();
        let reply = Reply { joined_us: self.now_us, ..Reply::default() };
        self.replies.insert(id, reply);
        id
    }

    /// Returns false if nothing is left to compute.
    fn step(&mut self) -> bool {
        let plan = self.sched.plan().unwrap();
        if plan.step.rows.is_empty() {
            return false;
        }
        let rows = &plan.step.rows;
        let token_count = rows.iter().map(|row| row.tokens.count()).sum();
        let prompts = rows.iter().filter(|row| row.tokens.count() > 1).count();
        self.prompts_max = self.prompts_max.max(prompts);
        let step_us = self.speed.step_us(self.engine.caps(), token_count);
        let output = self.engine.run(&plan.step).unwrap();
        self.now_us += u64::from(step_us);
        self.step_count += 1;
        for advance in self.sched.absorb(output, step_us).unwrap() {
            if advance.tokens.is_empty() {
                continue;
            }
            let reply = self.replies.get_mut(&advance.id).unwrap();
            if reply.tokens.is_empty() {
                reply.first_us = self.now_us;
            } else {
                reply.gaps_us.push(self.now_us - reply.last_us);
            }
            reply.last_us = self.now_us;
            reply.tokens.extend(advance.tokens);
        }
        true
    }

    /// Runs until all requests have ended; then every page must be free or cached.
    fn finish(&mut self) {
        while self.step() {
            if self.step_count.is_multiple_of(64) {
                self.sched.check().unwrap();
            }
        }
        self.sched.check().unwrap();
        let stats = self.sched.stats();
        assert!(self.sched.is_idle() && stats.groups.iter().all(|group| group.used == 0));
        assert_eq!(stats.preemption_count, 0, "there are pages for all");
    }

    fn tokens(&self) -> Vec<&[TokenId]> {
        self.replies.values().map(|reply| &reply.tokens[..]).collect()
    }

    /// How many times a user waited longer for the next token than a step may take.
    fn late_count(&self, users: &[RequestId], us_max: u32) -> usize {
        let most = (f64::from(us_max) * LATE_MAX) as u64;
        let gaps = users.iter().flat_map(|id| &self.replies[id].gaps_us);
        gaps.filter(|gap| **gap > most).count()
    }
}

/// Output tokens per second of users who all come together after the first of them has come.
fn crowd(simulation: &mut Simulation, users: u32, reply_count: u32) -> f64 {
    simulation.admit(asked(0, 512, reply_count));
    simulation.step();
    for user in 1..users {
        simulation.admit(asked(user, 512, reply_count));
    }
    simulation.finish();
    f64::from(users * reply_count) / (simulation.now_us as f64 / 1e6)
}

#[test]
fn a_crowd_is_served_together() {
    for (speed, users, reply_count, rate_min) in [
        (MEASURED, 64, 64, 1600.0),
        (MEANT, 64, 64, 1700.0),
        (MEASURED, 256, 128, 2950.0),
        (MEANT, 256, 128, 4100.0),
    ] {
        let mut wide = Simulation::new(speed, wide(), limits());
        let rate = crowd(&mut wide, users, reply_count);
        assert!(rate > rate_min, "{users} users get {rate} tokens a second");
        assert!(wide.prompts_max >= 8, "{} prompts shared a step", wide.prompts_max);
        let mut narrow = Simulation::new(speed, caps(64, None), limits());
        crowd(&mut narrow, users, reply_count);
        assert_eq!(wide.tokens(), narrow.tokens());
    }
}

#[test]
fn more_requests_run_than_a_step_has_rows() {
    let few = Caps { row_max: 64, wanted_max: 64, ..wide() };
    let mut simulation = Simulation::new(MEASURED, few, limits());
    let rate = crowd(&mut simulation, 256, 128);
    assert!(rate > 1800.0, "256 users get {rate} tokens a second");
    let gaps = simulation.replies.values().flat_map(|reply| &reply.gaps_us);
    let longest = gaps.max().unwrap();
    assert!(*longest < 3_000_000, "a user waits {longest} us for a turn");
}

#[test]
fn prompts_alone_are_read_in_the_fewest_steps() {
    let mut simulation = Simulation::new(MEASURED, wide(), limits());
    for (user, prompt_count) in [(0, 1000), (1, 4000), (2, 16_000), (3, 32_000), (4, 128_000)] {
        let before = simulation.step_count;
        simulation.admit(asked(user, prompt_count, 2));
        simulation.finish();
        let steps = simulation.step_count - before;
        assert_eq!(steps, prompt_count.div_ceil(8192) + 1, "{prompt_count} tokens");
    }
}

/// Eight users decode when a prompt of 16,000 tokens arrives. Returns the simulation, the users,
/// and how long the prompt took.
fn long_beside_eight(
    speed: Speed,
    caps: Caps,
    limits: Limits,
) -> (Simulation, Vec<RequestId>, u64) {
    let mut simulation = Simulation::new(speed, caps, limits);
    let users: Vec<_> = (0..8).map(|user| simulation.admit(asked(user, 100, 3000))).collect();
    for _ in 0..50 {
        simulation.step();
    }
    let long = simulation.admit(asked(99, 16_000, 2));
    simulation.finish();
    let reply = &simulation.replies[&long];
    let took_us = reply.first_us - reply.joined_us;
    (simulation, users, took_us)
}

#[test]
fn a_long_prompt_makes_no_token_of_others_late() {
    // The wide pass is used if it fits the time of a step, otherwise the narrow one.
    for (speed, us_max, took_max_s) in
        [(MEASURED, 35_000, 7.0), (MEANT, 35_000, 1.5), (MEANT, 25_000, 4.0), (MEANT, 15_000, 12.0)]
    {
        let limits = Limits { step_us_max: us_max, ..limits() };
        let (simulation, users, took_us) = long_beside_eight(speed, wide(), limits);
        // Two steps do not count: the first of the wide pass, and the one that shows the cost of
        // the next.
        let late = simulation.late_count(&users, us_max);
        assert!(late <= 2 * users.len(), "{us_max}: {late} tokens are late");
        assert!(took_us as f64 / 1e6 < took_max_s, "{us_max}: the prompt took {took_us} us");
        let (other, ..) = long_beside_eight(speed, caps(64, None), limits);
        assert_eq!(simulation.tokens(), other.tokens());
    }
}

/// Eight users decode when forty prompts arrive together.
fn many_beside_eight(limits: Limits) -> (Simulation, Vec<RequestId>) {
    let mut simulation = Simulation::new(MEASURED, wide(), limits);
    let users: Vec<_> = (0..8).map(|user| simulation.admit(asked(user, 100, 1000))).collect();
    for _ in 0..50 {
        simulation.step();
    }
    for user in 8..48 {
        simulation.admit(asked(user, 512, 8));
    }
    simulation.finish();
    (simulation, users)
}

#[test]
fn a_crowd_delays_tokens_of_others_unless_the_server_is_stall_free() {
    let (usual, users) = many_beside_eight(limits());
    assert!(usual.late_count(&users, STEP_US_MAX) > 2 * users.len(), "the prompts are preferred");
    let (stall_free, users) = many_beside_eight(Limits { stall_free: true, ..limits() });
    // Two steps do not count, as for a single prompt.
    let late = stall_free.late_count(&users, STEP_US_MAX);
    assert!(late <= 2 * users.len(), "{late} tokens are late");
    let [last, usual_last] = [&stall_free, &usual]
        .map(|simulation| simulation.replies.values().map(|reply| reply.first_us).max().unwrap());
    assert!(last > usual_last, "the prompts are read later: {last} us, and {usual_last} us");
    assert_eq!(stall_free.tokens(), usual.tokens());
}

#[test]
fn a_prompt_is_read_even_where_no_step_is_short_enough() {
    let limits = Limits { step_us_max: 1, ..limits() };
    let (simulation, _, _) = long_beside_eight(MEASURED, wide(), limits);
    // 50 steps come before; then each step has a chunk of `chunk_min`, and once the users have
    // ended, larger ones.
    let chunk_steps = 16_000_u32.div_ceil(limits.chunk_min);
    assert!(simulation.step_count <= 50 + chunk_steps.max(3000), "{}", simulation.step_count);
}
