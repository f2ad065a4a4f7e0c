//! Compiles the kernels' sources to machine code for the loaded model, at first use, and caches the
//! result in a folder.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};

use crate::nvrtc::{Build, CompileError, MIN, Nvrtc, Version};
use crate::sources::Program;

/// Contraction into fused multiply-adds stays on, as in nvcc; nothing else is relaxed. Functions
/// without an execution space are device functions, because there is no host code.
const OPTIONS: &[&str] =
    &["-std=c++20", "--gpu-architecture=sm_90a", "-default-device", "-lineinfo"];

/// Names of the library for the system's loader, newest first.
const NAMES: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// How files of the cache end.
const CUBIN: &str = "cubin";

/// Held while compiling: engines of one process that need the same kernels wait for the first to
/// compile them.
static COMPILING: Mutex<()> = Mutex::new(());

/// Where compiled kernels are cached and the compiler is looked for.
#[derive(Clone, Debug, Default)]
pub struct Toolchain {
    /// The cache folder; without one, kernels are compiled at every start.
    pub cache: Option<PathBuf>,
    /// Where toolkits and Python environments may be, besides the usual places.
    pub prefixes: Vec<PathBuf>,
}

/// Prefixes under which toolkits are installed.
const PREFIXES: &[&str] = &["/usr/local/cuda", "/opt/cuda", "/usr", "/usr/local"];

impl Toolchain {
    /// Opens the first NVRTC that is new enough and whose code a driver of that version can load.
    pub(crate) fn nvrtc(&self, driver: Option<Version>) -> Result<Nvrtc, CompileError> {
        let mut refused = Vec::new();
        let names = NAMES.iter().map(PathBuf::from);
        for path in names.chain(self.files()) {
            let Ok(nvrtc) = Nvrtc::open(&path) else { continue };
            match unfit(nvrtc.version, driver) {
                None => return Ok(nvrtc),
                Some(reason) => refused.push(format!("{}: {reason}", path.display())),
            }
        }
        refused.dedup();
        let found =
            if refused.is_empty() { "no libnvrtc.so".to_owned() } else { refused.join("; ") };
        Err(CompileError::Missing(found))
    }

    /// The NVRTC that would compile kernels for a driver of that version: its file and version.
    ///
    /// # Errors
    /// What was found instead, if there is none.
    pub fn compiler(&self, driver: Option<Version>) -> Result<(PathBuf, Version), CompileError> {
        let nvrtc = self.nvrtc(driver)?;
        Ok((nvrtc.path, nvrtc.version))
    }

    /// Whether there is code for a program: from a compiler, or from an earlier compilation.
    pub(crate) fn check(
        &self,
        program: &Program,
        driver: Option<Version>,
    ) -> Result<(), CompileError> {
        let Err(missing) = self.nvrtc(driver) else { return Ok(()) };
        self.kept_by_any(&key(program), driver).map(drop).ok_or(missing)
    }

    /// Every file that may be NVRTC, newest version first within a folder.
    fn files(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        let usual = PREFIXES.iter().map(PathBuf::from).chain(beside("/usr/local", "cuda-"));
        for prefix in self.prefixes.iter().cloned().chain(usual) {
            folders.push(prefix.join("lib64"));
            folders.push(prefix.join("targets/x86_64-linux/lib"));
            folders.push(prefix.join("lib"));
            folders.push(prefix.join("lib/x86_64-linux-gnu"));
            folders.extend(wheels(&prefix));
        }
        let files = folders.iter().flat_map(|folder| {
            let mut files = beside(folder, "libnvrtc.so");
            files.reverse();
            files
        });
        let mut files: Vec<_> = files.collect();
        files.dedup();
        files
    }

    /// The machine code of a program, from the folder or compiled. Without a compiler, code in the
    /// folder by any compiler will do.
    pub(crate) fn code(
        &self,
        program: &Program,
        driver: Option<Version>,
        tell: &dyn Fn(&str),
    ) -> Result<Code, CompileError> {
        let key = key(program);
        let nvrtc = match self.nvrtc(driver) {
            Ok(nvrtc) => nvrtc,
            Err(missing) => {
                let (build, cubin) = self.kept_by_any(&key, driver).ok_or(missing)?;
                tell(&format!("there is no NVRTC: kernels are those that {build} compiled before"));
                return Ok(Code { cubin, unkept: None });
            }
        };
        let name = file_name(&key, nvrtc.build()?);
        let file = self.cache.as_ref().map(|folder| folder.join(name));
        let _alone = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &file
            && let Ok(bytes) = fs::read(file)
        {
            match kept(bytes) {
                Some(cubin) => return Ok(Code { cubin, unkept: None }),
                None => tell(&format!("{} is damaged", file.display())),
            }
        }
        let path = nvrtc.path.display();
        tell(&format!("compiling kernels for this model with {path} {}", nvrtc.version));
        let cubin = nvrtc.compile(program, OPTIONS)?;
        let unkept = match file {
            None => Some(CompileError::NoFolder),
            Some(file) => keep(&file, &cubin)
                .err()
                .map(|error| CompileError::Unkept { file, reason: error.to_string() }),
        };
        Ok(Code { cubin, unkept })
    }

    /// The code in the folder by the newest compiler whose code the driver can load, and that
    /// compiler's build.
    fn kept_by_any(&self, key: &str, driver: Option<Version>) -> Option<(Build, Vec<u8>)> {
        let files = beside(self.cache.as_ref()?, key).into_iter().filter_map(|path| {
            let build = path.file_stem()?.to_str()?.strip_prefix(key)?.strip_prefix('-')?;
            Some((build.parse::<Build>().ok()?, path))
        });
        let mut files: Vec<_> =
            files.filter(|(build, _)| unfit(build.version, driver).is_none()).collect();
        files.sort();
        let read = |(build, path)| Some((build, kept(fs::read(path).ok()?)?));
        files.into_iter().rev().find_map(read)
    }
}

/// Machine code, and the reason if it could not be cached.
pub(crate) struct Code {
    pub(crate) cubin: Vec<u8>,
    pub(crate) unkept: Option<CompileError>,
}

/// Why a version cannot be used; `None` if it can.
fn unfit(version: Version, driver: Option<Version>) -> Option<String> {
    if version < MIN {
        return Some(format!("is of CUDA {version}, {MIN} is needed"));
    }
    // Within a major version any driver loads any code.
    let driver = driver.filter(|driver| driver.major < version.major)?;
    Some(format!("is of CUDA {version}, newer than the driver, which is for {driver}"))
}

/// Folders of NVIDIA's Python packages below a prefix.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for lib in [prefix.join("lib"), prefix.join(".local/lib"), prefix.to_owned()] {
        for python in beside(&lib, "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = python.join(packages).join("nvidia");
                folders
                    .extend(beside(&nvidia, "cu").into_iter().map(|package| package.join("lib")));
            }
        }
    }
    folders
}

/// The entries of a folder whose names begin with `start`, sorted by name.
fn beside(folder: impl AsRef<Path>, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// The cache key of a program: a hash of everything that affects the result but the compiler.
pub(crate) fn key(program: &Program) -> String {
    let mut hash = Context::new(&SHA256);
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    for option in OPTIONS {
        add(option);
    }
    add(&program.text);
    for (name, text) in &program.headers {
        add(name);
        add(text);
    }
    hash.finish().as_ref().iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// The name of the file with the code that a build of the compiler makes of a program.
fn file_name(key: &str, build: Build) -> String {
    format!("{key}-{build}.{CUBIN}")
}

/// The content of a cache file if its checksum is right: a driver may crash when it loads damaged
/// code.
fn kept(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let end = file.len().checked_sub(SHA256_OUTPUT_LEN)?;
    let (bytes, sum) = file.split_at(end);
    if digest(&SHA256, bytes).as_ref() != sum {
        return None;
    }
    file.truncate(end);
    Some(file)
}

/// Writes bytes and their checksum to a file that appears as a whole or not at all, also if another
/// process writes the same.
fn keep(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // A unique name: processes in two containers may have the same number.
    let open = |path: &Path| fs::File::create_new(path);
    let mut half = tempfile::Builder::new().suffix(".part").make_in(folder, open)?;
    half.write_all(bytes)?;
    half.write_all(digest(&SHA256, bytes).as_ref())?;
    half.as_file().sync_all()?;
    half.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use kilotok_testkit::Toy;

    use super::*;
    use crate::constants::{Constants, Launch};

    #[test]
    fn the_key_is_of_everything() {
        let program = || Program::new("constexpr int HIDDEN = 64;", false);
        let first = key(&program());
        assert_eq!(first, key(&program()));
        assert_eq!(first.len(), 64);
        let mut others = vec![
            key(&Program::new("constexpr int HIDDEN = 65;", false)),
            key(&Program::new("constexpr int HIDDEN = 64;", true)),
        ];
        let mut changed = program();
        changed.text.push('\n');
        others.push(key(&changed));
        // The same characters, divided differently.
        let mut changed = program();
        let (name, text) = changed.headers.last_mut().unwrap();
        let moved = text.remove(0);
        name.push(moved);
        others.push(key(&changed));
        assert!(others.iter().all(|other| *other != first));
    }

    #[test]
    fn builds_of_one_version_have_files_of_their_own() {
        let of = |patch| {
            let version = Version { major: 13, minor: 0 };
            file_name("key", Build { version, patch })
        };
        assert_eq!(of(88), "key-13.0.88.cubin");
        assert_ne!(of(88), of(97));
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels/a.cubin");
        keep(&file, b"\x7fELF and more").unwrap();
        let written = fs::read(&file).unwrap();
        assert_eq!(kept(written.clone()).unwrap(), b"\x7fELF and more");
        for length in 0..written.len() {
            assert_eq!(kept(written[..length].to_vec()), None, "cut after {length} bytes");
        }
        for place in 0..written.len() {
            let mut changed = written.clone();
            changed[place] ^= 1;
            assert_eq!(kept(changed), None, "another byte {place}");
        }
        let names: Vec<_> = beside(folder.path().join("kernels"), "");
        assert_eq!(names, std::slice::from_ref(&file), "no other file stays");
        // A file where the folder should be.
        assert!(keep(&file.join("b.cubin"), b"").is_err());
    }

    #[test]
    fn without_a_compiler_the_newest_loadable_code_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let toolchain = Toolchain { cache: Some(folder.path().to_owned()), prefixes: Vec::new() };
        let [key, other] = [64, 65]
            .map(|hidden| key(&Program::new(&format!("constexpr int HIDDEN = {hidden};"), false)));
        let driver = |major| Some(Version { major, minor: 0 });
        assert!(toolchain.kept_by_any(&key, driver(13)).is_none(), "the folder is empty");
        for build in ["12.9.86", "13.0.9", "13.0.88", "14.0.1", "11.8.89"] {
            let file = folder.path().join(format!("{key}-{build}.cubin"));
            keep(&file, build.as_bytes()).unwrap();
        }
        // None of these counts: code of another program, damaged code, and an unfinished file.
        keep(&folder.path().join(format!("{other}-13.9.9.cubin")), b"another").unwrap();
        fs::write(folder.path().join(format!("{key}-13.5.1.cubin")), "damaged").unwrap();
        fs::write(folder.path().join(format!("{key}.part")), "no code").unwrap();
        let newest = |driver| {
            let (build, code) = toolchain.kept_by_any(&key, driver).unwrap();
            assert_eq!(build.to_string().as_bytes(), code);
            build.to_string()
        };
        assert_eq!(newest(driver(13)), "13.0.88");
        assert_eq!(newest(driver(12)), "12.9.86");
        assert_eq!(newest(None), "14.0.1");
        assert!(toolchain.kept_by_any(&key, driver(11)).is_none());
    }

    #[test]
    fn libraries_are_found_where_users_have_them() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path();
        for file in [
            "lib64/libnvrtc.so.12",
            "lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        ] {
            let file = prefix.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "no library").unwrap();
        }
        let toolchain = Toolchain { cache: None, prefixes: vec![prefix.to_owned()] };
        let found = toolchain.files();
        assert_eq!(found.iter().filter(|file| file.starts_with(prefix)).count(), 3, "{found:?}");
    }

    /// Compiles the headers with NVRTC, which uses the crate's own standard headers.
    #[test]
    fn headers_compile_where_there_is_a_compiler() {
        let nvrtc = match Toolchain::default().nvrtc(None) {
            Ok(nvrtc) => nvrtc,
            Err(error) => return println!("skipped: {error}"),
        };
        let build = nvrtc.build().unwrap();
        assert_eq!(build.version, nvrtc.version, "{build}");
        let spec = Toy::pro_fp4().spec();
        let launch = Launch { ranks: 1, grid: 132, tokens_max: 64, page_tokens: 16 };
        let mut program = Program::new(&Constants::new(&spec, launch).unwrap().header(), false);
        program.text = "#include \"kilotok/layout/planned.cuh\"\n\
                        extern \"C\" __global__ void none(const kilotok::Memory m) {}\n"
            .to_owned();
        let cubin = nvrtc.compile(&program, OPTIONS).unwrap();
        assert!(cubin.starts_with(b"\x7fELF"), "{} bytes", cubin.len());
        // Code for stamps is in no other kernel.
        program.text = "#include \"kilotok/cta.cuh\"\n\
                        using namespace kilotok;\n\
                        extern \"C\" __global__ void stamped(const __grid_constant__ Memory m) {\n\
                        Cta(m, 0).stamp(Stamp::Begun);\n}\n"
            .to_owned();
        let without = nvrtc.compile(&program, OPTIONS).unwrap();
        program.text.insert_str(0, "#define KILOTOK_STAMPS\n");
        assert!(nvrtc.compile(&program, OPTIONS).unwrap().len() > without.len());
        program.text = "#error \"no\"\n".to_owned();
        let error = nvrtc.compile(&program, OPTIONS).unwrap_err().to_string();
        assert!(error.contains("kilotok.cu(1)"), "{error}");
    }

    #[test]
    fn versions_fit_the_driver() {
        const VERSION: Version = Version { major: 13, minor: 0 };
        let twelve = |minor| Version { major: 12, minor };
        assert!(unfit(twelve(4), None).unwrap().contains("12.8 is needed"));
        assert_eq!(unfit(twelve(9), Some(twelve(8))), None);
        assert_eq!(unfit(twelve(9), Some(VERSION)), None);
        assert!(unfit(VERSION, Some(twelve(9))).unwrap().contains("newer than the driver"));
    }
}
