//! Launches that are wrong: before they are enqueued, or, on the shim, when they run.

use crate::support::{device, put};
use weft_cuda_device::{Access, Argument, Buffer, Counts, Device, Error, Launch, Stream};

fn norm<'a>(arguments: &'a [Argument<'a>]) -> Launch<'a> {
    Launch {
        kernel: "weft_rms_norm_f32",
        grid: [2, 1, 1],
        threads: 256,
        shared_bytes: 0,
        arguments,
        through_tables: &[],
        counts: Counts::default(),
    }
}

struct Norm {
    device: Device,
    stream: Stream,
    x: Buffer,
    weight: Buffer,
    out: Buffer,
}

impl Norm {
    /// Two rows of 16.
    fn new() -> Self {
        let device = device(1);
        let stream = device.stream("s").unwrap();
        let (x, weight) = (put(&device, &stream, &[1.0f32; 32]), put(&device, &stream, &[1.0f32; 16]));
        let out = device.allocate(128).unwrap();
        Self { device, stream, x, weight, out }
    }

    fn arguments(&self) -> [Argument<'_>; 5] {
        self.with(self.x.all().reads(), self.out.all().writes())
    }

    fn with<'a>(&'a self, x: Access<'a>, out: Access<'a>) -> [Argument<'a>; 5] {
        [x.into(), self.weight.all().reads().into(), Argument::F32(1e-5), out.into(), Argument::I32(16)]
    }

    fn says(&self, launch: &Launch<'_>) -> String {
        // SAFETY: what does not fit rms_norm.cu is refused, or, by the shim, held to the views.
        let result = unsafe { self.stream.launch(launch) };
        result.and_then(|()| self.stream.synchronize()).map_or_else(|error| error.to_string(), |()| "fits".to_owned())
    }
}

#[test]
fn a_launch_is_held_against_the_kernel_and_the_device() {
    let norm_of = Norm::new();
    let all = norm_of.arguments();
    let says = |change: fn(&mut Launch<'_>)| {
        let mut launch = norm(&all);
        change(&mut launch);
        norm_of.says(&launch)
    };
    assert_eq!(says(|_| ()), "fits");
    assert_eq!(says(|launch| launch.kernel = "weft_none"), "no kernel weft_none is loaded");
    assert_eq!(says(|launch| launch.grid[0] = 0), "weft_rms_norm_f32: grid.x is 0, must be 1 to 2147483647");
    assert_eq!(says(|launch| launch.grid[1] = 65_536), "weft_rms_norm_f32: grid.y is 65536, must be 1 to 65535");
    assert_eq!(says(|launch| launch.threads = 1025), "weft_rms_norm_f32: threads is 1025, must be 1 to 1024");
    assert_eq!(says(|launch| launch.threads = 0), "weft_rms_norm_f32: threads is 0, must be 1 to 1024");
    assert_eq!(
        says(|launch| launch.shared_bytes = 48 * 1024 + 1),
        "weft_rms_norm_f32: shared_bytes is 49153, must be up to 49152"
    );
    assert_eq!(
        says(|launch| launch.arguments = &launch.arguments[..4]),
        "weft_rms_norm_f32: arguments is 4, must be 5, as many as its parameters"
    );
}

#[test]
fn arguments_are_held_against_the_parameters() {
    let norm_of = Norm::new();
    let says = |index: usize, argument: Argument<'_>| {
        let mut all = norm_of.arguments();
        all[index] = argument;
        norm_of.says(&norm(&all))
    };
    assert_eq!(
        says(4, Argument::U64(16)),
        "weft_rms_norm_f32: argument is number 4, a value of 8 bytes, must be a value of 4 bytes"
    );
    assert_eq!(
        says(0, Argument::U64(16)),
        "weft_rms_norm_f32: argument is number 0, a value of 8 bytes, must be an address of 8 bytes"
    );
    assert_eq!(
        says(2, norm_of.x.all().reads().into()),
        "weft_rms_norm_f32: argument is number 2, an address of 8 bytes, must be a value of 4 bytes"
    );
    assert_eq!(says(4, Argument::Bytes(&16i32.to_ne_bytes())), "fits");
    let other = device(2);
    let foreign = other.allocate(128).unwrap();
    assert!(says(0, foreign.all().reads().into()).ends_with("of another device, must be of this device"));
}

#[test]
fn a_kernel_that_reads_beyond_its_view_is_told() {
    let norm_of = Norm::new();
    let short = norm_of.x.part(0..124).unwrap();
    let all = norm_of.with(short.reads(), norm_of.out.all().writes());
    let error = norm_of.says(&norm(&all));
    assert!(
        error.contains("weft_rms_norm_f32 on stream s") && error.contains("outside of what the launch says it reads"),
        "{error}"
    );
}

#[test]
fn a_kernel_that_writes_what_it_says_it_reads_is_told() {
    let norm_of = Norm::new();
    let all = norm_of.with(norm_of.x.all().reads(), norm_of.out.all().reads());
    let error = norm_of.says(&norm(&all));
    assert!(error.contains("outside of what the launch says it writes"), "{error}");
}

#[test]
fn a_null_pointer_is_memory_of_nobody() {
    let norm_of = Norm::new();
    let mut all = norm_of.arguments();
    all[1] = Argument::Null;
    let error = norm_of.says(&norm(&all));
    assert!(error.contains("outside of what the launch says it reads"), "{error}");
}

#[test]
fn failed_kernels_make_the_device_fail() {
    let norm_of = Norm::new();
    let mut all = norm_of.arguments();
    all[1] = Argument::Null;
    norm_of.says(&norm(&all));
    let stream = norm_of.device.stream("t").unwrap();
    assert!(matches!(stream.fill(norm_of.out.all(), 0), Err(Error::Failed(_))));
}
