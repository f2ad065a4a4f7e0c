//! `kilotok check`

use std::iter::once;
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::HumanBytes;
use kilotok_model::{
    Dtype, FeedForwardSpec, ModelSpec, Ranks, Reach, StoredTensor, WeightDecl, check_ranks, declare,
};
use kilotok_text::{Text, TextError};
use kilotok_weights::{Checkpoint, Piece, WeightError, WeightSource, load};

use crate::environment::folder;
use crate::knobs::KnobArgs;
use crate::output::say;
use crate::progress::WorkProgress;
use crate::serve;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model's folder, or its name on the Hugging Face hub.
    model: String,
    /// Also read all weights, and refuse a model in which one is NaN or infinite.
    #[arg(long)]
    values: bool,
    /// Number of tensor-parallel ranks that will share the model: 1, 2, 4 or 8.
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    #[command(flatten)]
    knobs: KnobArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = folder(&args.model)?;
    let text = read_text(&folder)?;
    let checkpoint = Checkpoint::open(&folder, &args.knobs.knobs()?)
        .with_context(|| folder.display().to_string())?;
    let spec = checkpoint.spec();
    check_ranks(spec, args.ranks)?;
    say!("{}", folder.display());
    describe(spec);
    if let Some(text) = &text {
        serve::check_vocabulary(text, spec.vocab_size as u32, &folder)?;
    }
    describe_text(text.as_ref());
    let weights = declare(spec);
    let bytes = weights.iter().map(|decl| stored_bytes(&checkpoint, decl));
    let bytes = bytes.sum::<Result<usize, _>>()?;
    say!("  weights   {} in {}", weights.len(), HumanBytes(bytes as u64));
    for skipped in checkpoint.skipped() {
        let (count, bytes) = (skipped.tensor_count, HumanBytes(skipped.bytes));
        say!("  not read  {count} tensors, {bytes}: {}", skipped.reason);
    }
    if args.values {
        let pieces: Vec<_> = weights.iter().flat_map(|decl| pieces(decl, args.ranks)).collect();
        load(&checkpoint, &pieces, &WorkProgress::new("reading"), |_, _| {})?;
        say!("  values    all finite");
    }
    say!("complete, and every tensor is what the config calls for");
    Ok(())
}

/// Reads tokenizer, chat template and sampling defaults as a server does; `None` without a
/// tokenizer.
fn read_text(folder: &Path) -> Result<Option<Text>> {
    let named = || folder.display().to_string();
    let text = match Text::open(folder) {
        Err(TextError::Missing { .. }) => return Ok(None),
        text => text.with_context(named)?,
    };
    text.check_template().with_context(named)?;
    Ok(Some(text))
}

fn describe_text(text: Option<&Text>) {
    let Some(text) = text else {
        say!("  text      no tokenizer.json: it can be served with dummy weights only");
        return;
    };
    let template = if text.has_template() { "with a chat template" } else { "no chat template" };
    say!("  text      {} tokens, {template}, replies as {}", text.vocab_count(), text.format());
}

/// The parts of a weight that ranks read, each part once.
fn pieces(decl: &WeightDecl, rank_count: usize) -> impl Iterator<Item = Piece> {
    let ranks =
        (0..decl.shard.part_count(rank_count)).map(move |rank| Ranks { rank, count: rank_count });
    ranks.map(|ranks| Piece { decl: decl.clone(), ranks })
}

/// Bytes of a weight in the checkpoint. If it shares a tensor with other weights, only its part
/// counts.
pub(crate) fn stored_bytes(
    checkpoint: &Checkpoint,
    decl: &WeightDecl,
) -> Result<usize, WeightError> {
    let (stored, values) = (decl.stored(), checkpoint.dtype(decl)?);
    // Only values have a choice of types; the scales' type follows from it.
    let dtypes = once(values).chain(stored.iter().skip(1).map(|scales| scales.dtypes[0]));
    let bytes = |(tensor, dtype): (&StoredTensor, Dtype)| {
        dtype.bytes() * tensor.shape.iter().product::<usize>()
    };
    Ok(stored.iter().zip(dtypes).map(bytes).sum::<usize>() / decl.stack_size())
}

pub(crate) fn describe(spec: &ModelSpec) {
    let windows = spec.layers.iter().filter(|layer| layer.attention.reach != Reach::Full).count();
    let experts = spec.layers.iter().find_map(|layer| match &layer.feed_forward {
        FeedForwardSpec::Experts(experts) => Some(experts),
        FeedForwardSpec::Dense(_) => None,
    });
    say!("  family    {}", spec.family);
    say!("  shape     {} wide, {} tokens", spec.hidden_size, spec.vocab_size);
    say!("  layers    {}, {windows} of them with a sliding window", spec.layers.len());
    if let Some(experts) = experts {
        say!("  experts   {} of {}, {}", experts.top_k, experts.count, experts.format);
    }
    match &spec.drafter {
        Some(drafter) => say!(
            "  drafter   {} layers, networks in {}, {} drafts at a time, taps after layers {:?}",
            drafter.layers.len(),
            drafter.layers[0].feed_forward.format(),
            drafter.rows - 1,
            drafter.taps
        ),
        None => say!("  drafter   none"),
    }
    if spec.multimodal {
        say!("  text      alone: vision and audio are left out");
    }
}
