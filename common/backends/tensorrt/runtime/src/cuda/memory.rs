//! Device memory and copies to and from it, on one stream.

#![expect(unsafe_code, reason = "device memory is addresses, and copies of it are the driver's")]

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr as _, DriverError, PinnedHostSlice, result,
};

use crate::DeviceError;
use crate::device::ALIGNMENT;

/// Bytes of pinned memory that copies go through at first.
const STAGING_BYTES: usize = 1 << 20;

/// The driver refused a call.
pub(super) fn refused(call: &str, error: &DriverError) -> DeviceError {
    DeviceError::Driver { call: call.to_owned(), what: error.to_string() }
}

/// Device memory. Freed in the stream's order, so after what was enqueued before.
pub(super) struct Allocation {
    address: u64,
    /// What frees it.
    _slice: CudaSlice<u8>,
    bytes: usize,
}

/// A handle to device memory.
#[derive(Clone)]
pub struct CudaBuffer(Rc<Allocation>);

impl CudaBuffer {
    /// Its size.
    pub(super) fn len(&self) -> usize {
        self.0.bytes
    }

    /// The address of a place in it.
    ///
    /// # Errors
    /// When it is behind its end.
    pub(super) fn address(&self, offset: usize) -> Result<u64, DeviceError> {
        let outside = || DeviceError::Engine(format!("byte {offset} of a buffer of {} bytes", self.len()));
        if offset > self.len() {
            return Err(outside());
        }
        self.0.address.checked_add(offset as u64).ok_or_else(outside)
    }

    /// The address of a part of it.
    fn part(&self, range: &Range<usize>) -> Result<u64, DeviceError> {
        if range.start > range.end || range.end > self.len() {
            let what = format!("bytes {}..{} of a buffer of {} bytes", range.start, range.end, self.len());
            return Err(DeviceError::Engine(what));
        }
        self.address(range.start)
    }
}

/// The memory of one device, used on one stream. Fields are dropped in this order.
pub(super) struct Memory {
    /// Written to by the host, read by copies that were enqueued since the last synchronisation, up to `upload_used`.
    upload: Option<PinnedHostSlice<u8>>,
    upload_used: usize,
    /// Written to by copies to the host.
    download: Option<PinnedHostSlice<u8>>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

impl Memory {
    /// The memory of a device, whose context is current on this thread from now on.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn open(device: usize) -> Result<Self, DeviceError> {
        // SAFETY: loading the driver runs its initialisers, which need nothing of this program.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            // Any call of `cudarc` would panic.
            let what = "the driver's library was not found".to_owned();
            return Err(DeviceError::Driver { call: "cuInit".to_owned(), what });
        }
        let context =
            CudaContext::new(device).map_err(|error| refused("cuDevicePrimaryCtxRetain", &error))?;
        // SAFETY: events order the use of a buffer on several streams; there is one.
        unsafe { context.disable_event_tracking() };
        // TensorRT asks for another than the default stream.
        let stream = context.new_stream().map_err(|error| refused("cuStreamCreate", &error))?;
        Ok(Self { upload: None, upload_used: 0, download: None, stream, context })
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Bytes that are free on the device.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        self.context.mem_get_info().ok().and_then(|(free, _)| u64::try_from(free).ok())
    }

    /// Allocates zeroed memory, at least one byte.
    pub(super) fn allocate(&self, bytes: usize) -> Result<CudaBuffer, DeviceError> {
        let bytes = bytes.max(1);
        let slice = self.stream.alloc_zeros::<u8>(bytes);
        let slice = slice.map_err(|error| DeviceError::Memory { bytes, what: error.to_string() })?;
        let address = slice.device_ptr(&self.stream).0;
        if !address.is_multiple_of(ALIGNMENT as u64) {
            let what =
                format!("the driver gave the address {address:#x}, which is not aligned to {ALIGNMENT}");
            return Err(DeviceError::Memory { bytes, what });
        }
        Ok(CudaBuffer(Rc::new(Allocation { address, _slice: slice, bytes })))
    }

    pub(super) fn zero(&self, buffer: &CudaBuffer, range: Range<usize>) -> Result<(), DeviceError> {
        let address = buffer.part(&range)?;
        // SAFETY: `part` has checked that the bytes are of the buffer, which is freed in the order of this stream.
        let result = unsafe { result::memset_d8_async(address, 0, range.len(), self.stream.cu_stream()) };
        result.map_err(|error| refused("cuMemsetD8Async", &error))
    }

    pub(super) fn upload(
        &mut self,
        buffer: &CudaBuffer,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let end = offset.saturating_add(bytes.len());
        let address = buffer.part(&(offset..end))?;
        let held = self.upload.as_ref().map_or(0, PinnedHostSlice::len);
        if self.upload_used + bytes.len() > held {
            self.synchronize()?;
        }
        if bytes.len() > held {
            let pinned = bytes.len().max(STAGING_BYTES).next_power_of_two();
            // SAFETY: nothing is read of it before it is written to below.
            let pinned = unsafe { self.context.alloc_pinned(pinned) };
            self.upload = Some(pinned.map_err(|error| refused("cuMemHostAlloc", &error))?);
        }
        let staging = self.upload.as_mut().ok_or_else(|| DeviceError::Engine("no staging".to_owned()))?;
        let staging = staging.as_mut_slice().map_err(|error| refused("cuEventSynchronize", &error))?;
        let part = &mut staging[self.upload_used..self.upload_used + bytes.len()];
        part.copy_from_slice(bytes);
        // SAFETY: the destination is of the buffer, which is freed in the order of this stream; the source is pinned
        // memory that is neither freed nor written to again before the stream is synchronised.
        let result = unsafe { result::memcpy_htod_async(address, part, self.stream.cu_stream()) };
        result.map_err(|error| refused("cuMemcpyHtoDAsync", &error))?;
        self.upload_used += bytes.len();
        Ok(())
    }

    pub(super) fn download(
        &mut self,
        buffer: &CudaBuffer,
        ranges: &[Range<usize>],
    ) -> Result<Vec<u8>, DeviceError> {
        let mut addresses = Vec::with_capacity(ranges.len());
        for range in ranges {
            addresses.push((buffer.part(range)?, range.len()));
        }
        let bytes: usize = ranges.iter().map(Range::len).sum();
        if bytes > self.download.as_ref().map_or(0, PinnedHostSlice::len) {
            // A call that failed may have left copies to the old one behind.
            self.synchronize()?;
            let pinned = bytes.max(STAGING_BYTES).next_power_of_two();
            // Not write-combined, as the host reads it.
            // SAFETY: nothing is read of it before a copy has written to it.
            let pinned = unsafe { self.context.alloc_pinned_with_flags(pinned, 0) };
            self.download = Some(pinned.map_err(|error| refused("cuMemHostAlloc", &error))?);
        }
        let mut held = Vec::new();
        if let Some(staging) = &mut self.download {
            let staging = staging.as_mut_slice().map_err(|error| refused("cuEventSynchronize", &error))?;
            let mut rest = &mut staging[..bytes];
            for (address, length) in addresses {
                let (part, later) = rest.split_at_mut(length);
                // SAFETY: the source is of the buffer; the destination is pinned memory that is neither looked at nor
                // freed before the stream is synchronised.
                let result = unsafe { result::memcpy_dtoh_async(part, address, self.stream.cu_stream()) };
                result.map_err(|error| refused("cuMemcpyDtoHAsync", &error))?;
                rest = later;
            }
            self.stream.synchronize().map_err(|error| refused("cuStreamSynchronize", &error))?;
            held.extend_from_slice(&staging[..bytes]);
        }
        self.synchronize()?;
        Ok(held)
    }

    /// Waits for everything that was enqueued.
    pub(super) fn synchronize(&mut self) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(|error| refused("cuStreamSynchronize", &error))?;
        self.upload_used = 0;
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Copies may still read and write the pinned memory.
        if let Err(error) = self.synchronize() {
            tracing::warn!(%error, "a device was closed while it failed");
        }
    }
}

#[cfg(test)]
mod tests;
