//! Ranks by NCCL: one for each device, in one process or in several.

use super::Cuda;
use super::calls::{handle, number};
use crate::collective::Collective;
use crate::driver::{StreamId, Type};
use crate::error::Error;
use cudarc::nccl::result::{self, NcclError, NcclStatus};
use cudarc::nccl::sys;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// What ranks find each other by: one of them makes it, and gives it to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub [u8; 128]);

impl Id {
    /// A new one.
    ///
    /// # Errors
    ///
    /// When NCCL is not there, or finds no network.
    pub fn new() -> Result<Self, Error> {
        is_there()?;
        let id = result::get_uniqueid().map_err(|error| failed("ncclGetUniqueId", &error, std::ptr::null_mut()))?;
        Ok(Self(id.internal.map(|byte| byte.cast_unsigned())))
    }
}

fn is_there() -> Result<(), Error> {
    // SAFETY: loading NVIDIA's library runs its constructors, which is what it is for.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let remedy = "install NCCL for CUDA 13 (nvidia-nccl-cu13 on PyPI) and name its folder in LD_LIBRARY_PATH";
    Err(Error::NoLibrary { library: "nccl", remedy })
}

fn failed(call: &'static str, error: &NcclError, communicator: sys::ncclComm_t) -> Error {
    // SAFETY: the communicator lives, or is null, which the function takes; what it returns is a static text or null.
    let message = unsafe {
        let text = sys::ncclGetLastError(communicator);
        if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Error::Driver { call, code: format!("{:?}", error.0), message }
}

/// A device's part in a group of ranks.
#[derive(Debug)]
pub struct Nccl {
    communicator: Arc<Communicator>,
    ranks: usize,
    rank: usize,
}

/// What NCCL made. Giving it back waits for all ranks of the machine, so a thread of its own does that.
#[derive(Debug)]
struct Communicator {
    cuda: Arc<Cuda>,
    /// 0 once it was taken.
    handle: AtomicU64,
    is_ended: AtomicBool,
    /// Read while a call of NCCL runs.
    calls: RwLock<()>,
}

/// How long an end waits for a call that is being made. One that takes longer waits for a rank that does not come, which the end sets free.
const CALL: Duration = Duration::from_secs(5);

impl Communicator {
    /// Makes a call with it, while it is there.
    fn with(
        &self,
        call: &'static str,
        make: impl FnOnce(sys::ncclComm_t) -> Result<NcclStatus, NcclError>,
    ) -> Result<(), Error> {
        self.cuda.bind()?;
        let _running = self.calls.read().expect("no panic while it is held");
        if self.is_ended.load(Ordering::Acquire) {
            return Err(Error::Collective { operation: call.to_owned(), reason: "the group was ended".to_owned() });
        }
        let communicator = handle(self.handle.load(Ordering::Acquire));
        make(communicator).map(drop).map_err(|error| {
            // One that was given back meanwhile cannot be asked.
            let is_there = !self.is_ended.load(Ordering::Acquire);
            failed(call, &error, if is_there { communicator } else { std::ptr::null_mut() })
        })
    }

    /// Gives it to `last` once no call runs, or one has not come back for [`CALL`]; once.
    fn give_back(&self, last: impl FnOnce(sys::ncclComm_t)) {
        self.is_ended.store(true, Ordering::Release);
        let until = Instant::now() + CALL;
        let _nobody_calls = loop {
            match self.calls.try_write() {
                Ok(nobody_calls) => break Some(nobody_calls),
                Err(_) if Instant::now() > until => break None,
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        };
        let communicator = self.handle.swap(0, Ordering::AcqRel);
        if communicator != 0 && self.cuda.bind().is_ok() {
            last(handle(communicator));
        }
    }
}

/// Does it in a thread of its own. Where the system has none, the communicator stays until the process ends.
fn beside(work: impl FnOnce() + Send + 'static) {
    let _ = thread::Builder::new().name("nccl end".to_owned()).spawn(work);
}

impl Nccl {
    /// Joins the group. Waits until all ranks have; those of one process do so in a thread each.
    ///
    /// # Errors
    ///
    /// When the rank is not below the number of ranks, NCCL is not there, or says so.
    pub fn join(cuda: &Arc<Cuda>, id: Id, rank: usize, ranks: usize) -> Result<Arc<Self>, Error> {
        is_there()?;
        if rank >= ranks || ranks > i32::MAX as usize {
            return Err(Error::value("group", "rank", format!("{rank} of {ranks}"), "below the number of ranks"));
        }
        cuda.bind()?;
        let id = sys::ncclUniqueId { internal: id.0.map(|byte| byte.cast_signed() as std::ffi::c_char) };
        let mut communicator = std::ptr::null_mut();
        // SAFETY: the pointer is written before the call returns; `Drop` destroys what is made.
        let joined = unsafe { result::comm_init_rank(&raw mut communicator, ranks as i32, id, rank as i32) };
        joined.map_err(|error| failed("ncclCommInitRank", &error, std::ptr::null_mut()))?;
        let communicator = Communicator {
            cuda: Arc::clone(cuda),
            handle: AtomicU64::new(number(communicator)),
            is_ended: AtomicBool::new(false),
            calls: RwLock::default(),
        };
        Ok(Arc::new(Self { communicator: Arc::new(communicator), ranks, rank }))
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let communicator = Arc::clone(&self.communicator);
        // SAFETY: `join` made it, and it is given to one alone. A failure leaves nothing to be done.
        beside(move || communicator.give_back(|last| drop(unsafe { result::comm_destroy(last) })));
    }
}

fn data_type(of: Type) -> sys::ncclDataType_t {
    match of {
        Type::F32 => sys::ncclDataType_t::ncclFloat32,
        Type::Bf16 => sys::ncclDataType_t::ncclBfloat16,
        Type::F16 => sys::ncclDataType_t::ncclFloat16,
    }
}

impl Collective for Nccl {
    fn ranks(&self) -> usize {
        self.ranks
    }

    fn rank(&self) -> usize {
        self.rank
    }

    unsafe fn all_reduce(&self, stream: StreamId, from: u64, to: u64, count: usize, of: Type) -> Result<(), Error> {
        let sum = sys::ncclRedOp_t::ncclSum;
        // SAFETY: the caller's promise.
        self.communicator.with("ncclAllReduce", |communicator| unsafe {
            result::all_reduce(handle(from), handle(to), count, data_type(of), sum, communicator, handle(stream.0))
        })
    }

    unsafe fn all_gather(&self, stream: StreamId, from: u64, to: u64, count: usize, of: Type) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        self.communicator.with("ncclAllGather", |communicator| unsafe {
            result::all_gather(handle(from), handle(to), count, data_type(of), communicator, handle(stream.0))
        })
    }

    /// Kernels that wait on the device end, too. Returns at once.
    fn end(&self) {
        self.communicator.is_ended.store(true, Ordering::Release);
        let communicator = Arc::clone(&self.communicator);
        // SAFETY: as in `drop`; NCCL takes this call from any thread.
        beside(move || communicator.give_back(|last| drop(unsafe { result::comm_abort(last) })));
    }
}
