//! The shape of a chain of launches. The next step's chain is enqueued on the GPUs before its plan
//! is known; whether the plan fits it is decided by a few numbers.

use kilotok_abi::PLAN_CTA_BYTES;

use crate::upload::Upload;
use crate::wide::WideStep;

/// The kernel for one tile of tokens, or the kernel for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiles {
    One,
    Many,
}

impl Tiles {
    pub(crate) fn of(token_count: usize, tile_tokens: usize) -> Self {
        if token_count > tile_tokens { Self::Many } else { Self::One }
    }
}

/// Which pass computes the target and the drafter's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The narrow pass for one token, where there is a kernel for it.
    OneToken,
    Narrow(Tiles),
    Wide(WideStep),
}

/// The kernels of the narrow pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Narrow {
    /// Tokens of a tile.
    pub(crate) tile_tokens: usize,
    /// Whether the model has a kernel for one token.
    pub(crate) has_one_token: bool,
}

impl Narrow {
    fn tiles(&self, token_count: usize) -> Tiles {
        Tiles::of(token_count, self.tile_tokens)
    }

    fn target(&self, token_count: usize) -> Target {
        if self.has_one_token && token_count == 1 {
            Target::OneToken
        } else {
            Target::Narrow(self.tiles(token_count))
        }
    }
}

/// What a chain launches and copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) target: Target,
    /// The kernel for each batch of drafts.
    pub(crate) drafts: Vec<Tiles>,
    pub(crate) upload_bytes: usize,
}

impl Shape {
    /// The shape that a step needs.
    pub(crate) fn of(upload: &Upload, narrow: Narrow, upload_bytes: usize) -> Self {
        let drafts = upload.drafts.iter().map(|batch| narrow.tiles(batch.token_count()));
        let target = narrow.target(upload.target.token_count());
        let target = upload.wide.map_or(target, Target::Wide);
        Self { target, drafts: drafts.collect(), upload_bytes }
    }

    /// The step as the launches of the wide pass must know it; `None` in the narrow pass.
    pub(crate) fn wide(&self) -> Option<&WideStep> {
        match &self.target {
            Target::OneToken | Target::Narrow(_) => None,
            Target::Wide(step) => Some(step),
        }
    }

    /// The shape of the chain to enqueue ahead, for the next step: that of this step, since most
    /// steps are like the one before. The plan may grow until its last CTA has all the bytes that
    /// it can copy, by up to 1,024 page numbers.
    ///
    /// A wide chain is never enqueued ahead: it has too many launches, and takes so long that it
    /// would gain little. After a wide step a narrow chain is, since the next step may be the first
    /// of a reply.
    pub(crate) fn ahead(&self, narrow: Narrow, upload_bytes_max: usize) -> Self {
        let upload_bytes = self.upload_bytes.next_multiple_of(PLAN_CTA_BYTES).min(upload_bytes_max);
        let target = match self.target {
            Target::Wide(step) if step.row_count == 1 && self.drafts.is_empty() => narrow.target(1),
            Target::Wide(_) => Target::Narrow(Tiles::One),
            same @ (Target::OneToken | Target::Narrow(_)) => same,
        };
        Self { target, upload_bytes, ..self.clone() }
    }

    /// Whether a chain of this shape can run a step that needs `step`: it must have the same
    /// kernels, but may have more batches of drafts, which stay empty.
    pub(crate) fn fits(&self, step: &Self) -> bool {
        self.target == step.target
            && self.drafts.starts_with(&step.drafts)
            && self.upload_bytes >= step.upload_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLOAD_MAX: usize = 10_000;
    const NARROW: Narrow = Narrow { tile_tokens: 8, has_one_token: true };

    fn step() -> Shape {
        Shape {
            target: Target::Narrow(Tiles::One),
            drafts: vec![Tiles::Many, Tiles::One],
            upload_bytes: 5000,
        }
    }

    #[test]
    fn tokens_of_a_tile_are_one_tile() {
        assert_eq!(
            [1, 8, 9].map(|count| Tiles::of(count, 8)),
            [Tiles::One, Tiles::One, Tiles::Many]
        );
    }

    #[test]
    fn one_token_has_a_kernel_of_its_own_in_some_models() {
        let targets = [1, 2].map(|count| NARROW.target(count));
        assert_eq!(targets, [Target::OneToken, Target::Narrow(Tiles::One)]);
        let without = Narrow { has_one_token: false, ..NARROW };
        assert_eq!(without.target(1), Target::Narrow(Tiles::One));
    }

    #[test]
    fn a_step_like_the_one_before_fits() {
        let ahead = step().ahead(NARROW, UPLOAD_MAX);
        assert!(ahead.fits(&step()));
        assert!(ahead.fits(&Shape { upload_bytes: 8192, ..step() }), "its pages may grow a little");
        assert!(ahead.fits(&Shape { drafts: vec![Tiles::Many], ..step() }), "one batch is empty");
        assert!(ahead.fits(&Shape { drafts: Vec::new(), ..step() }));
        assert_eq!(ahead.ahead(NARROW, UPLOAD_MAX), ahead, "no guess of a guess is larger");
    }

    #[test]
    fn a_step_that_needs_more_or_other_kernels_does_not_fit() {
        let ahead = step().ahead(NARROW, UPLOAD_MAX);
        for step in [
            Shape { target: Target::OneToken, ..step() },
            Shape { target: Target::Narrow(Tiles::Many), ..step() },
            Shape { target: Target::Wide(WideStep::default()), ..step() },
            Shape { drafts: vec![Tiles::One], ..step() },
            Shape { drafts: vec![Tiles::Many, Tiles::One, Tiles::One], ..step() },
            Shape { upload_bytes: 8193, ..step() },
        ] {
            assert!(!ahead.fits(&step), "{step:?}");
        }
    }

    #[test]
    fn a_narrow_chain_follows_a_wide_one() {
        let wide = Shape { target: Target::Wide(WideStep::default()), ..step() };
        assert_eq!(wide.ahead(NARROW, UPLOAD_MAX), step().ahead(NARROW, UPLOAD_MAX));
    }

    #[test]
    fn one_token_follows_a_prompt_without_drafts() {
        let prompt = |row_count| {
            let wide = WideStep { row_count, ..WideStep::default() };
            Shape { target: Target::Wide(wide), drafts: Vec::new(), ..step() }
        };
        let ahead = |row_count| prompt(row_count).ahead(NARROW, UPLOAD_MAX).target;
        assert_eq!([1, 2].map(ahead), [Target::OneToken, Target::Narrow(Tiles::One)]);
    }

    #[test]
    fn no_more_is_copied_than_there_is() {
        let long = Shape { upload_bytes: 9000, ..step() };
        assert_eq!(long.ahead(NARROW, UPLOAD_MAX).upload_bytes, UPLOAD_MAX);
    }
}
