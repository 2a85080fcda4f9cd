//! What the threads of a region share: the output, cut into parts that never overlap; and scratch of their own.

use bytemuck::Pod;
use std::cell::RefCell;
use std::marker::PhantomData;

/// An output slice whose disjoint parts several threads write.
pub(crate) struct OutPtr<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: like `&mut [T]` handed to several threads, each of which uses parts that no other uses (the duty of callers
// of `slice` and `at`).
unsafe impl<T: Send> Sync for OutPtr<'_, T> {}

impl<'a, T> OutPtr<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// A part as a slice.
    ///
    /// # Safety
    ///
    /// While it lives, no other thread uses any of it and this thread takes no other part that overlaps it.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's duty")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: in bounds (checked in `at`), unique by the caller's duty.
        unsafe { std::slice::from_raw_parts_mut(self.at(start, len), len) }
    }

    /// Where a value is, for hints alone.
    pub(crate) fn hint(&self, index: usize) -> *const T {
        self.start.wrapping_add(index)
    }

    /// A pointer to a part, of which not every value need be the caller's (columns of some rows).
    pub(crate) fn at(&self, start: usize, len: usize) -> *mut T {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "invariant: part {start} + {len} of an output of {}",
            self.len
        );
        self.start.wrapping_add(start)
    }
}

thread_local! {
    /// Kept between calls, so that a step allocates nothing once it is warm; one buffer per level of nesting.
    /// 64-bit words: aligned for any use here.
    static SCRATCH: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` values of scratch, content unspecified.
pub(crate) fn with_scratch<T: Pod, R>(len: usize, body: impl FnOnce(&mut [T]) -> R) -> R {
    let words = (len * size_of::<T>()).div_ceil(size_of::<u64>());
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < words {
        buffer.resize(words, 0);
    }
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer[..words]);
    let result = body(bytemuck::cast_slice_mut(&mut bytes[..len * size_of::<T>()]));
    SCRATCH.with_borrow_mut(|buffers| buffers.push(buffer));
    result
}
