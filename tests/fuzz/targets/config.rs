//! Reads any text as the config of a target, and as the config of a drafter for a fixed target. If
//! a config is accepted, declaring its weights and sharing them among ranks must not panic.

#![cfg_attr(fuzzing, no_main)]

use std::sync::LazyLock;

use kilotok_model::{
    FeedForwardSpec, Knobs, ModelSpec, Ranks, Shard, check_ranks, declare, read_config,
    read_drafter,
};

static TARGET: LazyLock<ModelSpec> = LazyLock::new(|| {
    let text = include_str!("../seeds/config/target.json");
    read_config("config.json", text, &Knobs::default()).expect("a good config")
});

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let knobs = Knobs::default();
    if let Ok(spec) = read_config("config.json", text, &knobs) {
        exercise(&spec);
    }
    if let Ok(drafter) = read_drafter("dflash/config.json", text, &TARGET, &knobs) {
        let mut spec = TARGET.clone();
        spec.drafter = Some(drafter);
        exercise(&spec);
    }
}

fn exercise(spec: &ModelSpec) {
    // Larger models would only take longer.
    const EXPERTS_MAX: usize = 1000;
    let experts = spec.layers.iter().map(|layer| match &layer.feed_forward {
        FeedForwardSpec::Dense(_) => 0,
        FeedForwardSpec::Experts(experts) => experts.count,
    });
    if experts.sum::<usize>() > EXPERTS_MAX {
        return;
    }
    let decls = declare(spec);
    for count in [1, 2, 4, 8] {
        if check_ranks(spec, count).is_err() {
            continue;
        }
        for (decl, rank) in decls.iter().flat_map(|decl| (0..count).map(move |rank| (decl, rank))) {
            let slice = decl.slice(Ranks { rank, count });
            let has_part = decl.shard != Shard::First || rank == 0;
            assert!((slice.row_count() > 0) == has_part && !slice.cols.is_empty());
            assert!(slice.rows.iter().all(|rows| rows.end <= decl.rows()));
            assert!(slice.cols.end <= decl.cols());
            assert!(decl.stored_row(decl.rows() - 1) < decl.stored()[0].rows);
            for stored in decl.stored() {
                assert!(stored.shape.iter().all(|size| *size > 0));
            }
        }
    }
}
