//! Compiles the kernels without a GPU, for the models whose headers are in `kernels/models`, and
//! compares their registers, spills and shared memory with the committed table: spills may only
//! shrink.

mod table;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use table::{Kernel, Table};

/// The target: Hopper, with the instructions that only Hopper has.
const ARCHITECTURE: &str = "90a";
/// The model that sources outside `kernels/step` are compiled for, if they have none of their own.
const HARNESS_MODEL: &str = "slice";
/// The folder for PTX and cubins, relative to the root.
const OUT: &str = "target/kernels";
/// A job takes up to half a gigabyte of memory.
const JOBS_MAX: usize = 8;

/// One source, compiled for one model.
struct Job {
    source: PathBuf,
    model: String,
    /// Whether the engine runs this source, so that its kernels are in the table.
    counts: bool,
}

/// Compiles everything. With `update`, writes the table anew.
pub(crate) fn run(root: &Path, update: bool) -> Result<ExitCode, Box<dyn Error>> {
    let version = nvcc_version()?;
    fs::create_dir_all(root.join(OUT))?;
    let jobs = jobs(root)?;
    let job_count = thread::available_parallelism().map_or(1, usize::from).min(JOBS_MAX);
    let mut found = Table { version, kernels: Vec::new() };
    let mut failed = false;
    for jobs in jobs.chunks(job_count) {
        let results: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> =
                jobs.iter().map(|job| scope.spawn(|| compile(root, job))).collect();
            running.into_iter().map(|running| running.join().expect("no job panics")).collect()
        });
        for (job, result) in jobs.iter().zip(results) {
            match result {
                Ok(kernels) => {
                    println!("compiled {} for {}", job.source.display(), job.model);
                    found.kernels.extend(kernels.into_iter().filter(|_| job.counts));
                }
                Err(error) => {
                    println!("{error}");
                    failed = true;
                }
            }
        }
    }
    if failed {
        return Ok(ExitCode::FAILURE);
    }
    let path = root.join(table::PATH);
    if update {
        fs::write(path, found.text())?;
        println!("wrote {}", table::PATH);
        return Ok(ExitCode::SUCCESS);
    }
    let committed = Table::parse(&fs::read_to_string(path)?)?;
    if committed.version != found.version {
        println!(
            "{}: of nvcc {}, and this is {}: compiled, but not compared",
            table::PATH,
            committed.version,
            found.version
        );
    }
    let problems = table::compare(&committed, &found);
    for problem in &problems {
        println!("{}: {problem}", table::PATH);
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn nvcc_version() -> Result<String, Box<dyn Error>> {
    let output = Command::new("nvcc").arg("--version").output().map_err(|error| {
        format!(
            "nvcc --version: {error}; the CUDA toolkit has nvcc, and so have the Python packages \
             nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-nvvm and nvidia-cuda-runtime"
        )
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    release.map(str::to_owned).ok_or_else(|| format!("nvcc --version says {text:?}").into())
}

/// The sources of steps for every model, and those of harnesses for one model.
fn jobs(root: &Path) -> Result<Vec<Job>, Box<dyn Error>> {
    let mut jobs = Vec::new();
    for model in listed(&root.join("kernels/models"), None)? {
        let model = model.file_name().map(|name| name.to_string_lossy().into_owned());
        let model = model.ok_or("a model without a name")?;
        for source in listed(&root.join("kernels/step"), Some("cu"))? {
            jobs.push(Job { source, model: model.clone(), counts: true });
        }
    }
    for source in listed(&root.join("kernels/harness"), Some("cu"))? {
        jobs.push(Job { source, model: HARNESS_MODEL.to_owned(), counts: false });
    }
    for job in &mut jobs {
        job.source = job.source.strip_prefix(root)?.to_owned();
    }
    Ok(jobs)
}

/// The entries of a folder, sorted.
fn listed(folder: &Path, extension: Option<&str>) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry?.path();
        if extension.is_none_or(|wanted| path.extension().is_some_and(|end| end == wanted)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Compiles to PTX, which tells how much shared memory a launch must request, and then to a cubin.
fn compile(root: &Path, job: &Job) -> Result<Vec<Kernel>, String> {
    let stem = job.source.file_stem().unwrap_or_default().to_string_lossy();
    let out = root.join(OUT).join(format!("{stem}.{}", job.model));
    let ptx = out.with_added_extension("ptx");
    let own = Path::new("kernels/harness").join(format!("{stem}_model"));
    let models = Path::new("kernels/models").join(&job.model);
    let mut nvcc = Command::new("nvcc");
    nvcc.args(["-std=c++20", "-O3", "-lineinfo", "-ptx"])
        .arg(format!("-arch=compute_{ARCHITECTURE}"))
        // Both variants are covered: the engine's kernels without stamps, and the harnesses' with
        // stamps.
        .args((!job.counts).then_some("-DKILOTOK_STAMPS"))
        .args(["-I", "kernels", "-I", "kernels/include", "-I", "kernels/harness", "-I"])
        .arg(if root.join(&own).is_dir() { own } else { models })
        .arg("-o")
        .args([&ptx, &job.source]);
    said(root, job, &mut nvcc)?;
    let text = fs::read_to_string(&ptx).map_err(|error| format!("{}: {error}", ptx.display()))?;
    let mut ptxas = Command::new("ptxas");
    ptxas.args(["-v", "-O3"]).arg(format!("-arch=sm_{ARCHITECTURE}")).arg("-o");
    ptxas.args([&out.with_added_extension("cubin"), &ptx]);
    Ok(table::kernels(&job.model, &text, &said(root, job, &mut ptxas)?))
}

/// Runs a compiler. Returns its messages, as an error if it failed.
fn said(root: &Path, job: &Job, command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.current_dir(root).output().map_err(|error| format!("{name}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{name} for {} of {}:\n{text}", job.source.display(), job.model))
}
