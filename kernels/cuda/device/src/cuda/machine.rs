//! This machine's answers to [`crate::requirements`].

use super::calls::{checked, failed};
use crate::error::Error;
use crate::requirements::Probe;
use cudarc::driver::{result, sys};

/// The machine that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Probe for Machine {
    fn has_driver_library(&self) -> bool {
        // SAFETY: loading NVIDIA's library runs its constructors, which is what it is for.
        unsafe { sys::is_culib_present() }
    }

    fn driver_cuda(&self) -> Result<i32, Error> {
        let mut version = 0;
        // SAFETY: the library is there, and every driver has the function; it may be called before cuInit.
        checked("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
        Ok(version)
    }

    fn devices(&self) -> Result<usize, Error> {
        match result::init() {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
            Err(error) => Err(failed("cuInit")(error)),
            Ok(()) => {
                let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
                Ok(usize::try_from(count).unwrap_or(0))
            }
        }
    }

    fn device(&self, ordinal: usize) -> Result<(String, (i32, i32)), Error> {
        use sys::CUdevice_attribute as Attribute;
        let device = get(ordinal)?;
        let name = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
        let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok((name, (major, minor)))
    }
}

pub(super) fn get(ordinal: usize) -> Result<sys::CUdevice, Error> {
    let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
    result::device::get(ordinal).map_err(failed("cuDeviceGet"))
}

pub(super) fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<i32, Error> {
    // SAFETY: the device is one that cuDeviceGet gave.
    unsafe { result::device::get_attribute(device, attribute) }.map_err(failed("cuDeviceGetAttribute"))
}
