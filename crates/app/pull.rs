//! `kilotok pull`

use anyhow::Result;
use kilotok_weights::hub::{ModelRef, pull};

use crate::environment::hub;
use crate::progress::Bar;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `organisation/name`, or `organisation/name@revision`.
    model: ModelRef,
}

#[expect(clippy::print_stdout, reason = "the folder is what the command is for")]
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = pull(&args.model, &hub()?, &Bar::new("downloading"))?;
    println!("{}", folder.display());
    Ok(())
}
