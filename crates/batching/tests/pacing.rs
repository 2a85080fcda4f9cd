//! A long prompt beside others that decode.

mod sim;

use sim::{Asks, Machine, Sim, When, percentile};
use weft_batching::{Fairness, Limits, Pace};

const SECOND: f64 = 1e6;

/// The 99th percentile of the times between tokens of `decoders` requests, before and while a prompt of 4,096 tokens is
/// computed, and how long that took.
fn beside_a_long_prompt(decoders: usize, pace: Pace) -> (f64, f64, f64) {
    let machine = Machine { noise: 0.05, ..Machine::default() };
    let limits = Limits { step_tokens_max: 256, running_max: 64, queue_max: 1024 };
    let mut sim = Sim::new(machine, limits, 1 << 18, Fairness::default(), pace);
    for number in 0..decoders {
        let asks = Asks::new(format!("chat-{number}"), When::Once(0.0));
        sim.add(Asks { output: 3000, output_max: 4000, adapters: 0, ..asks });
    }
    sim.run_until(8.0 * SECOND);
    let gaps = |sim: &Sim, from: f64, to: f64| -> Vec<f64> {
        let all = sim.got.values().flat_map(|got| got.between.iter());
        all.filter(|(at, _)| *at > from && *at <= to).map(|(_, gap)| *gap).collect()
    };
    let before = percentile(&gaps(&sim, 6.0 * SECOND, sim.now), 0.99);
    let start = sim.now;
    let long = Asks::new("long", When::Once(start));
    sim.add(Asks { prompt: 4096, output: 1, output_max: 4, adapters: 0, ..long });
    sim.run_until(start + 60.0 * SECOND);
    let took = *sim.got("long").first_token.first().expect("the prompt gets done beside the others");
    let during = percentile(&gaps(&sim, start, start + took), 0.99);
    (before, during, took)
}

#[test]
fn a_prompt_of_4096_tokens_at_most_doubles_the_p99_of_the_times_between_others_tokens() {
    for decoders in [1, 4, 16, 48] {
        let (before, during, took) = beside_a_long_prompt(decoders, Pace::default());
        let (_, unpaced, fastest) =
            beside_a_long_prompt(decoders, Pace { stretch_max: f64::INFINITY, ..Pace::default() });
        println!(
            "{decoders} decode: p99 between tokens {:.2} times as long, without pace {:.1} times; prompt {:.1} s, {:.1} s",
            during / before,
            unpaced / before,
            took / SECOND,
            fastest / SECOND
        );
        assert!(during <= 2.0 * before, "{decoders} decode: {during} after {before}");
        assert!(unpaced > 4.0 * before, "without pace there is something to bound");
        assert!(took < 4.0 * fastest, "the prompt still gets its part of the machine");
    }
}

#[test]
fn with_nobody_who_decodes_a_prompt_gets_whole_steps() {
    let (_, _, took) = beside_a_long_prompt(0, Pace::default());
    let machine = Machine::default();
    let steps = 4096.0 / 256.0;
    let floor = steps * machine.step + 4096.0 * machine.prompt_token + 4096.0 * 4095.0 / 2.0 * machine.attended;
    assert!(took < 1.06 * floor, "{took} against {floor}");
}

/// Seconds until 32 requests that come together are done, the second time that they come.
fn burst_takes(pace: Pace) -> f64 {
    let limits = Limits { step_tokens_max: 256, running_max: 64, queue_max: 1024 };
    let mut sim = Sim::new(Machine::default(), limits, 1 << 18, Fairness::default(), pace);
    for (burst, at) in [("first", 0.0), ("second", 20.0 * SECOND)] {
        for _ in 0..32 {
            let asks = Asks::new(burst, When::Once(at));
            sim.add(Asks { prompt: 70, output: 48, output_max: 48, adapters: 0, ..asks });
        }
    }
    sim.run_until(40.0 * SECOND);
    let ends = sim.got("second").between.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    ends / SECOND - 20.0
}

#[test]
fn a_burst_of_short_prompts_is_hardly_slower_for_the_pace() {
    let (paced, fastest) =
        (burst_takes(Pace::default()), burst_takes(Pace { stretch_max: f64::INFINITY, ..Pace::default() }));
    println!("burst: {paced:.2} s, without pace {fastest:.2} s");
    assert!(paced < 1.25 * fastest, "{paced} against {fastest}");
}
