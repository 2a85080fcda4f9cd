//! The drivers of a worker's devices, and what connects them where there are several.

use std::path::PathBuf;
use std::sync::Arc;

use weft_cuda_device::Error;
use weft_cuda_device::collective::Collective;
use weft_cuda_device::driver::Driver;

use crate::compute::Which;

/// How long a shim waits for another one, in tests.
#[cfg(feature = "shim")]
const SHIM_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A device, and its part in the group if it has one.
pub(crate) type Opened = (Arc<dyn Driver>, Option<Arc<dyn Collective>>);

/// Opens all devices, in the order of their ranks. What NCCL takes of their memory is taken then.
///
/// # Errors
/// What a driver says of the first that cannot be opened, or NCCL.
pub(crate) fn open(which: &Which, kernels: &str) -> Result<Vec<Opened>, Error> {
    match which {
        #[cfg(feature = "cuda")]
        Which::Cuda(numbers) => cuda(numbers, kernels),
        #[cfg(feature = "shim")]
        Which::Shim { count, fails_at } => Ok(shims(*count, *fails_at)),
        // `Compute::check` has refused it.
        #[allow(unreachable_patterns, reason = "depends on the features")]
        _ => Err(Error::Kernels {
            path: kernels_file(kernels),
            reason: "this build has no driver for that device".to_owned(),
        }),
    }
}

#[cfg(feature = "cuda")]
fn cuda(numbers: &[usize], kernels: &str) -> Result<Vec<Opened>, Error> {
    use weft_cuda_device::cuda::{Cuda, Id, Nccl, read_kernels};
    let kernels = read_kernels(&kernels_file(kernels))?;
    let devices = numbers.iter().map(|number| Cuda::open(*number, kernels.clone())).collect::<Result<Vec<_>, _>>()?;
    let alone = |device: Arc<Cuda>| (device as Arc<dyn Driver>, None);
    if devices.len() == 1 {
        return Ok(devices.into_iter().map(alone).collect());
    }
    let (id, ranks) = (Id::new()?, devices.len());
    // Each waits for all others.
    std::thread::scope(|scope| {
        let join = |(rank, device): (usize, Arc<Cuda>)| {
            scope.spawn(move || {
                let nccl: Arc<dyn Collective> = Nccl::join(&device, id, rank, ranks)?;
                Ok((device as Arc<dyn Driver>, Some(nccl)))
            })
        };
        let running: Vec<_> = devices.into_iter().enumerate().map(join).collect();
        running.into_iter().map(|rank| rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

#[cfg(feature = "shim")]
fn shims(count: usize, fails_at: u64) -> Vec<Opened> {
    use weft_cuda_device::shim::{Options, Shim, ranks};
    let shim = |rank: usize| {
        let fails_at = if rank + 1 == count { fails_at } else { 0 };
        Shim::new(&Options { seed: rank as u64, fails_at, ..Options::default() })
    };
    let shims: Vec<Arc<Shim>> = (0..count).map(shim).collect();
    if count == 1 {
        return shims.into_iter().map(|shim| (shim as Arc<dyn Driver>, None)).collect();
    }
    let connected = ranks(&shims, SHIM_PATIENCE).into_iter().map(|rank| Some(rank as Arc<dyn Collective>));
    shims.into_iter().map(|shim| shim as Arc<dyn Driver>).zip(connected).collect()
}

/// The setting, or `weft.fatbin` beside the program.
fn kernels_file(setting: &str) -> PathBuf {
    const NAME: &str = "weft.fatbin";
    if !setting.is_empty() {
        return setting.into();
    }
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join(NAME)));
    beside.unwrap_or_else(|| NAME.into())
}
