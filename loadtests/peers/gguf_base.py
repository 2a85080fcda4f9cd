"""The demo's GGUF file in other forms, without torch: other weight formats, or a Hugging Face folder.

GGUF files of the Llama family hold the rows of q and k with rotary pairs side by side; Hugging Face holds the halves of
each head one after the other.
"""

import json

import gguf
import numpy

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
PARTS = {module.split(".")[-1]: part for part, module in MODULES.items()}


def field(reader, key):
    return reader.fields[key].contents()


def heads(reader):
    return field(reader, "llama.attention.head_count"), field(reader, "llama.attention.head_count_kv")


def interleaved(rows, count):
    """Hugging Face's order of q or k rows -> GGUF's."""
    dim = rows.shape[0] // count
    return rows.reshape(count, 2, dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows, count):
    """GGUF's order of q or k rows -> Hugging Face's."""
    dim = rows.shape[0] // count
    return rows.reshape(count, dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def values(tensor):
    """A tensor as f32, outermost dimension first."""
    flat = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
    return flat.reshape(tuple(int(size) for size in reversed(tensor.shape)))


def write_gguf(reader, out, kind):
    """The same model with its matrices in another format."""
    writer = gguf.GGUFWriter(out, "llama")
    for key, value in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        types = value.types
        sub = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value.contents(), types[0], sub)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, values(tensor))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values(tensor), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bf16(array):
    """Rounded to nearest even, as bytes: numpy has no bf16."""
    bits = numpy.ascontiguousarray(array, dtype=numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16).tobytes()


def huggingface_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    if name == "output.weight":
        return "lm_head.weight"
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{MODULES[part]}.{suffix}"


def write_huggingface(reader, folder):
    """config.json and model.safetensors in bf16. No tokenizer: the workload is token ids."""
    folder.mkdir(parents=True, exist_ok=True)
    count, kv_count = heads(reader)
    of = lambda key: field(reader, f"llama.{key}")
    names = [tensor.name for tensor in reader.tensors]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": count,
        "num_key_value_heads": kv_count,
        "vocab_size": of("vocab_size"),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base"),
        "rope_parameters": {"rope_type": "default", "rope_theta": of("rope.freq_base")},
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor in reader.tensors:
        rows = values(tensor)
        if tensor.name.endswith("attn_q.weight"):
            rows = halved(rows, count)
        if tensor.name.endswith("attn_k.weight"):
            rows = halved(rows, kv_count)
        blob = bf16(rows)
        shape = list(rows.shape)
        header[huggingface_name(tensor.name)] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for blob in blobs:
            file.write(blob)
    return config


class Tensors:
    """A safetensors file of bf16 tensors."""

    def __init__(self, path):
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        self.header, self.data = json.loads(raw[8 : 8 + size]), raw[8 + size :]

    def names(self):
        return sorted(name for name in self.header if name != "__metadata__")

    def float32(self, name):
        entry = self.header[name]
        assert entry["dtype"] == "BF16", entry
        begin, end = entry["data_offsets"]
        halves = numpy.frombuffer(self.data[begin:end], dtype=numpy.uint16).astype(numpy.uint32) << 16
        return halves.view(numpy.float32).reshape(entry["shape"])
