//! The suite, over the reference and every instruction set this machine has, with and without threads.

use weft_kernels::conformance::BesideCodes;
use weft_kernels::{CpuOptions, Isa, conformance, cpu, reference};

fn run(isa: Isa, threads: usize) {
    if !isa.is_available() {
        // Not a silent pass: the detected set is always available, so at least one of these tests runs for real.
        assert_ne!(isa, Isa::detect());
        eprintln!("{} is not available on this processor", isa.as_str());
        return;
    }
    let kernels = cpu(CpuOptions { threads, isa: Some(isa) });
    assert_eq!(kernels.isa(), isa.as_str());
    conformance::all(&*kernels, BesideCodes::Codes, threads as u64);
}

#[test]
fn the_reference_conforms() {
    conformance::all(&*reference(), BesideCodes::Floats, 0);
}

#[test]
fn portable_conforms() {
    run(Isa::Portable, 1);
}

#[test]
fn portable_conforms_with_threads() {
    run(Isa::Portable, 3);
}

#[test]
fn avx2_conforms() {
    run(Isa::Avx2, 1);
}

#[test]
fn avx2_conforms_with_threads() {
    run(Isa::Avx2, 3);
}

#[test]
fn avx512_conforms() {
    run(Isa::Avx512, 1);
}

#[test]
fn avx512_conforms_with_threads() {
    run(Isa::Avx512, 3);
}

#[test]
fn avx512_vnni_conforms() {
    run(Isa::Avx512Vnni, 1);
}

#[test]
fn avx512_vnni_conforms_with_threads() {
    run(Isa::Avx512Vnni, 3);
}

#[test]
fn avx512_bf16_conforms() {
    run(Isa::Avx512Bf16, 1);
}

#[test]
fn avx512_bf16_conforms_with_threads() {
    run(Isa::Avx512Bf16, 3);
}

#[test]
fn neon_conforms() {
    run(Isa::Neon, 1);
}

#[test]
fn neon_conforms_with_threads() {
    run(Isa::Neon, 3);
}

#[test]
fn neon_dot_conforms() {
    run(Isa::NeonDot, 1);
}

#[test]
fn neon_dot_conforms_with_threads() {
    run(Isa::NeonDot, 3);
}
