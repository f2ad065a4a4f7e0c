//! Slots and pages that several requests use, rows with faults, and the sampling processors.

use std::collections::BTreeMap;

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{Engine, RowFault, StepPlan};

use crate::host::{Drafts, Host, How, Reply, Request};

use super::cases::{Case, REPLY, all, few, plain, prompt_length, run_same};
use super::counts::held;
use super::{Make, Verdict};

/// A request is cancelled in its prompt, or while drafts are held; the next request takes its slot
/// and pages.
pub(super) fn cancelled(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let length = prompt_length(engine.caps());
    let victim = plain(&mut *engine, 30, length)?;
    let cases = few(&mut *engine)?;
    let drafts = held(&*engine, 7, 7);
    let mut host = Host::new(&mut *engine, 4);
    host.limit_slots(1);
    for (case, rows) in cases.iter().cycle().zip([1, 2, 5, 6, 7]) {
        let chunk = length as u32 / 4;
        let leaves = Some(rows);
        let how = How { leaves, chunk, drafts: drafts.clone(), ..How::default() };
        host.run(&victim.request, &how).map_err(|error| error.to_string())?;
        let how = How { drafts: drafts.clone(), ..How::default() };
        run_same(&mut host, "after a cancelled one", &[(case, how)])?;
    }
    Ok(())
}

/// Requests pause in the prompt and in the reply while others come and go.
pub(super) fn paused(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let length = prompt_length(engine.caps());
    let cases = few(&mut *engine)?;
    let other = plain(&mut *engine, 31, length + 3)?;
    let drafts = held(&*engine, 5, 5);
    for pause in [1..6, 5..9] {
        let chunk = length as u32 / 3;
        let how = How { pause, chunk, drafts: drafts.clone(), ..How::default() };
        let busy = |joins| How { joins, drafts: drafts.clone(), ..How::default() };
        let mut together: Vec<_> = cases.iter().map(|case| (case, how.clone())).collect();
        together.extend([0, 2, 3].map(|joins| (&other, busy(joins))));
        run_same(&mut Host::new(&mut *engine, 5), "with a pause", &together)?;
    }
    Ok(())
}

/// In every other step, a request arrives for one token and takes the page that was freed last.
pub(super) fn freed(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = few(&mut *engine)?;
    let passer_by = Request::greedy(vec![1, 2, 3], 1);
    let slow = How { chunk: 5, ..How::default() };
    let hows: Vec<_> = (1..30).step_by(2).map(|joins| How { joins, ..How::default() }).collect();
    // The last user of each page, by group and page.
    let mut owners = BTreeMap::new();
    let mut taken = 0;
    let mut probe = |_: &mut dyn Engine, plan: &StepPlan| {
        for row in &plan.rows {
            let runs = row.pages.iter().enumerate();
            for page in runs.flat_map(|(group, run)| run.pages.iter().map(move |p| (group, *p))) {
                let before = owners.insert(page, row.slot).filter(|owner| *owner != row.slot);
                let runs_on = |owner| plan.rows.iter().any(|row| row.slot == owner);
                taken += u32::from(before.is_some_and(runs_on));
            }
        }
        Ok(())
    };
    for case in &cases {
        let mut jobs = vec![(&case.request, &slow)];
        jobs.extend(hows.iter().map(|how| (&passer_by, how)));
        let replies = Host::new(&mut *engine, 9).run_probed(&jobs, &mut probe);
        case.same("with its old pages in use", &replies.map_err(|e| e.to_string())?[0])?;
    }
    if taken == 0 && engine.caps().groups.iter().any(|group| group.window.is_some()) {
        return Err("the kit had no occasion to use an old page".into());
    }
    Ok(())
}

/// Every token is allowed, but none after `length` tokens.
fn nothing_after(length: usize, vocab_size: u32, known: &[TokenId]) -> Vec<u32> {
    let word = if known.len() == length { 0 } else { u32::MAX };
    vec![word; vocab_size.div_ceil(32) as usize]
}

/// The position of the fault. Prompts have only a few tokens.
const FAULT_AT: usize = 14;

pub(super) fn faults(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let doomed = plain(&mut *engine, 32, FAULT_AT - 4)?;
    let cases = few(&mut *engine)?;
    let drafts = held(&*engine, 4, 4);
    let mut stuck = doomed.request.clone();
    stuck.mask = Some(|known, vocab_size| nothing_after(FAULT_AT, vocab_size, known));
    for drafts in [drafts, doomed.guess(0, 0), doomed.guess(2, 2), doomed.guess(7, 7)] {
        let how = How { drafts, ..How::default() };
        let calm = How { drafts: doomed.guess(0, 0), ..How::default() };
        let mut jobs = vec![(&stuck, &how)];
        jobs.extend(cases.iter().map(|case| (&case.request, &calm)));
        let replies = Host::new(&mut *engine, 6).run_all(&jobs).map_err(|e| e.to_string())?;
        check_fault(&doomed, &replies[0])?;
        for (case, reply) in cases.iter().zip(&replies[1..]) {
            case.same("beside a faulty row", reply)?;
        }
    }
    dead_positions(&doomed, &mut Host::new(&mut *engine, 7))
}

fn check_fault(doomed: &Case, reply: &Reply) -> Verdict {
    let wanted = Some(RowFault::NothingAllowed { position: FAULT_AT as u32 });
    if reply.fault != wanted {
        return Err(format!("{:?}, expected {wanted:?}", reply.fault));
    }
    if reply.tokens == doomed.reply.tokens[..4] {
        Ok(())
    } else {
        Err(format!("{:?} before the fault, not {:?}", reply.tokens, &doomed.reply.tokens[..4]))
    }
}

/// The fault comes after accepted drafts, the last of which begins a page.
const REMAINS_END: u32 = 48;

/// Another request continues from the pages that a fault left, and has the same drafts as when it
/// computes everything itself.
pub(super) fn remains(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let caps = engine.caps().clone();
    if caps.groups.iter().any(|group| !REMAINS_END.is_multiple_of(group.page_tokens)) {
        return Err(format!("pages do not end at {REMAINS_END} tokens"));
    }
    let right = caps.draft_max.min(3);
    let doomed = plain(&mut *engine, 33, (REMAINS_END + 1 - right) as usize)?;
    let mut stuck = doomed.request.clone();
    stuck.mask =
        Some(|known, vocab_size| nothing_after(REMAINS_END as usize + 1, vocab_size, known));
    let mut host = Host::new(&mut *engine, 20);
    let how = How { drafts: doomed.guess(right, right), keep: Some(REMAINS_END), ..How::default() };
    let failed = host.run(&stuck, &how).map_err(|error| error.to_string())?;
    if failed.fault.is_none() || failed.sampled_rows != 1 {
        return Err(format!("{:?} after {} rows", failed.fault, failed.sampled_rows));
    }
    let mut next = Request::greedy([&stuck.prompt[..], &failed.tokens].concat(), REPLY);
    // With masks, the output reports the drafts.
    next.mask = Some(|_, vocab_size| vec![u32::MAX; vocab_size.div_ceil(32) as usize]);
    let drafts = Drafts::Held { made: caps.draft_max, used: caps.draft_max };
    let how = How { drafts, ..How::default() };
    let alone = host.run(&next, &how).map_err(|error| error.to_string())?;
    let how = How { prefix: failed.kept, ..how };
    let after = host.run(&next, &how).map_err(|error| error.to_string())?;
    if (&after.tokens, &after.drafts) == (&alone.tokens, &alone.drafts) {
        Ok(())
    } else {
        Err(format!("drafts {:?} after the fault, {:?} alone", after.drafts, alone.drafts))
    }
}

/// No token is allowed after a draft that is itself forbidden, but that position is never reached.
fn dead_positions(case: &Case, host: &mut Host<'_>) -> Verdict {
    let mut request = case.request.clone();
    // Only even tokens are allowed, so the wrong draft, which is the right token plus one, is odd.
    request.mask = Some(|known, vocab_size| {
        let dead = known.len() > FAULT_AT - 4 && known.last().is_some_and(|last| last % 2 == 1);
        let word = if dead { 0 } else { 0x5555_5555 };
        vec![word; vocab_size.div_ceil(32) as usize]
    });
    let alone = host.run(&request, &How::default()).map_err(|error| error.to_string())?;
    let even = Case { name: "even tokens", request, reply: alone };
    for (count, right) in [(1, 0), (4, 2)] {
        let how = How { drafts: even.guess(count, right), ..How::default() };
        run_same(host, "with nothing allowed after a wrong draft", &[(&even, how)])?;
    }
    Ok(())
}

pub(super) fn processors(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let cases = all(&mut *engine)?;
    let by_name = |name: &str| cases.iter().find(|case| case.name == name).expect("a case's name");
    let greedy = by_name("greedy");
    for name in ["bias", "bad words", "end tokens", "mask"] {
        if by_name(name).reply.tokens == greedy.reply.tokens {
            return Err(format!("{name} changed nothing"));
        }
    }
    for case in &cases {
        check_processed(case).map_err(|reason| format!("{}: {reason}", case.name))?;
    }
    let mut favoured = greedy.request.clone();
    favoured.setup.logit_bias = vec![(7, 1e6)];
    let mut one = greedy.request.clone();
    one.setup.sampling = Sampling { temperature: 1.5, seed: 5, top_k: 1, ..Sampling::GREEDY };
    let mut host = Host::new(&mut *engine, 8);
    let mut run = |request: &Request| host.run(request, &How::default()).map_err(|e| e.to_string());
    if run(&favoured)?.tokens.iter().any(|token| *token != 7) {
        return Err("a huge bias does not win".into());
    }
    if run(&one)?.tokens != greedy.reply.tokens {
        return Err("a top-k of one is not greedy".into());
    }
    for penalty in [
        Sampling { repetition_penalty: 1e4, ..Sampling::GREEDY },
        Sampling { presence_penalty: 1e4, ..Sampling::GREEDY },
        Sampling { frequency_penalty: 1e4, ..Sampling::GREEDY },
    ] {
        let mut request = greedy.request.clone();
        request.setup.sampling = penalty;
        let mut tokens = run(&request)?.tokens;
        tokens.sort_unstable();
        tokens.dedup();
        if tokens.len() < greedy.reply.tokens.len() {
            return Err(format!("tokens come again in spite of {penalty:?}"));
        }
    }
    if by_name("seeded").reply.tokens == run(&reseeded(&by_name("seeded").request))?.tokens {
        return Err("the seed changes nothing".into());
    }
    Ok(())
}

fn reseeded(request: &Request) -> Request {
    let mut request = request.clone();
    request.setup.sampling.seed += 1;
    request
}

fn check_processed(case: &Case) -> Verdict {
    let Case { request, reply, .. } = case;
    let text = [&request.prompt[..], &reply.tokens].concat();
    for (index, token) in reply.tokens.iter().enumerate() {
        let known = &text[..request.prompt.len() + index];
        let mask = request.mask.map(|mask| mask(known, u32::MAX >> 16));
        if mask.is_some_and(|mask| mask[*token as usize / 32] >> (token % 32) & 1 == 0) {
            return Err(format!("token {index} is masked"));
        }
        if (index as u32) < request.setup.sampling.min_tokens
            && request.setup.end_tokens.contains(token)
        {
            return Err(format!("token {index} ends the reply too early"));
        }
        let so_far = &text[..=request.prompt.len() + index];
        if let Some(word) = request.setup.bad_words.iter().find(|word| so_far.ends_with(word)) {
            return Err(format!("{word:?} at token {index}"));
        }
    }
    Ok(())
}
