//! Flags for properties that a model's config leaves open.

use anyhow::{Context, Result};
use kilotok_model::{Knobs, RouterDtype};
use serde::{Deserialize, Serialize};

use crate::environment::folder;

#[derive(clap::Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(next_help_heading = "Where implementations of a model disagree")]
pub(crate) struct KnobArgs {
    /// Keys that a sliding-window position sees: the config's number, or one more as in SGLang
    /// [default: the config's number].
    #[arg(long)]
    window_keys: Option<usize>,
    /// RoPE base of the drafter [default: its config's `rope_theta`].
    #[arg(long)]
    draft_rope_base: Option<f64>,
    /// Whether the drafter sees only its window [default: what its config says].
    #[arg(long)]
    draft_window: Option<bool>,
    /// The drafter, where the model brings none or another is wanted: a folder, or a name on the
    /// Hugging Face hub, which is downloaded [default: `dflash` in the model's folder].
    #[arg(long, value_name = "MODEL", help_heading = "Drafts")]
    drafter: Option<String>,
    /// Make FP8 of the drafter's feed-forward networks as they are read: half the bytes for each
    /// draft, of which fewer may be accepted. Tokens are from the same distribution.
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Drafts")]
    draft_fp8: Option<bool>,
    /// Precision of the router's matrix [default: the config's; if it says nothing, f32 for MiMo
    /// and bf16 for others].
    #[arg(long)]
    router_dtype: Option<Dtype>,
    /// A config field that kilotok does not know and that you know to be harmless.
    #[arg(long, value_name = "NAME")]
    ignore_field: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Dtype {
    F32,
    Bf16,
}

impl KnobArgs {
    /// # Errors
    /// The drafter does not exist and cannot be downloaded.
    pub(crate) fn knobs(&self) -> Result<Knobs> {
        let drafter = self.drafter.as_deref();
        let drafter = drafter.map(|name| folder(name).with_context(|| format!("drafter {name}")));
        Ok(Knobs {
            drafter: drafter.transpose()?,
            window_keys: self.window_keys,
            draft_rope_base: self.draft_rope_base,
            draft_window: self.draft_window,
            draft_fp8: self.draft_fp8.unwrap_or_default(),
            router_dtype: self.router_dtype.map(|dtype| match dtype {
                Dtype::F32 => RouterDtype::F32,
                Dtype::Bf16 => RouterDtype::Bf16,
            }),
            ignored_fields: self.ignore_field.clone().unwrap_or_default(),
        })
    }
}
