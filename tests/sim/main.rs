//! The scheduler in small simulated worlds, each determined by a seed. Requests share prefixes, ask
//! for several replies, are cancelled and stopped, wait for masks, end in the middle of drafts, run
//! out of pages and meet numbers that are not finite. Every reply must be the same as that of the
//! request alone, without drafts or a cache.
//!
//! A failure names its seed: `world(seed)` runs it again.

mod crowd;
mod poison;
mod workload;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use kilotok_engine::RowFault;
use kilotok_sched::Finish;
use kilotok_testkit::ScriptedEngine;
use kilotok_testkit::host::{Host, How, Reply as Alone, Request};

use workload::{Job, Workload};
use world::{End, Reply, Tally, World};

/// Number of worlds in each test; the tests run in parallel.
const WORLD_COUNT: u64 = 12_000;

#[test]
fn replies_are_those_of_requests_alone() {
    println!("{:?}", worlds(0));
}

#[test]
fn and_again_in_other_worlds() {
    println!("{:?}", worlds(WORLD_COUNT));
}

#[test]
fn the_same_calls_give_the_same_plans() {
    for seed in 0..500 {
        let workload = Workload::new(seed);
        let [first, second] = [(), ()].map(|()| {
            let mut world = World::new(&workload, seed);
            world.run().map(|_| world.plans)
        });
        assert_eq!(first, second, "seed {seed}");
    }
}

fn worlds(first: u64) -> Tally {
    let mut tally = Tally::default();
    for seed in first..first + WORLD_COUNT {
        let one = catch_unwind(AssertUnwindSafe(|| world(seed)));
        match one.unwrap_or_else(|panic| Err(format!("{:?}", panic.downcast_ref::<String>()))) {
            Ok(one) => tally.add(&one),
            Err(reason) => panic!("seed {seed}: {reason}"),
        }
    }
    let Tally { finished, stopped, cancelled, faults, refused, .. } = tally;
    let Tally { preempted, window_preempted, hits, accepted, failures, .. } = tally;
    let counts = [finished, stopped, cancelled, faults, refused, preempted, hits, accepted];
    assert!(counts.iter().all(|count| *count > WORLD_COUNT / 20), "too little happened: {tally:?}");
    assert!(failures > 0, "no step failed");
    assert!(window_preempted > WORLD_COUNT / 100, "windows never run out of pages: {tally:?}");
    tally
}

/// Runs one world, and compares each reply with that of the request alone.
fn world(seed: u64) -> Result<Tally, String> {
    let workload = Workload::new(seed);
    let mut world = World::new(&workload, seed);
    let context_max = world.context_max();
    let replies = world.run()?;
    let mut caps = workload.caps.clone();
    (caps.token_max, caps.wanted_max, caps.row_max, caps.slot_count) = (256, 256, 1, 1);
    caps.position_max = 128;
    for group in &mut caps.groups {
        group.page_count = 256 / group.page_tokens;
    }
    let mut engine = ScriptedEngine::new(caps, workload.skill);
    let mut host = Host::new(&mut engine, seed);
    for (index, (job, reply)) in workload.jobs.iter().zip(&replies).enumerate() {
        if reply.end != Some(End::Refused) {
            let alone = alone(&mut host, job, context_max)?;
            compare(job, reply, &alone).map_err(|reason| {
                format!("request {index}: {reason}\n{job:?}\n{reply:?}\nalone {:?}", alone.tokens)
            })?;
        }
    }
    Ok(world.tally)
}

fn alone(host: &mut Host<'_>, job: &Job, context_max: u32) -> Result<Alone, String> {
    let asked = &job.asked;
    let room = context_max - asked.prompt.len() as u32;
    let request = Request {
        prompt: asked.prompt.clone(),
        setup: asked.setup.clone(),
        token_max: asked.token_max.min(room).max(1),
        mask: job.mask,
        top: asked.logprobs.unwrap_or_default(),
        score: asked.score_prompt,
    };
    host.run(&request, &How::default()).map_err(|error| error.to_string())
}

fn compare(job: &Job, reply: &Reply, alone: &Alone) -> Result<(), String> {
    let expect = |what: &str, holds: bool| {
        if holds { Ok(()) } else { Err(format!("not the same {what}")) }
    };
    expect("tokens", alone.tokens.starts_with(&reply.tokens))?;
    expect("scores", alone.scored.starts_with(&reply.scored))?;
    if job.asked.logprobs.is_some() {
        expect("log-probabilities", alone.logprobs.starts_with(&reply.logprobs))?;
        expect("number of them", reply.logprobs.len() == reply.tokens.len())?;
    }
    let Some(End::Finished(finish)) = reply.end else {
        return Ok(());
    };
    if let Finish::Fault(RowFault::NotFinite { .. }) = finish {
        return Ok(());
    }
    expect("number of scores", alone.scored.len() == reply.scored.len())?;
    if job.asked.token_max == 0 {
        return expect("end", finish == Finish::Length && reply.tokens.is_empty());
    }
    let ended = alone.tokens.last().is_some_and(|last| job.asked.setup.end_tokens.contains(last));
    let end = match alone.fault {
        Some(fault) => Finish::Fault(fault),
        None if ended => Finish::EndToken,
        None => Finish::Length,
    };
    expect("number of tokens", alone.tokens.len() == reply.tokens.len())?;
    expect("end", finish == end)
}
