//! Plain timings of the kernels against ceilings measured in the same run.
//!
//! `cargo bench -p weft-kernels --bench kernels -- [--isa avx2] [--threads 2] [--format bf16] [--repeats 5]`
//!
//! Shapes are those of a 135M Llama (hidden 576, 30 layers), every layer with its own weights, so that they come from
//! memory as they do when serving. Each figure is the fastest of the repeats: noise only ever adds. With one thread the
//! clock is the thread's processor time, which a busy machine does not stretch by taking turns.

mod ceiling;
mod model;

use ceiling::Ceiling;
use model::{ALL_LINEARS, ATTENTION, Adapters, Model, Work};
use std::time::{Duration, Instant};
use weft_kernels::{CpuOptions, WeightFormat, cpu};

const ALL: [WeightFormat; 4] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Q4];

struct Options {
    cpu: CpuOptions,
    formats: Vec<WeightFormat>,
    repeats: usize,
}

fn options() -> Options {
    let mut options = Options { cpu: CpuOptions::default(), formats: ALL.to_vec(), repeats: 5 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => {}
            "--isa" => options.cpu.isa = Some(value().parse().expect("a known isa")),
            "--threads" => options.cpu.threads = value().parse().expect("a number of threads"),
            "--repeats" => options.repeats = value().parse().expect("a number of repeats"),
            "--format" => {
                let name = value();
                let named = |format: &&WeightFormat| format!("{format:?}").eq_ignore_ascii_case(&name);
                options.formats = vec![*ALL.iter().find(named).unwrap_or_else(|| panic!("--format {name} is unknown"))];
            }
            other => panic!("unknown argument {other}"),
        }
    }
    options
}

/// How to take times.
#[derive(Clone, Copy)]
struct Timer {
    threads: usize,
    repeats: usize,
}

impl Timer {
    /// The fastest of some runs.
    fn fastest(self, mut run: impl FnMut()) -> Duration {
        (0..self.repeats.max(1)).map(|_| self.once(&mut run)).min().expect("at least one repeat")
    }

    fn once(self, run: &mut dyn FnMut()) -> Duration {
        if self.threads > 1 {
            let start = Instant::now();
            run();
            return start.elapsed();
        }
        let start = processor_time();
        run();
        processor_time() - start
    }
}

/// What this thread has used.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid; this clock exists on every system we run on.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "the thread's processor clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() {
    let options = options();
    let kernels = cpu(options.cpu.clone());
    let threads = match options.cpu.threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        threads => threads,
    };
    let timer = Timer { threads, repeats: options.repeats };
    println!("isa {}, {threads} threads, fastest of {}", kernels.isa(), options.repeats);
    for format in options.formats {
        let ceiling = Ceiling::measure(timer, format, kernels.isa());
        println!("\n{format:?}: {:.1} GB/s read, {:.0} GFLOP/s", ceiling.gb_s, ceiling.gflop_s);
        let model = Model::new(&*kernels, format);
        linears(&model, &ceiling, timer);
        step(&model, &ceiling, timer);
    }
}

/// All linears of all layers, then the head.
fn linears(model: &Model<'_>, ceiling: &Ceiling, timer: Timer) {
    println!("  linears of 30 layers and head   rows      ms   GFLOP/s    GB/s   of ceiling");
    for rows in [1, 8, 32, 256] {
        let mut work = Work::new(model, rows);
        let layers = timer.fastest(|| model.layer_linears(&mut work));
        print(ceiling, "layers", rows, layers, model.layer_values(), model.layer_bytes());
        let head = timer.fastest(|| model.head(&mut work));
        print(ceiling, "head", rows, head, model.head_values(), model.head_bytes());
    }
}

fn print(ceiling: &Ceiling, what: &str, rows: usize, time: Duration, values: usize, bytes: usize) {
    let (seconds, flop) = (time.as_secs_f64(), 2.0 * (values * rows) as f64);
    let least = (flop / ceiling.gflop_s / 1e9).max(bytes as f64 / ceiling.gb_s / 1e9);
    println!(
        "  {what:<30} {rows:>5} {:>7.2} {:>9.1} {:>7.1} {:>11.0}%",
        seconds * 1e3,
        flop / seconds / 1e9,
        bytes as f64 / seconds / 1e9,
        100.0 * least / seconds,
    );
}

/// What is timed of a step.
type Part<'a> = &'a mut dyn FnMut(&mut Work);

/// A decode step of 32 rows at position 100, bare, and what adapters add: rank 8 on q, k, v, o; ranks 8 to 64 on all.
fn step(model: &Model<'_>, ceiling: &Ceiling, timer: Timer) {
    let rows = 32;
    let mut work = Work::new(model, rows);
    let small = Adapters::new(model, &ATTENTION, &[8; 32]);
    let mixed = Adapters::new(model, &ALL_LINEARS, &[8, 16, 32, 64].repeat(8));
    let mut parts = [Duration::MAX; 7];
    let names =
        ["linears and head", "pages written", "attention", "norms, rope, silu", "bare step", "32 x rank 8", "32 mixed"];
    // Interleaved, so that a busy neighbour hits all parts alike.
    for _ in 0..timer.repeats {
        let runs: [(usize, Part<'_>); 6] = [
            (0, &mut |work| {
                model.layer_linears(work);
                model.head(work);
            }),
            (1, &mut |work| model.write_kv(work, 100)),
            (2, &mut |work| model.attention(work, 100)),
            (3, &mut |work| model.row_operations(work)),
            (5, &mut |work| model.lora(work, &small)),
            (6, &mut |work| model.lora(work, &mixed)),
        ];
        for (part, run) in runs {
            parts[part] = parts[part].min(timer.once(&mut || run(&mut work)));
        }
    }
    parts[4] = parts[..4].iter().sum();
    println!("  decode step of {rows} rows");
    for (name, part) in names.iter().zip(parts) {
        println!("  {name:<30} {:>13.2} ms", part.as_secs_f64() * 1e3);
    }
    for (part, adapters) in [(5, &small), (6, &mixed)] {
        let (share, floor) = (parts[part].as_secs_f64(), adapters.bytes() as f64 / ceiling.gb_s / 1e9);
        println!(
            "  {:<30} {:>13.1} % on top of the bare step; {:.0} MB, {:.0} % of bandwidth",
            names[part],
            100.0 * share / parts[4].as_secs_f64(),
            adapters.bytes() as f64 / 1e6,
            100.0 * floor / share
        );
    }
    // A prompt of 70 tokens for each of four adapters.
    let mut work = Work::new(model, 280);
    let few = Adapters::new(model, &ALL_LINEARS, &[8, 16, 32, 64]);
    let layers = timer.fastest(|| model.layer_linears(&mut work));
    let lora = timer.fastest(|| model.lora(&mut work, &few));
    let gop = 2.0 * 70.0 * few.values() as f64 / 1e9;
    println!(
        "  prompts, 4 x 70 rows mixed     {:>13.2} ms, {:.1} % on top of the layers; {:.0} GOP/s, {:.0} % of arithmetic",
        lora.as_secs_f64() * 1e3,
        100.0 * lora.as_secs_f64() / layers.as_secs_f64(),
        gop / lora.as_secs_f64(),
        100.0 * gop / lora.as_secs_f64() / ceiling.gflop_s
    );
}
