//! Distance of two engines' log-probabilities. Where the router of some layer was a near tie,
//! rounding sends a token to another expert and its numbers change altogether. Such positions are
//! judged separately, by the lead of the reference's last expert over the next.

use kilotok_engine::TokenLogprobs;

/// Distances, each with the smallest lead of its position's experts.
#[derive(Default)]
pub(crate) struct Distances(Vec<(f32, f32)>);

/// The largest distance of the same tokens' numbers.
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

    /// Distances where the lead is at least so much, in rising order.
    pub(crate) fn clear_of(&self, lead: f32) -> Vec<f32> {
        let clear = self.0.iter().filter(|(_, own)| *own >= lead);
        let mut distances: Vec<f32> = clear.map(|(distance, _)| *distance).collect();
        distances.sort_by(f32::total_cmp);
        distances
    }
}

/// Of numbers in rising order, the one below which such a share lies.
pub(crate) fn quantile(sorted: &[f32], share: f32) -> f32 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f32).round() as usize).copied().unwrap_or_default()
}
