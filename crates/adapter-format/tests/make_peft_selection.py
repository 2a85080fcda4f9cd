"""Makes peft_selection.json: what PEFT itself selects, and with which rank and scale, for many configs.

    python make_peft_selection.py      # torch, transformers, peft; versions stand in the file

Each config is handed to get_peft_model on a Llama of 12 layers; the outcome is read from the layers PEFT made:
a list of "module name without model.layers.:rank:scale", or the word "refused" if PEFT raises or if it wraps a module
that is no linear of a decoder layer. Weft must agree on every one.
"""

import json
import random
import re
import warnings
from pathlib import Path

import torch
import transformers  # before peft
from transformers import LlamaConfig, LlamaForCausalLM

import peft
from peft import LoraConfig, get_peft_model

LAYERS = 12
CONFIG = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=2,
                     num_key_value_heads=2, vocab_size=8)  # fmt: skip
LINEAR = re.compile(r"model\.layers\.(\d+\.(?:self_attn|mlp)\.[a-z]+_proj)")

BY_HAND = [
    {"target_modules": ["q_proj"]},
    {"target_modules": "all-linear"},
    {"target_modules": "ALL-Linear"},
    {"target_modules": ["all-linear"]},
    {"target_modules": ["proj"]},
    {"target_modules": ["_proj"]},
    {"target_modules": [""]},
    {"target_modules": ["attn.q_proj"]},
    {"target_modules": ["self_attn.q_proj", "1.mlp.up_proj"]},
    {"target_modules": ["model.layers.3.self_attn.q_proj"]},
    {"target_modules": ["layers.1.self_attn.q_proj"]},
    {"target_modules": ["1.self_attn.q_proj"]},
    {"target_modules": ["mlp"]},
    {"target_modules": ["q_proj", "mlp"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "c_attn"]},
    {"target_modules": ["c_attn"]},
    {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["3.self_attn.q_proj", "model.layers.4.self_attn.v_proj"]},
    {"target_modules": "all-linear", "exclude_modules": ["down_proj", "o_proj"]},
    {"target_modules": "all-linear", "exclude_modules": r".*\.1\d?\..*"},
    {"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["lm_head"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": r"(q|v)_proj"},
    {"target_modules": r"model\.layers\.[0-9]\.self_attn\.q_proj"},
    {"target_modules": r"model\.layers\.\d{1,2}\.mlp\.(up|down)_proj"},
    {"target_modules": r".*\.\d{,1}\.mlp\.up_proj"},
    {"target_modules": r".*\.\d{2}\.mlp\.up_proj"},
    {"target_modules": r"(?i).*\.Q_PROJ"},
    {"target_modules": r".*\.(?i:Q)_proj"},
    {"target_modules": r".*(?<!k)(?<!v)_proj"},
    {"target_modules": r"(?=.*self_attn).*[qv]_proj"},
    {"target_modules": r"(?!.*\.1\.).*\.q_proj"},
    {"target_modules": r".*\.(\d)\1\.self_attn\.q_proj"},
    {"target_modules": r".*\.(?P<n>\d)(?P=n)\.self_attn\.q_proj"},
    {"target_modules": r".*\.[[q]_proj"},
    {"target_modules": r".*\.[q&&v]_proj"},
    {"target_modules": r".*\.[^kvo]_proj"},
    {"target_modules": r".*\.[]q]_proj"},
    {"target_modules": r".*\.[a-qs-z]_proj$"},
    {"target_modules": r"^model.*q_proj\Z"},
    {"target_modules": r".*\bq_proj"},
    {"target_modules": r".*\Bproj"},
    {"target_modules": r".*layers\.[\d]{1,}\..*v_proj"},
    {"target_modules": r"model\.layers\.1*\.self_attn\.q_proj"},
    {"target_modules": r"model\.layers\.1?+\.self_attn\.q_proj"},
    {"target_modules": r"model\.layers\.(?>1|11)\.self_attn\.q_proj"},
    {"target_modules": r"model|model\.layers\.2\.self_attn\.q_proj"},
    {"target_modules": r".*"},
    {"target_modules": r".*_proj|lm_head"},
    {"target_modules": r".*\.q_proj)"},
    {"target_modules": r"*.q_proj"},
    {"target_modules": r".**q_proj"},
    {"target_modules": r".*\.q_proj{"},
    {"target_modules": r".*\.q\_proj"},
    {"target_modules": "(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
                       "(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2).*?)|(?:\\bmodel\\.layers\\.[\\d]{1,}\\."
                       "(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\\."
                       "(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"},
    {"target_modules": ["q_proj"], "layers_to_transform": 3},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 11, 99]},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["q_proj"], "layers_to_transform": [99]},
    {"target_modules": ["q_proj", "model.layers.5.self_attn.k_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "h"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": r"(h|lay\w+)"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": r"model\.layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ""},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": []},
    {"target_modules": ["q_proj"], "layers_pattern": "layers"},
    {"target_modules": r".*q_proj", "layers_to_transform": [1]},
    {"target_modules": "all-linear", "layers_to_transform": [1]},
    {"target_modules": r".*q_proj", "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "rank_pattern": {"^q_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {"^model.layers.1.self_attn.q_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {"1.self_attn.q_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r".*1.self_attn.q_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"a|1\.self_attn\.q_proj": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"1\.self_attn\.q_proj|a": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"a)|(.*\.1\..*": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"layers\.(\d)\1\..*": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"layers\.(\d)\3\..*": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"(?i)Q_PROJ": 3}},
    {"target_modules": ["q_proj"], "rank_pattern": {r"proj": 3}},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2, "2.self_attn.q_proj": 5, "v_proj": 3}},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"2.self_attn.q_proj": 5, "q_proj": 2}},
    {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"q_proj": 3, "v_proj": 7.25}},
    {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"v_proj": 7}, "use_rslora": True},
    {"target_modules": ["q_proj"], "r": 3, "lora_alpha": 1e-7},
    {"target_modules": ["q_proj"], "r": 7, "lora_alpha": 123456789},
    {"target_modules": ["q_proj"], "r": 0},
    {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 0}},
    {"target_modules": ["q_proj"], "r": 5, "lora_alpha": -3, "use_rslora": True},
]  # fmt: skip


def at_random(count):
    """Combinations of all features, seeded."""
    rng = random.Random(7)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lists = [*kinds, "self_attn.q_proj", "mlp.up_proj", "3.mlp.up_proj", "layers.10.self_attn.o_proj", "fc1",
             "model.layers.6.mlp.down_proj", "1.self_attn.v_proj", "attn.k_proj"]  # fmt: skip
    patterns = [r".*\.[qk]_proj", r".*mlp.*_proj", r"model\.layers\.([02468]|10)\..*(q|up)_proj", "all-linear",
                r".*\.(?!4\.)\d+\.(self_attn|mlp)\.\w+_proj", r".*(?<=[qkv])_proj", r".*\.1[01]?\..*_proj"]  # fmt: skip
    keys = [*lists, r"layers\.[1-5]\..*", r"^model.layers.1\d.*", r".*mlp.*", r"(q|k|v)_proj", r"\d.mlp.(up|down)_proj",
            r"self_attn.(?!k)\w_proj", "^q_proj", "layers.2.self_attn.q_proj"]  # fmt: skip
    for _ in range(count):
        config = {"r": rng.choice([1, 2, 4, 8, 9]), "lora_alpha": rng.choice([1, 8, 16, 3.5])}
        if rng.random() < 0.3:
            config["target_modules"] = rng.choice(patterns)
        else:
            config["target_modules"] = rng.sample(lists, rng.randint(1, 4))
            if rng.random() < 0.4:
                config["layers_to_transform"] = rng.choice([0, 11, [1, 3, 5], [10, 2], [6, 40]])
                if rng.random() < 0.4:
                    config["layers_pattern"] = rng.choice(["layers", ["blocks", "layers"], r"l\w+", "h"])
        if rng.random() < 0.3:
            config["exclude_modules"] = rng.choice([rng.sample(lists, 2), rng.choice(patterns[:3] + patterns[4:])])
        if rng.random() < 0.5:
            config["rank_pattern"] = {key: rng.randint(1, 9) for key in rng.sample(keys, rng.randint(1, 3))}
        if rng.random() < 0.5:
            config["alpha_pattern"] = {key: rng.choice([1, 2, 5, 0.3, 24]) for key in rng.sample(keys, rng.randint(1, 3))}
        config["use_rslora"] = rng.random() < 0.4
        yield config


def outcome(config):
    with torch.device("cpu"):
        model = LlamaForCausalLM(CONFIG)
    try:
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **json.loads(json.dumps(config))))
    except Exception:
        return "refused"
    found = []
    for name, layer in wrapped.base_model.model.named_modules():
        if not (hasattr(layer, "scaling") and "default" in getattr(layer, "r", {})):
            continue
        linear = LINEAR.fullmatch(name)
        if linear is None:
            return "refused"
        found.append(f"{linear[1]}:{layer.r['default']}:{layer.scaling['default']!r}")
    return sorted(found)


def main():
    warnings.simplefilter("ignore")
    lines = []
    for config in [*BY_HAND, *at_random(160)]:
        lines.append(json.dumps({"config": config, "outcome": outcome(config)}))
    made_with = json.dumps({"peft": peft.__version__, "transformers": transformers.__version__})
    text = f'{{"made_with": {made_with}, "layers": {LAYERS}, "cases": [\n' + ",\n".join(lines) + "\n]}\n"
    Path(__file__).with_name("peft_selection.json").write_text(text)


if __name__ == "__main__":
    main()
