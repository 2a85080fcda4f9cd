//! An experiment to test with.

use weft_experiments::{Experiment, Statistics};

/// What people write: two arms, three metrics, three guardrails.
pub(crate) const DESCRIPTION: &str = r#"{
    "id": "summaries-2",
    "tenant": "harbour",
    "adapter": "harbour/summaries",
    "arms": [
        {"name": "v1", "role": "control", "weight": 90,
         "digest": "sha256:1111111111111111111111111111111111111111111111111111111111111111"},
        {"name": "v2", "weight": 10,
         "digest": "sha256:2222222222222222222222222222222222222222222222222222222222222222"}
    ],
    "metrics": [
        {"name": "feedback", "kind": {"score": {"min": 1, "max": 5}}, "better": "higher"},
        {"name": "error", "kind": "binary", "better": "lower"},
        {"name": "ttft_ms", "kind": {"positive": {"max": 10000}}, "better": "lower"}
    ],
    "primary": "feedback",
    "guardrails": [
        {"metric": "error", "rule": {"worse_by": 0.02}, "observations_min": 50},
        {"metric": "error", "rule": {"limit": 0.2}},
        {"metric": "ttft_ms", "rule": {"worse_by": 300}}
    ],
    "observations_min": 100
}"#;

/// [`DESCRIPTION`], running.
pub(crate) fn running() -> Experiment {
    Experiment::parse(DESCRIPTION.as_bytes()).unwrap().started().unwrap()
}

/// With these arms beside the control, all of weight 100.
pub(crate) fn with_arms(names: &[&str]) -> Experiment {
    let mut experiment = running();
    experiment.arms[0].weight = 100;
    let arm = experiment.arms[1].clone();
    experiment.arms.truncate(1);
    for name in names {
        experiment.arms.push(weft_experiments::Arm { name: (*name).to_owned(), weight: 100, ..arm.clone() });
    }
    experiment.check().unwrap();
    experiment
}

/// Counts so many requests of an arm, each a unit of the split.
pub(crate) fn expose(statistics: &mut Statistics, experiment: &Experiment, arm: usize, times: u32) {
    for _ in 0..times {
        statistics.expose(experiment, experiment.phase(), arm, true).unwrap();
    }
}

/// Counts so often this value of a metric.
pub(crate) fn record(
    statistics: &mut Statistics,
    experiment: &Experiment,
    arm: usize,
    metric: &str,
    value: f64,
    times: u32,
) {
    let metric = experiment.metric(metric).unwrap();
    for _ in 0..times {
        statistics.record(experiment, experiment.phase(), arm, metric, value).unwrap();
    }
}
