//! Checks GPUs, as seen by `nvidia-smi` and the driver: memory, links between them, and the library
//! that compiles kernels. A GPU that is not visible is only a warning, because there is an engine
//! for the processor.

use std::fs;
use std::process::Command;

use kilotok_cuda::{DRIVER_MIN as CUDA_MIN, Driver, Gpu as Device, Version};

use super::Finding;
use crate::environment;

/// The first driver for CUDA 12.8, the first version that has the instructions of all our kernels.
const DRIVER_MIN: u32 = 570;
/// A GPU, as `nvidia-smi` lists it.
#[derive(Debug, PartialEq, Eq)]
struct Gpu {
    name: String,
    memory_mib: u64,
    used_mib: u64,
    driver: String,
}

pub(super) fn look() -> Vec<Finding> {
    let gpus = gpus();
    let (version, found) = cuda();
    let mut findings = match &gpus {
        Some(gpus) => vec![driver(gpus), cards(gpus)],
        None => vec![without_tool(version.is_some())],
    };
    if gpus.is_some() || version.is_some() {
        findings.extend([found, compiler(version)]);
    }
    if gpus.is_some_and(|gpus| gpus.len() > 1) {
        findings.push(links());
    }
    findings
}

/// Without `nvidia-smi`, the kernel's driver is the only sign of GPUs.
fn without_tool(has_driver: bool) -> Finding {
    let version = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let count = fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count);
    match version {
        Some(_) => Finding::warn(
            "GPUs",
            format!("{count}, and no nvidia-smi"),
            "install nvidia-utils, or run the container with the NVIDIA runtime (--gpus all)",
        ),
        None if has_driver => Finding::ok("GPUs", "what the driver sees; there is no nvidia-smi"),
        None => Finding::ok("GPUs", "none; the reference engine on the processor is used"),
    }
}

fn gpus() -> Option<Vec<Gpu>> {
    let query = "--query-gpu=name,memory.total,memory.used,driver_version";
    let text = ask(&[query, "--format=csv,noheader,nounits"])?;
    let gpus: Vec<_> = text.lines().filter_map(gpu).collect();
    (!gpus.is_empty()).then_some(gpus)
}

fn gpu(line: &str) -> Option<Gpu> {
    let mut fields = line.split(',').map(str::trim);
    Some(Gpu {
        name: fields.next().filter(|name| !name.is_empty())?.to_owned(),
        memory_mib: fields.next()?.parse().ok()?,
        used_mib: fields.next()?.parse().ok()?,
        driver: fields.next()?.to_owned(),
    })
}

/// The output of `nvidia-smi`, if it exists and works.
fn ask(args: &[&str]) -> Option<String> {
    let output = Command::new("nvidia-smi").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn driver(gpus: &[Gpu]) -> Finding {
    let version = gpus[0].driver.clone();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= DRIVER_MIN) {
        return Finding::ok("GPU driver", version);
    }
    Finding::warn("GPU driver", version, format!("install {DRIVER_MIN} or newer, for CUDA 12.8"))
}

fn cards(gpus: &[Gpu]) -> Finding {
    let mut names: Vec<_> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    names.dedup();
    let gib = gpus[0].memory_mib / 1024;
    let found = format!("{} x {} of {gib} GiB", gpus.len(), names.join(" and "));
    // The driver itself takes some memory.
    let busy = gpus.iter().filter(|gpu| gpu.used_mib > gpu.memory_mib / 20).count();
    if names.len() > 1 {
        return Finding::warn("GPUs", found, "ranks want GPUs of one kind");
    }
    if busy > 0 {
        let advice = format!("{busy} of them are in use: see nvidia-smi for by whom");
        return Finding::warn("GPUs", found, advice);
    }
    Finding::ok("GPUs", found)
}

/// The version of the driver's library, and the engine's findings about its GPUs.
fn cuda() -> (Option<Version>, Finding) {
    let advice = "without it the reference engine on the processor is used";
    let driver = match Driver::open() {
        Ok(driver) => driver,
        Err(error) => return (None, Finding::warn("CUDA", error.to_string(), advice)),
    };
    let version = Some(driver.version);
    let unfit = driver.gpus().and_then(|gpus| gpus.iter().try_for_each(Device::check));
    match unfit {
        Ok(()) => (version, Finding::ok("CUDA", format!("the driver is for {}", driver.version))),
        Err(error) => (version, Finding::warn("CUDA", error.to_string(), advice)),
    }
}

fn compiler(driver: Option<Version>) -> Finding {
    match environment::toolchain().compiler(driver) {
        Ok((path, version)) => Finding::ok("NVRTC", format!("{}, {version}", path.display())),
        Err(error) => {
            let advice = format!(
                "kernels are compiled at start: install cuda-nvrtc of CUDA {CUDA_MIN} or newer, \
                 for example with `pip install nvidia-cuda-nvrtc`, or set CUDA_HOME"
            );
            Finding::warn("NVRTC", error.to_string(), advice)
        }
    }
}

fn links() -> Finding {
    let Some(text) = ask(&["topo", "-m"]) else {
        let advice = "ranks need NVLink to be fast: look at `nvidia-smi topo -m`";
        return Finding::warn("GPU links", "nvidia-smi does not tell", advice);
    };
    let pairs = pairs(&text);
    let linked = pairs.iter().filter(|kind| kind.starts_with("NV")).count();
    let mut kinds = pairs.clone();
    kinds.sort();
    kinds.dedup();
    let found = format!("{} between {} pairs", kinds.join(", "), pairs.len() / 2);
    if linked == pairs.len() && linked > 0 {
        return Finding::ok("GPU links", found);
    }
    let advice = "not every pair has NVLink: more than one rank will be slow";
    Finding::warn("GPU links", found, advice)
}

/// The link between each pair of GPUs, from the matrix of `nvidia-smi topo -m`.
fn pairs(text: &str) -> Vec<String> {
    // In a terminal, the header is underlined.
    let text = text.replace("\u{1b}[4m", "").replace("\u{1b}[0m", "");
    let is_gpu =
        |name: &str| name.strip_prefix("GPU").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let header = text.lines().next().unwrap_or_default();
    let count = header.split_whitespace().filter(|name| is_gpu(name)).count();
    let rows = text.lines().skip(1).filter_map(|line| {
        let mut cells = line.split_whitespace();
        cells.next().filter(|name| is_gpu(name))?;
        Some(cells.take(count).filter(|kind| *kind != "X").map(str::to_owned).collect::<Vec<_>>())
    });
    rows.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tool_is_understood() {
        assert_eq!(
            gpu("NVIDIA H200, 143771, 14, 570.86.15"),
            Some(Gpu {
                name: "NVIDIA H200".into(),
                memory_mib: 143_771,
                used_mib: 14,
                driver: "570.86.15".into()
            })
        );
        assert_eq!(gpu("No devices were found"), None);
        let text = "\t\u{1b}[4mGPU0\tGPU1\tNIC0\tCPU Affinity\u{1b}[0m\n\
            GPU0\t X \tNV18\tPIX\t0-55\nGPU1\tNV18\t X \tNODE\t0-55\nNIC0\tPIX\tNODE\t X\n\n\
            Legend:\n\n  X    = Self\n";
        assert_eq!(pairs(text), ["NV18", "NV18"]);
        assert!(pairs("").is_empty());
    }

    #[test]
    fn old_drivers_and_mixed_cards_are_warned_of() {
        let gpu = |name: &str, driver: &str, used_mib| Gpu {
            name: name.into(),
            memory_mib: 80_000,
            used_mib,
            driver: driver.into(),
        };
        let advice = |finding: Finding| finding.advice;
        assert!(advice(driver(&[gpu("a", "535.1", 0)])).contains("570"));
        assert!(advice(driver(&[gpu("a", "580.1", 0)])).is_empty());
        assert!(advice(cards(&[gpu("a", "580", 0), gpu("b", "580", 0)])).contains("one kind"));
        assert!(advice(cards(&[gpu("a", "580", 0), gpu("a", "580", 60_000)])).contains("in use"));
        assert!(advice(cards(&[gpu("a", "580", 100), gpu("a", "580", 0)])).is_empty());
    }
}
