//! The measurement runs, in the shim.

use std::process::Command;

#[test]
fn a_tiny_base_is_measured_in_the_shim() {
    let report = |more: &[&str]| -> serde_json::Value {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-gpu"))
            .args(["--shim", "--shape", "tiny", "--rows", "4", "--context", "20", "--seconds", "0.01"])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (by_logits, report) = (report(&["--logits"]), report(&[]));
    assert_eq!([&by_logits["logits"], &report["logits"]], [true, false]);
    let cases = report["cases"].as_array().unwrap();
    let of = |format: &str, graphs: bool| -> Vec<u64> {
        let found = cases.iter().filter(|case| case["format"] == format && case["graphs"] == graphs);
        found.map(|case| case["adapters"].as_u64().unwrap()).collect()
    };
    for (format, graphs) in [("bf16", true), ("bf16", false), ("int8", true), ("fp8", true)] {
        assert_eq!(of(format, graphs), [0, 1, 4], "{format}, graphs: {graphs}");
    }
    for case in cases {
        assert!(case["tokens_per_s"].as_f64().unwrap() > 0.0 && case["of_base"].as_f64().unwrap() > 0.0, "{case}");
    }
    // A byte for each number, and their scales, against two.
    let bytes = |format: &str| cases.iter().find(|case| case["format"] == format && case["adapters"] == 1).unwrap();
    let [bf16, int8] = ["bf16", "int8"].map(|format| bytes(format)["adapter_bytes"].as_u64().unwrap());
    assert!(int8 * 10 < bf16 * 7 && int8 * 2 > bf16, "{int8} and {bf16}");
    assert_eq!(report["cold"].as_array().unwrap().len(), 3);

    let refused = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-gpu")).args(args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused(&["--shim", "--shape", "tiny", "--context", "256"]);
    assert!(error.contains("--context is 256, allowed are up to 255"), "{error}");
}
