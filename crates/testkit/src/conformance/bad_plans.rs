//! Every way to make a good plan illegal. Each function changes one thing, and returns whether the
//! plan had that thing.

use kilotok_abi::{PageId, SlotId};
use kilotok_engine::{Caps, Row, RowTokens, SlotSetup, StepPlan};

/// Makes a plan illegal; false if it does not apply to this one.
pub(super) type Spoil = fn(&mut StepPlan, &Caps) -> bool;

/// Each with the name of the fault of an engine that accepts the plan.
pub(super) const SPOILS: &[(&str, Spoil)] = &[
    ("a slot beyond the last", |plan, caps| {
        row(plan, |_| true, |row| row.slot = SlotId(caps.slot_count))
    }),
    ("two rows for a slot", |plan, caps| {
        let Some(twin) = plan.rows.first().cloned() else { return false };
        let room = plan.rows.len() < caps.row_max as usize;
        plan.rows.extend(room.then_some(twin));
        room
    }),
    ("too many rows", |plan, caps| {
        let Some(row) = plan.rows.first().cloned() else { return false };
        let slots = (0..=caps.row_max).map(SlotId);
        plan.rows = slots.map(|slot| Row { slot, ..row.clone() }).collect();
        true
    }),
    ("too many tokens", |plan, caps| {
        given(plan, |tokens, _| tokens.resize(caps.token_max as usize + 1, 0))
    }),
    ("too many wanted tokens", |plan, caps| {
        let count = caps.wanted_max as usize + 1;
        let long = given(plan, |tokens, _| tokens.resize(count, 0));
        long && row(
            plan,
            |row| row.tokens.count() as usize == count,
            |row| {
                row.scored = vec![0; count];
            },
        )
    }),
    ("no tokens", |plan, _| given(plan, |tokens, _| tokens.clear())),
    ("nothing but drafts", |plan, caps| {
        sampled(plan, |row| {
            row.tokens = RowTokens::Given {
                tokens: vec![0; caps.draft_max as usize],
                draft_count: caps.draft_max,
            };
        })
    }),
    ("too many drafts", |plan, caps| {
        sampled(plan, |row| {
            let draft_count = caps.draft_max + 1;
            row.tokens =
                RowTokens::Given { tokens: vec![0; draft_count as usize + 1], draft_count };
        })
    }),
    ("a token beyond the vocabulary", |plan, caps| {
        given(plan, |tokens, _| tokens[0] = caps.vocab_size)
    }),
    ("a draft beyond the vocabulary", |plan, caps| {
        given(plan, |tokens, draft_count| {
            if *draft_count > 0 {
                *tokens.last_mut().expect("a draft") = caps.vocab_size;
            } else {
                tokens[0] = u32::MAX;
            }
        })
    }),
    ("drafts without sampling", |plan, _| {
        let drafted = |row: &Row| row.tokens.draft_count() > 0;
        row(plan, drafted, |row| (row.sample, row.draft_next) = (false, 0))
    }),
    ("a later row that starts behind the end", |plan, _| {
        row(plan, |_| true, |row| row.later_starts = vec![row.end() + 1])
    }),
    ("later rows whose starts are not ascending", |plan, _| {
        row(plan, |row| row.end() > 1, |row| row.later_starts = vec![row.end(), row.end() - 1])
    }),
    ("drafts to come without sampling", |plan, _| {
        row(plan, |row| !row.sample, |row| row.draft_next = 1)
    }),
    ("too many drafts to come", |plan, caps| {
        sampled(plan, |row| row.draft_next = caps.draft_max + 1)
    }),
    ("drafts to come without a drafter", |plan, caps| {
        !caps.drafter && sampled(plan, |row| row.draft_next = 1)
    }),
    ("a mask too few", |plan, _| masked(plan, |masks| drop(masks.pop()), 2)),
    ("a mask too many", |plan, _| masked(plan, |masks| masks.push(masks[0].clone()), 1)),
    ("a mask without sampling", |plan, caps| {
        let words = caps.vocab_size.div_ceil(32) as usize;
        row(plan, |row| !row.sample, |row| row.masks = vec![vec![u32::MAX; words]])
    }),
    ("a mask word too few", |plan, _| masked(plan, |masks| masks[0].truncate(1), 1)),
    ("a mask word too many", |plan, _| masked(plan, |masks| masks[0].push(0), 1)),
    ("too many log-probabilities", |plan, caps| {
        row(plan, |_| true, |row| row.logprobs = Some(caps.logprobs_max + 1))
    }),
    ("more scored tokens than tokens", |plan, _| {
        row(plan, |_| true, |row| row.scored = vec![0; row.tokens.count() as usize + 1])
    }),
    ("a scored token beyond the vocabulary", |plan, caps| {
        row(plan, |row| !row.scored.is_empty(), |row| row.scored[0] = caps.vocab_size)
    }),
    ("a setup with held tokens", |plan, _| {
        entering(plan, |row| row.tokens = RowTokens::Held { draft_count: 0 })
    }),
    ("too short a history", |plan, _| {
        setup(plan, SlotSetup::needs_history, |setup| setup.history.clear())
    }),
    ("a history token beyond the vocabulary", |plan, caps| {
        setup(plan, SlotSetup::needs_history, |setup| setup.history[0] = caps.vocab_size)
    }),
    ("an end token beyond the vocabulary", |plan, caps| {
        setup(plan, |_| true, |setup| setup.end_tokens.push(caps.vocab_size))
    }),
    ("a bad word beyond the vocabulary", |plan, caps| {
        setup(
            plan,
            |setup| !setup.history.is_empty(),
            |setup| {
                setup.bad_words.push(vec![0, caps.vocab_size]);
            },
        )
    }),
    ("an empty bad word", |plan, _| {
        setup(plan, |setup| !setup.history.is_empty(), |setup| setup.bad_words.push(Vec::new()))
    }),
    ("a biased token beyond the vocabulary", |plan, caps| {
        setup(plan, |_| true, |setup| setup.logit_bias.push((caps.vocab_size, 1.0)))
    }),
    ("a bias that is no number", |plan, _| {
        setup(plan, |_| true, |setup| setup.logit_bias.push((0, f32::NAN)))
    }),
    ("an infinite bias", |plan, _| {
        setup(plan, |_| true, |setup| setup.logit_bias.push((0, f32::NEG_INFINITY)))
    }),
    ("a negative temperature", |plan, _| {
        setup(plan, |_| true, |setup| setup.sampling.temperature = -1.0)
    }),
    ("a temperature that is no number", |plan, _| {
        setup(plan, |_| true, |setup| setup.sampling.temperature = f32::NAN)
    }),
    ("a top-p of nothing", |plan, _| setup(plan, |_| true, |setup| setup.sampling.top_p = 0.0)),
    ("a min-p above one", |plan, _| setup(plan, |_| true, |setup| setup.sampling.min_p = 1.5)),
    ("a repetition penalty of zero", |plan, _| {
        setup(plan, SlotSetup::needs_history, |setup| setup.sampling.repetition_penalty = 0.0)
    }),
    ("a position beyond the last", |plan, caps| {
        row(plan, |_| true, |row| row.start = caps.position_max)
    }),
    ("a position beyond all numbers", |plan, _| row(plan, |_| true, |row| row.start = u32::MAX)),
    ("a page run too few", |plan, _| row(plan, |_| true, |row| drop(row.pages.pop()))),
    ("a page run too many", |plan, _| {
        row(plan, |_| true, |row| row.pages.push(row.pages[0].clone()))
    }),
    ("a page run that starts too late", |plan, _| {
        row(plan, |_| true, |row| row.pages[0].first += 1)
    }),
    ("a page run that starts beyond all numbers", |plan, _| {
        row(plan, |_| true, |row| row.pages[0].first = u32::MAX)
    }),
    ("a page run that ends too early", |plan, _| {
        row(
            plan,
            |_| true,
            |row| {
                row.pages[0].pages.pop();
            },
        )
    }),
    ("a page that another row writes", |plan, _| {
        let [first, second, ..] = &mut plan.rows[..] else { return false };
        let (Some(page), Some(last)) =
            (first.pages[0].pages.last(), second.pages[0].pages.last_mut())
        else {
            return false;
        };
        *last = *page;
        true
    }),
    ("a page that another row writes and this one reads", |plan, caps| {
        let page = plan.rows[0].pages[0].pages.last().copied();
        let reads = |row: &Row| row.pages[0].first == 0 && row.start >= caps.groups[0].page_tokens;
        let second = plan.rows.iter_mut().skip(1).find(|row| reads(row));
        let (Some(page), Some(row)) = (page, second) else { return false };
        row.pages[0].pages[0] = page;
        true
    }),
    ("more held drafts than a number can count", |plan, _| {
        row(plan, |_| true, |row| row.tokens = RowTokens::Held { draft_count: u32::MAX })
    }),
    ("a page run of no pages", |plan, _| {
        row(plan, |_| true, |row| row.pages.iter_mut().for_each(|run| run.pages.clear()))
    }),
    ("a page beyond the last", |plan, caps| {
        row(plan, |_| true, |row| row.pages[0].pages[0] = PageId(caps.groups[0].page_count))
    }),
    ("a page beyond the last in the last group", |plan, caps| {
        let last = caps.groups.len() - 1;
        let page = PageId(caps.groups[last].page_count);
        row(plan, |_| true, |row| *row.pages[last].pages.last_mut().expect("a page") = page)
    }),
];

/// Changes the last row for which `which` is true, to detect an engine that starts before it has
/// checked all rows.
fn row(plan: &mut StepPlan, which: impl Fn(&Row) -> bool, spoil: impl FnOnce(&mut Row)) -> bool {
    let row = plan.rows.iter_mut().rev().find(|row| which(row));
    row.map(spoil).is_some()
}

fn sampled(plan: &mut StepPlan, spoil: impl FnOnce(&mut Row)) -> bool {
    row(plan, |row| row.sample && row.masks.is_empty(), spoil)
}

fn entering(plan: &mut StepPlan, spoil: impl FnOnce(&mut Row)) -> bool {
    row(plan, |row| row.setup.is_some(), spoil)
}

fn given(plan: &mut StepPlan, spoil: impl FnOnce(&mut Vec<u32>, &mut u32)) -> bool {
    row(
        plan,
        |row| matches!(row.tokens, RowTokens::Given { .. }),
        |row| {
            if let RowTokens::Given { tokens, draft_count } = &mut row.tokens {
                spoil(tokens, draft_count);
            }
        },
    )
}

fn masked(plan: &mut StepPlan, spoil: impl FnOnce(&mut Vec<Vec<u32>>), least: usize) -> bool {
    row(plan, |row| row.masks.len() >= least, |row| spoil(&mut row.masks))
}

fn setup(
    plan: &mut StepPlan,
    which: impl Fn(&SlotSetup) -> bool,
    spoil: impl FnOnce(&mut SlotSetup),
) -> bool {
    let wanted = |row: &Row| row.setup.as_ref().is_some_and(|setup| which(setup));
    row(plan, wanted, |row| {
        if let Some(setup) = &mut row.setup {
            spoil(setup);
        }
    })
}
