//! `weft bench` writes figures that agree with themselves, and its exit status says whether they are good enough.

use crate::support::{tiny_model, weft};
use serde_json::Value;

fn bench(more: &[&str]) -> (std::process::ExitStatus, String, String) {
    let model = tiny_model();
    let sizes = ["--concurrency", "5", "--prompt-tokens", "12", "--output-tokens", "6", "--prefill-tokens", "32"];
    let mut args = vec!["bench", "--rounds", "2"];
    args.extend(sizes);
    args.extend(more);
    args.extend(["--", "--model", model.to_str().unwrap()]);
    weft(&args)
}

#[test]
fn the_figures_are_whole_and_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/serve.json");
    let (status, table, err) = bench(&["--check", "--out", out.to_str().unwrap()]);
    let json: Value = serde_json::from_slice(&std::fs::read(&out).unwrap_or_else(|_| panic!("{err}"))).unwrap();
    assert_eq!(json["workload"]["concurrency"], 5);
    let cases = json["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "base alone",
            "one shared adapter",
            "a different adapter each",
            "mixed ranks on all linears",
            "base alone, decode"
        ]
    );
    for case in cases {
        assert!(table.contains(case["name"].as_str().unwrap()), "{table}");
        let rounds = case["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2);
        for round in rounds {
            // Five answers of six tokens: every token that was asked for came.
            let tokens = round["seconds"].as_f64().unwrap() * round["tokens_per_second"].as_f64().unwrap();
            assert!((tokens - 30.0).abs() < 1e-6, "{tokens}");
            assert!(round["first_token_ms_median"].as_f64().unwrap() <= round["seconds"].as_f64().unwrap() * 1e3);
        }
    }
    assert_eq!(cases[0]["ratio_to_base_median"], 1.0);
    assert_eq!(cases[0]["ratio_floor"], 1.0);
    assert!(cases[3]["ratio_floor"].as_f64().unwrap() < cases[2]["ratio_floor"].as_f64().unwrap());
    for figure in ["decode_tokens_per_second", "prefill_tokens_per_second", "prefill_gflops"] {
        assert!(json["single"][figure].as_f64().unwrap() > 0.0, "{figure}");
    }
    assert!(json["machine"]["gflop_s"].as_f64().unwrap() > 0.0 && json["machine"]["gb_s"].as_f64().unwrap() > 0.0);

    let verdicts = json["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), 3);
    for verdict in verdicts {
        let holds = verdict["value"].as_f64().unwrap() >= verdict["least"].as_f64().unwrap();
        assert_eq!(verdict["holds"], holds);
    }
    let all = verdicts.iter().all(|verdict| verdict["holds"] == true);
    assert_eq!(status.success(), all, "{table}{err}");
    assert_eq!(err.contains("not what it should be"), !all, "{err}");
}

#[test]
fn a_workload_that_does_not_fit_the_model_is_refused_with_the_limit() {
    let model = tiny_model();
    let settings = ["--", "--model", model.to_str().unwrap()];
    let (status, _, err) = weft(&[&["bench", "--prompt-tokens", "300"][..], &settings].concat());
    assert!(!status.success() && err.contains("348 tokens, the model's context has 256"), "{err}");
    let more = ["bench", "--prefill-tokens", "9", "--modules", "q_proj,lm_head"];
    let (status, _, err) = weft(&[&more[..], &settings].concat());
    assert!(!status.success() && err.contains("\"lm_head\", the model has no such linear"), "{err}");
}

#[test]
fn the_exported_workload_has_an_adapter_a_request_and_a_round_to_warm_up() {
    let dir = tempfile::tempdir().unwrap();
    let (status, _, err) = bench(&["--export", dir.path().to_str().unwrap()]);
    assert!(status.success(), "{err}");
    let rounds: Vec<Vec<Vec<u32>>> =
        serde_json::from_slice(&std::fs::read(dir.path().join("prompts.json")).unwrap()).unwrap();
    assert_eq!((rounds.len(), rounds[0].len(), rounds[0][0].len()), (3, 5, 12));
    assert_ne!(rounds[0], rounds[1]);
    for n in 0..5 {
        let folder = dir.path().join(format!("bench-{n:03}"));
        assert!(folder.join("adapter_config.json").exists() && folder.join("adapter_model.safetensors").exists());
    }

    let (prompts, out) = (dir.path().join("prompts.json"), dir.path().join("serve.json"));
    let files = ["--prompts", prompts.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (status, _, err) = bench(&files);
    assert!(status.success() && out.exists(), "{err}");
    std::fs::write(&prompts, serde_json::to_vec(&rounds[..2]).unwrap()).unwrap();
    let (status, _, err) = bench(&files);
    assert!(!status.success() && err.contains("does not hold 3 rounds of 5 prompts of 12 tokens"), "{err}");
}
