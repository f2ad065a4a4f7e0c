//! The `kilotok` program: flags in, exit code out. Everything it does lives in the crates; this
//! folder reads the command line and the environment, and shows progress.

mod check;
mod environment;
mod knobs;
mod progress;
mod pull;
mod replay;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Serves very large mixture-of-experts models at the lowest latency the hardware allows.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download a model from the Hugging Face hub into its cache.
    Pull(pull::Args),
    /// Check a model's config and every one of its tensors, and say what it is.
    Check(check::Args),
    /// Run a recorded trace on the reference engine and compare its outputs.
    Replay(replay::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Pull(args) => pull::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Replay(args) => replay::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what caused it; some errors tell their cause themselves.
fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match told.as_str() {
            "" => cause,
            _ if told.contains(&cause) => told,
            _ => format!("{told}: {cause}"),
        }
    })
}
