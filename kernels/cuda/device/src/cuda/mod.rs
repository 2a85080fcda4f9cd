//! CUDA's driver, by `cudarc`'s bindings. `libcuda`, `libcublasLt` and `libnccl` are loaded when they are first needed.
//!
//! Every call makes the device's context current for its thread first, so that any thread may call.

mod calls;
mod context;
mod gemm;
mod machine;
mod nccl;

pub use machine::Machine;
pub use nccl::{Id, Nccl};

use crate::driver::{
    Copy, Direction, Driver, EventId, GraphId, Kernel, Launch, Operation, Parameter, Properties, StreamId,
};
use crate::error::Error;
use crate::requirements;
use calls::{checked, failed, handle, number};
use context::Context;
use cudarc::driver::{result, sys};
use gemm::Gemm;
use std::ffi::CString;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A device by CUDA's driver, with the kernels loaded.
#[derive(Debug)]
pub struct Cuda {
    properties: Properties,
    gemm: Gemm,
    /// Last: what is above is freed in it.
    context: Context,
}

/// Reads what `scripts/build-cuda.sh` makes.
///
/// # Errors
///
/// [`Error::Kernels`] when the file cannot be read, or is no fatbin.
pub fn read_kernels(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |reason: String| Error::Kernels { path: path.to_owned(), reason };
    let image = std::fs::read(path).map_err(|error| wrong(format!("{error}; scripts/build-cuda.sh makes the file")))?;
    check_image(&image).map_err(wrong)?;
    Ok(image)
}

/// Whether this is a fatbin, whole: the driver reads as far as its header says.
fn check_image(image: &[u8]) -> Result<(), String> {
    // As fatbinary.h of the CUDA toolkit has it: magic, version, size of the header, size of what follows.
    const MAGIC: [u8; 4] = 0xba55_ed50u32.to_le_bytes();
    let Some((header, _)) = image.split_first_chunk::<16>().filter(|(header, _)| header.starts_with(&MAGIC)) else {
        return Err("not a fatbin; scripts/build-cuda.sh makes one".to_owned());
    };
    let [_, _, _, _, _, _, low, high, rest @ ..] = *header;
    let wanted = u64::from(u16::from_le_bytes([low, high])).saturating_add(u64::from_le_bytes(rest));
    if wanted > image.len() as u64 {
        return Err(format!("it has {} bytes of {wanted}; scripts/build-cuda.sh makes a whole one", image.len()));
    }
    Ok(())
}

impl Cuda {
    /// Takes a device, and loads kernels from a fatbin ([`read_kernels`]).
    ///
    /// # Errors
    ///
    /// What [`requirements::check`] says; when cuBLAS is missing or too old; what the driver says, for instance that the fatbin has no code
    /// for the device.
    pub fn open(ordinal: usize, kernels: Vec<u8>) -> Result<Arc<Self>, Error> {
        use sys::CUdevice_attribute as Attribute;
        requirements::check(&Machine, ordinal)?;
        check_image(&kernels).map_err(|reason| Error::Kernels { path: "memory".into(), reason })?;
        let (name, capability) = requirements::Probe::device(&Machine, ordinal)?;
        let device = machine::get(ordinal)?;
        let context = Context::new(device, kernels)?;
        // A handle belongs to the device whose context is current.
        let gemm = Gemm::new()?;
        // SAFETY: the device is one that cuDeviceGet gave.
        let memory_bytes = unsafe { result::device::total_mem(device) }.map_err(failed("cuDeviceTotalMem"))?;
        let attribute = |of| machine::attribute(device, of).map(|value| usize::try_from(value).unwrap_or(0));
        let properties = Properties {
            name,
            capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes,
            shared_bytes_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            threads_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)? as u32,
            // What NVIDIA recommends for cuBLAS.
            workspace_bytes: if capability.0 >= 9 { 32 << 20 } else { 4 << 20 },
        };
        Ok(Arc::new(Self { properties, gemm, context }))
    }

    fn bind(&self) -> Result<(), Error> {
        self.context.bind()
    }

    /// # Safety
    ///
    /// As [`Driver::enqueue`].
    unsafe fn launch(&self, stream: sys::CUstream, mut launch: Launch) -> Result<(), Error> {
        let grid = (launch.grid[0], launch.grid[1], launch.grid[2]);
        let mut values = launch.values.pointers();
        // SAFETY: there are as many values as parameters, and of their sizes, which the driver reads before it returns; the caller vouches for
        // what the kernel does with them.
        let result = unsafe {
            result::launch_kernel(
                handle(launch.kernel.handle),
                grid,
                (launch.threads, 1, 1),
                launch.shared_bytes as u32,
                stream,
                &mut values,
            )
        };
        result.map_err(failed("cuLaunchKernel"))
    }

    /// # Safety
    ///
    /// As [`Driver::enqueue`].
    unsafe fn copy(&self, stream: sys::CUstream, copy: &Copy) -> Result<(), Error> {
        let Copy { direction, from, to, bytes } = *copy;
        // SAFETY: the caller vouches for both ranges; host memory is pinned and lives as long as the device.
        let (call, result) = unsafe {
            match direction {
                Direction::Upload => ("cuMemcpyHtoDAsync", sys::cuMemcpyHtoDAsync_v2(to, handle(from), bytes, stream)),
                Direction::Download => {
                    ("cuMemcpyDtoHAsync", sys::cuMemcpyDtoHAsync_v2(handle(to), from, bytes, stream))
                }
                Direction::Within => ("cuMemcpyDtoDAsync", sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream)),
            }
        };
        checked(call, result)
    }

    fn attribute(&self, kernel: sys::CUfunction, attribute: sys::CUfunction_attribute_enum) -> Result<usize, Error> {
        // SAFETY: the function is of a module that is loaded.
        let value = unsafe { result::function::get_function_attribute(kernel, attribute) };
        value.map(|value| usize::try_from(value).unwrap_or(0)).map_err(failed("cuFuncGetAttribute"))
    }
}

/// Sizes of a kernel's parameters, in order.
fn parameters(kernel: sys::CUfunction) -> Result<Vec<Parameter>, Error> {
    let mut parameters = Vec::new();
    loop {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is of a module that is loaded; beyond its last parameter the call says so.
        let result = unsafe { sys::cuFuncGetParamInfo(kernel, parameters.len(), &raw mut offset, &raw mut bytes) };
        if result == sys::CUresult::CUDA_ERROR_INVALID_VALUE {
            return Ok(parameters);
        }
        checked("cuFuncGetParamInfo", result)?;
        parameters.push(Parameter { bytes, is_pointer: None });
    }
}

impl Driver for Cuda {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_bytes(&self) -> Result<usize, Error> {
        self.bind()?;
        let (free, _) = result::mem_get_info().map_err(failed("cuMemGetInfo"))?;
        Ok(free)
    }

    fn reserve(&self, bytes: usize) -> Result<u64, Error> {
        self.bind()?;
        // SAFETY: any size may be asked for.
        match unsafe { result::malloc_sync(bytes) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = result::mem_get_info().map_err(failed("cuMemGetInfo"))?;
                Err(Error::OutOfMemory { memory: "device", asked: bytes, free, largest: free, total })
            }
            result => result.map_err(failed("cuMemAlloc")),
        }
    }

    fn release(&self, address: u64) {
        let freed = self.bind().and_then(|()| {
            // SAFETY: `reserve` gave it. The driver waits for work that uses it.
            unsafe { result::free_sync(address) }.map_err(failed("cuMemFree"))
        });
        // The device is being left; a failure of work was told by the calls that waited for it.
        drop(freed);
    }

    fn pin(&self, bytes: usize) -> Result<u64, Error> {
        self.bind()?;
        // SAFETY: any size may be asked for.
        match unsafe { result::malloc_host(bytes, 0) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { memory: "pinned", asked: bytes, free: 0, largest: 0, total: 0 })
            }
            result => result.map(number).map_err(failed("cuMemHostAlloc")),
        }
    }

    fn unpin(&self, address: u64) {
        let freed = self.bind().and_then(|()| {
            result::ctx::synchronize().map_err(failed("cuCtxSynchronize"))?;
            // SAFETY: `pin` gave it, and no work runs.
            unsafe { result::free_host(handle(address)) }.map_err(failed("cuMemFreeHost"))
        });
        drop(freed);
    }

    fn new_stream(&self, _: &str) -> Result<StreamId, Error> {
        self.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        stream.map(|stream| StreamId(number(stream))).map_err(failed("cuStreamCreate"))
    }

    fn drop_stream(&self, stream: StreamId) {
        // SAFETY: `new_stream` gave it, and it is not used again.
        drop(self.bind().map(|()| unsafe { result::stream::destroy(handle(stream.0)) }));
    }

    fn new_event(&self) -> Result<EventId, Error> {
        self.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        event.map(|event| EventId(number(event))).map_err(failed("cuEventCreate"))
    }

    fn drop_event(&self, event: EventId) {
        // SAFETY: `new_event` gave it, and it is not used again.
        drop(self.bind().map(|()| unsafe { result::event::destroy(handle(event.0)) }));
    }

    fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        use sys::CUfunction_attribute_enum as Attribute;
        self.bind()?;
        let unknown = || Error::NoKernel(name.to_owned());
        let function = self.context.function(&CString::new(name).map_err(|_| unknown())?).map_err(|error| {
            if error.0 == sys::CUresult::CUDA_ERROR_NOT_FOUND {
                unknown()
            } else {
                failed("cuModuleGetFunction")(error)
            }
        })?;
        let static_shared_bytes = self.attribute(function, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let dynamic_max = self.properties.shared_bytes_max.saturating_sub(static_shared_bytes);
        // Above 48 KiB a kernel must be allowed to; it costs nothing where launches ask for less.
        // SAFETY: the function is of a module that is loaded.
        let allowed = unsafe {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(function, attribute, dynamic_max as i32)
        };
        allowed.map_err(failed("cuFuncSetAttribute"))?;
        Ok(Kernel {
            name: name.to_owned(),
            handle: number(function),
            parameters: parameters(function)?,
            threads_max: self.attribute(function, Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)? as u32,
            static_shared_bytes,
        })
    }

    unsafe fn enqueue(&self, stream: StreamId, operation: Operation) -> Result<(), Error> {
        self.bind()?;
        let stream = handle(stream.0);
        // SAFETY: the caller's promise, for each of them.
        unsafe {
            match operation {
                Operation::Launch(launch) => self.launch(stream, launch),
                Operation::Copy(copy) => self.copy(stream, &copy),
                Operation::Fill { to, bytes, byte } => {
                    checked("cuMemsetD8Async", sys::cuMemsetD8Async(to, byte, bytes, stream))
                }
                Operation::Matmul(matmul) => self.gemm.enqueue(stream.cast(), &matmul),
            }
        }
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: both are used until they are dropped.
        unsafe { result::event::record(handle(event.0), handle(stream.0)) }.map_err(failed("cuEventRecord"))
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), Error> {
        self.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are used until they are dropped.
        let result = unsafe { result::stream::wait_event(handle(stream.0), handle(event.0), flags) };
        result.map_err(failed("cuStreamWaitEvent"))
    }

    fn synchronize(&self, stream: StreamId) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: it is used until it is dropped.
        unsafe { result::stream::synchronize(handle(stream.0)) }.map_err(failed("cuStreamSynchronize"))
    }

    fn synchronize_event(&self, event: EventId) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: it is used until it is dropped.
        unsafe { result::event::synchronize(handle(event.0)) }.map_err(failed("cuEventSynchronize"))
    }

    fn is_done(&self, event: EventId) -> Result<bool, Error> {
        self.bind()?;
        // SAFETY: it is used until it is dropped.
        match unsafe { result::event::query(handle(event.0)) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => result.map(|()| true).map_err(failed("cuEventQuery")),
        }
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), Error> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: it is used until it is dropped.
        unsafe { result::stream::begin_capture(handle(stream.0), mode) }.map_err(failed("cuStreamBeginCapture"))
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, Error> {
        self.bind()?;
        // SAFETY: it is used until it is dropped.
        let captured = unsafe { result::stream::end_capture(handle(stream.0)) };
        let graph = captured.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED => {
                Error::Capture("work of another stream does not come back by an event".to_owned())
            }
            _ => failed("cuStreamEndCapture")(error),
        })?;
        if graph.is_null() {
            return Err(Error::Capture("a call that no graph can hold ended it".to_owned()));
        }
        // SAFETY: the graph was just made, and is destroyed once; what was instantiated does not need it.
        let instance = unsafe {
            let instance = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let destroyed = result::graph::destroy(graph);
            instance.and_then(|instance| destroyed.map(|()| instance))
        };
        instance.map(|instance| GraphId(number(instance))).map_err(failed("cuGraphInstantiate"))
    }

    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: both are used until they are dropped.
        unsafe { result::graph::launch(handle(graph.0), handle(stream.0)) }.map_err(failed("cuGraphLaunch"))
    }

    fn drop_graph(&self, graph: GraphId) {
        // SAFETY: `end_capture` gave it, and it is not used again.
        drop(self.bind().map(|()| unsafe { result::graph::exec_destroy(handle(graph.0)) }));
    }

    /// Nothing sees it.
    fn host_access(&self, _: Range<u64>, _: bool) -> Result<(), Error> {
        Ok(())
    }
}
