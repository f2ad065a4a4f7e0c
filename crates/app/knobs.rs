//! Flags for properties that a model's config leaves open.

use anyhow::{Context, Result};
use kilotok_model::{Knobs, RouterDtype};
use serde::{Deserialize, Serialize};

use crate::environment::folder;

#[derive(clap::Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(next_help_heading = "Where implementations of a model disagree")]
pub(crate) struct KnobArgs {
    /// Number of keys that a position sees in a sliding window: the config's number, or one more as
    /// in SGLang [default: the config's number].
    #[arg(long)]
    window_keys: Option<usize>,
    /// RoPE base of the drafter [default: its config's `rope_theta`].
    #[arg(long)]
    draft_rope_base: Option<f64>,
    /// Whether the drafter attends only to its sliding window [default: what its config says].
    #[arg(long)]
    draft_window: Option<bool>,
    /// Drafter to use instead of the model's own, or if the model has none: a folder, or a name on
    /// the Hugging Face hub, which is downloaded [default: `dflash` in the model's folder].
    #[arg(long, value_name = "MODEL", help_heading = "Drafts")]
    drafter: Option<String>,
    /// Convert the weights of the drafter's feed-forward networks to FP8 when they are loaded.
    /// Drafting then reads half their bytes, but fewer drafts may be accepted. The distribution of
    /// replies stays the same.
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Drafts")]
    draft_fp8: Option<bool>,
    /// Precision of the router's weights [default: the config's; if it says nothing, f32 for MiMo
    /// and bf16 for others].
    #[arg(long)]
    router_dtype: Option<Dtype>,
    /// Field of the model's config to ignore, because kilotok does not know it and you know it to
    /// be harmless; may be given several times.
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
