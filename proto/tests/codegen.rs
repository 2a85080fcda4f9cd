//! The generated code in git is what the `.proto` files say. `WEFT_CODEGEN=write` (or `make codegen`) rewrites it.

use std::path::Path;

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos: Vec<_> = ["registry", "cache", "worker", "mesh"]
        .iter()
        .map(|name| root.join(format!("proto/weft/{name}/v1/{name}.proto")))
        .collect();
    let out = tempfile::tempdir().expect("temporary folder");
    tonic_prost_build::configure()
        .build_transport(true)
        .bytes(".")
        .out_dir(out.path())
        .compile_protos(&protos, &[root.join("proto")])
        .expect("protoc compiles the contract (Debian package protobuf-compiler)");

    let committed = root.join("src/generated");
    let write = std::env::var("WEFT_CODEGEN").is_ok_and(|mode| mode == "write");
    for package in ["weft.registry.v1.rs", "weft.cache.v1.rs", "weft.worker.v1.rs", "weft.mesh.v1.rs"] {
        let fresh = std::fs::read_to_string(out.path().join(package)).expect("generated file");
        if write {
            std::fs::create_dir_all(&committed).expect("folder for generated code");
            std::fs::write(committed.join(package), &fresh).expect("write generated code");
        }
        let kept = std::fs::read_to_string(committed.join(package)).unwrap_or_default();
        assert!(kept == fresh, "{package} is out of date: run `make codegen`");
    }
}
