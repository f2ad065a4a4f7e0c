//! `kilotok pull`

use anyhow::Result;
use kilotok_weights::hub::{ModelRef, pull};

use crate::environment::hub;
use crate::output::say;
use crate::progress::WorkProgress;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model on the Hugging Face hub: `organisation/name`, or `organisation/name@revision`.
    model: ModelRef,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = pull(&args.model, &hub()?, &WorkProgress::new("downloading"))?;
    say!("{}", folder.display());
    Ok(())
}
