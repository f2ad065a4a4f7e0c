//! Random plans on two engines in lockstep: requests of every kind join and leave, are cancelled,
//! paused and preempted, in chunks, with and without drafts of the engine's own or given ones.
//! Greedy choices are the same, and sampled ones, wherever the logits' tolerance decides nothing.

#![expect(clippy::print_stdout, reason = "figures, for whoever runs it with --nocapture")]

use std::sync::LazyLock;

use kilotok_abi::{Sampling, TokenId};
use kilotok_cpu::CpuEngine;
use kilotok_engine::{Caps, Engine, EngineError, SlotSetup, StepId, StepOutput, StepPlan};
use kilotok_model::{FeedForwardSpec, LayerSpec};
use kilotok_rows::Sizes;
use kilotok_testkit::host::{Drafts, Guess, Host, How, Mask, Request, some};
use kilotok_weights::{Checkpoint, Quiet};

use crate::distances::quantile;
use crate::draw::Draw;
use crate::pair::{Pair, Tally, Tolerance};
use crate::{DEMO, DENSE, FLASH, PRO, absent, cuda_of, sizes};

/// Steps of each model, and of the long test.
const ROUNDS: usize = 300;
const MANY_ROUNDS: usize = 10_000;
/// Pages for as many requests as run together.
const PAGES: u32 = 512;

pub(crate) fn cpu(checkpoint: &Checkpoint, sizes: &Sizes) -> CpuEngine {
    CpuEngine::start(checkpoint.spec(), checkpoint, sizes, &Quiet).unwrap()
}

/// Runs worlds on the pair until it has made so many steps.
fn run(mut pair: Pair, rounds: usize) -> Tally {
    for seed in 0.. {
        if pair.tally.steps >= rounds {
            break;
        }
        let draw = &mut Draw::new(seed);
        let jobs: Vec<_> = (0..draw.between(4, 12)).map(|_| job(draw, pair.caps())).collect();
        let jobs: Vec<_> = jobs.iter().map(|(request, how)| (request, how)).collect();
        if let Err(error) = Host::new(&mut pair, seed).run_all(&jobs) {
            panic!("world {seed}: {error}");
        }
    }
    pair.tally
}

fn text(draw: &mut Draw, caps: &Caps, count: u32) -> Vec<TokenId> {
    (0..count).map(|_| draw.between(0, caps.vocab_size - 1)).collect()
}

fn job(draw: &mut Draw, caps: &Caps) -> (Request, How) {
    let length = match draw.between(0, 7) {
        0 => draw.between(100, 200),
        1 | 2 => draw.between(20, 100),
        _ => draw.between(1, 20),
    };
    let prompt = text(draw, caps, length);
    let mask = draw.one_of(&[None, None, None, Some(some as Mask), Some(fatal as Mask)]);
    let request = Request {
        setup: setup(draw, caps),
        mask,
        top: draw.between(0, 5),
        score: draw.once_in(4),
        ..Request::greedy(prompt, draw.between(1, 40))
    };
    let drafts = match draw.between(0, 4) {
        0 => Drafts::None,
        1 => {
            let own = text(draw, caps, 40);
            let count = draw.between(0, 7);
            let text = [&request.prompt[..], &own].concat();
            Drafts::Given(Guess { text, count, right: draw.between(0, count) })
        }
        _ => {
            let made = draw.between(1, 7);
            Drafts::Held { made, used: draw.between(0, made) }
        }
    };
    let from = draw.between(0, 40);
    let how = How {
        joins: if draw.once_in(2) { draw.between(0, 30) } else { 0 },
        leaves: draw.once_in(5).then(|| draw.between(1, 20)),
        pause: if draw.once_in(4) { from..from + draw.between(1, 9) } else { 0..0 },
        chunk: draw.one_of(&[5, 16, 40, u32::MAX, u32::MAX]),
        drafts,
        preempt: if draw.once_in(4) { vec![draw.between(1, 20)] } else { Vec::new() },
        ..How::default()
    };
    (request, how)
}

fn setup(draw: &mut Draw, caps: &Caps) -> SlotSetup {
    let mut sampling = Sampling::GREEDY;
    if !draw.once_in(3) {
        sampling.temperature = draw.one_of(&[0.6, 1.0, 1.3]);
        sampling.seed = u64::from(draw.between(0, 1000));
        sampling.top_p = draw.one_of(&[1.0, 1.0, 0.8, 0.95]);
        sampling.top_k = draw.one_of(&[0, 0, 5, 40]);
        sampling.min_p = draw.one_of(&[0.0, 0.0, 0.05]);
    }
    if draw.once_in(4) {
        sampling.repetition_penalty = 1.3;
        sampling.frequency_penalty = draw.one_of(&[0.0, 0.7]);
        sampling.presence_penalty = draw.one_of(&[0.0, 0.4]);
    }
    if draw.once_in(3) {
        sampling.min_tokens = draw.between(0, 6);
    }
    let mut setup = SlotSetup::new(sampling, 0);
    if draw.once_in(3) {
        setup.end_tokens = text(draw, caps, 2);
    }
    if draw.once_in(5) {
        setup.bad_words = vec![text(draw, caps, 1), text(draw, caps, 2)];
    }
    if draw.once_in(5) {
        setup.logit_bias = text(draw, caps, 3).into_iter().map(|token| (token, 2.5)).collect();
    }
    setup
}

/// [`some`], but nothing at all after some texts.
fn fatal(text: &[TokenId], vocab_size: u32) -> Vec<u32> {
    let sum = text.iter().sum::<TokenId>();
    if sum % 31 == 3 { vec![0; vocab_size.div_ceil(32) as usize] } else { some(text, vocab_size) }
}

fn print(name: &str, tally: &Tally, tolerance: Tolerance) {
    let Tally { steps, greedy, sampled, within, other_experts, wrong, .. } = tally;
    let Tally { drafts, other_drafts, held_rows, faults, distances, .. } = tally;
    println!(
        "{name}: {steps} steps; {greedy} greedy and {sampled} sampled choices the same; differ \
         within the logits' tolerance {within:?}, by other experts {other_experts:?}, wrongly {}; \
         {other_drafts} of {drafts} drafts differ, {held_rows} rows verified held ones; \
         {faults} faults",
        wrong.len(),
    );
    for (what, lead) in [("all", f32::NEG_INFINITY), ("clear", tolerance.lead)] {
        let sorted = distances.clear_of(lead);
        let [half, most, nearly, all] = [0.5, 0.95, 0.99, 1.0].map(|q| quantile(&sorted, q));
        println!("  {what} {} distances: {half} {most} {nearly} {all}", sorted.len());
    }
    for line in wrong.iter().take(8) {
        println!("  {line}");
    }
}

fn compare(models: &[Model], rounds: usize) {
    if let Some(reason) = absent(1) {
        return println!("skipped: {reason}");
    }
    let sizes = Sizes { page_count: PAGES, ..sizes(1) };
    for &(name, checkpoint, tolerance) in models {
        let pair = Pair::new(cpu(checkpoint, &sizes), cuda_of(checkpoint, &sizes), tolerance);
        let tally = run(pair, rounds);
        print(name, &tally, tolerance);
        let (wrong, right) = (tally.wrong.len(), tally.greedy + tally.sampled);
        let most = if checkpoint.spec().layers.iter().any(has_experts) { right / 100 } else { 0 };
        assert!(wrong <= most, "{name}: {wrong} choices beside {right} are wrong");
    }
}

#[test]
fn random_plans_make_the_references_choices() {
    compare(&MODELS, ROUNDS);
}

#[test]
#[ignore = "a minute or two with a GPU; the test above does the first few hundred"]
fn ten_thousand_random_plans_make_the_references_choices() {
    compare(&MODELS[..2], MANY_ROUNDS);
}

/// What attention brings from a token that went to another expert is no error of this token's, and
/// cannot be told from one: of models with experts one choice in a hundred may be wrong.
fn has_experts(layer: &LayerSpec) -> bool {
    matches!(layer.feed_forward, FeedForwardSpec::Experts(_))
}

type Model = (&'static str, &'static LazyLock<Checkpoint>, Tolerance);

/// Of a model without experts, what is seen at most of all positions is allowed at each of the two
/// tokens; of the others, what is seen where no router is near a tie.
const MODELS: [Model; 4] = [
    ("dense", &DENSE, Tolerance { logit: 0.15, lead: 0.0 }),
    ("flash", &FLASH, Tolerance { logit: 0.15, lead: 0.003 }),
    ("pro", &PRO, Tolerance { logit: 0.1, lead: 0.003 }),
    ("demo", &DEMO, Tolerance { logit: 0.1, lead: 0.003 }),
];

/// What the comparison is worth: engines that differ in the order of sums alone are the same.
#[test]
fn random_plans_on_other_ranks_make_the_same_choices() {
    let few = Sizes { page_count: PAGES, ..sizes(1) };
    let many = Sizes { rank_count: 2, ..few.clone() };
    let tolerance = Tolerance { logit: 1e-4, lead: 1e-5 };
    let tally = run(Pair::new(cpu(&PRO, &few), Box::new(cpu(&PRO, &many)), tolerance), ROUNDS);
    print("2 ranks", &tally, tolerance);
    let expected: &[String] = &[];
    assert_eq!(tally.wrong, expected);
    assert!(tally.greedy > 300 && tally.sampled > 300 && tally.held_rows > 100);
}

/// An engine whose requests come with another seed, or without bad words.
struct Wrong {
    inner: CpuEngine,
    change: fn(&mut SlotSetup),
}

impl Engine for Wrong {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        let mut plan = plan.clone();
        plan.rows.iter_mut().flat_map(|row| &mut row.setup).for_each(|setup| (self.change)(setup));
        self.inner.submit(&plan)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        self.inner.wait(step, out)
    }
}

/// And engines that do not choose as they are asked to are found.
#[test]
fn random_plans_find_mistakes() {
    let sizes = Sizes { page_count: PAGES, ..sizes(1) };
    let tolerance = Tolerance { logit: 0.1, lead: 0.0 };
    let changes: [fn(&mut SlotSetup); 3] = [
        |setup| setup.sampling.seed += 1,
        |setup| setup.sampling.top_k = 0,
        |setup| setup.sampling.repetition_penalty = 1.0,
    ];
    for change in changes {
        let wrong = Box::new(Wrong { inner: cpu(&FLASH, &sizes), change });
        let tally = run(Pair::new(cpu(&FLASH, &sizes), wrong, tolerance), ROUNDS);
        assert!(!tally.wrong.is_empty(), "{} choices the same", tally.greedy + tally.sampled);
    }
}
