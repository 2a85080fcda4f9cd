//! The device's context, and the kernels that are loaded in it.

use super::calls::{failed, handle, number};
use crate::error::Error;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::CStr;

/// The primary context of a device, kept while this lives, with one module.
pub(super) struct Context {
    device: sys::CUdevice,
    context: u64,
    module: u64,
    // The driver may load functions from it when they are first asked for.
    _kernels: Vec<u8>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Context {
    pub(super) fn new(device: sys::CUdevice, kernels: Vec<u8>) -> Result<Self, Error> {
        // SAFETY: the device is one that cuDeviceGet gave. `Drop` releases the context.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("cuDevicePrimaryCtxRetain"))?;
        let mut this = Self { device, context: number(context), module: 0, _kernels: kernels };
        this.bind()?;
        // SAFETY: the image is a fatbin, whose header says how long it is.
        let module = unsafe { result::module::load_data(this._kernels.as_ptr().cast()) };
        this.module = number(module.map_err(failed("cuModuleLoadData"))?);
        Ok(this)
    }

    pub(super) fn bind(&self) -> Result<(), Error> {
        // SAFETY: the context is retained while this lives.
        unsafe { result::ctx::set_current(handle(self.context)) }.map_err(failed("cuCtxSetCurrent"))
    }

    pub(super) fn function(&self, name: &CStr) -> Result<sys::CUfunction, DriverError> {
        // SAFETY: the module is loaded while this lives.
        unsafe { result::module::get_function(handle(self.module), name.to_owned()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_ok() && self.module != 0 {
            // SAFETY: it was loaded in this context, and is unloaded once. A failure leaves nothing to be done.
            let _ = unsafe { result::module::unload(handle(self.module)) };
        }
        // SAFETY: it was retained once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
