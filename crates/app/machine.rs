//! Properties of the machine: cores, vector units and memory, within the limits of the container
//! and of the process. Every value may be missing if the system does not report it.

use std::fs;
use std::path::Path;

use rlimit::Resource;

/// The files with the memory limit and use of a container: the newer form of cgroups, then the
/// older.
const CGROUPS: [(&str, &str); 2] = [
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
];

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

impl Memory {
    fn within(self, limit: u64) -> Self {
        Self { total: self.total.min(limit), free: self.free.min(limit) }
    }
}

/// The memory that this process may use. Its address space may be limited too (`ulimit -v`,
/// `prlimit --as`).
pub(crate) fn memory() -> Option<Memory> {
    let memory = memory_of_machine()?;
    Some(memory.within(Resource::AS.get_soft().unwrap_or(u64::MAX)))
}

fn memory_of_machine() -> Option<Memory> {
    let machine = meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let container = CGROUPS.iter().find_map(|(limit, used)| {
        let limit = number(limit)?;
        Some(Memory { total: limit, free: limit.saturating_sub(number(used)?) })
    });
    // Without a limit, the newer form has no number, and the older form one beyond all memory.
    let Some(container) = container else { return Some(machine) };
    let total = machine.total.min(container.total);
    Some(Memory { total, free: machine.free.min(container.free) })
}

fn meminfo(text: &str) -> Option<Memory> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let bytes = |line: &str| Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10);
    Some(Memory { total: bytes(line("MemTotal:")?)?, free: bytes(line("MemAvailable:")?)? })
}

/// The number of cores that this process may use.
pub(crate) fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The widest vector unit, and whether the engine's kernels were written for it.
pub(crate) fn vector_unit() -> (&'static str, bool) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return ("AVX-512", true);
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return ("AVX2", true);
        }
        ("SSE2", false)
    }
    #[cfg(target_arch = "aarch64")]
    {
        ("NEON", true)
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        ("none known", false)
    }
}

/// The name that the kernel gives the processor.
pub(crate) fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Bytes free on the disk of a folder. If the folder does not exist, its nearest existing parent
/// counts.
pub(crate) fn disk_free(folder: &Path) -> Option<u64> {
    let folder = folder.ancestors().find(|folder| folder.is_dir())?;
    // `df` is available everywhere, and the standard library has no function for this.
    let output = std::process::Command::new("df").args(["-Pk"]).arg(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let free = text.lines().nth(1)?.split_whitespace().nth(3)?;
    Some(free.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_linux() {
        let text = "MemTotal:       16305 kB\nMemFree: 1 kB\nMemAvailable:   8000 kB\n";
        assert_eq!(meminfo(text), Some(Memory { total: 16305 << 10, free: 8000 << 10 }));
        assert_eq!(meminfo("MemTotal: many\n"), None);
    }

    #[test]
    fn a_limit_of_address_space_is_a_limit_of_memory() {
        let memory = Memory { total: 16, free: 8 };
        assert_eq!(memory.within(12), Memory { total: 12, free: 8 });
        assert_eq!(memory.within(4), Memory { total: 4, free: 4 });
        assert_eq!(memory.within(u64::MAX), memory);
    }
}
