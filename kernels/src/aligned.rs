//! Zeroed memory that begins on a cache line, and on a huge page when it is large.

use bytemuck::Zeroable;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const CACHE_LINE_BYTES: usize = 64;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A fixed-size slice of plain values, zeroed at first, aligned to 64 bytes.
pub(crate) struct AlignedBuf<T: Zeroable + Copy> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, like a Vec<T>.
unsafe impl<T: Zeroable + Copy + Send> Send for AlignedBuf<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Zeroable + Copy + Sync> Sync for AlignedBuf<T> {}

impl<T: Zeroable + Copy> AlignedBuf<T> {
    /// `len` zeroes. Large buffers are not touched: the system maps pages when they are first used.
    pub(crate) fn zeroed(len: usize) -> Self {
        let Some(layout) = Self::layout(len) else {
            return Self { start: NonNull::dangling(), len };
        };
        // SAFETY: the layout has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw.cast::<T>()) else {
            handle_alloc_error(layout);
        };
        advise_huge_pages(raw, layout.size());
        Self { start, len }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// None for an empty buffer, which holds no memory.
    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer fits the address space");
        let align = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { CACHE_LINE_BYTES };
        (bytes > 0).then(|| Layout::from_size_align(bytes, align).expect("a buffer fits the address space"))
    }
}

/// Streams of weights miss the translation cache less with 2 MiB pages; only a hint, errors do not matter.
fn advise_huge_pages(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    if bytes >= HUGE_PAGE_BYTES {
        // SAFETY: the range was just allocated, is aligned to a page, and the advice changes no content.
        unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

impl<T: Zeroable + Copy> Drop for AlignedBuf<T> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: allocated in `zeroed` with this same layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Zeroable + Copy> Deref for AlignedBuf<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is valid for `len` initialised values (zeroes are values of a Zeroable type).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Zeroable + Copy> DerefMut for AlignedBuf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow of self is unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_every_size_are_zeroed_aligned_and_writable() {
        for len in [0, 1, 15, 4096, 3 << 20] {
            let mut buf = AlignedBuf::<u16>::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.bytes(), len * 2);
            assert!(buf.iter().all(|&v| v == 0));
            assert!(len == 0 || (buf.as_ptr() as usize).is_multiple_of(CACHE_LINE_BYTES));
            buf.fill(7);
            assert!(buf.iter().all(|&v| v == 7));
        }
    }
}
