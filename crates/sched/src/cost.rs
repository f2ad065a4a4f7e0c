//! Cost model of a step. An engine may compute steps of many tokens in another pass than small
//! ones, and the cost jumps between the two: each pass has a fit of its own. The caller measures
//! the times; there is no clock here.

use crate::fit::Fit;

/// Cost of a step in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub base_us: f32,
    pub token_us: f32,
    /// Cost of drafting for one row.
    pub draft_us: f32,
}

/// Size of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Size {
    pub(crate) token_count: u32,
    /// Rows that make drafts.
    pub(crate) drafting_count: u32,
}

impl Cost {
    pub(crate) fn of(self, size: Size) -> f32 {
        let Size { token_count, drafting_count } = size;
        self.base_us + self.token_us * token_count as f32 + self.draft_us * drafting_count as f32
    }

    /// Tokens of a step that takes `us` microseconds.
    pub(crate) fn tokens_within(self, us: u32, drafting_count: u32) -> u32 {
        let fixed = self.of(Size { token_count: 0, drafting_count });
        // A cast from float saturates at the limits of the integer.
        ((us as f32 - fixed) / self.token_us.max(1e-3)) as u32
    }
}

/// A wide pass whose cost is implausible is measured anew after this many steps in a row that could
/// have taken it and did not, because of that cost. Otherwise one pause of the machine during a
/// wide step would rule the pass out for good.
const LEFT_OUT_MAX: u32 = 1024;
/// The shortest step of the wide pass takes at most this many times as long as the longest step of
/// the narrow pass; otherwise the wide pass would have no use.
const PLAUSIBLE: f32 = 16.0;
/// Weight of a decoding request's delay; that of a prompt has weight 1. It interrupts a text that
/// is being read.
const DECODING_WEIGHT: f32 = 2.0;

/// Cost of the narrow pass, and of the wide pass where the engine has one.
pub(crate) struct CostModel {
    narrow: Fit,
    wide: Option<Wide>,
    fresh: Fit,
    /// Prompt tokens that are still read in the largest chunks although other requests decode. When
    /// the largest chunks cost less than they gain, this becomes the number of prompt tokens that
    /// wait. So the last prompts of a crowd are read like the first ones, and a prompt that comes
    /// later is not.
    rush_left: u32,
}

struct Wide {
    /// Fewest tokens of a step that takes this pass.
    from: u32,
    fit: Fit,
    /// Steps in a row that could have taken this pass and did not.
    left_out: u32,
}

/// A step that is to read prompts: its other tokens, its time, and the requests that wait for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    /// Its other tokens, and the rows that draft.
    pub(crate) size: Size,
    /// Longest time that it should take.
    pub(crate) us_max: Option<u32>,
    /// Requests that decode; and those of them that have a row only if the step is a wide one.
    pub(crate) decoding: u32,
    pub(crate) others: u32,
    /// Prompts, and their tokens that are yet to be computed.
    pub(crate) prompts: u32,
    pub(crate) left: u32,
    /// Tokens of prompts that the step has even if it then takes longer.
    pub(crate) least: u32,
    /// Whether it must keep to its time even if prompts lose more by that.
    pub(crate) stall_free: bool,
}

impl CostModel {
    /// `assumed` is the cost before any step was measured, of steps of up to `token_max` tokens;
    /// those of `wide_from` tokens or more take the wide pass.
    pub(crate) fn new(assumed: Cost, token_max: u32, wide_from: Option<u32>, memory: f64) -> Self {
        let fresh = Fit::new(assumed, token_max, memory);
        let wide = wide_from.filter(|from| *from <= token_max);
        let wide = wide.map(|from| Wide { from, fit: fresh.clone(), left_out: 0 });
        Self { narrow: fresh.clone(), wide, fresh, rush_left: 0 }
    }

    pub(crate) fn observe(&mut self, size: Size, us: f32) {
        let implausible = self.wide.as_ref().is_some_and(|wide| self.is_implausible(wide));
        match &mut self.wide {
            Some(wide) if size.token_count >= wide.from => {
                if implausible && wide.left_out >= LEFT_OUT_MAX {
                    wide.fit = self.fresh.clone();
                }
                wide.left_out = 0;
                wide.fit.observe(size, us);
            }
            _ => self.narrow.observe(size, us),
        }
    }

    /// Cost of steps of about this many tokens. Before a wide pass is measured, its shortest step
    /// is assumed to cost a token more than the longest step of the narrow pass.
    pub(crate) fn cost(&self, token_count: u32) -> Cost {
        let narrow = self.narrow.cost();
        match &self.wide {
            Some(wide) if token_count >= wide.from && wide.fit.is_unseen() => {
                let (edge, assumed) = (wide.from as f32 - 1.0, wide.fit.cost());
                let base_us = narrow.base_us + (narrow.token_us - assumed.token_us) * edge;
                Cost { base_us: base_us.max(0.0), draft_us: narrow.draft_us, ..assumed }
            }
            Some(wide) if token_count >= wide.from => wide.fit.cost(),
            _ => narrow,
        }
    }

    /// The most tokens of a step that takes the same pass as a step of `token_count`.
    pub(crate) fn pass_max(&self, token_count: u32) -> u32 {
        let wide = self.wide.as_ref().filter(|wide| token_count < wide.from);
        wide.map_or(u32::MAX, |wide| wide.from - 1)
    }

    /// The number of prompt tokens of a step, at most `most`. It is as many as fit the step's time.
    /// It is `most` if decoding requests may be delayed and lose less by that than prompts gain.
    ///
    /// With `tries`, the wide pass is taken once to measure it with few tokens, before it is left
    /// out for its cost: with as few as possible if decoding requests wait for the step, since the
    /// slope between much longer steps says little about short ones.
    pub(crate) fn chunk(&mut self, beside: Beside, most: u32, tries: bool) -> u32 {
        if most == 0 {
            self.rush_left = 0;
            return 0;
        }
        let used = beside.size.token_count;
        let timely = self.timely(beside, most);
        if let Some(from) = self.left_out(used, timely, most) {
            if tries && self.is_wide_unknown() {
                return if beside.us_max.is_some() { from - used } else { most };
            }
            if let Some(wide) = &mut self.wide {
                wide.left_out = wide.left_out.saturating_add(1);
            }
        }
        let timely = timely.max(beside.least).min(most);
        let may_delay = beside.us_max.is_some() && !beside.stall_free;
        if may_delay && self.lose_more(beside, timely, most) {
            self.rush_left = self.rush_left.max(beside.left);
        }
        let chunk = if may_delay && self.rush_left > 0 { most } else { timely };
        self.rush_left = self.rush_left.saturating_sub(chunk);
        chunk
    }

    /// The fewest tokens of the wide pass, if it is left out: `most` prompt tokens beside `used`
    /// other tokens would be enough for it, and `chosen` prompt tokens are not.
    fn left_out(&self, used: u32, chosen: u32, most: u32) -> Option<u32> {
        let from = self.wide.as_ref()?.from;
        (used + chosen < from && from <= used + most).then_some(from)
    }

    /// Whether prompts lose more time in steps with `timely` of their tokens than prompts and
    /// decoding requests lose together in steps with `most`. Every prompt is assumed to wait until
    /// all are read.
    fn lose_more(&self, beside: Beside, timely: u32, most: u32) -> bool {
        let steps = |count: u32| (beside.left as f32 / count.max(1) as f32).max(1.0);
        let us = |token_count: u32| {
            self.cost(token_count).of(Size { token_count, ..beside.size }).max(1.0)
        };
        let used = beside.size.token_count;
        let (timely_us, most_us) = (us(used + timely), us(used + beside.others + most));
        let (prompts, decoding) = (beside.prompts as f32, beside.decoding as f32);
        let later_us = (most_us - timely_us).max(0.0);
        let lost_us = steps(most) * (prompts * most_us + DECODING_WEIGHT * decoding * later_us);
        timely < most && prompts * steps(timely) * timely_us > lost_us
    }

    /// The number of prompt tokens, at most `most`, with which a step that keeps to its time
    /// computes the most tokens per microsecond; 0 if none fits.
    fn timely(&self, beside: Beside, most: u32) -> u32 {
        let used = beside.size.token_count;
        let narrow_most = most.min(self.pass_max(used).saturating_sub(used));
        let narrow = self.within(used, beside).saturating_sub(used).min(narrow_most);
        let Some(from) = self.left_out(used, 0, most) else {
            return narrow;
        };
        let wide = self.within(from, beside).saturating_sub(used).min(most);
        let wide = if used + wide < from { 0 } else { wide };
        if self.rate(beside, wide) > self.rate(beside, narrow) { wide } else { narrow }
    }

    /// Whether the wide pass should be measured before it is left out.
    fn is_wide_unknown(&self) -> bool {
        let Some(wide) = &self.wide else { return false };
        wide.left_out >= LEFT_OUT_MAX && self.is_implausible(wide) || !wide.fit.has_seen(wide.from)
    }

    fn is_implausible(&self, wide: &Wide) -> bool {
        let us = |cost: Cost, token_count| cost.of(Size { token_count, drafting_count: 0 });
        let narrow_us = us(self.narrow.cost(), wide.from - 1);
        us(wide.fit.cost(), wide.from) > PLAUSIBLE * narrow_us.max(1.0)
    }

    /// The most tokens that fit the time, in the pass that a step of `token_count` takes.
    fn within(&self, token_count: u32, beside: Beside) -> u32 {
        let Some(us_max) = beside.us_max else {
            return u32::MAX;
        };
        let drafting_count = beside.size.drafting_count;
        let timely = self.cost(token_count).tokens_within(us_max, drafting_count);
        let known_max = match &self.wide {
            Some(wide) if token_count >= wide.from => wide.fit.known_max(),
            _ => self.narrow.known_max(),
        };
        timely.min(known_max)
    }

    /// Tokens per microsecond of a step with `count` prompt tokens; 0 without any.
    fn rate(&self, beside: Beside, count: u32) -> f32 {
        if count == 0 {
            return 0.0;
        }
        let size = Size { token_count: beside.size.token_count + count, ..beside.size };
        size.token_count as f32 / self.cost(size.token_count).of(size).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: Cost = Cost { base_us: 3100.0, token_us: 330.0, draft_us: 0.0 };
    const WIDE: Cost = Cost { base_us: 20_000.0, token_us: 22.0, draft_us: 0.0 };
    const FROM: u32 = 65;

    fn truth(token_count: u32) -> f32 {
        let cost = if token_count < FROM { NARROW } else { WIDE };
        cost.of(Size { token_count, drafting_count: 0 })
    }

    fn model() -> CostModel {
        CostModel::new(crate::Limits::default().cost, 8448, Some(FROM), 0.98)
    }

    fn beside(token_count: u32, us_max: u32) -> Beside {
        let us_max = (us_max > 0).then_some(us_max);
        let size = Size { token_count, drafting_count: 0 };
        let decoding = token_count;
        let (others, stall_free) = (0, false);
        Beside { size, us_max, decoding, others, prompts: 1, left: 0, least: 0, stall_free }
    }

    /// Plans and measures a step. Returns its tokens of prompts.
    fn step(model: &mut CostModel, beside: Beside, most: u32) -> u32 {
        let chunk = model.chunk(beside, most, true).max(1);
        let token_count = beside.size.token_count + chunk;
        model.observe(Size { token_count, drafting_count: 0 }, truth(token_count));
        chunk
    }

    #[test]
    fn both_passes_are_learnt() {
        let mut model = model();
        for index in 0..200 {
            step(&mut model, beside(1 + index % 40, 1), 0);
        }
        for most in [8192, 3000, 500, 8192, 100, 40] {
            let chunk = step(&mut model, beside(0, 0), most);
            assert_eq!(chunk, most, "a prompt alone is read in the fewest steps");
        }
        for token_count in [8, 64, 65, 1000, 8192] {
            let size = Size { token_count, drafting_count: 0 };
            let (found, expected) = (model.cost(token_count).of(size), truth(token_count));
            assert!((found / expected - 1.0).abs() < 0.1, "{token_count}: {found} {expected}");
        }
    }

    #[test]
    fn beside_others_the_pass_with_more_tokens_in_the_time_is_taken() {
        for (us_max, least, most) in [(15_000, 20, 29), (20_000, 35, 44), (35_000, 600, 680)] {
            let mut model = model();
            let mut late = 0;
            for round in 0..400 {
                let chunk = step(&mut model, beside(8, us_max), 100_000);
                late += u32::from(truth(8 + chunk) > 1.05 * us_max as f32);
                let found = (least..=most).contains(&chunk);
                assert!(round < 20 || found, "{us_max}: {chunk} tokens in step {round}");
            }
            // The first step of the wide pass is a trial.
            assert!(late <= 3, "{us_max}: {late} of 400 steps are late");
        }
    }

    #[test]
    fn after_nothing_but_long_steps_a_short_one_is_tried() {
        let mut model = model();
        for _ in 0..20 {
            step(&mut model, beside(0, 0), 8192);
            step(&mut model, beside(0, 0), 40);
        }
        assert_eq!(step(&mut model, beside(8, 35_000), 9000), FROM - 8);
        let chunk = step(&mut model, beside(8, 35_000), 9000);
        assert!((600..700).contains(&chunk), "{chunk}");
    }

    /// That of one rank's eighth of MiMo-V2.5-Pro on an H200.
    fn measured() -> CostModel {
        let narrow = Cost { base_us: 4000.0, token_us: 190.0, draft_us: 0.0 };
        let wide = Cost { base_us: 31_000.0, token_us: 40.0, draft_us: 0.0 };
        let mut model = model();
        for token_count in (1..64).chain([65, 300, 1000, 8000]) {
            let size = Size { token_count, drafting_count: 0 };
            model.observe(size, if token_count < FROM { narrow } else { wide }.of(size));
        }
        model
    }

    fn crowd() -> Beside {
        Beside { prompts: 30, left: 15_000, ..beside(34, 38_000) }
    }

    #[test]
    fn a_crowds_prompts_delay_no_token_of_a_stall_free_server() {
        let mut model = measured();
        for stall_free in [true, false, true] {
            let chunk = model.chunk(Beside { stall_free, ..crowd() }, 8192, true);
            let within = (100..200).contains(&chunk);
            assert_eq!(within, stall_free, "{chunk}");
        }
        let alone = Beside { stall_free: true, ..beside(0, 0) };
        assert_eq!(model.chunk(alone, 8192, true), 8192, "no reply waits for the step");
    }

    #[test]
    fn a_crowds_last_prompts_are_read_like_the_first_and_a_long_one_beside_a_few_is_not() {
        let (mut model, crowd) = (measured(), crowd());
        let last = Beside { prompts: 13, left: 6900, ..beside(50, 38_000) };
        let long = Beside { left: 16_000, ..beside(8, 38_000) };
        assert!((100..200).contains(&model.chunk(long, 8192, true)));
        assert!((100..200).contains(&model.chunk(last, 6900, true)), "of no crowd");
        assert_eq!(model.chunk(crowd, 8192, true), 8192);
        assert_eq!(model.chunk(last, 6900, true), 6900);
        assert!((100..200).contains(&model.chunk(long, 8192, true)), "of no crowd again");
        assert_eq!(model.chunk(crowd, 8192, true), 8192);
        assert_eq!(model.chunk(long, 0, true), 0, "there is no prompt");
        assert!((100..200).contains(&model.chunk(last, 6900, true)), "of a later crowd");
    }

    #[test]
    fn a_prompt_just_above_the_edge_takes_the_cheaper_pass() {
        let dear = Cost { base_us: 1000.0, token_us: 50.0, draft_us: 0.0 };
        let mut model = model();
        for token_count in (1..64).chain([70, 1000, 8000]) {
            let size = Size { token_count, drafting_count: 0 };
            model.observe(size, if token_count < FROM { dear } else { WIDE }.of(size));
        }
        assert_eq!(model.chunk(beside(0, 0), 70, true), 64);
        assert_eq!(model.chunk(beside(0, 0), 4000, true), 4000);
    }

    #[test]
    fn a_pause_in_the_first_wide_step_does_not_bar_the_pass_for_good() {
        let mut model = model();
        model.observe(Size { token_count: 500, drafting_count: 0 }, 600e6);
        let mut wide = (0..2 * LEFT_OUT_MAX).map(|_| step(&mut model, beside(8, 35_000), 9000));
        assert!(wide.any(|chunk| chunk > 500), "a minute later it is used again");
    }

    #[test]
    fn an_engine_with_one_pass_has_one_fit() {
        let mut model = CostModel::new(crate::Limits::default().cost, 64, Some(FROM), 0.98);
        assert!(model.wide.is_none(), "its steps are never that long");
        assert_eq!(model.pass_max(8), u32::MAX);
        for _ in 0..50 {
            step(&mut model, beside(8, 20_000), 56);
        }
        let chunk = step(&mut model, beside(8, 20_000), 56);
        assert!((35..=44).contains(&chunk), "{chunk}");
    }
}
