//! The CUDA driver: devices, their memory and their kernels, by its own functions. They are looked
//! up when they are first called, so that a machine without a driver finds out here and not at
//! start. One of two files with `unsafe`; what it hands out is safe to use.

#![expect(unsafe_code, reason = "functions of a C library")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use cudarc::driver::sys;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::sys::CUfunction_attribute as FunctionAttribute;

use crate::nvrtc::Version;

/// The first driver with all that the kernels use.
pub const DRIVER_MIN: Version = Version { major: 12, minor: 8 };
/// What the kernels are written for: Hopper.
const CAPABILITY: (u32, u32) = (9, 0);

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
        "GPU {index} is a {name} of compute capability {major}.{minor}: the kernels are written \
         for 9.0 (H100, H200)"
    )]
    Capability { index: usize, name: String, major: u32, minor: u32 },
    #[error("{call}: {code}")]
    Call { call: &'static str, code: String },
}

type Result<T> = std::result::Result<T, DriverError>;

fn check(call: &'static str, code: sys::CUresult) -> Result<()> {
    match code {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(DriverError::Call { call, code: format!("{code:?}") }),
    }
}

/// Calls a function of the driver by its name, which is also that of its error.
macro_rules! call {
    ($name:ident ( $($argument:expr),* $(,)? )) => {
        check(stringify!($name), sys::$name($($argument),*))
    };
}

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub index: usize,
    pub name: String,
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    pub memory_bytes: u64,
}

impl Gpu {
    /// # Errors
    /// [`DriverError::Capability`] if the kernels are not written for it.
    pub fn check(&self) -> Result<()> {
        let (major, minor) = self.capability;
        if self.capability == CAPABILITY {
            return Ok(());
        }
        Err(DriverError::Capability { index: self.index, name: self.name.clone(), major, minor })
    }
}

/// A driver that is there and new enough.
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

    /// All GPUs, also those that the kernels are not written for.
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
        memory_bytes: memory as u64,
    })
}

/// A GPU in use: its context, and the one stream on which everything happens in order.
pub(crate) struct Device {
    index: usize,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: contexts and streams may be used from any thread; every call makes the context current
// on its own thread first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Device {}

impl Device {
    pub(crate) fn open(index: usize) -> Result<Arc<Self>> {
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: each writes a handle; the context is retained until it is released in `drop`.
        unsafe {
            call!(cuDevicePrimaryCtxRetain(&raw mut context, index as c_int))?;
            call!(cuCtxSetCurrent(context))?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            call!(cuStreamCreate(&raw mut stream, flags))?;
        }
        Ok(Arc::new(Self { index, context, stream }))
    }

    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as this.
        unsafe { call!(cuCtxSetCurrent(self.context)) }
    }

    /// Bytes free and in all.
    pub(crate) fn memory_bytes(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        unsafe { call!(cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
        Ok((free as u64, total as u64))
    }

    /// Waits for everything that was started. Kernels end: all their waits do.
    pub(crate) fn finish(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: takes nothing.
        unsafe { call!(cuCtxSynchronize()) }
    }

    /// Lets this GPU read and write the memory of another.
    pub(crate) fn enable_peer(&self, peer: &Self) -> Result<()> {
        self.enter()?;
        // SAFETY: both contexts are alive.
        match unsafe { sys::cuCtxEnablePeerAccess(peer.context, 0) } {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => check("cuCtxEnablePeerAccess", code),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.enter();
        // SAFETY: both were made in `open`, and everything made of them holds an `Arc` of this.
        unsafe {
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.index as c_int);
        }
    }
}

/// Memory of a GPU.
pub(crate) struct DeviceMemory {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// All zeros.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.enter()?;
        let mut address = 0;
        // SAFETY: writes an address. Memory comes from the device itself, not from a pool that
        // would keep what is freed.
        unsafe { call!(cuMemAlloc_v2(&raw mut address, bytes.max(1))) }?;
        let memory = Self { device: device.clone(), address, bytes };
        memory.clear(0..bytes)?;
        device.finish()?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Starts to fill a range with zeros.
    pub(crate) fn clear(&self, range: Range<usize>) -> Result<()> {
        let to = self.place(&range);
        self.device.enter()?;
        // SAFETY: the range lies within this memory.
        unsafe { call!(cuMemsetD8Async(to, 0, range.len(), self.device.stream)) }
    }

    /// Copies bytes to a place, and returns when they may be dropped. From any thread.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        let to = self.place(&(offset..offset + from.len()));
        self.device.enter()?;
        // SAFETY: the range lies within this memory; pageable memory is read before this returns.
        unsafe { call!(cuMemcpyHtoD_v2(to, from.as_ptr().cast(), from.len())) }
    }

    /// Starts to copy bytes of pinned memory to a place.
    pub(crate) fn send(&self, offset: usize, from: &Pinned, range: Range<usize>) -> Result<()> {
        assert!(range.end <= from.bytes, "what is sent is there");
        let to = self.place(&(offset..offset + range.len()));
        self.device.enter()?;
        // SAFETY: both ranges lie within their memory; whoever writes or drops the pinned memory
        // waits for the stream first.
        unsafe {
            let from = from.host.as_ptr().add(range.start).cast();
            call!(cuMemcpyHtoDAsync_v2(to, from, range.len(), self.device.stream))
        }
    }

    /// Starts to copy bytes from a place to the beginning of pinned memory.
    pub(crate) fn fetch(&self, range: Range<usize>, to: &mut Pinned) -> Result<()> {
        assert!(range.len() <= to.bytes, "there is room for what is fetched");
        let from = self.place(&range);
        self.device.enter()?;
        // SAFETY: both ranges lie within their memory; the pinned memory is borrowed alone, and
        // whoever reads, writes or drops it waits for the stream first.
        unsafe {
            let to = to.host.as_ptr().cast();
            call!(cuMemcpyDtoHAsync_v2(to, from, range.len(), self.device.stream))
        }
    }

    fn place(&self, range: &Range<usize>) -> u64 {
        assert!(range.start <= range.end && range.end <= self.bytes, "a range of this memory");
        self.address + range.start as u64
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.device.finish();
        // SAFETY: allocated in `new`, and nothing that was started uses it any more.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// Memory of the host that GPUs read and write at its address of theirs.
pub(crate) struct Pinned {
    /// Those that copy or run with it.
    devices: Vec<Arc<Device>>,
    host: NonNull<u8>,
    bytes: usize,
    address: u64,
}

// SAFETY: it is plain memory, owned by this.
unsafe impl Send for Pinned {}

impl Pinned {
    /// All zeros, at the same address for all these devices.
    pub(crate) fn new(devices: &[Arc<Device>], bytes: usize) -> Result<Self> {
        devices[0].enter()?;
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        let (mut host, mut address) = (ptr::null_mut(), 0);
        // SAFETY: each writes an address; the memory is so many bytes, and all are set.
        unsafe {
            call!(cuMemHostAlloc(&raw mut host, bytes.max(1), flags))?;
            ptr::write_bytes(host.cast::<u8>(), 0, bytes.max(1));
            call!(cuMemHostGetDevicePointer_v2(&raw mut address, host, 0))?;
        }
        let host = NonNull::new(host.cast()).expect("memory has an address");
        Ok(Self { devices: devices.to_vec(), host, bytes, address })
    }

    /// Other memory for the same devices.
    pub(crate) fn like(&self, bytes: usize) -> Result<Self> {
        Self::new(&self.devices, bytes)
    }

    /// Its address for GPUs.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn finish(&self) -> Result<()> {
        self.devices.iter().try_for_each(|device| device.finish())
    }

    /// What is in it when everything that was started is done.
    pub(crate) fn read(&self) -> Result<&[u8]> {
        self.finish()?;
        // SAFETY: this owns so many bytes, all of them set, and nobody writes them now: what
        // starts to takes this by `&mut`, or is a kernel, which only ever writes a `Fault`.
        Ok(unsafe { std::slice::from_raw_parts(self.host.as_ptr(), self.bytes) })
    }

    /// To be filled, when everything that was started is done with it.
    pub(crate) fn write(&mut self) -> Result<&mut [u8]> {
        self.finish()?;
        // SAFETY: as in `read`, and this is borrowed alone.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.host.as_ptr(), self.bytes) })
    }

    /// What is in it now, whatever runs or has failed.
    pub(crate) fn peek<const BYTES: usize>(&self) -> [u8; BYTES] {
        assert!(BYTES <= self.bytes, "so many bytes are there");
        // SAFETY: within this memory; volatile, since a GPU may write at the same time.
        std::array::from_fn(|i| unsafe { self.host.as_ptr().add(i).read_volatile() })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.finish();
        // SAFETY: allocated in `new`, and nothing that was started uses it any more.
        let _ = unsafe { sys::cuMemFreeHost(self.host.as_ptr().cast()) };
    }
}

/// A moment in what a GPU does.
pub(crate) struct Event {
    device: Arc<Device>,
    handle: sys::CUevent,
}

// SAFETY: a handle that any thread may use when the context is current.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self> {
        device.enter()?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes a handle.
        unsafe {
            call!(cuEventCreate(&raw mut handle, sys::CUevent_flags::CU_EVENT_DEFAULT as u32))
        }?;
        Ok(Self { device: device.clone(), handle })
    }

    /// Is when everything that was started before is done.
    pub(crate) fn record(&self) -> Result<()> {
        self.device.enter()?;
        // SAFETY: event and stream are of one context.
        unsafe { call!(cuEventRecord(self.handle, self.device.stream)) }
    }

    /// Milliseconds from an earlier one; both have come.
    pub(crate) fn since(&self, earlier: &Self) -> Result<f32> {
        self.device.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: writes a number.
        unsafe {
            call!(cuEventElapsedTime_v2(&raw mut milliseconds, earlier.handle, self.handle))?;
        }
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: made in `new`.
        let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
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
        unsafe { call!(cuModuleLoadData(&raw mut handle, cubin.as_ptr().cast())) }?;
        Ok(Self { device: device.clone(), handle })
    }

    /// A constant of the kernels, by its C name.
    pub(crate) fn constant(&self, name: &str) -> Result<u32> {
        self.device.enter()?;
        let name = CString::new(name).expect("names have no zero bytes");
        let (mut address, mut bytes, mut value) = (0, 0, 0_u32);
        // SAFETY: writes an address and a size; then as many bytes as the number has are read.
        unsafe {
            call!(cuModuleGetGlobal_v2(
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

    /// A kernel that takes one struct, and so much shared memory for each CTA.
    pub(crate) fn kernel(&self, name: &str, shared_bytes: u32) -> Result<Kernel> {
        self.device.enter()?;
        let name = CString::new(name).expect("names have no zero bytes");
        let mut function = ptr::null_mut();
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: writes a handle, then sets a number of what it names.
        unsafe {
            call!(cuModuleGetFunction(&raw mut function, self.handle, name.as_ptr()))?;
            call!(cuFuncSetAttribute(function, attribute, shared_bytes as c_int))?;
        }
        Ok(Kernel { device: self.device.clone(), function, shared_bytes })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.device.finish();
        // SAFETY: loaded in `load`; its kernels are done.
        let _ = unsafe { sys::cuModuleUnload(self.handle) };
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

impl Kernel {
    /// Starts it on so many CTAs, all of them at once, so that they can wait for each other.
    ///
    /// # Safety
    /// The kernel takes a `T`, and every address in it is that of memory which holds what the
    /// kernel reads there and has room for what it writes, until the stream is finished.
    pub(crate) unsafe fn launch<T: bytemuck::Pod>(
        &self,
        grid: u32,
        threads: u32,
        argument: &T,
    ) -> Result<()> {
        self.device.enter()?;
        let mut arguments = [ptr::from_ref(argument).cast::<c_void>().cast_mut()];
        // SAFETY: the argument is copied before this returns; the rest is the caller's promise.
        unsafe {
            call!(cuLaunchCooperativeKernel(
                self.function,
                grid,
                1,
                1,
                threads,
                1,
                1,
                self.shared_bytes,
                self.device.stream,
                arguments.as_mut_ptr(),
            ))
        }
    }
}
