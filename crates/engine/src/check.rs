//! The rules for plans. Every engine calls [`check_plan`] before it does anything.

use kilotok_abi::PageId;

use crate::{Caps, EngineError, PageGroup, PageRun, Row, RowTokens, StepPlan, Verification};

/// The largest factor by which a request's temperature is multiplied for its drafts. Far above it
/// drafts are nearly random tokens.
pub const DRAFT_TEMPERATURE_MAX: f32 = 4.0;

/// Checks a plan against an engine's limits. Whether a slot holds the drafts of its row, and
/// whether its rule lets a mask be missing, is known to the engine alone, which checks it too.
///
/// # Errors
/// [`EngineError::Plan`] naming the first row that breaks a limit, and how.
pub fn check_plan(caps: &Caps, plan: &StepPlan) -> Result<(), EngineError> {
    let refuse = |row, reason| Err(EngineError::Plan { row, reason });
    if plan.rows.len() > caps.row_max as usize {
        let reason = format!("{} rows, at most {} fit a step", plan.rows.len(), caps.row_max);
        return refuse(caps.row_max as usize, reason);
    }
    let mut slot_used = vec![false; caps.slot_count as usize];
    let (mut token_count, mut wanted_count) = (0_u64, 0_u64);
    for (index, row) in plan.rows.iter().enumerate() {
        match slot_used.get_mut(row.slot.0 as usize) {
            None => return refuse(index, format!("slot {} of {}", row.slot, caps.slot_count)),
            Some(true) => return refuse(index, format!("slot {} has two rows", row.slot)),
            Some(used) => *used = true,
        }
        token_count += u64::from(row.tokens.count());
        if token_count > u64::from(caps.token_max) {
            return refuse(index, format!("more than {} tokens in a step", caps.token_max));
        }
        wanted_count += u64::from(row.wanted_count());
        if wanted_count > u64::from(caps.wanted_max) {
            return refuse(index, format!("more than {} wanted tokens in a step", caps.wanted_max));
        }
        if let Err(reason) = check_row(caps, row) {
            return refuse(index, reason);
        }
    }
    check_writers(caps, plan)
}

/// Bits of the filter of written pages. A step of 256 decoding rows writes as many pages of a
/// group, so 3 % of the pages that it reads have to be looked for.
const FILTER_BITS: usize = 1 << 13;

/// A page that a row writes must be its own: no other row may write or read it in the same step.
/// Rows read thousands of pages and write few, so a bit for the number of a written page, modulo
/// `FILTER_BITS`, spares most of them the search.
fn check_writers(caps: &Caps, plan: &StepPlan) -> Result<(), EngineError> {
    let mut written: Vec<(PageId, usize)> = Vec::new();
    let mut filter = vec![false; FILTER_BITS];
    let bit = |page: PageId| page.0 as usize % FILTER_BITS;
    for (index, group) in caps.groups.iter().enumerate() {
        written.clear();
        filter.fill(false);
        for (number, row) in plan.rows.iter().enumerate() {
            written.extend(pages_between(row, index, group, row.start).map(|page| (page, number)));
        }
        written.sort_unstable();
        for &(page, _) in &written {
            filter[bit(page)] = true;
        }
        let refuse = |(page, row): (PageId, usize), other| {
            let reason =
                format!("page {page} of group {index} is written, and row {other} uses it");
            Err(EngineError::Plan { row, reason })
        };
        if let Some(pair) = written.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return refuse(pair[1], pair[0].1);
        }
        for (number, row) in plan.rows.iter().enumerate() {
            let first_needed = group.first_needed(row.start);
            let first_page = first_needed / group.page_tokens;
            let read_count = row.start / group.page_tokens - first_page;
            let read = pages_between(row, index, group, first_needed).take(read_count as usize);
            for page in read {
                if filter[bit(page)]
                    && let Ok(at) = written.binary_search_by_key(&page, |(page, _)| *page)
                    && written[at].1 != number
                {
                    return refuse(written[at], number);
                }
            }
        }
    }
    Ok(())
}

/// The row's pages in a group, from the page of a position up to the row's end.
fn pages_between(
    row: &Row,
    group_index: usize,
    group: &PageGroup,
    position: u32,
) -> impl Iterator<Item = PageId> {
    let run = &row.pages[group_index];
    let (first, end) = (position / group.page_tokens, row.end().div_ceil(group.page_tokens));
    run.pages[(first - run.first) as usize..(end - run.first) as usize].iter().copied()
}

fn check_row(caps: &Caps, row: &Row) -> Result<(), String> {
    check_tokens(caps, row)?;
    check_sampling(caps, row)?;
    let end = u64::from(row.start) + u64::from(row.tokens.count());
    if end > u64::from(caps.position_max) {
        return Err(format!("ends at position {end}, the last is {}", caps.position_max));
    }
    if row.pages.len() != caps.groups.len() {
        return Err(format!("{} page runs for {} groups", row.pages.len(), caps.groups.len()));
    }
    if !row.later_starts.is_sorted_by(|one, next| one < next)
        || row.later_starts.last().is_some_and(|last| u64::from(*last) > end)
    {
        return Err("the starts of later rows are not ascending, or behind its end".into());
    }
    for (index, (run, group)) in row.pages.iter().zip(&caps.groups).enumerate() {
        check_pages(run, group, row).map_err(|reason| format!("page group {index}: {reason}"))?;
    }
    Ok(())
}

fn check_tokens(caps: &Caps, row: &Row) -> Result<(), String> {
    let draft_count = row.tokens.draft_count();
    if draft_count > caps.draft_max {
        return Err(format!("{draft_count} drafts, at most {}", caps.draft_max));
    }
    if let RowTokens::Given { tokens, .. } = &row.tokens {
        if tokens.len() <= draft_count as usize {
            return Err(format!("{} tokens with {draft_count} drafts", tokens.len()));
        }
        if let Some(token) = tokens.iter().find(|&&token| token >= caps.vocab_size) {
            return Err(format!("token {token} of a vocabulary of {}", caps.vocab_size));
        }
    }
    if draft_count > 0 && !row.sample {
        return Err("drafts in a row that does not sample".into());
    }
    if row.draft_next > 0 && !(row.sample && caps.drafter) {
        return Err("asks for drafts but does not sample, or the engine has no drafter".into());
    }
    if row.draft_next > caps.draft_max {
        return Err(format!("asks for {} drafts, at most {}", row.draft_next, caps.draft_max));
    }
    Ok(())
}

fn check_sampling(caps: &Caps, row: &Row) -> Result<(), String> {
    let mask_count = row.tokens.draft_count() as usize + 1;
    let can_lack = matches!(row.tokens, RowTokens::Held { .. });
    let enough = row.masks.len() == mask_count || (can_lack && row.masks.len() + 1 == mask_count);
    if !(row.masks.is_empty() || row.sample && enough) {
        return Err(format!("{} masks for {mask_count} sampled positions", row.masks.len()));
    }
    let word_count = caps.vocab_size.div_ceil(32) as usize;
    if let Some(mask) = row.masks.iter().find(|mask| mask.len() != word_count) {
        return Err(format!("a mask of {} words, not {word_count}", mask.len()));
    }
    if row.logprobs.is_some_and(|count| count > caps.logprobs_max) {
        return Err(format!("more than {} log-probabilities", caps.logprobs_max));
    }
    if row.scored.len() > row.tokens.count() as usize {
        return Err(format!("{} scored tokens for {}", row.scored.len(), row.tokens.count()));
    }
    if let Some(token) = row.scored.iter().find(|&&token| token >= caps.vocab_size) {
        return Err(format!("scored token {token} of a vocabulary of {}", caps.vocab_size));
    }
    let Some(setup) = &row.setup else {
        return Ok(());
    };
    if matches!(row.tokens, RowTokens::Held { .. }) {
        return Err("a slot that is set up holds no tokens yet".into());
    }
    if let Verification::Rejection { draft_temperature } = setup.verification
        && !(0.0..=DRAFT_TEMPERATURE_MAX).contains(&draft_temperature)
    {
        return Err(format!(
            "draft temperature {draft_temperature}, from 0 to {DRAFT_TEMPERATURE_MAX}"
        ));
    }
    if let Verification::Assumed { chance } = setup.verification
        && !(0.0..=1.0).contains(&chance)
    {
        return Err(format!("a draft is assumed to be accepted with probability {chance}"));
    }
    let known = row.end() - row.tokens.draft_count();
    if setup.needs_history() && setup.history.len() < known as usize {
        return Err(format!("history of {} tokens, {known} are known", setup.history.len()));
    }
    if setup.needs_history() && row.sample && setup.history.len() > known as usize {
        return Err(format!("history of {} tokens, only {known} are known", setup.history.len()));
    }
    if let Some((token, bias)) = setup.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
        // The text form of a plan has no infinities; a mask or a bad word forbids a token.
        return Err(format!("logit bias {bias} of token {token} is not finite"));
    }
    let tokens = setup.history.iter().chain(setup.end_tokens.iter());
    let tokens = tokens.chain(setup.bad_words.iter().flatten());
    let mut tokens = tokens.chain(setup.logit_bias.iter().map(|(token, _)| token));
    if let Some(token) = tokens.find(|&&token| token >= caps.vocab_size) {
        return Err(format!("token {token} of a vocabulary of {}", caps.vocab_size));
    }
    Ok(())
}

fn check_pages(run: &PageRun, group: &PageGroup, row: &Row) -> Result<(), String> {
    let first_page = group.first_needed(row.start) / group.page_tokens;
    let end_page = row.end().div_ceil(group.page_tokens);
    if run.first > first_page || (run.first as usize + run.pages.len()) < end_page as usize {
        return Err(format!(
            "pages {}..{} given, {first_page}..{end_page} needed",
            run.first,
            run.first as usize + run.pages.len()
        ));
    }
    if let Some(page) = run.pages.iter().find(|page| page.0 >= group.page_count) {
        return Err(format!("page {page} of {}", group.page_count));
    }
    Ok(())
}
