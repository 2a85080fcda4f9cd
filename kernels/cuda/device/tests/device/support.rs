//! A small device, and values that go there and back.

use std::sync::Arc;
use weft_cuda_device::shim::{self, Shim};
use weft_cuda_device::{Buffer, Device, Error, Options, Stream};

pub(crate) const OPTIONS: Options =
    Options { pool_bytes: 1 << 20, pinned_bytes: 1 << 18, block_bytes: 256, pinned_block_bytes: 256 };

pub(crate) fn shim(seed: u64) -> (Arc<Shim>, Device) {
    let shim = Shim::new(&shim::Options { seed, ..shim::Options::default() });
    let device = Device::new(Arc::clone(&shim) as _, &OPTIONS).unwrap();
    (shim, device)
}

pub(crate) fn device(seed: u64) -> Device {
    shim(seed).1
}

/// Puts values into a new buffer, and waits.
pub(crate) fn put<T: bytemuck::NoUninit>(device: &Device, stream: &Stream, values: &[T]) -> Buffer {
    let bytes = size_of_val(values);
    let (buffer, pinned) = (device.allocate(bytes).unwrap(), device.allocate_pinned(bytes).unwrap());
    pinned.write(0, values).unwrap();
    stream.upload(&pinned, 0..bytes, buffer.all()).unwrap();
    stream.synchronize().unwrap();
    buffer
}

/// Reads a buffer back, and waits.
pub(crate) fn get<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
    device: &Device,
    stream: &Stream,
    buffer: &Buffer,
) -> Result<Vec<T>, Error> {
    let pinned = device.allocate_pinned(buffer.bytes())?;
    stream.download(buffer.all(), &pinned, 0..buffer.bytes())?;
    stream.synchronize()?;
    let mut values = vec![T::zeroed(); buffer.bytes() / size_of::<T>()];
    pinned.read(0, &mut values)?;
    Ok(values)
}
