//! What each storage of the base costs in accuracy: perplexity on prose, and how often its most likely token is F32's.
//!
//! ```text
//! WEFT_DEMO_MODEL=... cargo bench -p weft-engine --bench accuracy [-- --tokens 8192]
//! ```
//!
//! The text is this repository's own prose (README, ARCHITECTURE, docs), which no model was trained on, cut into windows of 512
//! tokens; the first 64 of each only give context. Perplexity is the exponential of the mean negative log-likelihood; "KL" is the mean
//! divergence of a storage's distribution from F32's, in nats.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use weft_base_model::{BaseModel, SpecialText};
use weft_engine::{Dtype, LogitsWanted, SeqStep, StepBatch};

const WINDOW: usize = 512;
const CONTEXT: usize = 64;

fn main() {
    let mut words = std::env::args().skip(1);
    let mut tokens_max = 4096;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--tokens" => {
                let value = words.next().expect("--tokens needs a number");
                tokens_max = value.parse().expect("--tokens needs a number");
            }
            // What cargo bench passes on.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = std::env::var_os("WEFT_DEMO_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        weft_base_model::fetch::demo_model(&root.join(".cache/models")).expect("the demo model can be fetched")
    });
    let model = common::open(&path);
    let mut tokens = model.tokenizer.encode(&prose(&root), false, SpecialText::Literal).expect("prose is text");
    tokens.truncate(tokens_max);
    let windows: Vec<&[u32]> = tokens.chunks(WINDOW).filter(|window| window.len() > CONTEXT + 1).collect();

    let exact: Vec<Vec<f32>> = windows.iter().map(|window| log_probabilities(&model, Dtype::F32, window)).collect();
    println!("{} tokens, {} scored", tokens.len(), windows.iter().map(|w| w.len() - CONTEXT - 1).sum::<usize>());
    println!("{:<6} {:>10} {:>10} {:>10} {:>12}", "dtype", "perplexity", "÷ f32", "KL", "same token");
    let mut of_f32 = None;
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Q4] {
        let mut score = Score::default();
        for (window, exact) in windows.iter().zip(&exact) {
            score.add(window, &log_probabilities(&model, dtype, window), exact, model.config.vocab_size);
        }
        let perplexity = (score.loss / score.count).exp();
        let base = *of_f32.get_or_insert(perplexity);
        let (kl, same) = (score.divergence / score.count, 100.0 * score.same / score.count);
        println!("{:<6} {perplexity:>10.3} {:>10.4} {kl:>10.5} {same:>10.2} %", dtype.as_str(), perplexity / base);
    }
}

fn prose(root: &Path) -> String {
    let names = ["README.md", "ARCHITECTURE.md", "docs/dependencies.md", "docs/settings.md"];
    let read = |name| std::fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    names.map(read).concat()
}

/// `[rows that predict, vocabulary]`, natural logarithms.
fn log_probabilities(model: &BaseModel, dtype: Dtype, window: &[u32]) -> Vec<f32> {
    thread_local! {
        // One engine at a time: four of them would take the machine's memory.
        static ENGINE: std::cell::RefCell<Option<(Dtype, weft_engine::ProcessorEngine)>> = const { std::cell::RefCell::new(None) };
    }
    ENGINE.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(held, _)| *held != dtype) {
            *slot = Some((dtype, common::engine(model, dtype, WINDOW / common::BLOCK_SIZE + 1)));
        }
        let (_, engine) = slot.as_mut().expect("filled above");
        let blocks = (0..window.len().div_ceil(common::BLOCK_SIZE) as u32).collect();
        let seq =
            SeqStep { tokens: window.to_vec(), start: 0, blocks, slot: None, logits: LogitsWanted::All, draw: None };
        let output = engine.step(&StepBatch { seqs: vec![seq] }).expect("the window fits");
        let vocabulary = model.config.vocab_size;
        let mut rows = output.seqs[0].logits[CONTEXT * vocabulary..(window.len() - 1) * vocabulary].to_vec();
        for row in rows.chunks_exact_mut(vocabulary) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
            let shift = most + total.ln() as f32;
            row.iter_mut().for_each(|logit| *logit -= shift);
        }
        rows
    })
}

#[derive(Default)]
struct Score {
    loss: f64,
    divergence: f64,
    same: f64,
    count: f64,
}

impl Score {
    fn add(&mut self, window: &[u32], found: &[f32], exact: &[f32], vocabulary: usize) {
        let rows = found.chunks_exact(vocabulary).zip(exact.chunks_exact(vocabulary));
        for ((found, exact), &next) in rows.zip(&window[CONTEXT + 1..]) {
            self.loss -= f64::from(found[next as usize]);
            let terms = exact.iter().zip(found).map(|(e, f)| f64::from(*e).exp() * f64::from(e - f));
            self.divergence += terms.sum::<f64>();
            self.same += f64::from(u8::from(common::greedy(found) == common::greedy(exact)));
            self.count += 1.0;
        }
    }
}
