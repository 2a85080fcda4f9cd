"""The demo base in Hugging Face form, for the scripts that make golden files.

Needs: pip install torch transformers gguf numpy (versions used are written into the golden files).
"""

import json

import numpy
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def tokenizer(gguf_path):
    """transformers' conversion of the vocabulary, with SmolLM2's published pre-tokenizer.

    The converter forgets that digits stand alone: tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct has
    Sequence[Digits(individual_digits=True), ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)],
    no normalizer and no post-processor.
    """
    folder, _, name = str(gguf_path).rpartition("/")
    converted = AutoTokenizer.from_pretrained(folder or ".", gguf_file=name)
    described = json.loads(converted._tokenizer.to_str())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert described["pre_tokenizer"] == byte_level and described["normalizer"] is None
    assert [token["id"] for token in described["added_tokens"] if token["special"]] == list(range(17))
    digits = {"type": "Digits", "individual_digits": True}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    described["post_processor"] = None
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        bos_token=converted.bos_token,
        eos_token=converted.eos_token,
        unk_token=converted.unk_token,
        pad_token=converted.pad_token,
        chat_template=converted.chat_template,
    )


def _plain_rows(tensor, heads):
    """Undoes `permute` of llama.cpp's convert_hf_to_gguf.py: the halves of each head lie interleaved in the file."""
    rows, columns = tensor.shape
    return tensor.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def model(gguf_path):
    """LlamaForCausalLM in f32 with the dequantised weights of the file."""
    reader = GGUFReader(gguf_path)
    field = lambda key: reader.fields[key].contents()
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    config = LlamaConfig(
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=field("llama.vocab_size"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
    )
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    state = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        values = values.reshape(tuple(int(size) for size in reversed(tensor.shape)))
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{parts[part]}.weight"
            if part == "attn_q":
                values = _plain_rows(values, heads)
            if part == "attn_k":
                values = _plain_rows(values, kv_heads)
        state[name] = torch.from_numpy(numpy.ascontiguousarray(values))
    loaded = LlamaForCausalLM(config).to(torch.float32)
    missing, unexpected = loaded.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    loaded.tie_weights()
    return loaded.eval()


def versions(*modules):
    return {module.__name__: module.__version__ for module in (transformers, torch, *modules)}
