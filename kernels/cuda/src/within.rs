//! Launches in the shim that may touch what they say and nothing else; and what kernels take.

use crate::host::{Error, Launch, kernels};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::LazyLock;

mod ffi {
    // SAFETY: these are functions that shim/bounds.cpp and shim/shim.cpp export, with their types.
    unsafe extern "C" {
        pub(super) fn weft_shim_bound(from: *const super::Range, count: usize);
        pub(super) fn weft_shim_touched(to: *mut super::Touched, capacity: usize) -> usize;
        pub(super) fn weft_shim_parameters(index: usize, to: *mut super::Parameter, capacity: usize) -> usize;
    }
}

/// Memory that a launch may read, or read and write.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub begin: usize,
    /// One beyond the last.
    pub end: usize,
    may_write: u32,
    is_kept: u32,
}

impl Range {
    /// `begin..end`. `is_kept`: the launch shall say which of its bytes it touched.
    #[must_use]
    pub fn new(range: std::ops::Range<usize>, may_write: bool, is_kept: bool) -> Self {
        Self { begin: range.start, end: range.end, may_write: may_write.into(), is_kept: is_kept.into() }
    }
}

/// Which of 64 bytes a launch touched; bit `i` is byte `at + i`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    /// A multiple of 64.
    pub at: usize,
    /// Read.
    pub read: u64,
    /// Written.
    pub written: u64,
}

/// A kernel's parameter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameter {
    /// Size of the value.
    pub bytes: u32,
    is_pointer: u32,
}

impl Parameter {
    /// Whether the value is an address.
    #[must_use]
    pub fn is_pointer(self) -> bool {
        self.is_pointer != 0
    }
}

/// Whether the shim sees what kernels touch. Under the address sanitizer it does not.
#[must_use]
pub const fn sees_accesses() -> bool {
    cfg!(not(race_check_is_off))
}

/// What a kernel of the shim takes, in order. `None`: there is no such kernel.
#[must_use]
pub fn parameters(kernel: &str) -> Option<&'static [Parameter]> {
    static ALL: LazyLock<HashMap<String, Vec<Parameter>>> = LazyLock::new(|| {
        let of = |index| {
            // SAFETY: any index may be asked for, and nothing is written where the capacity is zero.
            let count = unsafe { ffi::weft_shim_parameters(index, std::ptr::null_mut(), 0) };
            let mut all = vec![Parameter::default(); count];
            // SAFETY: the vector has the capacity.
            unsafe { ffi::weft_shim_parameters(index, all.as_mut_ptr(), count) };
            all
        };
        kernels().into_iter().enumerate().map(|(index, name)| (name, of(index))).collect()
    });
    ALL.get(kernel).map(Vec::as_slice)
}

impl Launch<'_> {
    /// As [`Launch::run`]; an access outside of `ranges`, or a write where they only allow reads, is an error. Returns what was touched of
    /// the ranges that keep it, in order of addresses, also when the launch failed.
    ///
    /// The arguments themselves need no range. Where [`sees_accesses`] is false, nothing is checked and nothing is touched.
    ///
    /// # Safety
    ///
    /// As [`Launch::run`], but for what the ranges rule out where [`sees_accesses`].
    pub unsafe fn run_within(
        &self,
        arguments: &mut [*mut c_void],
        ranges: &[Range],
    ) -> (Result<(), Error>, Vec<Touched>) {
        let values = parameters(self.kernel).unwrap_or_default();
        let own = |at: usize, bytes: usize| Range::new(at..at + bytes, false, false);
        let mut all = vec![own(arguments.as_ptr() as usize, size_of_val(arguments))];
        all.extend(arguments.iter().zip(values).map(|(value, of)| own(*value as usize, of.bytes as usize)));
        // Those that are most often touched come first.
        all.splice(0..0, ranges.iter().copied());
        // SAFETY: the ranges are copied.
        unsafe { ffi::weft_shim_bound(all.as_ptr(), all.len()) };
        // SAFETY: the caller's promise.
        let result = unsafe { self.run(arguments) };
        // SAFETY: nothing is written where the capacity is zero.
        let count = unsafe { ffi::weft_shim_touched(std::ptr::null_mut(), 0) };
        let mut touched = vec![Touched::default(); count];
        // SAFETY: the vector has the capacity; then the check is off again for this thread.
        unsafe {
            ffi::weft_shim_touched(touched.as_mut_ptr(), count);
            ffi::weft_shim_bound(std::ptr::null(), 0);
        }
        touched.sort_unstable();
        (result, touched)
    }
}
