//! NVRTC, the compiler in form of a library: its functions, looked up in the file that the user
//! has. Calls a C library, which is `unsafe`.

#![expect(unsafe_code, reason = "functions of a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::{Library, Symbol};

use crate::sources::Program;

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A build of the compiler. The library names its version only, and builds of one version can make
/// other code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Build {
    pub(crate) version: Version,
    pub(crate) patch: u32,
}

impl std::fmt::Display for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.version, self.patch)
    }
}

impl std::str::FromStr for Build {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        match parts.as_deref() {
            Ok(&[major, minor, patch]) => Ok(Self { version: Version { major, minor }, patch }),
            _ => Err(()),
        }
    }
}

/// Why a program was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error(
        "NVRTC was not found ({0}): install cuda-nvrtc of CUDA {min} or newer, but of no newer \
         major version than the driver's",
        min = MIN
    )]
    Missing(String),
    #[error("{path} cannot be used: {reason}")]
    Library { path: PathBuf, reason: String },
    #[error("{call} of NVRTC {version} failed: {code}\n{log}")]
    Call { call: &'static str, version: Version, code: String, log: String },
    #[error("compiled kernels cannot be kept in {file}: {reason}")]
    Unkept { file: PathBuf, reason: String },
    #[error("there is no folder to keep compiled kernels in: set XDG_CACHE_HOME or HOME")]
    NoFolder,
}

/// The first version with all features that the kernels use.
pub(crate) const MIN: Version = Version { major: 12, minor: 8 };

/// The options for an empty program, whose PTX names the compiler's build.
const PTX_OPTIONS: &[&str] = &["--gpu-architecture=compute_90a"];

type Handle = *mut c_void;

/// An opened library.
pub(crate) struct Nvrtc {
    library: Library,
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
}

impl Nvrtc {
    /// Opens a file, or a name that the system's loader resolves.
    pub(crate) fn open(path: &Path) -> Result<Self, CompileError> {
        let fail = |error: libloading::Error| CompileError::Library {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        // SAFETY: the library's initialisers are NVIDIA's and require nothing of their caller.
        let library = unsafe { Library::new(path) }.map_err(fail)?;
        let (mut major, mut minor) = (0, 0);
        {
            type VersionOf = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
            // SAFETY: this is the function's type in nvrtc.h.
            let version: Symbol<'_, VersionOf> =
                unsafe { library.get(b"nvrtcVersion\0") }.map_err(fail)?;
            // SAFETY: both point to numbers that it writes.
            unsafe { version(&raw mut major, &raw mut minor) };
        }
        let version = Version { major: major as u32, minor: minor as u32 };
        Ok(Self { library, path: path.to_owned(), version })
    }

    /// Compiles to machine code.
    pub(crate) fn compile(
        &self,
        program: &Program,
        options: &[&str],
    ) -> Result<Vec<u8>, CompileError> {
        self.compile_to(program, options, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")
    }

    /// The build, which the compiler writes at the head of PTX as `V13.0.88`.
    pub(crate) fn build(&self) -> Result<Build, CompileError> {
        let empty = Program { text: String::new(), headers: Vec::new() };
        let ptx = self.compile_to(&empty, PTX_OPTIONS, c"nvrtcGetPTXSize", c"nvrtcGetPTX")?;
        let head = String::from_utf8_lossy(&ptx);
        let build = head.split_whitespace().find_map(|word| word.strip_prefix('V')?.parse().ok());
        build.ok_or_else(|| CompileError::Library {
            path: self.path.clone(),
            reason: "its PTX does not say which build it is".to_owned(),
        })
    }

    /// Compiles to the output that these two functions get.
    fn compile_to(
        &self,
        program: &Program,
        options: &[&str],
        size: &CStr,
        get: &CStr,
    ) -> Result<Vec<u8>, CompileError> {
        type Destroy = unsafe extern "C" fn(*mut Handle) -> c_int;
        let texts = Texts::new(program, options);
        let mut handle = self.create(&texts)?;
        let compiled =
            self.compile_created(handle, &texts).and_then(|()| self.output(handle, size, get));
        // SAFETY: the type is that of nvrtc.h; the handle was created and is not used again.
        let destroyed =
            unsafe { self.function::<Destroy>(c"nvrtcDestroyProgram")?(&raw mut handle) };
        let compiled = compiled?;
        self.check("nvrtcDestroyProgram", destroyed, String::new)?;
        Ok(compiled)
    }

    fn create(&self, texts: &Texts) -> Result<Handle, CompileError> {
        type Create = unsafe extern "C" fn(
            *mut Handle,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let (names, headers) = (pointers(&texts.names), pointers(&texts.headers));
        let mut handle = ptr::null_mut();
        // SAFETY: the type is that of nvrtc.h; all strings end with a zero, both lists have the
        // length that is given, and everything outlives the call, which copies it.
        let code = unsafe {
            self.function::<Create>(c"nvrtcCreateProgram")?(
                &raw mut handle,
                texts.program.as_ptr(),
                c"kilotok.cu".as_ptr(),
                names.len() as c_int,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code, String::new)?;
        Ok(handle)
    }

    fn compile_created(&self, handle: Handle, texts: &Texts) -> Result<(), CompileError> {
        type Compile = unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int;
        let options = pointers(&texts.options);
        // SAFETY: the type is that of nvrtc.h; the handle is alive, the options' number is given.
        let code = unsafe {
            let compile = self.function::<Compile>(c"nvrtcCompileProgram")?;
            compile(handle, options.len() as c_int, options.as_ptr())
        };
        let log = || {
            let log = self.output(handle, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog");
            let log = log.unwrap_or_default();
            String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned()
        };
        self.check("nvrtcCompileProgram", code, log)
    }

    /// The output of a pair of functions: the number of bytes, and the bytes.
    fn output(&self, handle: Handle, size: &CStr, get: &CStr) -> Result<Vec<u8>, CompileError> {
        type Size = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;
        let mut bytes = 0;
        // SAFETY: the type is that of nvrtc.h; the handle is alive, the number is written.
        let code = unsafe { self.function::<Size>(size)?(handle, &raw mut bytes) };
        self.check("asking for an output's size", code, String::new)?;
        let mut output = vec![0_u8; bytes];
        // SAFETY: the type is that of nvrtc.h; the output has the requested size.
        let code = unsafe { self.function::<Get>(get)?(handle, output.as_mut_ptr().cast()) };
        self.check("asking for an output", code, String::new)?;
        Ok(output)
    }

    /// # Safety
    /// `F` is the type of the function of that name.
    unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, CompileError> {
        // SAFETY: the caller knows the type; the function is used while the library is open.
        let symbol = unsafe { self.library.get::<F>(name.to_bytes_with_nul()) };
        symbol.map(|symbol| *symbol).map_err(|error| CompileError::Library {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    fn check(
        &self,
        call: &'static str,
        code: c_int,
        log: impl FnOnce() -> String,
    ) -> Result<(), CompileError> {
        type Text = unsafe extern "C" fn(c_int) -> *const c_char;
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the type is that of nvrtc.h; the text is a constant of the library.
        let text = unsafe {
            CStr::from_ptr(self.function::<Text>(c"nvrtcGetErrorString")?(code)).to_string_lossy()
        };
        Err(CompileError::Call { call, version: self.version, code: text.into_owned(), log: log() })
    }
}

/// The strings of a program in C's form.
struct Texts {
    program: CString,
    names: Vec<CString>,
    headers: Vec<CString>,
    options: Vec<CString>,
}

impl Texts {
    fn new(program: &Program, options: &[&str]) -> Self {
        let text = |text: &str| CString::new(text).expect("sources have no zero bytes");
        Self {
            program: text(&program.text),
            names: program.headers.iter().map(|(name, _)| text(name)).collect(),
            headers: program.headers.iter().map(|(_, source)| text(source)).collect(),
            options: options.iter().map(|option| text(option)).collect(),
        }
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}
