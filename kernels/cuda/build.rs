//! Compiles the shim and, against it, the very `.cu` files that nvcc compiles for devices. No CUDA is involved.

fn main() {
    if std::env::var_os("CARGO_FEATURE_SHIM").is_none() {
        return;
    }
    for folder in ["shim", "shim/tables", "."] {
        for entry in std::fs::read_dir(folder).expect("the crate's own folder").flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|end| ["cu", "cuh", "h", "cpp"].iter().any(|known| end == *known)) {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    // scripts/asan.sh: the address sanitizer instead of the race check; g++ cannot do both at once.
    let sanitizers = std::env::var("CARGO_CFG_SANITIZE").unwrap_or_default();
    let is_asan = sanitizers.split(',').any(|sanitizer| sanitizer == "address");
    println!("cargo::rustc-check-cfg=cfg(race_check_is_off)");
    if is_asan {
        println!("cargo::rustc-cfg=race_check_is_off");
    }
    // Without debug assertions, as nvcc; with the same additions as written, but for explicit `fmaf`.
    let build = || {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").opt_level(2).warnings(true).extra_warnings(true);
        build.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas");
        if is_asan {
            // Frames that outlive their function would be mapped anew for each fibre.
            build.flag("-fsanitize=address").flag("--param=asan-use-after-return=0");
        }
        build
    };
    let shim = ["shim", "kernels", "races", "bounds", "mma"].map(|name| format!("shim/{name}.cpp"));
    build().files(shim).compile("weft_cuda_shim");
    let mut kernels = build();
    if !is_asan {
        // The calls that it puts before each access are answered by shim/races.cpp.
        kernels.flag("-fsanitize=thread");
    }
    let tables =
        ["attention", "gemm", "lora", "probes", "rows", "sampling"].map(|name| format!("shim/tables/{name}.cpp"));
    kernels.include("shim").files(tables).compile("weft_cuda_kernels");
}
