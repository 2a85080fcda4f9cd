//! A device: its memory, its streams, its records.

use crate::driver::{Driver, Kernel, Properties};
use crate::error::Error;
use crate::graph::Capture;
use crate::memory::{Buffer, Pinned, Pool, Usage};
use crate::record::{Record, Recorder};
use crate::stream::{Event, Stream};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

/// What to take of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Device memory for all buffers. What it leaves is for the driver: its context, the kernels, graphs.
    pub pool_bytes: usize,
    /// Page-locked memory for all copies from and to the host.
    pub pinned_bytes: usize,
    /// Device memory is given out in multiples of this: a power of two, 256 at least. 64 KiB is a page of 8 ranks of an adapter for 4096 columns of
    /// half precision.
    pub block_bytes: usize,
    /// As `block_bytes`, of pinned memory.
    pub pinned_block_bytes: usize,
}

/// A device and its memory. Clones are the same device; it ends with the last of them, of its buffers, streams, events and graphs.
#[derive(Clone, Debug)]
pub struct Device(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) pool: Pool,
    pub(crate) pinned: Pool,
    pub(crate) recorder: Recorder,
    /// One at a time.
    pub(crate) capture: Mutex<Option<Capture>>,
    kernels: RwLock<HashMap<String, Arc<Kernel>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.driver.release(self.pool.base);
        self.driver.unpin(self.pinned.base);
    }
}

impl Device {
    /// Takes both pools from the driver: all that it will ever take for buffers.
    ///
    /// # Errors
    ///
    /// Options out of range; [`Error::OutOfMemory`] when the device, or the host, has less.
    pub fn new(driver: Arc<dyn Driver>, options: &Options) -> Result<Self, Error> {
        let Options { pool_bytes, pinned_bytes, block_bytes, pinned_block_bytes } = *options;
        for (field, bytes) in [("block_bytes", block_bytes), ("pinned_block_bytes", pinned_block_bytes)] {
            if !bytes.is_power_of_two() || bytes < 256 {
                return Err(Error::value("device", field, bytes, "a power of two, 256 at least"));
            }
        }
        for (field, bytes, block_bytes) in
            [("pool_bytes", pool_bytes, block_bytes), ("pinned_bytes", pinned_bytes, pinned_block_bytes)]
        {
            if bytes < block_bytes {
                return Err(Error::value("device", field, bytes, format!("{block_bytes} at least: one block")));
            }
        }
        let base = driver.reserve(pool_bytes)?;
        let pinned_base = driver.pin(pinned_bytes).inspect_err(|_| driver.release(base))?;
        Ok(Self(Arc::new(Inner {
            driver,
            pool: Pool::new("device", base, pool_bytes, block_bytes),
            pinned: Pool::new("pinned", pinned_base, pinned_bytes, pinned_block_bytes),
            recorder: Recorder::default(),
            capture: Mutex::new(None),
            kernels: RwLock::default(),
        })))
    }

    /// What the device is.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        self.0.driver.properties()
    }

    /// Device memory from the pool. Its contents are whatever was there. Cost: a lock and a look at the free runs, no call of the driver.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, Error> {
        Buffer::allocate(&self.0, bytes)
    }

    /// Pinned memory from its pool, as [`Device::allocate`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate_pinned(&self, bytes: usize) -> Result<Pinned, Error> {
        Pinned::allocate(&self.0, bytes)
    }

    /// What the pool of device memory gives out multiples of, in bytes.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.0.pool.block_bytes
    }

    /// How full the pool of device memory is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.0.pool.usage()
    }

    /// How full the pool of pinned memory is.
    #[must_use]
    pub fn pinned_usage(&self) -> Usage {
        self.0.pinned.usage()
    }

    /// A new stream. Streams are made once and kept; the name is for records and messages.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn stream(&self, name: &str) -> Result<Stream, Error> {
        Stream::new(&self.0, name)
    }

    /// A new event, recorded nowhere yet.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn event(&self) -> Result<Event, Error> {
        Event::new(&self.0)
    }

    /// Records what is enqueued from now on.
    pub fn start_records(&self) {
        self.0.recorder.start();
    }

    /// All that was enqueued since [`Device::start_records`], in the order of the calls. What a capture took is not there, but what graphs
    /// replayed is.
    #[must_use]
    pub fn stop_records(&self) -> Vec<Record> {
        self.0.recorder.stop()
    }
}

impl Inner {
    pub(crate) fn kernel(&self, name: &str) -> Result<Arc<Kernel>, Error> {
        if let Some(kernel) = self.kernels.read().expect("no panic while it is held").get(name) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = Arc::new(self.driver.kernel(name)?);
        self.kernels.write().expect("no panic while it is held").insert(name.to_owned(), Arc::clone(&kernel));
        Ok(kernel)
    }
}
