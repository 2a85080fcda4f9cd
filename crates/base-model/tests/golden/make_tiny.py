"""Makes tiny/ (a Hugging Face folder in two shards) and tiny.gguf: the same random Llama model in both forms.

    python make_tiny.py

Needs: pip install torch transformers gguf. Weights are random and exact in bf16, so both forms hold the same values.
The GGUF file is written as llama.cpp's convert_hf_to_gguf.py writes it: q and k rows permuted, half of the matrices
BF16, the others F32. The vocabulary is GPT-2's byte alphabet, a few merges and three special tokens.
"""

import json
import pathlib

import gguf
import numpy
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}"
)
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "t"), ("i", "n"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("Ġwor", "l"), ("Ġworl", "d")]
SPECIAL = ["<|bos|>", "<|eos|>", "<|user|>"]


def vocabulary():
    return SPECIAL + sorted(ByteLevel.alphabet()) + [left + right for left, right in MERGES]


def tokenizer_json():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    token = lambda id, text: {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        # Padding and truncation that transformers drops when it loads the file.
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0, "pad_token": "<|eos|>"},
        "added_tokens": [token(id, text) for id, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {text: id for id, text in enumerate(vocabulary())}, "merges": [list(pair) for pair in MERGES],
        },
    }


def permute(values, heads):
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(config, state):
    writer = gguf.GGUFWriter(HERE / "tiny.gguf", "llama")
    writer.add_name("Tiny Llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (config.vocab_size - len(SPECIAL)))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for index, (name, tensor) in enumerate(state.items()):
        values = tensor.float().numpy()
        if name in whole:
            target = whole[name]
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{layer}.{parts[part]}.weight"
            if part == "self_attn.q_proj":
                values = permute(values, config.num_attention_heads)
            if part == "self_attn.k_proj":
                values = permute(values, config.num_key_value_heads)
        if values.ndim == 2 and index % 2:
            raw = (numpy.ascontiguousarray(values).view(numpy.uint32) >> 16).astype(numpy.uint16)
            writer.add_tensor(target, raw.view(numpy.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(target, numpy.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        vocab_size=len(vocabulary()), max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in LlamaForCausalLM(config).state_dict().items()}

    folder = HERE / "tiny"
    folder.mkdir(exist_ok=True)
    described = {**config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n")
    names = list(state)
    shards = {"model-00001-of-00002.safetensors": names[: len(names) // 2], "model-00002-of-00002.safetensors": names[len(names) // 2 :]}
    for shard, part in shards.items():
        save_file({name: state[name] for name in part}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = {"metadata": {"total_size": sum(t.numel() * 2 for t in state.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]}) + "\n")
    names = {"bos_token": {"content": "<|bos|>", "lstrip": False}, "eos_token": "<|eos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(), ensure_ascii=False, separators=(",", ":")) + "\n")
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_gguf(config, state)

    # Some values as transformers has them, to compare with.
    q = state["model.layers.1.self_attn.q_proj.weight"].float()
    print("layers.1.q_proj[5, :3] =", q[5, :3].tolist(), "sizes", (HERE / "tiny.gguf").stat().st_size)


if __name__ == "__main__":
    main()
