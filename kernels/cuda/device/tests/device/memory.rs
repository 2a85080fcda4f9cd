//! Pools that run out, views that do not fit.

use crate::support::{OPTIONS, device, get, put};
use weft_cuda_device::shim::{self, Shim};
use weft_cuda_device::{Device, Error, Options};

#[test]
fn a_full_pool_says_what_was_asked_and_what_there_is() {
    let device = device(0);
    let held: Vec<_> = (0..4).map(|_| device.allocate(256 * 1024).unwrap()).collect();
    assert_eq!(device.usage().free, 0);
    let error = device.allocate(1).unwrap_err();
    assert!(error.is_out_of_memory());
    let text = "out of device memory: 1 bytes asked, 0 free (the longest run has 0), 1048576 in all";
    assert_eq!(error.to_string(), text);
    // Two that do not touch: as much as is asked is free, but not in one piece.
    let mut held = held.into_iter();
    let (first, second, third) = (held.next(), held.next(), held.next());
    drop((first, third));
    let error = device.allocate(300 * 1024).unwrap_err();
    let text = "out of device memory: 307200 bytes asked, 524288 free (the longest run has 262144), 1048576 in all";
    assert_eq!(error.to_string(), text);
    drop(second);
    device.allocate(300 * 1024).unwrap();
    let error = device.allocate_pinned(2 << 20).unwrap_err();
    assert!(error.to_string().starts_with("out of pinned memory: 2097152 bytes asked, 262144 free"), "{error}");
}

#[test]
fn a_device_that_is_too_small_for_the_pool_says_so() {
    let shim = Shim::new(&shim::Options { memory_bytes: 1 << 19, ..shim::Options::default() });
    let error = Device::new(shim, &OPTIONS).unwrap_err();
    assert_eq!(
        error,
        Error::OutOfMemory { memory: "device", asked: 1 << 20, free: 1 << 19, largest: 1 << 19, total: 1 << 19 }
    );
}

#[test]
fn options_have_limits() {
    let says = |options: Options| Device::new(Shim::new(&shim::Options::default()), &options).unwrap_err().to_string();
    let odd = says(Options { block_bytes: 384, ..OPTIONS });
    assert_eq!(odd, "device: block_bytes is 384, must be a power of two, 256 at least");
    let none = says(Options { pinned_bytes: 0, ..OPTIONS });
    assert_eq!(none, "device: pinned_bytes is 0, must be 256 at least: one block");
}

#[test]
fn a_buffer_gives_its_memory_back_with_its_last_clone() {
    let device = device(0);
    let buffer = device.allocate(1000).unwrap();
    let clone = buffer.clone();
    drop(buffer);
    assert_eq!(device.usage().free, device.usage().total - 1024);
    drop(clone);
    assert_eq!(device.usage().free, device.usage().total);
}

#[test]
fn views_and_copies_stay_within_their_memory() {
    let device = device(0);
    let (stream, buffer) = (device.stream("s").unwrap(), device.allocate(100).unwrap());
    let pinned = device.allocate_pinned(50).unwrap();
    let says = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert_eq!(says(buffer.part(90..101).map(drop)), "view: range is 90..101, must be within 0..100");
    let part = buffer.part(10..60).unwrap();
    assert_eq!((part.address(), part.bytes()), (buffer.address() + 10, 50));
    assert_eq!(says(part.part(0..51).map(drop)), "view: range is 0..51, must be within 0..50");
    assert_eq!(says(stream.upload(&pinned, 0..51, part)), "copy: range is 0..51, must be within 0..50");
    assert_eq!(
        says(stream.upload(&pinned, 0..49, part)),
        "copy: bytes is 49, must be 50, as many as there is room for"
    );
    assert!(says(stream.copy(part, buffer.part(59..109 - 50).unwrap())).contains("bytes is 50"));
    assert!(says(stream.copy(part, buffer.part(50..100).unwrap())).contains("must be apart from"));
    assert_eq!(says(pinned.write(48, &[1u8; 3])), "pinned memory: range is 48..51, must be within 0..50");
    assert_eq!(
        says(pinned.read(usize::MAX, &mut [0u8; 3])).split(", must").next(),
        Some("pinned memory: range is 18446744073709551615..18446744073709551615")
    );
}

#[test]
fn bytes_go_there_and_back_and_fill() {
    let device = device(3);
    let stream = device.stream("s").unwrap();
    let from: Vec<u32> = (0..100).collect();
    let (buffer, other) = (put(&device, &stream, &from), device.allocate(400).unwrap());
    stream.copy(buffer.part(0..200).unwrap(), other.part(200..400).unwrap()).unwrap();
    stream.fill(other.part(0..200).unwrap(), 0x11).unwrap();
    let got: Vec<u32> = get(&device, &stream, &other).unwrap();
    assert_eq!(got[..50], [0x1111_1111; 50]);
    assert_eq!(got[50..], from[..50]);
}

#[test]
fn what_belongs_to_another_device_is_refused() {
    let (one, two) = (device(0), device(1));
    let (stream, foreign) = (one.stream("s").unwrap(), two.allocate(4).unwrap());
    let error = stream.fill(foreign.all(), 0).unwrap_err();
    assert_eq!(error.to_string(), "stream s: memory or event is of another device, must be of its device");
    assert!(stream.record(&two.event().unwrap()).is_err());
}
