//! The distance between two engines' log-probabilities. Where experts nearly tie in some layer's
//! router, rounding sends a token to another expert, and its numbers change completely. Such
//! positions are judged separately, by the lead of the last chosen expert over the next one in the
//! reference.

use kilotok_engine::TokenLogprobs;

/// Distances, each with the smallest lead among the experts of its position.
#[derive(Default)]
pub(crate) struct Distances(Vec<(f32, f32)>);

/// The largest difference between the log-probabilities of the same tokens.
pub(crate) fn distance(a: &TokenLogprobs, b: &TokenLogprobs) -> f32 {
    let listed = a.top.iter().filter_map(|a| {
        let b = b.top.iter().find(|b| b.token == a.token)?;
        Some((a.logprob - b.logprob).abs())
    });
    let chosen =
        (a.chosen.token == b.chosen.token).then_some((a.chosen.logprob - b.chosen.logprob).abs());
    listed.chain(chosen).fold(0.0, f32::max)
}

impl Distances {
    pub(crate) fn add(&mut self, distance: f32, lead: f32) {
        self.0.push((distance, lead));
    }

    /// Distances of positions whose lead is at least `lead`, in ascending order.
    pub(crate) fn clear_of(&self, lead: f32) -> Vec<f32> {
        let clear = self.0.iter().filter(|(_, own)| *own >= lead);
        let mut distances: Vec<f32> = clear.map(|(distance, _)| *distance).collect();
        distances.sort_by(f32::total_cmp);
        distances
    }
}

/// The value below which this share of ascending numbers lies.
pub(crate) fn quantile(sorted: &[f32], share: f32) -> f32 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f32).round() as usize).copied().unwrap_or_default()
}
