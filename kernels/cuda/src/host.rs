//! Launches in the shim: as on a device, by name and with pointers to the arguments.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

mod ffi {
    use super::{c_char, c_int, c_void};

    // SAFETY: these are the two functions that shim/shim.cpp exports, with its types.
    unsafe extern "C" {
        pub(super) fn weft_shim_launch(
            name: *const c_char,
            grid: *const u32,
            block: *const u32,
            dynamic_bytes: usize,
            arguments: *mut *mut c_void,
            order: u32,
            error: *mut c_char,
            error_bytes: usize,
        ) -> c_int;
        pub(super) fn weft_shim_kernel(index: usize) -> *const c_char;
    }
}

/// In which order the shim runs what a device runs at the same time. Results must not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Warps of a block, last one first.
    pub warps_backwards: bool,
    /// Lanes of a warp, last one first.
    pub lanes_backwards: bool,
    /// Blocks of the grid, last one first.
    pub blocks_backwards: bool,
}

impl Order {
    /// First things first.
    pub const FORWARDS: Self = Self { warps_backwards: false, lanes_backwards: false, blocks_backwards: false };
    /// Last things first.
    pub const BACKWARDS: Self = Self { warps_backwards: true, lanes_backwards: true, blocks_backwards: true };

    fn bits(self) -> u32 {
        u32::from(self.warps_backwards) | u32::from(self.lanes_backwards) << 1 | u32::from(self.blocks_backwards) << 2
    }
}

/// A launch that did not come to its end: no such kernel, an impossible shape, a barrier that not all reach, a race.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// Which kernel to launch, and how large.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// As in the `.cu` file.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block, one-dimensional.
    pub threads: u32,
    /// Dynamic shared memory; the shim fills it with NaN.
    pub shared_bytes: usize,
    /// Order of execution.
    pub order: Order,
}

impl Launch<'_> {
    /// Runs the kernel in this thread; others that launch wait. Cost: about 10 ns for each access to memory.
    ///
    /// # Errors
    ///
    /// See [`Error`]. What the kernel had written by then stays written.
    ///
    /// # Safety
    ///
    /// `arguments` are pointers to values of the kernel's parameter types, in order, and the pointers among those values are valid for
    /// all that the kernel reads and writes.
    pub unsafe fn run(&self, arguments: &mut [*mut c_void]) -> Result<(), Error> {
        let name = CString::new(self.kernel).expect("names of kernels have no NUL");
        let mut message = [0u8; 1024];
        // SAFETY: name and message live through the call, the lengths are theirs; the caller vouches for the arguments.
        let code = unsafe {
            ffi::weft_shim_launch(
                name.as_ptr(),
                self.grid.as_ptr(),
                [self.threads, 1, 1].as_ptr(),
                self.shared_bytes,
                arguments.as_mut_ptr(),
                self.order.bits(),
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&message).expect("the shim ends its message");
        Err(Error(text.to_string_lossy().into_owned()))
    }
}

/// Names of all kernels in the shim, its probes among them.
#[must_use]
pub fn kernels() -> Vec<String> {
    let name = |index| {
        // SAFETY: any index may be asked for.
        let name = unsafe { ffi::weft_shim_kernel(index) };
        // SAFETY: what is not null is a static string.
        (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    };
    (0..).map_while(name).collect()
}

/// Pointers to variables, as a launch takes its arguments; they must live until it. A temporary does not compile.
#[macro_export]
macro_rules! arguments {
    ($($variable:expr),* $(,)?) => { [$((&raw const $variable).cast_mut().cast::<::std::ffi::c_void>()),*] };
}
