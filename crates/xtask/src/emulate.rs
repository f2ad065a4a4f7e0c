//! Runs tests of the GPU engine without a GPU: `kernels/emulator` is built as the driver and the
//! NVRTC library that `crates/cuda` loads, and kernels are compiled for the CPU. The harnesses are
//! compiled for the CPU too, and their checks are run. This shows neither speed nor the effects of
//! a GPU's memory model.

use std::error::Error;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use crate::cargo::{Program, cargo, executable, said};

/// Relative to the root.
const SOURCES: &str = "kernels/emulator";
const OUT: &str = "target/emulator";
/// Relative to `OUT`.
const TEMPORARY: &str = "tmp";
/// The libraries in place of the driver and of NVRTC, each with the source that implements it.
const LIBRARIES: [(&str, &str); 2] =
    [("driver.cpp", "libcuda.so.1"), ("nvrtc.cpp", "libnvrtc.so.13")];
/// Upper bound of the NVRTC library's version, which identifies compiled kernels.
const VERSIONS: u64 = 1_000_000;
/// Builds for the whole workspace, so that the results of `cargo test` are used and not built again
/// with fewer features.
const BUILD: [&str; 6] =
    ["test", "--no-run", "--workspace", "--lib", "--test=gpu", "--test=broken"];
const SUITE: Program = Program { name: "gpu", kind: "test", target: "gpu" };
/// Writes the cases with which `sample` compares its results. Some percent of them suffice here:
/// they include cases of every vocabulary size.
const BUILD_CASES: [&str; 3] = ["build", "--workspace", "--example=device_cases"];
const CASES: Program = Program { name: "cases", kind: "example", target: "device_cases" };
const CASES_PERCENT: &str = "5";

/// The tests that run by default, in a few minutes on two cores: every kernel, one tile of tokens
/// and several, one rank and as many as possible, and the bits of both passes with every kind of
/// model.
const SHORT: [&str; 10] = [
    "cuda_flash::order",
    "cuda_flash::faults",
    "cuda_wide_experts::drops",
    "cuda_pro_8_ranks::order",
    "phases::",
    "overflow::",
    "few_random_plans",
    "few_numbers",
    "few_wide_steps",
    "steps_of_few_users",
];
/// Tests beyond the engine's own: phases beside those of the CPU engine, the doorbell, agreement of
/// ranks, and engines that break, also below a server. They break by a rank that dies or does not
/// respond to its doorbell, but not by one that stalls, because waits of kernels take long here.
const SUITES: [(Program, &[&str]); 4] = [
    (Program { name: "cpu", kind: "lib", target: "kilotok_cpu" }, &["phase::kernels"]),
    (SUITE, &SHORT),
    (
        Program { name: "cuda", kind: "lib", target: "kilotok_cuda" },
        &["steps_alike", "agree::two_ranks", "agree::a_rank", "a_gpu_that_dies"],
    ),
    (
        Program { name: "broken", kind: "test", target: "broken" },
        &["a_rank_that_does_not_respond", "a_gpu_that_dies"],
    ),
];

const HARNESSES: &str = "kernels/harness";
/// A small model with every phase, and one with a real vocabulary, to sample from.
const MODEL: &str = "kernels/models/toy_pro";
/// Harnesses that are checked for another model of `kernels/models` too, with these arguments: the
/// routers with many experts in F32, and a pass of one tile of tokens in which some CTAs have units
/// in the second layer and none in the first, so that their epilogues run ahead.
const MORE: [(&str, &str, &[&str]); 3] = [
    ("router", "kernels/models/slice", &["check"]),
    ("wide_router", "kernels/models/slice", &["check"]),
    ("step", "kernels/models/toy_v2_6_flash", &["8", "70", "1"]),
];
const LARGEST_VOCABULARY: &str = "kernels/harness/sample_model";
/// A harness that tests of `crates/cpu` run, its model, and the variable that names the program.
const PHASE: &str = "phase";
const EVERY_ROUTER: &str = "kernels/harness/phase_model";
const PHASE_PROGRAM: &str = "KILOTOK_PHASE";
/// Longest wait of a harness, measured by clocks that `launch.h` slows down.
const HARNESS_WAIT_MS: &str = "2000";
/// How tests report that they were skipped.
const SKIPPED: [&str; 2] = ["skipped: ", "skipped from "];

/// Runs the harnesses that these words name and the tests whose names contain another of them, or
/// the short list and all harnesses.
pub(crate) fn run(root: &Path, tests: &[&str]) -> Result<ExitCode, Box<dyn Error>> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("the emulator is for Linux on x86-64".into());
    }
    let out = root.join(OUT);
    build(&root.join(SOURCES), &out)?;
    fs::create_dir_all(out.join(TEMPORARY))?;
    let messages = cargo(root, &BUILD)?;
    let passed = if tests.is_empty() {
        suites_and_harnesses(root, &messages, &out)?
    } else {
        let named = harnesses(root, &out, |name| tests.contains(&name))?;
        check(&named, root)?;
        let is_harness = |test: &&str| named.iter().any(|harness| harness.name == *test);
        let others: Vec<_> = tests.iter().copied().filter(|test| !is_harness(test)).collect();
        others.is_empty() || suites(root, &messages, &out, &others)?
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compiles and checks the harnesses while the suites run, because the suites leave cores idle
/// while they compile kernels.
fn suites_and_harnesses(root: &Path, messages: &str, out: &Path) -> Result<bool, Box<dyn Error>> {
    let harnesses = harnesses(root, out, |_| true)?;
    thread::scope(|scope| {
        let checker = scope.spawn(|| check(&harnesses, root));
        let passed = suites(root, messages, out, &[])?;
        checker.join().map_err(|_| "the thread that checks harnesses panicked")??;
        Ok(passed)
    })
}

fn check(harnesses: &[Harness], root: &Path) -> Result<(), String> {
    harnesses.iter().try_for_each(|harness| {
        harness.compile(root)?;
        harness.check()
    })
}

/// Runs the tests whose names contain one of these words, or the short lists. Returns whether all
/// of them passed.
fn suites(root: &Path, messages: &str, out: &Path, tests: &[&str]) -> Result<bool, Box<dyn Error>> {
    let phase = Harness::new(root, out, PHASE.to_owned())?;
    phase.compile(root)?;
    let mut passed = true;
    let mut unknown = tests.to_vec();
    for (program, short) in &SUITES {
        let path = executable(messages, program)
            .ok_or_else(|| format!("cargo {BUILD:?} made no {}", program.target))?;
        let mut suite = Command::new(path);
        suite.env("LD_LIBRARY_PATH", out).env("TMPDIR", out.join(TEMPORARY));
        suite.env(PHASE_PROGRAM, &phase.program);
        // One test at a time: every engine needs all GPUs, emulated or not.
        suite.args(["--show-output", "--test-threads=1"]);
        suite.args(if tests.is_empty() { short } else { tests });
        let output = suite.stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{text}");
        if SKIPPED.iter().any(|words| text.contains(words)) {
            return Err("tests did not find the emulator".into());
        }
        let names =
            || text.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
        let ran = |word| names().any(|(name, _)| name.contains(word));
        if tests.is_empty()
            && let Some(word) = short.iter().find(|word| !ran(**word))
        {
            return Err(format!("{} has no test {word}", program.target).into());
        }
        unknown.retain(|word| !ran(word));
        passed = passed && output.status.success();
    }
    if !unknown.is_empty() {
        return Err(format!("no test or harness has a name with {}", unknown.join(" or ")).into());
    }
    Ok(passed)
}

/// The harnesses of wanted names, each with the model for which it is checked.
fn harnesses(
    root: &Path,
    out: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Harness>, Box<dyn Error>> {
    let mut harnesses = Vec::new();
    for source in fs::read_dir(root.join(HARNESSES))? {
        let source = source?.path();
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_harness = source.extension().is_some_and(|end| end == "cu") && name != PHASE;
        if is_harness && wanted(&name) {
            harnesses.push(Harness::new(root, out, name)?);
        }
    }
    for (name, model, arguments) in MORE.into_iter().filter(|(name, ..)| wanted(name)) {
        let folder = Path::new(model).file_name().unwrap_or_default().to_string_lossy();
        let program = out.join(format!("{name}_{folder}"));
        let arguments = arguments.iter().map(ToString::to_string).collect();
        harnesses.push(Harness { name: name.to_owned(), model, program, arguments });
    }
    harnesses.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(harnesses)
}

/// A harness that is built for a model, and its arguments.
struct Harness {
    name: String,
    model: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Harness {
    fn new(root: &Path, out: &Path, name: String) -> Result<Self, Box<dyn Error>> {
        let (model, arguments) = match &*name {
            // Number of tokens, context and passes.
            "step" => (MODEL, vec!["20".to_owned(), "70".to_owned(), "2".to_owned()]),
            // Once with a CTA for each position, and once with as many CTAs as possible.
            "sample" => {
                (LARGEST_VOCABULARY, vec![cases(root, out)?, "1".to_owned(), "16".to_owned()])
            }
            PHASE => (EVERY_ROUTER, Vec::new()),
            _ => (MODEL, vec!["check".to_owned()]),
        };
        Ok(Self { program: out.join(&name), name, model, arguments })
    }

    fn compile(&self, root: &Path) -> Result<(), String> {
        let mut compiler = Command::new("g++");
        compiler.current_dir(root);
        compiler.args(["-std=c++20", "-O1", "-march=native", "-ffp-contract=off"]);
        compiler.args(["-fno-strict-aliasing", "-mtls-dialect=gnu2", "-Wno-attributes"]);
        // The compiler mistakes a pointer of the emulator for the object to which it points.
        compiler.arg("-Wno-stringop-overflow");
        compiler.args(["-x", "c++", "-include", "kernels/emulator/cta.h"]);
        compiler.args(["-I", SOURCES, "-I", "kernels", "-I", "kernels/include", "-I", HARNESSES]);
        compiler.args(["-I", self.model]);
        let source = format!("{HARNESSES}/{}.cu", self.name);
        compiler.arg(&source).arg("-o").arg(&self.program);
        said(&mut compiler, &source).map(drop).map_err(|error| error.to_string())
    }

    fn check(&self) -> Result<(), String> {
        let program = self.program.display();
        let mut harness = Command::new(&self.program);
        harness.args(&self.arguments).env("KILOTOK_WAIT_MS", HARNESS_WAIT_MS);
        let output = harness.stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{program}\n{text}");
        if !output.status.success() || text.contains("skipped: ") {
            return Err(format!("{program}: {}", output.status));
        }
        Ok(())
    }
}

/// A file of cases, with the results of `crates/sampling`.
fn cases(root: &Path, out: &Path) -> Result<String, Box<dyn Error>> {
    let program = executable(&cargo(root, &BUILD_CASES)?, &CASES).ok_or("cargo made no cases")?;
    let file = out.join(CASES.name);
    said(Command::new(program).arg(&file).arg(CASES_PERCENT), "crates/sampling")?;
    Ok(file.to_string_lossy().into_owned())
}

fn build(sources: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(out)?;
    let folder = sources.display();
    let version = version(sources)?;
    for (source, library) in LIBRARIES {
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++20", "-O2", "-fPIC", "-shared", "-pthread"]);
        compiler.args(["-Wall", "-Wextra", "-Werror", &format!("-Wl,-soname,{library}")]);
        compiler.arg(format!("-DVERSION={version}")).arg(format!("-DEMULATOR=\"{folder}\""));
        said(compiler.arg("-o").arg(out.join(library)).arg(sources.join(source)), "g++")?;
    }
    Ok(())
}

/// A number that depends on the sources.
fn version(sources: &Path) -> Result<u64, Box<dyn Error>> {
    let mut hasher = DefaultHasher::new();
    for folder in [sources.to_owned(), sources.join("kilotok/ptx")] {
        let mut files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files.iter().filter(|file| file.path().is_file()) {
            fs::read(file.path())?.hash(&mut hasher);
        }
    }
    Ok(hasher.finish() % VERSIONS)
}
