//! Invariant 10: a reply is the same, bit for bit, however its request is run.

use crate::host::{Drafts, Host, How, Request};

use super::cases::{Case, REPLY, all, few, plain, prompt_length, run_same, text};
use super::counts::held;
use super::{Make, Verdict};

/// Every request at once, joining and leaving at different times.
pub(super) fn neighbours(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = all(&mut *engine)?;
    let length = prompt_length(engine.caps());
    let visitor = plain(&mut *engine, 40, length / 2)?;
    let room = engine.caps().slot_count as usize;
    for seed in [10, 11] {
        let mut host = Host::new(&mut *engine, seed);
        for (chunk, some) in cases.chunks(room.saturating_sub(2).max(1)).enumerate() {
            let how = |index: usize| How {
                joins: (index * (chunk + 2) % 5) as u32,
                chunk: 7 + 5 * index as u32,
                ..How::default()
            };
            let jobs: Vec<_> = some.iter().enumerate().map(|(i, case)| (case, how(i))).collect();
            let leaving = How { joins: 1, leaves: Some(3), ..How::default() };
            let mut all: Vec<_> = jobs.iter().map(|(case, how)| (&case.request, how)).collect();
            all.push((&visitor.request, &leaving));
            let replies = host.run_all(&all).map_err(|error| error.to_string())?;
            for (case, reply) in some.iter().zip(&replies) {
                case.same("among others", reply)?;
            }
        }
    }
    Ok(())
}

/// Every chunk size for a short prompt, several for a long one.
pub(super) fn chunks(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = few(&mut *engine)?;
    let mut short = cases[0].request.clone();
    short.prompt.truncate(18);
    short.token_max = 2;
    let short = Case::new(&mut *engine, "short", short)?;
    let mut host = Host::new(&mut *engine, 12);
    for chunk in 1..=17 {
        let how = How { chunk, ..How::default() };
        run_same(&mut host, &format!("in chunks of {chunk}"), &[(&short, how)])?;
    }
    for chunk in [1, 5, 16, 31, 48] {
        let how = |case| (case, How { chunk, ..How::default() });
        let jobs: Vec<_> = cases.iter().map(how).collect();
        run_same(&mut host, &format!("in chunks of {chunk}"), &jobs)?;
    }
    Ok(())
}

/// Another request with the same beginning leaves its pages, then continues differently.
pub(super) fn prefixes(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = few(&mut *engine)?;
    let caps = engine.caps().clone();
    // The shared part is whole pages in every group, so that no row writes to a shared page.
    let unit = caps.groups.iter().map(|group| group.page_tokens).max().unwrap_or(1);
    if let Some(group) = caps.groups.iter().find(|group| unit % group.page_tokens != 0) {
        return Err(format!("pages of {unit} and of {} tokens do not align", group.page_tokens));
    }
    let mut host = Host::new(&mut *engine, 13);
    let free = host.free_pages();
    for case in &cases {
        let length = case.request.prompt.len() as u32;
        for count in [unit, (length - 1) / unit * unit] {
            let mut first = case.request.prompt[..count as usize].to_vec();
            first.extend(text(&caps, 50, unit as usize * 2));
            let first = Request::greedy(first, REPLY);
            let keep = Some(count);
            let how = How { keep, chunk: 19, drafts: Drafts::None, ..How::default() };
            let kept = host.run(&first, &how).map_err(|error| error.to_string())?.kept;
            let how = How { prefix: kept.clone(), ..How::default() };
            let drafted = How { drafts: case.guess(3, 2), joins: 2, ..how.clone() };
            // Two readers of the same pages: one after the other, and at the same time.
            let way = format!("with {count} tokens from another request");
            run_same(&mut host, &way, &[(case, how.clone()), (case, drafted)])?;
            run_same(&mut host, &way, &[(case, How { chunk: 3, ..how })])?;
            if let Some(prefix) = &kept {
                host.release(prefix);
            }
        }
    }
    assert_eq!(host.free_pages(), free, "the kit lost pages");
    Ok(())
}

/// Other slots and pages, on an engine whose pages contain other texts.
pub(super) fn places(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = few(&mut *engine)?;
    for seed in 14..18 {
        let jobs: Vec<_> = cases.iter().map(|case| (case, How::default())).collect();
        run_same(&mut Host::new(&mut *engine, seed), "in other places", &jobs)?;
    }
    Ok(())
}

pub(super) fn preempted(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = all(&mut *engine)?;
    let drafts = held(&*engine, 3, 3);
    let half = (engine.caps().slot_count as usize / 2).max(1);
    let mut host = Host::new(&mut *engine, 19);
    for cases in cases.chunks(half) {
        let how = |index: usize| How {
            joins: index as u32 % 3,
            preempt: if index.is_multiple_of(2) { vec![1 + index as u32 % 4, 7] } else { vec![5] },
            chunk: 20 + index as u32,
            drafts: drafts.clone(),
            ..How::default()
        };
        let jobs: Vec<_> = cases.iter().enumerate().map(|(i, case)| (case, how(i))).collect();
        run_same(&mut host, "preempted", &jobs)?;
    }
    Ok(())
}

/// All numbers of drafts, with all of them used or only some.
pub(super) fn drafted(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = all(&mut *engine)?;
    let most = if engine.caps().drafter { engine.caps().draft_max } else { 0 };
    let half = (engine.caps().slot_count as usize / 2).max(1);
    for made in 0..=most {
        let mut host = Host::new(&mut *engine, 20 + u64::from(made));
        for cases in cases.chunks(half) {
            let how = |used| How { drafts: Drafts::Held { made, used }, ..How::default() };
            let used = |index: u32| if index % 3 == 2 { made / 2 } else { made };
            let jobs: Vec<_> = (0..).zip(cases).map(|(i, case)| (case, how(used(i)))).collect();
            run_same(&mut host, &format!("with {made} drafts"), &jobs)?;
        }
    }
    Ok(())
}

pub(super) fn guessed(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = all(&mut *engine)?;
    let most = engine.caps().draft_max;
    let half = (engine.caps().slot_count as usize / 2).max(1);
    let ways = [(1, 1), (1, 0), (most, most), (most, most / 2), (most, 0), (most / 2, 1)];
    for (count, right) in ways {
        let mut host = Host::new(&mut *engine, 30);
        for cases in cases.chunks(half) {
            let how = |case: &Case| How { drafts: case.guess(count, right), ..How::default() };
            let jobs: Vec<_> = cases.iter().map(|case| (case, how(case))).collect();
            run_same(&mut host, &format!("with {right} of {count} drafts right"), &jobs)?;
        }
    }
    Ok(())
}

/// A token has the same log-probability when it is chosen and when it is part of a prompt.
pub(super) fn scores(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = few(&mut *engine)?;
    let mut host = Host::new(&mut *engine, 40);
    for case in &cases {
        let prompt = [&case.request.prompt[..], &case.reply.tokens].concat();
        let own = case.request.prompt.len() - 1;
        let request = Request { prompt, score: true, token_max: 1, ..case.request.clone() };
        for chunk in [u32::MAX, 1, 13] {
            let how = How { chunk, ..How::default() };
            let reply = host.run(&request, &how).map_err(|error| error.to_string())?;
            let found = crate::host::Reply {
                tokens: case.reply.tokens.clone(),
                logprobs: reply.scored[own..].to_vec(),
                ..crate::host::Reply::default()
            };
            case.same("scored", &found)?;
        }
    }
    Ok(())
}
