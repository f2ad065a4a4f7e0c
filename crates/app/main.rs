//! The `kilotok` program: flags in, exit code out. The crates do the work; this folder reads the
//! command line and the environment, and shows progress.

mod bench;
mod buffered_output;
mod chat;
mod check;
mod client;
mod config;
mod demo;
mod device;
mod doctor;
mod engine;
mod environment;
mod health;
mod kernels;
mod knobs;
mod machine;
mod output;
mod plan;
mod progress;
mod pull;
mod replay;
mod serve;
mod signals;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// This allocator returns memory to the system when requests have ended.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves very large mixture-of-experts models at the lowest latency the hardware allows.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model over HTTP, with OpenAI's API and a chat page.
    Serve(Box<serve::Args>),
    /// Chat with a server in the terminal.
    Chat(chat::Args),
    /// Measure the speed of a server, or of an engine without a server.
    Bench(Box<bench::Args>),
    /// Check this machine, and say what is missing that kilotok needs.
    Doctor(doctor::Args),
    /// Ask a server whether it is healthy: the exit code is 0 if it is, else 1.
    Health(health::Args),
    /// Download a model from the Hugging Face hub into its cache.
    Pull(pull::Args),
    /// Check a model's config and all of its tensors, and describe the model.
    Check(check::Args),
    /// Compile a model's GPU kernels ahead of its first start.
    Kernels(kernels::Args),
    /// Run a recorded trace on the reference engine and compare its outputs.
    Replay(replay::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Replay(args) => replay::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::final_line(format!("error: {}\n", told(&error)));
            ExitCode::FAILURE
        }
    }
}

/// A runtime for the commands that use the network.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("starting threads for the network")
}

/// An error and its causes, except those whose text the error already contains.
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
