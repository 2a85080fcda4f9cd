//! What can go wrong, and on what.

use std::path::PathBuf;

/// A call that a device, or this crate before it, refused; or work that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine has no NVIDIA driver, or lacks a library.
    #[error("no {library} library found: {remedy}")]
    NoLibrary {
        /// As in its file name.
        library: &'static str,
        /// What to install.
        remedy: &'static str,
    },
    /// See [`crate::requirements`].
    #[error("the {library} found supports CUDA {}, these kernels need CUDA {}: {remedy}", Version(*found), Version(*needed))]
    TooOld {
        /// The driver, or a library.
        library: &'static str,
        /// 1000 times major plus 10 times minor.
        found: i32,
        /// As `found`.
        needed: i32,
        /// What to install.
        remedy: &'static str,
    },
    /// The driver sees none, or none of this number.
    #[error("no device {ordinal}: the driver sees {found} (CUDA_VISIBLE_DEVICES can hide some)")]
    NoDevice {
        /// From zero.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// Older than Ampere.
    #[error("device {ordinal} ({name}) has compute capability {}.{}, which is below {}.{}", found.0, found.1, needed.0, needed.1)]
    CapabilityTooLow {
        /// From zero.
        ordinal: usize,
        /// As the driver calls it.
        name: String,
        /// Major, minor.
        found: (i32, i32),
        /// Major, minor.
        needed: (i32, i32),
    },
    /// A file of kernels that cannot be read or is none.
    #[error("kernels in {}: {reason}", path.display())]
    Kernels {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A pool, or the device when the pool was made, has no run of that size.
    #[error("out of {memory} memory: {asked} bytes asked, {free} free (the longest run has {largest}), {total} in all")]
    OutOfMemory {
        /// `device` or `pinned`.
        memory: &'static str,
        /// What was to be allocated.
        asked: usize,
        /// Not in use.
        free: usize,
        /// The most that one allocation can get.
        largest: usize,
        /// Size of the pool, or of the device.
        total: usize,
    },
    /// No kernel of this name was loaded.
    #[error("no kernel {0} is loaded")]
    NoKernel(String),
    /// A value out of range.
    #[error("{on}: {field} is {value}, must be {limit}")]
    Value {
        /// The kernel, copy or product.
        on: String,
        /// Which.
        field: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        limit: String,
    },
    /// A call that a stream in capture cannot take, or a capture that cannot become a graph.
    #[error("capture: {0}")]
    Capture(String),
    /// Two operations touch the same memory, one writes, and nothing orders them. Only the shim sees this.
    #[error("{later} {} bytes {:#x}..{:#x}, which {earlier} {}: no event orders them", if *writes { "writes" } else { "reads" }, at.0, at.1, if *wrote { "wrote" } else { "read" })]
    Race {
        /// The operation that ran later in this order.
        later: String,
        /// Whether it writes.
        writes: bool,
        /// The operation that ran earlier.
        earlier: String,
        /// Whether it wrote.
        wrote: bool,
        /// Addresses.
        at: (u64, u64),
    },
    /// A kernel of the shim did not come to its end.
    #[error("{operation}: {reason}")]
    Kernel {
        /// Which.
        operation: String,
        /// What the shim says.
        reason: String,
    },
    /// Ranks that do not do the same, or do not come.
    #[error("{operation}: {reason}")]
    Collective {
        /// Which.
        operation: String,
        /// Why.
        reason: String,
    },
    /// Work failed before, and nothing on this device can be relied upon.
    #[error("the device has failed: {0}")]
    Failed(Box<Error>),
    /// A call of the driver or of a library failed.
    #[error("{call}: {code}: {message}")]
    Driver {
        /// Name of the function.
        call: &'static str,
        /// Name of the error.
        code: String,
        /// The driver's words.
        message: String,
    },
}

/// What the driver and cublasLt call it.
const OUT_OF_MEMORY: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
/// cublasLt's, of a product that it has no kernel for: said before anything is enqueued.
const REFUSALS: [&str; 2] = ["CUBLAS_STATUS_NOT_SUPPORTED", "CUBLAS_STATUS_INVALID_VALUE"];

impl Error {
    /// Whether less, or later, would do: something to shed, not to die of.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            Self::Driver { code, .. } => OUT_OF_MEMORY.contains(&code.as_str()),
            _ => false,
        }
    }

    /// Whether work on the device failed, or a call of its driver did: nothing that is on it can be relied upon. A call that this crate refused
    /// before the driver saw it changed nothing.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Failed(_) | Self::Race { .. } | Self::Kernel { .. } | Self::Collective { .. } => true,
            Self::Driver { code, .. } => !self.is_out_of_memory() && !REFUSALS.contains(&code.as_str()),
            _ => false,
        }
    }

    pub(crate) fn value(
        on: impl Into<String>,
        field: &'static str,
        value: impl ToString,
        limit: impl Into<String>,
    ) -> Self {
        Self::Value { on: on.into(), field, value: value.to_string(), limit: limit.into() }
    }
}

struct Version(i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn what_ends_a_device_and_what_does_not() {
        let driver = |code: &str| Error::Driver { call: "c", code: code.to_owned(), message: String::new() };
        for (code, is_out_of_memory, is_fatal) in [
            ("CUDA_ERROR_OUT_OF_MEMORY", true, false),
            ("CUBLAS_STATUS_ALLOC_FAILED", true, false),
            ("CUBLAS_STATUS_NOT_SUPPORTED", false, false),
            ("CUBLAS_STATUS_EXECUTION_FAILED", false, true),
            ("CUDA_ERROR_ILLEGAL_ADDRESS", false, true),
        ] {
            let error = driver(code);
            assert_eq!((error.is_out_of_memory(), error.is_fatal()), (is_out_of_memory, is_fatal), "{code}");
        }
        assert!(Error::Failed(Box::new(driver("CUDA_ERROR_OUT_OF_MEMORY"))).is_fatal());
        assert!(!Error::NoKernel("k".to_owned()).is_fatal(), "nothing was enqueued");
    }
}
