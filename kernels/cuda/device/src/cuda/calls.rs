//! Results of the driver as errors of this crate, and handles as numbers.

use crate::error::Error;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

/// A handle of the driver as the ports know it.
pub(super) fn number<T>(handle: *mut T) -> u64 {
    handle.expose_provenance() as u64
}

/// The handle again.
pub(super) fn handle<T>(number: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(number as usize)
}

/// Says which function failed, and how.
pub(super) fn failed(call: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |error| {
        let message =
            error.error_string().map_or_else(|_| "unknown".into(), |text| text.to_string_lossy().into_owned());
        Error::Driver { call, code: format!("{:?}", error.0), message }
    }
}

/// As [`failed`], of a bare result.
pub(super) fn checked(call: &'static str, result: sys::CUresult) -> Result<(), Error> {
    result.result().map_err(failed(call))
}
