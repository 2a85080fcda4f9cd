//! Zeroed memory that begins on a cache line, and on a huge page when it is large.

use bytemuck::Zeroable;
use std::alloc::Layout;
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
        let start = match Self::layout(len) {
            Some(layout) => memory::zeroed(layout).cast::<T>(),
            None => NonNull::dangling(),
        };
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

/// Memory by size. The allocator fills zeroed memory of a large alignment by hand, which touches all of it, so large
/// buffers come from the system itself.
mod memory {
    use super::HUGE_PAGE_BYTES;
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    /// Zeroes of this size and alignment. The size is not 0.
    pub(super) fn zeroed(layout: Layout) -> NonNull<u8> {
        if is_mapped(layout) {
            return map(layout).unwrap_or_else(|| handle_alloc_error(layout));
        }
        // SAFETY: the layout has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) };
        NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// # Safety
    /// `start` is from [`zeroed`] with this layout and is not used again.
    pub(super) unsafe fn free(start: NonNull<u8>, layout: Layout) {
        #[cfg(target_os = "linux")]
        if is_mapped(layout) {
            // SAFETY: exactly this range was kept of the mapping, and nobody uses it any more.
            unsafe { libc::munmap(start.as_ptr().cast(), kept(layout)) };
            return;
        }
        // SAFETY: allocated in `zeroed` with this same layout.
        unsafe { dealloc(start.as_ptr(), layout) }
    }

    fn is_mapped(layout: Layout) -> bool {
        cfg!(target_os = "linux") && layout.align() == HUGE_PAGE_BYTES
    }

    #[cfg(not(target_os = "linux"))]
    fn map(_: Layout) -> Option<NonNull<u8>> {
        None
    }

    /// Maps more than is needed and gives back what lies outside the alignment. Streams of weights miss the translation
    /// cache less with 2 MiB pages; that is only a hint, and its errors do not matter.
    #[cfg(target_os = "linux")]
    fn map(layout: Layout) -> Option<NonNull<u8>> {
        let align = layout.align();
        let mapped_bytes = kept(layout).checked_add(align)?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches no memory of anybody.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, access, kind, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let mapped = mapped.cast::<u8>();
        let before = mapped.align_offset(align);
        let used = before + kept(layout);
        // SAFETY: all three ranges lie in the mapping that was just made; the first and the last are used by nobody.
        unsafe {
            if before > 0 {
                libc::munmap(mapped.cast(), before);
            }
            if used < mapped_bytes {
                libc::munmap(mapped.add(used).cast(), mapped_bytes - used);
            }
            libc::madvise(mapped.add(before).cast(), kept(layout), libc::MADV_HUGEPAGE);
            NonNull::new(mapped.add(before))
        }
    }

    /// Bytes of a mapping that stay: it ends on a page of the system, and pages of 4 to 64 KiB divide this.
    #[cfg(target_os = "linux")]
    fn kept(layout: Layout) -> usize {
        layout.size().next_multiple_of(64 << 10)
    }
}

impl<T: Zeroable + Copy> Drop for AlignedBuf<T> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: allocated in `zeroed` with this same layout.
            unsafe { memory::free(self.start.cast(), layout) };
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
        for len in [0, 1, 15, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 12345] {
            let mut buf = AlignedBuf::<u16>::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.bytes(), len * 2);
            assert!(buf.iter().all(|&v| v == 0));
            assert!(len == 0 || (buf.as_ptr() as usize).is_multiple_of(CACHE_LINE_BYTES));
            buf.fill(7);
            assert!(buf.iter().all(|&v| v == 7));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn large_buffers_take_memory_only_where_they_are_written() {
        let resident = || -> usize {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        const BYTES: usize = 1 << 30;
        let before = resident();
        let mut buf = AlignedBuf::<u16>::zeroed(BYTES / 2);
        assert!((buf.as_ptr() as usize).is_multiple_of(HUGE_PAGE_BYTES));
        let end = buf.len() - 1;
        (buf[0], buf[end]) = (1, 2);
        assert_eq!((buf[0], buf[end / 2], buf[end]), (1, 0, 2));
        // Other tests of this process take some meanwhile.
        assert!(resident() < before + BYTES / 4, "the whole buffer was touched");
    }
}
