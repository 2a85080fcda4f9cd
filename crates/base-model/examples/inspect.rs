//! Opens a model and prints what it is, with times: `cargo run --release -p weft-base-model --example inspect -- PATH`.

use std::time::Instant;
use weft_base_model::{OpenOptions, open};

fn main() {
    let path = std::env::args_os().nth(1).expect("usage: inspect PATH");
    let start = Instant::now();
    let model = match open(path.as_ref(), &OpenOptions::default()) {
        Ok(model) => model,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    println!("opened in {:?}\n{} {}\n{:#?}", start.elapsed(), model.served_name, model.digest, model.config);
    let start = Instant::now();
    let values: usize = model.weights.names().map(|name| model.weights.load_f32(name).map_or(0, |v| v.len())).sum();
    println!("{values} weights decoded in {:?} from {} bytes", start.elapsed(), model.weights.bytes());
    let text = "The quick brown fox jumps over the lazy dog, 1234567890 times. ".repeat(2000);
    let start = Instant::now();
    let ids = model.tokenizer.encode(&text, false, weft_base_model::SpecialText::Literal).map_or(0, |ids| ids.len());
    println!("{ids} tokens encoded in {:?}", start.elapsed());
}
