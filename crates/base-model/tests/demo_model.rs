//! The demo base as it is published: a Llama GGUF file of Q4_1 and Q8_0 tensors.

mod support;

use serde_json::json;
use weft_base_model::{OpenOptions, SpecialText, open};

#[test]
fn the_demo_base_opens_with_its_config_tokenizer_and_template() {
    let model = open(&support::demo_model(), &OpenOptions::default()).unwrap();
    let config = &model.config;
    assert_eq!((config.hidden_size, config.layers, config.heads, config.kv_heads), (576, 30, 9, 3));
    assert_eq!((config.head_dim, config.intermediate_size, config.vocab_size), (64, 1536, 49152));
    assert_eq!((config.context_length, config.rope.theta, config.rms_eps), (8192, 100_000.0, 1e-5));
    assert!(config.tied_embeddings && !model.weights.contains("lm_head.weight"));
    assert_eq!((config.bos_id, &config.eos_ids[..]), (Some(1), &[2][..]));
    assert_eq!(model.served_name, "Smollm2 135M 8k Lc100K Mix1 Ep2");
    assert_eq!(model.weights.parameters(), 134_515_008);

    let template = model.chat_template.unwrap();
    let rendered = template.render(&json!([{"role": "user", "content": "Hi"}]), None, true, false).unwrap();
    assert_eq!(
        rendered.text(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = model.tokenizer.encode_rendered(&rendered).unwrap();
    assert_eq!(ids, model.tokenizer.encode(&rendered.text(), false, SpecialText::Parse).unwrap());
    assert_eq!(model.tokenizer.decode(&ids, false), rendered.text());
}

#[test]
fn every_tensor_of_the_demo_base_decodes_to_finite_values() {
    let model = open(&support::demo_model(), &OpenOptions::default()).unwrap();
    for (name, shape) in model.weights.names().map(|name| (name, model.weights.shape(name).unwrap())) {
        let values = model.weights.load_f32(name).unwrap();
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(largest > 0.0 && largest < 1e3, "{name}: {largest}");
    }
}
