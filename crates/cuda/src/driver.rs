//! The CUDA driver: devices, their memory and their kernels. Its functions are looked up at their
//! first call, so that a machine without a driver reports it here and not at program start.
//! Everything that this module returns is safe to use, except the launch of a kernel.
//!
//! A stream may wait for the host (`doorbell`). Functions that may themselves wait for a stream are
//! called only while no stream does.

#![expect(unsafe_code, reason = "functions of a C library")]

pub(crate) mod doorbell;
mod memory;

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::sys::CUfunction_attribute as FunctionAttribute;
use cudarc::driver::sys::CUlaunchAttributeID as LaunchAttribute;

use crate::nvrtc::Version;

pub(crate) use memory::{DeviceMemory, Pinned};

/// The first driver version with all features that the kernels use.
pub const DRIVER_MIN: Version = Version { major: 12, minor: 8 };
/// The compute capability that the kernels are written for: Hopper.
const CAPABILITY: (u32, u32) = (9, 0);

/// With this variable set, the driver returns from a launch only at its end.
const LAUNCH_BLOCKING: &str = "CUDA_LAUNCH_BLOCKING";

/// How long a stream may take to finish. Besides steps it loads weights.
const STREAM_MAX: Duration = Duration::from_mins(2);
/// The clock at which the kernels' time limits are exact; they are longer where it is slower
/// (`kernels/include/kilotok/comm/wait.cuh`).
const CLOCK_KHZ: f64 = 2_000_896.0;
/// The interval at which a stream is polled.
const PAUSE: Duration = Duration::from_micros(50);

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    #[error("there is no CUDA driver (libcuda.so)")]
    Missing,
    #[error("the GPU driver is for CUDA {found}, and {min} is needed: update it", min = DRIVER_MIN)]
    TooOld { found: Version },
    #[error("the driver sees no GPU")]
    NoDevice,
    #[error(
        "{LAUNCH_BLOCKING} is set: every launch would wait for its end, and what is launched waits \
         for other GPUs and for the host; unset it"
    )]
    Blocking,
    #[error(
        "GPU {index} is a {name} of compute capability {major}.{minor}: the kernels are written \
         for 9.0 (H100, H200)"
    )]
    Capability { index: usize, name: String, major: u32, minor: u32 },
    #[error(
        "GPU {index} is shared by MPS: a step needs all multiprocessors at once, and two programs \
         would wait for those that the other holds; stop the daemon (`echo quit | \
         nvidia-cuda-mps-control`), or unset CUDA_MPS_PIPE_DIRECTORY"
    )]
    Mps { index: usize },
    #[error(
        "the driver of GPU {index} has no stream memory operations, by which steps are started \
         ({code}): update it, or allow them"
    )]
    NoDoorbell { index: usize, code: String },
    #[error(
        "the {grid} CTAs of a kernel do not have multiprocessors 0 to {} of GPU {index}, by which \
         kernels go: use whole GPUs of one kind (no MIG, no limit of MPS)",
        grid - 1
    )]
    Numbers { index: usize, grid: u32 },
    #[error(
        "GPU {index} does not give {bytes} bytes of memory ({code}): see with nvidia-smi who else \
         has taken of it"
    )]
    NoMemory { index: usize, bytes: usize, code: String },
    #[error(
        "GPU {from} cannot reach the memory of GPU {to} ({code}), and ranks write to each other's: \
         see `nvidia-smi topo -p2p w`, and choose others with CUDA_VISIBLE_DEVICES"
    )]
    NoPeer { from: usize, to: usize, code: String },
    #[error("what was started does not come to its end")]
    Unfinished,
    #[error("{}{call}: {code}", gpu.map(|index| format!("GPU {index}: ")).unwrap_or_default())]
    Call { gpu: Option<usize>, call: &'static str, code: String },
}

type Result<T> = std::result::Result<T, DriverError>;

fn check(call: &'static str, code: sys::CUresult) -> Result<()> {
    match code {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(DriverError::Call { gpu: current_gpu(), call, code: format!("{code:?}") }),
    }
}

/// The GPU whose context is current on this thread, if there is one.
fn current_gpu() -> Option<usize> {
    let mut device = 0;
    // SAFETY: writes a number.
    let code = unsafe { sys::cuCtxGetDevice(&raw mut device) };
    (code == sys::CUresult::CUDA_SUCCESS).then_some(device as usize)
}

/// Calls a driver function by its name, which is also named in the error.
macro_rules! call {
    ($name:ident ( $($argument:expr),* $(,)? )) => {
        check(stringify!($name), sys::$name($($argument),*))
    };
}

/// The same for a function that may wait for streams: meanwhile no stream waits for its doorbell.
macro_rules! quiet_call {
    ($name:ident ( $($argument:expr),* $(,)? )) => {{
        let _nothing_pending = $crate::driver::doorbell::dismiss_pending();
        call!($name($($argument),*))
    }};
}
use {call, quiet_call};

/// The time, for the limits of waits.
#[expect(clippy::disallowed_methods, reason = "a wait for a GPU has a bound in seconds")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The properties of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub index: usize,
    pub name: String,
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    pub clock_khz: u32,
    pub memory_bytes: u64,
    /// Whether other programs' kernels run beside this one's, by NVIDIA's Multi-Process Service.
    pub mps: bool,
}

impl Gpu {
    /// Scales a time of the GPU with the fastest clock to this GPU's clock.
    pub(crate) fn at_its_clock(&self, time: Duration) -> Duration {
        // If the driver does not know the clock, the fastest is assumed.
        let clock_khz = if self.clock_khz == 0 { CLOCK_KHZ } else { f64::from(self.clock_khz) };
        time.mul_f64((CLOCK_KHZ / clock_khz).max(1.0))
    }

    /// # Errors
    /// [`DriverError::Capability`] if the kernels are not written for it, [`DriverError::Mps`] if
    /// it is shared.
    pub fn check(&self) -> Result<()> {
        let (index, (major, minor)) = (self.index, self.capability);
        if self.capability != CAPABILITY {
            let name = self.name.clone();
            return Err(DriverError::Capability { index, name, major, minor });
        }
        if self.mps { Err(DriverError::Mps { index }) } else { Ok(()) }
    }
}

/// A driver that exists and is new enough.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    pub version: Version,
}

impl Driver {
    pub fn open() -> Result<Self> {
        // SAFETY: looks for the library and calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(DriverError::Missing);
        }
        if launches_wait() {
            return Err(DriverError::Blocking);
        }
        // SAFETY: takes a number.
        unsafe { call!(cuInit(0)) }.map_err(|error| match error {
            DriverError::Call { ref code, .. } if code == "CUDA_ERROR_NO_DEVICE" => {
                DriverError::NoDevice
            }
            other => other,
        })?;
        let mut number = 0;
        // SAFETY: writes a number.
        unsafe { call!(cuDriverGetVersion(&raw mut number)) }?;
        let number = number as u32;
        let version = Version { major: number / 1000, minor: number % 1000 / 10 };
        if version < DRIVER_MIN {
            return Err(DriverError::TooOld { found: version });
        }
        Ok(Self { version })
    }

    /// All GPUs, including those that the kernels are not written for.
    pub fn gpus(self) -> Result<Vec<Gpu>> {
        let mut count = 0;
        // SAFETY: writes a number.
        unsafe { call!(cuDeviceGetCount(&raw mut count)) }?;
        if count <= 0 {
            return Err(DriverError::NoDevice);
        }
        (0..count).map(gpu).collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "a setting of the driver, not one of ours")]
fn launches_wait() -> bool {
    std::env::var_os(LAUNCH_BLOCKING).is_some_and(|value| !value.is_empty() && value != "0")
}

fn gpu(index: c_int) -> Result<Gpu> {
    let mut device = 0;
    let mut name = [0; 256];
    let mut memory = 0;
    // SAFETY: each writes one number, the second a string of at most the given length.
    unsafe {
        call!(cuDeviceGet(&raw mut device, index))?;
        call!(cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device))?;
        call!(cuDeviceTotalMem_v2(&raw mut memory, device))?;
    }
    let number = |attribute| {
        let mut value = 0;
        // SAFETY: writes a number.
        unsafe { call!(cuDeviceGetAttribute(&raw mut value, attribute, device)) }?;
        Ok(value as u32)
    };
    // SAFETY: the driver ended the name with a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(Gpu {
        index: index as usize,
        name: name.to_string_lossy().into_owned(),
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        clock_khz: number(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_bytes: memory as u64,
        // Drivers before CUDA 12 do not know the question.
        mps: number(Attribute::CU_DEVICE_ATTRIBUTE_MPS_ENABLED).is_ok_and(|enabled| enabled != 0),
    })
}

/// A GPU in use: its context, and its one stream, on which everything happens in order.
#[derive(Debug)]
pub(crate) struct Device {
    index: usize,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Whether the stream waits for something that will not happen. Memory that it uses is never
    /// freed.
    stuck: AtomicBool,
}

// SAFETY: contexts and streams may be used from any thread; every call makes the context current
// on its own thread first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver does its own locking.
unsafe impl Sync for Device {}

impl Device {
    /// Opens all these GPUs in parallel: creating a context takes long.
    pub(crate) fn open_all(gpus: &[Gpu]) -> Result<Vec<Arc<Self>>> {
        let quiet = doorbell::dismiss_pending();
        let opened: Vec<Result<_>> = thread::scope(|scope| {
            let open = |gpu: &Gpu| {
                let index = gpu.index;
                scope.spawn(move || Self::open(index))
            };
            let opening: Vec<_> = gpus.iter().map(open).collect();
            let opened = |thread: ScopedJoinHandle<'_, _>| {
                thread.join().expect("to open a GPU does not panic")
            };
            opening.into_iter().map(opened).collect()
        });
        // If one failed, the others are closed, which also needs the guard of `quiet_call`.
        drop(quiet);
        opened.into_iter().collect()
    }

    /// Called under the guard of `quiet_call`, because driver functions in it may wait for streams.
    fn open(index: usize) -> Result<Arc<Self>> {
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        let here = |error| match error {
            DriverError::Call { call, code, .. } => {
                DriverError::Call { gpu: Some(index), call, code }
            }
            other => other,
        };
        // SAFETY: each writes a handle; the context is retained until it is released in `drop`, or
        // here, where it is of no use.
        unsafe {
            call!(cuDevicePrimaryCtxRetain(&raw mut context, index as c_int)).map_err(here)?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            let made = call!(cuCtxSetCurrent(context))
                .and_then(|()| call!(cuStreamCreate(&raw mut stream, flags)));
            if let Err(error) = made {
                // `open_all` holds the guard.
                let _ = call!(cuDevicePrimaryCtxRelease_v2(index as c_int));
                return Err(error);
            }
        }
        Ok(Arc::new(Self { index, context, stream, stuck: AtomicBool::new(false) }))
    }

    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as this.
        unsafe { call!(cuCtxSetCurrent(self.context)) }
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Free and total bytes.
    pub(crate) fn memory_bytes(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        unsafe { call!(cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
        Ok((free as u64, total as u64))
    }

    /// Waits for everything that was started. A chain that waits for its doorbell is dismissed.
    pub(crate) fn finish(&self) -> Result<()> {
        drop(doorbell::dismiss_pending());
        let start = now();
        while !self.stuck.load(Ordering::Relaxed) {
            if self.is_idle()? {
                return Ok(());
            }
            if start.elapsed() > STREAM_MAX {
                self.abandon();
            }
            thread::sleep(PAUSE);
        }
        Err(DriverError::Unfinished)
    }

    /// Whether everything that was started is complete.
    ///
    /// # Errors
    /// The error of the GPU, or of another one whose memory it can access.
    pub(crate) fn is_idle(&self) -> Result<bool> {
        self.enter()?;
        // Synchronous copies are on the context's own stream.
        for stream in [self.stream, ptr::null_mut()] {
            // SAFETY: the stream lives as long as this.
            match unsafe { sys::cuStreamQuery(stream) } {
                sys::CUresult::CUDA_ERROR_NOT_READY => return Ok(false),
                code => check("cuStreamQuery", code)?,
            }
        }
        Ok(true)
    }

    /// Stops waiting for the stream, for good.
    pub(crate) fn abandon(&self) {
        self.stuck.store(true, Ordering::Relaxed);
    }

    /// Whether memory that the stream used may be freed: the stream is complete or has failed. If
    /// another GPU caused the failure the driver frees nothing.
    fn is_done(&self) -> bool {
        self.finish() != Err(DriverError::Unfinished) && self.enter().is_ok()
    }

    /// Makes the stream wait until a word of the host's memory has reached a value.
    fn wait_word(&self, memory: &Pinned, index: usize, value: u32) -> Result<()> {
        let address = memory.word_address(index);
        self.enter()?;
        let flags = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // SAFETY: reads a word of that memory, which is dropped when the stream is finished.
        let code = unsafe { sys::cuStreamWaitValue32_v2(self.stream, address, value, flags) };
        match code {
            sys::CUresult::CUDA_ERROR_NOT_SUPPORTED => {
                Err(DriverError::NoDoorbell { index: self.index, code: format!("{code:?}") })
            }
            code => check("cuStreamWaitValue32", code),
        }
    }

    /// Makes the stream write a word of the host's memory when all work before it is complete and
    /// visible.
    fn write_word(&self, memory: &Pinned, index: usize, value: u32) -> Result<()> {
        let address = memory.word_address(index);
        self.enter()?;
        let flags = sys::CUstreamWriteValue_flags::CU_STREAM_WRITE_VALUE_DEFAULT as u32;
        // SAFETY: writes a word of that memory, which the host only reads as an atomic, and which
        // is dropped when the stream is finished.
        unsafe { call!(cuStreamWriteValue32_v2(self.stream, address, value, flags)) }
    }

    /// Lets this GPU read and write the memory of another.
    pub(crate) fn enable_peer(&self, peer: &Self) -> Result<()> {
        self.enter()?;
        let _nothing_pending = doorbell::dismiss_pending();
        // SAFETY: both contexts are alive.
        match unsafe { sys::cuCtxEnablePeerAccess(peer.context, 0) } {
            sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {
                Ok(())
            }
            code => {
                let code = format!("{code:?}");
                Err(DriverError::NoPeer { from: self.index, to: peer.index, code })
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.is_done() {
            return;
        }
        // SAFETY: both were made in `open`, and everything made of them holds an `Arc` of this.
        unsafe {
            let _ = quiet_call!(cuStreamDestroy_v2(self.stream));
            let _ = quiet_call!(cuDevicePrimaryCtxRelease_v2(self.index as c_int));
        }
    }
}

/// Machine code on a GPU.
pub(crate) struct Module {
    device: Arc<Device>,
    handle: sys::CUmodule,
}

// SAFETY: a handle that any thread may use when the context is current.
unsafe impl Send for Module {}

impl Module {
    pub(crate) fn load(device: &Arc<Device>, cubin: &[u8]) -> Result<Self> {
        device.enter()?;
        let mut handle = ptr::null_mut();
        // SAFETY: a cubin says its own length, and is not kept.
        unsafe { quiet_call!(cuModuleLoadData(&raw mut handle, cubin.as_ptr().cast())) }?;
        Ok(Self { device: device.clone(), handle })
    }

    /// A constant of the kernels, by its C name.
    pub(crate) fn constant(&self, name: &str) -> Result<u32> {
        self.device.enter()?;
        let name = CString::new(name).expect("names have no zero bytes");
        let (mut address, mut bytes, mut value) = (0, 0, 0_u32);
        // SAFETY: writes an address and a size; then as many bytes as the number has are read.
        unsafe {
            quiet_call!(cuModuleGetGlobal_v2(
                &raw mut address,
                &raw mut bytes,
                self.handle,
                name.as_ptr()
            ))?;
            assert_eq!(bytes, size_of::<u32>(), "constants of kernels are words");
            call!(cuMemcpyDtoH_v2((&raw mut value).cast(), address, bytes))?;
        }
        Ok(value)
    }

    /// A kernel that takes one struct, with `shared_bytes` of shared memory for each CTA.
    pub(crate) fn kernel(&self, name: &str, shared_bytes: u32) -> Result<Kernel> {
        self.device.enter()?;
        let name = CString::new(name).expect("names have no zero bytes");
        let mut function = ptr::null_mut();
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: writes a handle, then sets a number of what it names.
        unsafe {
            quiet_call!(cuModuleGetFunction(&raw mut function, self.handle, name.as_ptr()))?;
            quiet_call!(cuFuncSetAttribute(function, attribute, shared_bytes as c_int))?;
        }
        Ok(Kernel { device: self.device.clone(), function, shared_bytes })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.device.is_done() {
            // SAFETY: loaded in `load`; its kernels are done.
            let _ = unsafe { quiet_call!(cuModuleUnload(self.handle)) };
        }
    }
}

/// A kernel; its module must outlive it.
pub(crate) struct Kernel {
    device: Arc<Device>,
    function: sys::CUfunction,
    shared_bytes: u32,
}

// SAFETY: a handle that any thread may use when the context is current.
unsafe impl Send for Kernel {}

/// When the CTAs of a launch begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the same time, so that they can wait for each other; after the launch before.
    Together,
    /// Where CTAs of the launch before have ended, if that allows it: the kernel itself waits for
    /// the others (programmatic dependent launch).
    Early,
}

impl Start {
    fn attribute(self) -> sys::CUlaunchAttribute {
        let (id, value) = match self {
            Self::Together => (
                LaunchAttribute::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                sys::CUlaunchAttributeValue { cooperative: 1 },
            ),
            Self::Early => (
                LaunchAttribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ),
        };
        sys::CUlaunchAttribute { id, pad: [0; 4], value }
    }
}

impl Kernel {
    /// Launches it on `grid` CTAs.
    ///
    /// # Safety
    /// The kernel takes a `T`. Every address in it must be that of memory that holds what the
    /// kernel reads there and has room for what it writes, until the stream is finished. One that
    /// starts early waits for the launch before, before it reads or writes anything.
    pub(crate) unsafe fn launch<T: bytemuck::Pod>(
        &self,
        start: Start,
        (grid, threads): (u32, u32),
        argument: &T,
    ) -> Result<()> {
        self.device.enter()?;
        let mut arguments = [ptr::from_ref(argument).cast::<c_void>().cast_mut()];
        let mut attribute = start.attribute();
        let config = sys::CUlaunchConfig {
            gridDimX: grid,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: self.device.stream,
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // SAFETY: argument and attribute are copied before this returns; the rest is the caller's
        // promise.
        unsafe {
            call!(cuLaunchKernelEx(
                &raw const config,
                self.function,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use kilotok_testkit::process::alone;

    use super::*;

    #[test]
    #[ignore = "asks for a variable of its process, see below"]
    fn with_launches_that_wait() {
        let error = Driver::open().unwrap_err();
        assert!(matches!(error, DriverError::Blocking | DriverError::Missing), "{error}");
    }

    #[test]
    fn launches_that_wait_for_their_end_are_refused() {
        let mut process = alone("driver::tests::with_launches_that_wait");
        assert!(process.env(LAUNCH_BLOCKING, "1").status().unwrap().success());
    }
}
