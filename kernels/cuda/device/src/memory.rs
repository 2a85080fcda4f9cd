//! Buffers in device memory and in pinned memory, each from one pool.

use crate::blocks::Blocks;
use crate::device::Inner;
use crate::driver::Touch;
use crate::error::Error;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Memory that was allocated once, and lives as long as the device.
#[derive(Debug)]
pub(crate) struct Pool {
    memory: &'static str,
    pub(crate) base: u64,
    pub(crate) block_bytes: usize,
    blocks: Mutex<Blocks>,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Not in use.
    pub free: usize,
    /// The most that one allocation can get.
    pub largest: usize,
    /// All of it.
    pub total: usize,
}

impl Pool {
    pub(crate) fn new(memory: &'static str, base: u64, bytes: usize, block_bytes: usize) -> Self {
        Self { memory, base, block_bytes, blocks: Mutex::new(Blocks::new(bytes / block_bytes)) }
    }

    pub(crate) fn usage(&self) -> Usage {
        let blocks = self.blocks.lock().expect("no panic while it is held");
        let [free, largest, total] = [blocks.free(), blocks.largest(), blocks.total()].map(|n| n * self.block_bytes);
        Usage { free, largest, total }
    }

    /// First block and number of blocks; at least one, so that each buffer has an address of its own.
    fn take(&self, bytes: usize) -> Result<(usize, usize), Error> {
        let count = bytes.div_ceil(self.block_bytes).max(1);
        let taken = self.blocks.lock().expect("no panic while it is held").take(count);
        taken.map(|first| (first, count)).ok_or_else(|| {
            let Usage { free, largest, total } = self.usage();
            Error::OutOfMemory { memory: self.memory, asked: bytes, free, largest, total }
        })
    }

    fn give(&self, (first, count): (usize, usize)) {
        self.blocks.lock().expect("no panic while it is held").give(first, count);
    }

    fn address(&self, first: usize) -> u64 {
        self.base + (first * self.block_bytes) as u64
    }
}

/// Device memory. Clones are the same memory; the last one gives it back to the pool.
///
/// Giving back waits for nothing: work that is enqueued may still use the memory. Whoever gets it next must come after that work: on
/// the same stream, or by an event. The shim finds out who does not.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    device: Arc<Inner>,
    run: (usize, usize),
    address: u64,
    bytes: usize,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.device.pool.give(self.run);
    }
}

impl Buffer {
    pub(crate) fn allocate(device: &Arc<Inner>, bytes: usize) -> Result<Self, Error> {
        let run = device.pool.take(bytes)?;
        let address = device.pool.address(run.0);
        device.driver.poison(address..address + bytes as u64);
        Ok(Self(Arc::new(Owned { device: Arc::clone(device), run, address, bytes })))
    }

    /// Size, as it was asked for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Where it begins, for tables in device memory. A multiple of the pool's block size.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// All of it.
    #[must_use]
    pub fn all(&self) -> View<'_> {
        View { buffer: self, offset: 0, bytes: self.0.bytes }
    }

    /// Bytes `range` of it.
    ///
    /// # Errors
    ///
    /// When it has fewer.
    pub fn part(&self, range: Range<usize>) -> Result<View<'_>, Error> {
        self.all().part(range)
    }

    pub(crate) fn is_of(&self, device: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.0.device, device)
    }
}

/// A part of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub(crate) buffer: &'a Buffer,
    offset: usize,
    bytes: usize,
}

impl<'a> View<'a> {
    /// Size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.buffer.0.address + self.offset as u64
    }

    /// Bytes `range` of it.
    ///
    /// # Errors
    ///
    /// When it has fewer.
    pub fn part(&self, range: Range<usize>) -> Result<View<'a>, Error> {
        within("view", &range, self.bytes)?;
        Ok(View { buffer: self.buffer, offset: self.offset + range.start, bytes: range.len() })
    }

    /// Of an operation that only reads it.
    #[must_use]
    pub fn reads(self) -> Access<'a> {
        Access { view: self, writes: false, parts: false }
    }

    /// Of an operation that writes it, and perhaps reads it.
    #[must_use]
    pub fn writes(self) -> Access<'a> {
        Access { view: self, writes: true, parts: false }
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.address()..self.address() + self.bytes as u64
    }
}

/// What an operation does with a view.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub(crate) view: View<'a>,
    pub(crate) writes: bool,
    pub(crate) parts: bool,
}

impl Access<'_> {
    /// Touches parts of the view, known to nobody before it runs: what a table in device memory points to. On the shim those that it did
    /// touch are compared with other work; others are free to be written meanwhile.
    #[must_use]
    pub fn in_parts(mut self) -> Self {
        self.parts = true;
        self
    }

    pub(crate) fn touch(&self) -> Touch {
        Touch { at: self.view.range(), writes: self.writes, parts: self.parts }
    }
}

/// Page-locked memory of the host, from and to which copies run beside everything else. Clones are the same memory; it is given back as
/// [`Buffer`] is.
#[derive(Clone, Debug)]
pub struct Pinned(Arc<OwnedPinned>);

#[derive(Debug)]
struct OwnedPinned {
    device: Arc<Inner>,
    run: (usize, usize),
    address: u64,
    bytes: usize,
}

impl Drop for OwnedPinned {
    fn drop(&mut self) {
        self.device.pinned.give(self.run);
    }
}

impl Pinned {
    pub(crate) fn allocate(device: &Arc<Inner>, bytes: usize) -> Result<Self, Error> {
        let run = device.pinned.take(bytes)?;
        let address = device.pinned.address(run.0);
        Ok(Self(Arc::new(OwnedPinned { device: Arc::clone(device), run, address, bytes })))
    }

    /// Size, as it was asked for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    pub(crate) fn is_of(&self, device: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.0.device, device)
    }

    /// Puts values in, from byte `at` on. Copies that are enqueued and read there must be over: the shim finds those that are not.
    ///
    /// # Errors
    ///
    /// When they do not fit; on the shim, when earlier work has failed.
    pub fn write<T: bytemuck::NoUninit>(&self, at: usize, values: &[T]) -> Result<(), Error> {
        let from: &[u8] = bytemuck::cast_slice(values);
        let to = self.host(at..at.saturating_add(from.len()), true)?;
        // SAFETY: the pool is mapped as long as the device lives, and the range is within this buffer, which is of bytes and of nobody else.
        // No reference to it exists: it is read and written through pointers alone.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    /// Takes values out, from byte `at` on. Copies that write there must be over, as for [`Pinned::write`].
    ///
    /// # Errors
    ///
    /// When there are fewer; on the shim, when earlier work has failed.
    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        at: usize,
        values: &mut [T],
    ) -> Result<(), Error> {
        let to: &mut [u8] = bytemuck::cast_slice_mut(values);
        let from = self.host(at..at.saturating_add(to.len()), false)?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn host(&self, range: Range<usize>, writes: bool) -> Result<*mut u8, Error> {
        within("pinned memory", &range, self.0.bytes)?;
        let at = self.range(range);
        self.0.device.driver.host_access(at.clone(), writes)?;
        Ok(std::ptr::with_exposed_provenance_mut(at.start as usize))
    }

    pub(crate) fn range(&self, range: Range<usize>) -> Range<u64> {
        self.0.address + range.start as u64..self.0.address + range.end as u64
    }
}

pub(crate) fn within(on: &str, range: &Range<usize>, bytes: usize) -> Result<(), Error> {
    if range.start <= range.end && range.end <= bytes {
        return Ok(());
    }
    Err(Error::value(on, "range", format!("{range:?}"), format!("within 0..{bytes}")))
}
