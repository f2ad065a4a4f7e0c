//! Rotary position embedding.

use kilotok_model::RopeSpec;

/// The frequencies of one rotation. Angles are F32 products of position and frequency, as in the
/// implementations that models are trained with.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>,
    magnitude: f32,
}

impl Rope {
    pub(crate) fn new(spec: RopeSpec) -> Self {
        Self { frequencies: spec.frequencies().collect(), magnitude: spec.magnitude() }
    }

    /// Cosine and sine of every angle at a position, times the magnitude.
    pub(crate) fn angles(&self, position: u32) -> Vec<(f32, f32)> {
        let turn = |frequency: &f32| {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            (cos as f32 * self.magnitude, sin as f32 * self.magnitude)
        };
        self.frequencies.iter().map(turn).collect()
    }
}

/// Rotates dimensions i and i + n of a head by angle i of n; the rest stay.
pub(crate) fn rotate(head: &mut [f32], angles: &[(f32, f32)]) {
    let n = angles.len();
    for (i, (cos, sin)) in angles.iter().enumerate() {
        let (a, b) = (head[i], head[i + n]);
        head[i] = a * cos - b * sin;
        head[i + n] = b * cos + a * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_half_a_rotation_apart_and_the_rest_stays() {
        let rope = Rope::new(RopeSpec::plain(4, 10_000.0));
        let angles = rope.angles(1);
        let mut head = [1.0, 0.0, 0.0, 0.0, 5.0, 6.0];
        rotate(&mut head, &angles);
        assert!((head[0] - 1.0_f32.cos()).abs() < 1e-6);
        assert!((head[2] - 1.0_f32.sin()).abs() < 1e-6);
        assert_eq!(head[4..], [5.0, 6.0]);
        assert!((angles[1].1 - 0.01_f32.sin()).abs() < 1e-7);
    }
}
