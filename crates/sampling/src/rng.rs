//! Counter-based random numbers: Philox keyed by the request's seed, the position, the purpose and
//! a lane. Nothing is stored between draws, so a step can be repeated, split over ranks or rolled
//! back without changing a token.

use kilotok_abi::{Purpose, TokenId, philox};

use crate::logexp::{ln, ln_1m};

/// Below the smallest exponential number, 2^-33.
const E_BELOW: f32 = 1.0 / 17_179_869_184.0;

/// Number of tokens that enter a race at once.
const LANES: usize = 8;

/// The random numbers of one (seed, position, purpose), in any order.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    key: [u32; 2],
    /// Words 1 to 3 of Philox's counter; word 0 is the quad.
    counter: [u32; 3],
}

impl Draws {
    /// For a token emitted at the absolute `position`: [`Purpose::Target`] and
    /// [`Purpose::Residual`]. A position is emitted once, so no number is used twice.
    pub fn new(seed: u64, position: u32, purpose: Purpose) -> Self {
        Self::of_draft(seed, position, 0, purpose)
    }

    /// For the draft `offset` of those whose first stands at the absolute position `first`:
    /// [`Purpose::Draft`] and [`Purpose::Accept`].
    ///
    /// `first` is part of the key, not only the draft's own position, because positions after a
    /// refused draft are drafted again. Block verification refuses a draft after a look at the
    /// drafts that follow it, so given the refusal the numbers of those are no longer uniform.
    pub fn of_draft(seed: u64, first: u32, offset: u32, purpose: Purpose) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], counter: [first, purpose as u32, offset] }
    }

    /// 32 random bits for lane `index`: word `index % 4` of quad `index / 4`.
    pub fn bits(&self, index: u32) -> u32 {
        self.quad(index / 4)[index as usize % 4]
    }

    /// A uniform number of the open interval (0, 1) from lane `index`.
    pub fn uniform(&self, index: u32) -> f32 {
        unit(self.bits(index))
    }

    /// Chooses token t with a probability proportional to `exp(logits[t])`, by a race: token t
    /// finishes after the time `E_t exp(-logits[t])`, compared by its logarithm, where
    /// `E_t = -ln(1 - v_t)` is exponential and `v_t` the uniform number of lane t. The first to
    /// finish wins, of equals the lowest id; none if all logits are -infinity. In other words,
    /// the highest `logits[t] - ln E_t` wins.
    ///
    /// A minimum over tokens depends on no order of summation and on no split of the vocabulary.
    /// Its rounding distorts probabilities by a factor of about 1 ± |logit| 2^-24.
    ///
    /// Small E decide: a token of probability p wins mostly with an E below p. Hence `v` keeps
    /// its full relative precision near 0 (the smallest is 2^-33), and so does E. From the usual
    /// 24 bits of a uniform number near 1, E = -ln(u) would be a multiple of 2^-24: rarer tokens
    /// than that would never win, except by E = 0, which beats every other token.
    pub fn race_logits(&self, logits: &[f32]) -> Option<TokenId> {
        const CHUNK: usize = 32;
        let before_all = ln(E_BELOW);
        let mut numbers = [0.0; CHUNK];
        let mut race = Race::default();
        for (chunk, first) in logits.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            if chunk.iter().all(|logit| before_all - logit >= race.time) {
                continue;
            }
            let numbers = &mut numbers[..chunk.len()];
            self.log_exponentials(first, numbers);
            race.enter(first, numbers, chunk);
        }
        race.winner
    }

    /// ln E of the lanes from `first` on, a multiple of 4. Where many rows race with the same
    /// numbers, as in tests, [`winner`] takes them.
    pub fn log_exponentials(&self, first: u32, numbers: &mut [f32]) {
        for (lanes, quad) in numbers.chunks_mut(4).zip(first / 4..) {
            lanes.copy_from_slice(&self.quad(quad).map(unit)[..lanes.len()]);
        }
        for number in numbers {
            *number = ln(-ln_1m(*number));
        }
    }

    /// The same among some tokens, each with its logit.
    pub fn race_among(&self, mut tokens: impl Iterator<Item = (TokenId, f32)>) -> Option<TokenId> {
        let mut best = (f32::INFINITY, None);
        // Tokens that are near each other share a quad.
        let mut quads = [(u32::MAX, [0; 4]); 2];
        loop {
            let (mut entered, mut numbers) = ([(0, 0.0); LANES], [0.5; LANES]);
            let mut count = 0;
            for ((lane, number), token) in entered.iter_mut().zip(&mut numbers).zip(&mut tokens) {
                let quad = &mut quads[token.0 as usize / 4 % 2];
                if quad.0 != token.0 / 4 {
                    *quad = (token.0 / 4, self.quad(token.0 / 4));
                }
                (*lane, *number) = (token, unit(quad.1[token.0 as usize % 4]));
                count += 1;
            }
            // Of all lanes, entered or not, because a CPU computes several at once.
            for number in &mut numbers {
                *number = ln(-ln_1m(*number));
            }
            for (number, &(token, logit)) in numbers.iter().zip(&entered[..count]) {
                let time = number - logit;
                if time < best.0 || (time == best.0 && best.1.is_some_and(|other| token < other)) {
                    best = (time, Some(token));
                }
            }
            if count < LANES {
                return best.1;
            }
        }
    }

    /// The bits of lanes `4 * quad` to `4 * quad + 3`.
    #[inline]
    fn quad(&self, quad: u32) -> [u32; 4] {
        let [position, purpose, offset] = self.counter;
        philox([quad, position, purpose, offset], self.key)
    }
}

/// The winner of [`Draws::race_logits`], given ln E of each token.
pub fn winner(log_exponentials: &[f32], logits: &[f32]) -> Option<TokenId> {
    let mut race = Race::default();
    race.enter(0, log_exponentials, logits);
    race.winner
}

/// The first to finish so far, and when.
struct Race {
    time: f32,
    winner: Option<TokenId>,
}

impl Default for Race {
    fn default() -> Self {
        Self { time: f32::INFINITY, winner: None }
    }
}

impl Race {
    /// Enters the tokens from `first` on, which come after those entered before.
    #[inline]
    fn enter(&mut self, first: TokenId, log_exponentials: &[f32], logits: &[f32]) {
        let (numbers, last_numbers) = log_exponentials.as_chunks();
        let (chunks, last_logits) = logits.as_chunks();
        let mut token = first;
        for (numbers, logits) in numbers.iter().zip(chunks) {
            self.enter_lanes(token, numbers, logits);
            token += LANES as TokenId;
        }
        for ((number, logit), token) in last_numbers.iter().zip(last_logits).zip(token..) {
            let time = number - logit;
            if time < self.time {
                (self.time, self.winner) = (time, Some(token));
            }
        }
    }

    /// The same for so many tokens, without branches that a processor could not predict.
    #[inline]
    fn enter_lanes(&mut self, first: TokenId, numbers: &[f32; LANES], logits: &[f32; LANES]) {
        let (mut earliest, mut winner) = (self.time, LANES);
        for lane in 0..LANES {
            let time = numbers[lane] - logits[lane];
            winner = if time < earliest { lane } else { winner };
            earliest = if time < earliest { time } else { earliest };
        }
        if winner < LANES {
            (self.time, self.winner) = (earliest, Some(first + winner as TokenId));
        }
    }
}

/// (bits + ½) 2^-32, each step rounded to f32, kept below 1.
#[inline]
fn unit(bits: u32) -> f32 {
    ((bits as f32 + 0.5) / 4_294_967_296.0).min(1.0f32.next_down())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_key_matters() {
        let base = Draws::of_draft(1, 2, 3, Purpose::Draft).bits(0);
        for other in [
            Draws::of_draft(1 << 32 | 1, 2, 3, Purpose::Draft).bits(0),
            Draws::of_draft(2, 2, 3, Purpose::Draft).bits(0),
            Draws::of_draft(1, 3, 3, Purpose::Draft).bits(0),
            Draws::of_draft(1, 2, 4, Purpose::Draft).bits(0),
            Draws::of_draft(1, 2, 3, Purpose::Accept).bits(0),
            Draws::of_draft(1, 2, 3, Purpose::Draft).bits(1),
            Draws::of_draft(1, 2, 3, Purpose::Draft).bits(4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniform_numbers_are_inside_the_interval() {
        assert_eq!(unit(0), 2.0f32.powi(-33));
        assert_eq!(unit(u32::MAX), 1.0f32.next_down());
        assert!(-ln_1m(unit(0)) > E_BELOW);
        assert!(-ln_1m(unit(u32::MAX)) < 17.0);
    }

    #[test]
    fn race_is_the_earliest_of_all_whatever_the_chunks() {
        for seed in 0..200 {
            let draws = Draws::new(seed, 7, Purpose::Target);
            let logits: Vec<f32> = (0..=seed * 3).map(|t| (t as f32 * 0.7).sin() * 20.0).collect();
            let time = |token: usize| ln(-ln_1m(draws.uniform(token as u32))) - logits[token];
            let earliest = (0..logits.len()).reduce(|a, b| if time(b) < time(a) { b } else { a });
            let earliest = earliest.map(|token| token as TokenId);
            assert_eq!(draws.race_logits(&logits), earliest);
            let tokens: Vec<_> = (0..).zip(logits.iter().copied()).collect();
            assert_eq!(draws.race_among(tokens.into_iter().rev()), earliest);
        }
    }

    #[test]
    fn winner_is_the_first_of_the_earliest() {
        let mut infinities = 0;
        for seed in 0..2000 {
            let draws = Draws::new(seed, 8, Purpose::Target);
            // Times are often equal, and some tokens are forbidden.
            let entry = |lane: u32, count| (draws.bits(lane) % count) as f32;
            let numbers: Vec<_> = (0..seed as u32 % 40).map(|lane| entry(lane, 6)).collect();
            let logit = |lane: u32| match entry(100 + lane, 5) {
                0.0 => f32::NEG_INFINITY,
                logit => logit,
            };
            let logits: Vec<_> = (0..).map(logit).take(numbers.len()).collect();
            infinities += logits.iter().filter(|logit| logit.is_infinite()).count();
            let mut earliest = (f32::INFINITY, None);
            for (token, (number, logit)) in (0..).zip(numbers.iter().zip(&logits)) {
                if number - logit < earliest.0 {
                    earliest = (number - logit, Some(token));
                }
            }
            assert_eq!(winner(&numbers, &logits), earliest.1, "{numbers:?} {logits:?}");
        }
        assert!(infinities > 1000);
    }

    #[test]
    fn race_needs_someone_to_finish() {
        let draws = Draws::new(0, 0, Purpose::Target);
        let mut logits = [f32::NEG_INFINITY; 100];
        assert_eq!(draws.race_logits(&logits), None);
        assert_eq!(draws.race_among((0..).zip(logits)), None);
        logits[77] = -1e30;
        assert_eq!(draws.race_logits(&logits), Some(77));
        assert_eq!(draws.race_among((0..).zip(logits)), Some(77));
    }
}
