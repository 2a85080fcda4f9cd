//! What a machine must have, asked in the order in which it can be answered, before anything else is called.
//!
//! The kernels are compiled by CUDA 13.0. A driver runs code of its own version of CUDA and of older ones, so it must be of 13.0: r580 or newer.
//! PTX in the file of kernels does not help an older driver, because it is PTX of 13.0 too.

use crate::error::Error;

/// CUDA of the kernels, as the driver counts: 1000 times major plus 10 times minor.
pub const CUDA: i32 = 13_000;
/// Ampere: the oldest architecture that the kernels are compiled for.
pub const CAPABILITY: (i32, i32) = (8, 0);

const DRIVER: &str = "install NVIDIA driver r580 or newer";

/// What a machine answers. Each question is asked only when those above it had good answers.
pub trait Probe {
    /// Whether `libcuda.so` can be loaded.
    fn has_driver_library(&self) -> bool;
    /// The newest CUDA that the driver runs, as [`CUDA`].
    ///
    /// # Errors
    ///
    /// When the driver does not say.
    fn driver_cuda(&self) -> Result<i32, Error>;
    /// Devices that the driver shows to this process.
    ///
    /// # Errors
    ///
    /// When the driver does not begin to work.
    fn devices(&self) -> Result<usize, Error>;
    /// Name and compute capability of a device.
    ///
    /// # Errors
    ///
    /// When the driver does not say.
    fn device(&self, ordinal: usize) -> Result<(String, (i32, i32)), Error>;
}

/// Whether the kernels run on a device of this machine.
///
/// # Errors
///
/// The first thing that is missing, with what was found and what is needed.
pub fn check(machine: &dyn Probe, ordinal: usize) -> Result<(), Error> {
    if !machine.has_driver_library() {
        return Err(Error::NoLibrary { library: "NVIDIA driver (libcuda.so.1)", remedy: DRIVER });
    }
    let found = machine.driver_cuda()?;
    if found < CUDA {
        return Err(Error::TooOld { library: "NVIDIA driver", found, needed: CUDA, remedy: DRIVER });
    }
    let devices = machine.devices()?;
    if ordinal >= devices {
        return Err(Error::NoDevice { ordinal, found: devices });
    }
    let (name, capability) = machine.device(ordinal)?;
    if capability < CAPABILITY {
        return Err(Error::CapabilityTooLow { ordinal, name, found: capability, needed: CAPABILITY });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        library: bool,
        cuda: i32,
        devices: Vec<(i32, i32)>,
    }

    impl Probe for Machine {
        fn has_driver_library(&self) -> bool {
            self.library
        }
        fn driver_cuda(&self) -> Result<i32, Error> {
            assert!(self.library, "asked without a library");
            Ok(self.cuda)
        }
        fn devices(&self) -> Result<usize, Error> {
            assert!(self.cuda >= CUDA, "asked of a driver that may lack the function");
            Ok(self.devices.len())
        }
        fn device(&self, ordinal: usize) -> Result<(String, (i32, i32)), Error> {
            Ok(("Tesla T4".to_owned(), self.devices[ordinal]))
        }
    }

    fn says(library: bool, cuda: i32, devices: &[(i32, i32)], ordinal: usize) -> String {
        let machine = Machine { library, cuda, devices: devices.to_vec() };
        check(&machine, ordinal).map_or_else(|error| error.to_string(), |()| "fits".to_owned())
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_needed() {
        assert_eq!(
            says(false, 0, &[], 0),
            "no NVIDIA driver (libcuda.so.1) library found: install NVIDIA driver r580 or newer"
        );
        assert_eq!(
            says(true, 12_080, &[(9, 0)], 0),
            "the NVIDIA driver found supports CUDA 12.8, these kernels need CUDA 13.0: install NVIDIA driver r580 or newer"
        );
        assert_eq!(says(true, 13_000, &[], 0), "no device 0: the driver sees 0 (CUDA_VISIBLE_DEVICES can hide some)");
        assert_eq!(
            says(true, 13_010, &[(9, 0)], 1),
            "no device 1: the driver sees 1 (CUDA_VISIBLE_DEVICES can hide some)"
        );
        assert_eq!(
            says(true, 13_000, &[(9, 0), (7, 5)], 1),
            "device 1 (Tesla T4) has compute capability 7.5, which is below 8.0"
        );
        assert_eq!(says(true, 13_000, &[(8, 0)], 0), "fits");
        assert_eq!(says(true, 13_020, &[(7, 5), (10, 0)], 1), "fits");
    }
}
