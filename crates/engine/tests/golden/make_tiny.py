"""Makes the golden fixtures: tiny random Llamas, PEFT adapters on them, and the logits that transformers + PEFT give.

Run it in this folder with torch, transformers, peft and safetensors installed (the versions that made the
committed files stand in golden.json under "made_with"):

    python make_tiny.py

Everything is seeded, on the CPU and in float32. A rerun with the same versions gives the same bytes, but for the last
bits of logits on another processor; with other versions look at the difference before committing it: these files say
what "right" means. When cases are added, those that are there keep their logits.

What it writes:
- tiny*/            Hugging Face folders (weights, config, byte-level tokenizer, chat template)
- adapters/*/       PEFT packages with a non-zero B; those with DoRA have magnitudes that are not the norms of the base
- logits.safetensors  one float32 tensor [prompt tokens, vocabulary] per case
- golden.json       the cases: model, adapter, prompt, logits, greedy continuation (16 tokens, end of sequence ignored,
                    with the smallest distance of the best logit from the second), rank and scale of every module
                    as PEFT's own layers report them, and the digest of the canonical blob from the independent
                    writer below
"""

import hashlib
import json
import re
import shutil
import struct
from pathlib import Path

import torch
import transformers  # first: it must be complete before peft imports it back
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import peft
import safetensors.torch
import tokenizers
from peft import LoraConfig, PeftModel, get_peft_model

HERE = Path(__file__).resolve().parent
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
VOCAB = 256 + len(SPECIALS)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GREEDY_TOKENS = 16

SHORT = list(b"Hello, loom!")
OTHER = list(b"weft & warp?")
LONG = list("The weft passes over and under the warp; naïve 🧵.".encode())[:48]


def byte_symbols():
    """GPT-2's printable symbol for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, spare = {}, 0
    for byte in range(256):
        if byte in printable:
            symbols[byte] = chr(byte)
        else:
            symbols[byte] = chr(256 + spare)
            spare += 1
    return symbols


def save_tokenizer(folder):
    """A byte-level BPE without merges: token id = byte value, specials after them."""
    vocab = {symbol: byte for byte, symbol in byte_symbols().items()}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=256,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    assert fast.encode("Hello, loom!") == SHORT
    assert (folder / "chat_template.jinja").exists()


def make_model(name, seed, *, old_style_rope=None, shard=None, **config):
    """A random Llama whose attention and norms matter (wide weights, uneven norms)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=259,
        **config,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif "embed_tokens" in parameter_name or "lm_head" in parameter_name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(1.5 * torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if old_style_rope:
        # Before transformers 5 the base frequency and the scaling were two keys at the top level.
        path = folder / "config.json"
        saved = json.loads(path.read_text())
        rope = saved.pop("rope_parameters")
        saved["rope_theta"] = rope["rope_theta"]
        saved["rope_scaling"] = old_style_rope
        saved["torch_dtype"] = saved.pop("dtype")
        path.write_text(json.dumps(saved, indent=2) + "\n")
    save_tokenizer(folder)
    return folder


def load_model(name):
    return LlamaForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval()


def make_adapter(name, model_name, seed, *, dtype=torch.float32, edit_config=None, **config):
    """A PEFT package with random A and B, saved by PEFT itself."""
    torch.manual_seed(seed)
    model = get_peft_model(load_model(model_name), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.05, **config))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".lora_A." in parameter_name:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
            elif ".lora_B." in parameter_name:
                parameter.copy_(0.4 * torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
            elif ".lora_magnitude_vector." in parameter_name:
                # PEFT starts with the norms of the base. Training moves them; one in eight changes its sign here.
                moved = parameter * (1 + 0.3 * torch.randn_like(parameter))
                parameter.copy_(torch.where(torch.rand_like(parameter) < 0.125, -moved, moved))
    folder = HERE / "adapters" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)

    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    tensors = {key: value.to(dtype).contiguous() for key, value in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["base_model_name_or_path"] = f"weft/{model_name}"
    for key in ["target_modules", "exclude_modules"]:
        if isinstance(saved[key], list):  # sets: their order is not stable between runs
            saved[key] = sorted(saved[key])
    for key in ["rank_pattern", "alpha_pattern"]:  # PEFT sorts keys when it saves, but the first match counts
        saved[key] = config.get(key, {})
    saved.update(edit_config or {})
    path.write_text(json.dumps(saved, indent=2) + "\n")
    return folder


def scale_text(scale):
    """The shortest decimal that reads back as the same double: "2.0", "1e-7"."""
    return re.sub(r"e([+-])0*(\d)", lambda m: "e" + m[1].replace("+", "") + m[2], repr(float(scale)))


def canonical_sha256(folder, modules):
    """The digest of the canonical blob, by a second writer that shares nothing with the Rust one."""
    raw = (folder / "adapter_model.safetensors").read_bytes()
    (header_bytes,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + header_bytes]), raw[8 + header_bytes :]
    header.pop("__metadata__", None)
    is_dora = any(tensor.endswith(".lora_magnitude_vector") for tensor in header)
    metadata = {"weft.format": "2" if is_dora else "1", "weft.peft_type": "DORA" if is_dora else "LORA"}
    for module, resolved in modules.items():
        metadata[f"weft.rank.{module}"] = str(resolved["rank"])
        metadata[f"weft.scale.{module}"] = scale_text(resolved["scale"])
    out, body = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for tensor in sorted(header, key=str.encode):
        start, end = header[tensor]["data_offsets"]
        out[tensor] = {
            "data_offsets": [len(body), len(body) + end - start],
            "dtype": header[tensor]["dtype"],
            "shape": header[tensor]["shape"],
        }
        body += data[start:end]
    text = json.dumps(out, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return "sha256:" + hashlib.sha256(struct.pack("<Q", len(text)) + text + body).hexdigest()


def logits_and_greedy(model, prompt):
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0].float()
        ids = list(prompt)
        margins = []
        for _ in range(GREEDY_TOKENS):
            last = model(torch.tensor([ids])).logits[0, -1]
            best, second = last.topk(2).values.tolist()
            margins.append(best - second)
            ids.append(int(last.argmax()))
    return logits, ids[len(prompt) :], min(margins)


def peft_modules(model):
    """Rank and scale of every LoRA layer, as PEFT's own layers hold them."""
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "scaling") and hasattr(layer, "lora_A") and "default" in layer.r:
            found[name] = {"rank": layer.r["default"], "scale": layer.scaling["default"]}
    return dict(sorted(found.items()))


def make_models():
    make_model(
        "tiny", 1, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    # Sharded over several files, untied, as many key-value heads as heads.
    make_model(
        "tiny-untied", 2, shard="150KB", hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    # Wavelengths of 2 pi to 2 pi * 10000^(11/12): all three branches of the llama3 rule; heads * head_dim != hidden.
    make_model(
        "tiny-llama3", 3, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=24, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    )  # fmt: skip
    make_model(
        "tiny-linear-rope", 4, old_style_rope={"type": "linear", "factor": 4.0}, hidden_size=32,
        intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    )  # fmt: skip


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


def make_adapters():
    """Name of each adapter -> the model it is for."""
    tiny = {
        "plain": dict(r=8, lora_alpha=16, target_modules=ATTENTION),
        "rslora": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"]),
        # Order matters ("the first key that matches"), a key may be a regex, "^" ties it to the whole name.
        "patterns": dict(
            r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"^model.layers.1.self_attn.q_proj": 6, r"layers\.[12]\.self_attn\.(q|v)_proj": 3,
                          "down_proj": 2},
            alpha_pattern={"v_proj": 10, r"model\.layers\.0\..*": 7, "self_attn.q_proj": 5},
        ),
        "patterns_rslora": dict(
            r=4, lora_alpha=4, use_rslora=True, target_modules=["k_proj", "up_proj"],
            rank_pattern={"up_proj": 7}, alpha_pattern={r"layers.2.mlp.up_proj": 9.5},
        ),
        "some_layers": dict(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "up_proj"],
                            layers_to_transform=[0, 2]),
        "one_layer": dict(r=4, lora_alpha=8, target_modules=["v_proj"], layers_to_transform=1,
                          layers_pattern="layers"),
        "regex": dict(r=4, lora_alpha=8, target_modules=r".*\.(0|2)\.self_attn\.(?!o_)[a-z]_proj"),
        "all_linear": dict(r=4, lora_alpha=8, target_modules="all-linear"),
        "excluded": dict(r=4, lora_alpha=8, target_modules=ATTENTION, exclude_modules=["1.self_attn.q_proj", "o_proj"]),
        "excluded_regex": dict(r=4, lora_alpha=8, target_modules=MLP, exclude_modules=r".*layers\.0\..*"),
        "mlp_only": dict(r=8, lora_alpha=8, target_modules=MLP),
        "f16": dict(r=8, lora_alpha=12, target_modules=["q_proj", "down_proj"], dtype=torch.float16),
        "bf16": dict(r=8, lora_alpha=12, target_modules=["k_proj", "gate_proj"], dtype=torch.bfloat16),
        "fan_in_fan_out": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"],
                               edit_config={"fan_in_fan_out": True}),
        "rank4": dict(r=4, lora_alpha=8, target_modules=ATTENTION),
        "rank8": dict(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"],
                      dtype=torch.bfloat16),
        "rank16": dict(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"],
                       dtype=torch.bfloat16),
        "rank64": dict(r=64, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"],
                       layers_to_transform=[0, 2], dtype=torch.bfloat16),
        "dora": dict(r=8, lora_alpha=16, use_dora=True, target_modules=ATTENTION + MLP),
        # One part of each fused linear, ranks and scales by pattern, magnitudes in bfloat16.
        "dora_patterns": dict(
            r=4, lora_alpha=6, use_dora=True, use_rslora=True, target_modules=["k_proj", "up_proj", "down_proj"],
            rank_pattern={r"layers\.1\..*": 7, "up_proj": 3}, alpha_pattern={"2.self_attn.k_proj": 9.5},
            dtype=torch.bfloat16,
        ),
        "dora_f16": dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "v_proj", "o_proj"],
                         layers_to_transform=[0, 2], dtype=torch.float16),
    }  # fmt: skip
    for seed, (name, config) in enumerate(tiny.items(), start=100):
        make_adapter(name, "tiny", seed, **config)
    make_adapter("untied_plain", "tiny-untied", 200, r=4, lora_alpha=8, target_modules=ATTENTION + MLP)
    make_adapter("llama3_plain", "tiny-llama3", 201, r=4, lora_alpha=8, target_modules=ATTENTION + MLP)
    make_adapter("untied_dora", "tiny-untied", 202, r=4, lora_alpha=8, use_dora=True, target_modules="all-linear")
    make_adapter("llama3_dora", "tiny-llama3", 203, r=4, lora_alpha=8, use_dora=True, target_modules=ATTENTION)
    return {name: "tiny" for name in tiny} | {
        "untied_plain": "tiny-untied", "llama3_plain": "tiny-llama3",
        "untied_dora": "tiny-untied", "llama3_dora": "tiny-llama3",
    }  # fmt: skip


def main():
    torch.set_num_threads(1)
    make_models()
    adapters = make_adapters()
    logits, cases = {}, []

    def add_case(name, model_name, model, adapter, prompt):
        values, greedy, margin = logits_and_greedy(model, prompt)
        logits[name] = values.contiguous()
        case = {
            "name": name,
            "model": model_name,
            "adapter": f"adapters/{adapter}" if adapter else None,
            "prompt": prompt,
            "logits": {"file": "logits.safetensors", "tensor": name, "shape": list(values.shape)},
            "greedy": greedy,
            "greedy_margin_min": round(margin, 6),
        }
        if adapter:
            case["modules"] = peft_modules(model)
            case["canonical_sha256"] = canonical_sha256(HERE / "adapters" / adapter, case["modules"])
        cases.append(case)
        print(f"{name:32} margin {margin:.4f} {len(case.get('modules', {}))} modules")

    base = {}
    for model_name in ["tiny", "tiny-untied", "tiny-llama3", "tiny-linear-rope"]:
        model = load_model(model_name)
        add_case(f"base/{model_name}", model_name, model, None, SHORT)
        add_case(f"base/{model_name}/long", model_name, model, None, LONG)
        base[model_name] = logits[f"base/{model_name}"]
    for adapter, model_name in adapters.items():
        model = PeftModel.from_pretrained(load_model(model_name), HERE / "adapters" / adapter).eval()
        add_case(adapter, model_name, model, adapter, SHORT)
        moved = (logits[adapter] - base[model_name]).abs().max().item()
        assert moved > 0.1, f"{adapter} hardly changes the base: {moved}"
    for adapter in ["rank4", "rank8", "rank16", "rank64"]:
        model = PeftModel.from_pretrained(load_model("tiny"), HERE / "adapters" / adapter).eval()
        prompt = OTHER[: 12 - ["rank4", "rank8", "rank16", "rank64"].index(adapter) * 2]
        add_case(f"{adapter}/other", "tiny", model, adapter, prompt)

    safetensors.torch.save_file(logits, HERE / "logits.safetensors")
    golden = {
        "made_with": {
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "cases": cases,
        # Cases of one model that must give the same logits when they share one batch.
        "batches": [
            {"name": "ranks", "cases": ["rank4", "rank8", "rank16", "rank64", "base/tiny"]},
            {"name": "ranks_uneven", "cases": ["base/tiny/long", "rank64/other", "rank4/other", "rank16/other",
                                               "rank8/other", "base/tiny"]},
            {"name": "dora", "cases": ["dora", "rank8", "base/tiny/long", "dora_patterns", "rank64", "dora_f16"]},
            {"name": "everything", "cases": ["base/tiny", *[a for a, m in adapters.items() if m == "tiny"]]},
        ],
    }  # fmt: skip
    text = json.dumps(golden, indent=1)
    # Token lists on one line each.
    text = re.sub(r"\[\s+(-?\d+(?:,\s+-?\d+)*)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    (HERE / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
