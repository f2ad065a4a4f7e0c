//! `kilotok pull`

use anyhow::Result;
use kilotok_weights::hub::{ModelRef, pull};

use crate::environment::hub;
use crate::progress::Bar;
use crate::say::say;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `organisation/name`, or `organisation/name@revision`.
    model: ModelRef,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = pull(&args.model, &hub()?, &Bar::new("downloading"))?;
    say!("{}", folder.display());
    Ok(())
}
