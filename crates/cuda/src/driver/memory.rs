//! Memory of GPUs, and pinned memory of the host that they access.

use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use cudarc::driver::sys;

use super::{Device, DriverError, Result, call, check, quiet_call};

/// Memory of a GPU.
pub(crate) struct DeviceMemory {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates memory of zeros.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.enter()?;
        let mut address = 0;
        // SAFETY: writes an address. Memory comes from the device itself, not from a pool that
        // would keep what is freed.
        let taken = unsafe { quiet_call!(cuMemAlloc_v2(&raw mut address, bytes.max(1))) };
        taken.map_err(|error| match error {
            DriverError::Call { code, .. } => {
                DriverError::NoMemory { index: device.index(), bytes, code }
            }
            other => other,
        })?;
        let memory = Self { device: device.clone(), address, bytes };
        memory.clear(0..bytes)?;
        device.finish()?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Begins to fill a range with zeros.
    pub(crate) fn clear(&self, range: Range<usize>) -> Result<()> {
        let to = self.place(&range);
        self.device.enter()?;
        // SAFETY: the range lies within this memory.
        unsafe { call!(cuMemsetD8Async(to, 0, range.len(), self.device.stream)) }
    }

    /// Copies bytes to an offset, and returns when they may be dropped. May be called from any
    /// thread.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        let to = self.place(&(offset..offset + from.len()));
        self.device.enter()?;
        // SAFETY: the range lies within this memory; pageable memory is read before this returns.
        unsafe { call!(cuMemcpyHtoD_v2(to, from.as_ptr().cast(), from.len())) }
    }

    /// Begins to copy bytes of pinned memory to an offset.
    pub(crate) fn send(&self, offset: usize, from: &Pinned, range: Range<usize>) -> Result<()> {
        assert!(range.end <= from.bytes, "what is sent is there");
        let to = self.place(&(offset..offset + range.len()));
        self.device.enter()?;
        // SAFETY: both ranges lie within their memory; the pinned memory is dropped when the stream
        // is finished. A write at the same time only determines which of the bytes arrive.
        unsafe {
            let from = from.host.as_ptr().add(range.start).cast();
            call!(cuMemcpyHtoDAsync_v2(to, from, range.len(), self.device.stream))
        }
    }

    /// Begins to copy a range to the beginning of pinned memory.
    pub(crate) fn fetch(&self, range: Range<usize>, to: &Pinned) -> Result<()> {
        assert!(range.len() <= to.bytes, "there is room for what is fetched");
        let from = self.place(&range);
        self.device.enter()?;
        // SAFETY: both ranges lie within their memory; the host reads the pinned memory only in
        // `peek`, and drops it when the stream is finished.
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
        if self.device.is_done() {
            // SAFETY: allocated in `new`, and nothing that was started uses it any more.
            let _ = unsafe { quiet_call!(cuMemFree_v2(self.address)) };
        }
    }
}

/// Pinned memory of the host, which GPUs read and write at an address of their own.
pub(crate) struct Pinned {
    /// The devices that use it.
    devices: Vec<Arc<Device>>,
    host: NonNull<u8>,
    bytes: usize,
    address: u64,
}

// SAFETY: it is plain memory, owned by this.
unsafe impl Send for Pinned {}
// SAFETY: shared access only reads, or is atomic.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Allocates memory of zeros, at the same address for all these devices.
    pub(crate) fn new(devices: &[Arc<Device>], bytes: usize) -> Result<Self> {
        devices[0].enter()?;
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        let (mut host, mut address) = (ptr::null_mut(), 0);
        // SAFETY: each writes an address; the memory is so many bytes, and all are set.
        unsafe {
            quiet_call!(cuMemHostAlloc(&raw mut host, bytes.max(1), flags))?;
            ptr::write_bytes(host.cast::<u8>(), 0, bytes.max(1));
            call!(cuMemHostGetDevicePointer_v2(&raw mut address, host, 0))?;
        }
        let host = NonNull::new(host.cast()).expect("memory has an address");
        Ok(Self { devices: devices.to_vec(), host, bytes, address })
    }

    /// Its address for GPUs.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory to be filled for GPUs that only read it. Work in flight may read it meanwhile;
    /// its order is the caller's responsibility.
    pub(crate) fn write(&mut self) -> &mut [u8] {
        // SAFETY: this owns so many bytes, all of them set, and is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.host.as_ptr(), self.bytes) }
    }

    /// Copies its first bytes as they are now, even if work is in flight or has failed.
    pub(crate) fn peek(&self, into: &mut [u8]) {
        assert!(into.len() <= self.bytes, "so many bytes are there");
        fence(Ordering::Acquire);
        // SAFETY: within this memory, and no part of what a `&mut` is of. A GPU may write at the
        // same time: then these are bytes of before and after.
        unsafe { self.host.as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    /// A word that host and GPUs access at the same time.
    pub(super) fn word(&self, index: usize) -> &AtomicU32 {
        assert!((index + 1) * size_of::<u32>() <= self.bytes, "the word is there");
        // SAFETY: within this memory, which is aligned to pages. Memory of which words are used is
        // not used otherwise.
        unsafe { AtomicU32::from_ptr(self.host.cast::<u32>().add(index).as_ptr()) }
    }

    pub(super) fn word_address(&self, index: usize) -> u64 {
        assert!((index + 1) * size_of::<u32>() <= self.bytes, "the word is there");
        self.address + (index * size_of::<u32>()) as u64
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.devices.iter().all(|device| device.is_done()) {
            // SAFETY: allocated in `new`, and nothing that was started uses it any more.
            let _ = unsafe { quiet_call!(cuMemFreeHost(self.host.as_ptr().cast())) };
        }
    }
}
