//! CUDA's driver: what a machine without one is told, and, where there is a device, the calls that the shim is tested by.

use crate::lora::{self, Slot, Step, TABLE_BYTES, expected, table};
use crate::support::{OPTIONS, get, put};
use half::bf16;
use std::path::Path;
use std::sync::Arc;
use weft_cuda_device::cuda::{Cuda, Id, Machine, read_kernels};
use weft_cuda_device::driver::Driver;
use weft_cuda_device::requirements::{self, Probe};
use weft_cuda_device::{Counts, Device, Error, Matmul, Type};
use weft_kernels::conformance::Random;

#[test]
fn a_machine_that_cannot_run_the_kernels_is_told_why() {
    // What is there decides which refusal can be seen; on a machine that has it all, none.
    let Err(error) = Cuda::open(0, Vec::new()) else { panic!("there are no kernels in an empty file") };
    if Machine.has_driver_library() {
        assert!(!error.to_string().contains("libcuda"), "{error}");
        return;
    }
    // (Where there is a device, an empty file is told as such, and the driver is not asked.)
    assert_eq!(requirements::check(&Machine, 0), Err(error.clone()));
    let text = "no NVIDIA driver (libcuda.so.1) library found: install NVIDIA driver r580 or newer";
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_machine_without_nccl_is_told() {
    match Id::new() {
        Err(error @ Error::NoLibrary { .. }) => {
            assert!(error.to_string().starts_with("no nccl library found: install"), "{error}")
        }
        // It is there, and may lack a device.
        Err(error) => assert!(matches!(error, Error::Driver { call: "ncclGetUniqueId", .. }), "{error}"),
        Ok(id) => assert_ne!(id.0, [0; 128]),
    }
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    let says = |path: &Path| read_kernels(path).unwrap_err().to_string();
    let missing = says(Path::new("/nowhere/weft.fatbin"));
    assert!(
        missing.starts_with("kernels in /nowhere/weft.fatbin: ")
            && missing.ends_with("scripts/build-cuda.sh makes the file"),
        "{missing}"
    );
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    assert!(says(&other).ends_with("not a fatbin; scripts/build-cuda.sh makes one"));
}

/// The first device, with the kernels that `WEFT_KERNELS` names.
pub(crate) fn device() -> Arc<dyn Driver> {
    let kernels = std::env::var_os("WEFT_KERNELS").expect("WEFT_KERNELS names what scripts/build-cuda.sh made");
    Cuda::open(0, read_kernels(Path::new(&kernels)).unwrap()).unwrap()
}

/// `WEFT_KERNELS=target/cuda/weft.fatbin cargo test --release -p weft-cuda-device --features cuda -- --ignored`
#[test]
#[ignore = "needs a device, and WEFT_KERNELS to name a fatbin"]
fn a_device_does_what_the_shim_does() {
    let options = weft_cuda_device::Options { pool_bytes: 256 << 20, ..OPTIONS };
    let device = Device::new(self::device(), &options).unwrap();
    let (compute, copies) = (device.stream("compute").unwrap(), device.stream("copies").unwrap());
    println!("{:?}", device.properties());

    // A product, whose first use takes the workspace.
    let random = &mut Random::new(1);
    let [x, w] = [5 * 64, 24 * 64].map(|len| lora::random_values(random, len, bf16::from_f32));
    let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<u16>>();
    let (x_at, w_at) = (put(&device, &compute, &bits(&x)), put(&device, &compute, &bits(&w)));
    let out_at = device.allocate(4 * 5 * 24).unwrap();
    let matmul = Matmul {
        rows: 5,
        inputs: 64,
        outputs: 24,
        x: x_at.all(),
        x_stride: 64,
        w: w_at.all(),
        of: Type::Bf16,
        out: out_at.all(),
        out_stride: 24,
        out_of: Type::F32,
        adds: false,
    };
    compute.matmul(&matmul).unwrap();
    for (at, got) in get::<f32>(&device, &compute, &out_at).unwrap().into_iter().enumerate() {
        let (row, column) = (at / 24, at % 24);
        let products = (0..64).map(|i| x[row * 64 + i].to_f64() * w[column * 64 + i].to_f64());
        let (want, all) =
            products.fold((0.0, 0.0), |(sum, all): (f64, f64), product| (sum + product, all + product.abs()));
        // 64 products and additions in f32, in any order.
        assert!((f64::from(got) - want).abs() <= 66.0 * 2f64.powi(-24) * all, "{at}: {got}, should be {want}");
    }

    // A graph whose tables change, with slots that come by another stream.
    let slots: Vec<Slot> = [8, 16, 3].map(|rank| Slot::new(&device, &copies, random, rank)).into();
    let (step, x) = Step::new(&device, &copies, random);
    let staging = device.allocate_pinned(TABLE_BYTES).unwrap();
    let all: Vec<_> = slots.iter().map(|slot| slot.memory.all()).collect();
    let graph = compute
        .capture(|| {
            compute.upload(&staging, 0..TABLE_BYTES, step.table.all())?;
            step.launch(&compute, &all, Counts::default())
        })
        .unwrap();
    let loaded = device.event().unwrap();
    copies.record(&loaded).unwrap();
    compute.wait(&loaded).unwrap();
    let mut want = vec![0.0f32; step.out.bytes() / 4];
    for used in [vec![0, 1], vec![2], vec![2, 1, 0, 1]] {
        let used: Vec<&Slot> = used.into_iter().map(|slot: usize| &slots[slot]).collect();
        staging.write(0, &table(&used)).unwrap();
        graph.replay(&compute).unwrap();
        let got: Vec<f32> = get(&device, &compute, &step.out).unwrap();
        expected(&x, &used, &mut want);
        // The same order of additions, and other rounding at most.
        let is_near = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-5 * (1.0 + want.abs());
        assert!(got.iter().zip(&want).all(is_near), "{got:?}, should be {want:?}");
    }

    let error = device.allocate(1 << 30).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    let larger = weft_cuda_device::Options { pool_bytes: 1 << 50, ..OPTIONS };
    assert!(Device::new(self::device(), &larger).unwrap_err().is_out_of_memory());
}
