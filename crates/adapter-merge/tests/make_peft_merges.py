"""Makes peft/: adapters, and what PEFT's add_weighted_adapter makes of them, for tests/peft.rs.

    python make_peft_merges.py      # torch, transformers, peft, numpy; versions stand in peft/golden.json

Adapters differ in rank, alpha, rsLoRA, patterns and modules. Each case is a recipe of Weft's, and the package that PEFT
saved for it. Where PEFT draws (torch.bernoulli), the draws are replaced by Weft's, written here a second time, so that
everything but the generator is PEFT's own. LoRAX merges by a copy of PEFT's first merge_utils (its file says so), on A
and B apart; those cases apply PEFT's functions in LoRAX's way. Recipe digests are computed here a second time, too.
"""

import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers  # before peft
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import peft
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraModel
from peft.utils import merge_utils

HERE = Path(__file__).parent
OUT = HERE / "peft"
sys.path.insert(0, str(HERE / "../../engine/tests/golden"))
from make_tiny import canonical_sha256, peft_modules  # noqa: E402  the independent writer of canonical blobs

CONFIG = LlamaConfig(hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
                     num_key_value_heads=1, vocab_size=8)  # fmt: skip
MASK = 0xFFFFFFFF

ADAPTERS = {
    "even": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "plain": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "odd": {"r": 5, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"1.self_attn.q_proj": 2}, "alpha_pattern": {"up_proj": 1}},
    "small": {"r": 3, "lora_alpha": 1, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
}  # fmt: skip


def case(name, shares, kind, target_rank=None, **parameters):
    return {"name": name, "shares": shares, "method": {"kind": kind, **parameters}, "target_rank": target_rank}


# The first is not `odd`: PEFT gives the result the first one's use_rslora, and with it a scale that is not 1.
MIXED = {"even": 0.75, "odd": -1.5, "small": 2.0}
CASES = [
    case("cat", MIXED, "linear"),
    case("cat-one", {"even": 1.0}, "linear"),
    case("svd-3", MIXED, "svd", 3),
    case("svd-11", {"even": 0.5, "plain": 0.5, "odd": 1.0}, "svd", 11),
    case("ties-total", MIXED, "ties", 12, density=0.4, majority_sign="total"),
    case("ties-frequency", MIXED, "ties", 12, density=0.7, majority_sign="frequency"),
    case("ties-cut", {"even": 1.0, "plain": 1.0}, "ties", 3, density=0.2, majority_sign="total"),
    case("dare-linear", MIXED, "dare_linear", 12, density=0.5, seed=7),
    case("dare-linear-cut", {"even": 1.0, "plain": -0.5}, "dare_linear", 4, density=0.3, seed=2**63 + 5),
    case("dare-ties", MIXED, "dare_ties", 12, density=0.6, seed=0, majority_sign="total"),
    case("dare-ties-frequency", MIXED, "dare_ties", 5, density=0.9, seed=1, majority_sign="frequency"),
]
EVEN = {"even": 0.6, "plain": 1.4}
LORAX = [
    case("lorax-linear", EVEN, "linear"),
    case("lorax-ties", EVEN, "ties", density=0.5, majority_sign="total"),
    case("lorax-ties-frequency", {"plain": 1.0, "even": 1.0}, "ties", density=0.3, majority_sign="frequency"),
    case("lorax-dare-linear", EVEN, "dare_linear", density=0.5, seed=9),
    case("lorax-dare-ties", EVEN, "dare_ties", density=0.7, seed=9, majority_sign="total"),
    case("lorax-nothing", EVEN, "ties", density=0.0, majority_sign="total"),
]
PEFT_TYPES = {"linear": "cat", "svd": "svd", "ties": "ties_svd", "dare_linear": "dare_linear_svd",
              "dare_ties": "dare_ties_svd"}  # fmt: skip


def chacha8_words(key, count):
    """The first words of ChaCha with 8 rounds, a 64-bit counter from 0 and a zero nonce (D. J. Bernstein 2008)."""
    words = []
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key)]
    rotl = lambda value, by: ((value << by) & MASK) | (value >> (32 - by))  # noqa: E731
    for block in range(-(-count // 16)):
        first = [*start, block & MASK, block >> 32, 0, 0]
        state = list(first)
        for turn in range(8):
            for column in range(4):
                shift = 1 if turn % 2 else 0
                a, b, c, d = (4 * row + (column + shift * row) % 4 for row in range(4))
                for left, right, other, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    state[left] = (state[left] + state[right]) & MASK
                    state[other] = rotl(state[other] ^ state[left], by)
        words += [(x + y) & MASK for x, y in zip(first, state)]
    return words[:count]


def draws(seed, digest, tensor, shape, density):
    key = b"weft/merge-dare/1" + struct.pack("<Q", seed) + bytes.fromhex(digest[7:]) + tensor.encode()
    words = chacha8_words(hashlib.sha256(key).digest(), shape.numel())
    kept = [1.0 if word < round(density * 2**32) else 0.0 for word in words]
    return torch.tensor(kept).reshape(shape)


def recipe_digest(recipe):
    """By the record that crates/adapter-merge/src/recipe.rs describes."""
    text = lambda word: struct.pack("<I", len(word)) + word.encode()  # noqa: E731
    optional = lambda form, value: b"\0" if value is None else b"\1" + struct.pack(form, value)  # noqa: E731
    method, parents = recipe["method"], list(recipe["parents"])
    space = recipe.get("space", "delta")
    if space == "delta":
        parents.sort(key=lambda parent: parent["digest"])
    record = text("weft/merge-recipe/1") + text(space) + text(method["kind"]) + struct.pack("<I", len(parents))
    for parent in parents:
        record += bytes.fromhex(parent["digest"][7:]) + struct.pack("<d", parent["weight"])
    record += optional("<d", method.get("density")) + text(method.get("majority_sign", ""))
    record += optional("<Q", method.get("seed")) + optional("<I", recipe.get("target_rank")) + text("F32")
    return "sha256:" + hashlib.sha256(record).hexdigest()


def save(model, name, adapter):
    folder = OUT / name
    model.save_pretrained(folder, selected_adapters=[adapter])
    if adapter != "default":
        for file in (folder / adapter).iterdir():
            file.rename(folder / file.name)
        (folder / adapter).rmdir()
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set in PEFT
    (folder / "adapter_config.json").write_text(json.dumps(config, sort_keys=True) + "\n")


def make_adapters():
    digests = {}
    for number, (name, config) in enumerate(ADAPTERS.items()):
        torch.manual_seed(number)
        model = get_peft_model(LlamaForCausalLM(CONFIG), LoraConfig(task_type="CAUSAL_LM", **config))
        for tensor_name, tensor in model.named_parameters():
            if "lora_" in tensor_name:
                torch.nn.init.normal_(tensor, std=0.5)
        save(model, name, "default")
        digests[name] = canonical_sha256(OUT / name, peft_modules(model))
    return digests


def load(names):
    """A model with these adapters, each under its own name."""
    model = None
    for name in names:
        base = LlamaForCausalLM(CONFIG) if model is None else None
        if model is None:
            model = peft.PeftModel.from_pretrained(base, OUT / name, adapter_name=name)
        else:
            model.load_adapter(OUT / name, adapter_name=name)
    return model


def replace_draws(model, case, digests):
    """While PEFT merges a module, torch.bernoulli gives Weft's draws for each of its adapters in turn."""
    names = {id(module): name for name, module in model.base_model.model.named_modules()}
    real = LoraModel._svd_generalized_task_arithmetic_weighted_adapter
    waiting = []

    def merge_module(self, kind, adapters, weights, rank, target, *rest, **named):
        waiting[:] = [(digests[adapter], names[id(target)]) for adapter in adapters if adapter in target.lora_A]
        return real(self, kind, adapters, weights, rank, target, *rest, **named)

    def bernoulli(full):
        digest, name = waiting.pop(0)
        return draws(case["method"]["seed"], digest, f"{name}.delta", full.shape, case["method"]["density"])

    LoraModel._svd_generalized_task_arithmetic_weighted_adapter = merge_module
    merge_utils.torch = SimpleNamespace(**{**vars(torch), "bernoulli": bernoulli})
    return real


def pad_to_rank(model):
    """A decomposition has no more vectors than the shorter side: PEFT leaves a factor narrower than its rank."""
    for layer in model.base_model.model.modules():
        if "merged" in getattr(layer, "lora_A", {}):
            rank, a, b = layer.r["merged"], layer.lora_A["merged"].weight, layer.lora_B["merged"].weight
            a.data = torch.nn.functional.pad(a.data, (0, 0, 0, rank - a.shape[0]))
            b.data = torch.nn.functional.pad(b.data, (0, rank - b.shape[1]))


def make_case(case, digests):
    model = load(case["shares"])
    method = case["method"]
    real = replace_draws(model, case, digests)
    model.base_model.add_weighted_adapter(
        list(case["shares"]), list(case["shares"].values()), "merged", PEFT_TYPES[method["kind"]],
        svd_rank=case["target_rank"], density=method.get("density"),
        majority_sign_method=method.get("majority_sign", "total"),
    )  # fmt: skip
    LoraModel._svd_generalized_task_arithmetic_weighted_adapter = real
    merge_utils.torch = torch
    pad_to_rank(model)
    save(model, case["name"], "merged")


def make_lorax_case(case, digests):
    """LoRAX: all A's, then all B's; weights and density as they are; the first adapter's scale; no rescaling."""
    method, names = case["method"], list(case["shares"])
    tensors = [load_file(OUT / name / "adapter_model.safetensors") for name in names]
    first = json.loads((OUT / names[0] / "adapter_config.json").read_text())
    merged = {}
    for tensor in sorted({key for each in tensors for key in each}):
        having = [index for index, each in enumerate(tensors) if tensor in each]
        values = [tensors[index][tensor] for index in having]
        shares = torch.tensor([case["shares"][names[index]] for index in having])
        if method["kind"].startswith("dare"):
            short = tensor.removeprefix("base_model.model.").removesuffix(".weight")
            masks = [draws(method["seed"], digests[names[index]], short, tensors[index][tensor].shape,
                           method["density"]) for index in having]  # fmt: skip
            values = [value * mask for value, mask in zip(values, masks)]
        if method["kind"] in ("linear", "dare_linear"):
            out = merge_utils.task_arithmetic(values, shares)
        else:
            # The density of DARE has had its effect.
            density = method["density"] if method["kind"] == "ties" else 1.0
            out = merge_utils.ties(values, shares, density, method["majority_sign"])
        merged[tensor] = out.contiguous()
    folder = OUT / case["name"]
    folder.mkdir(parents=True)
    save_file(merged, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    first["target_modules"] = sorted({module for name in names for module in ADAPTERS[name]["target_modules"]})
    (folder / "adapter_config.json").write_text(json.dumps(first, sort_keys=True) + "\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    digests = make_adapters()
    golden = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                           "peft": peft.__version__},
              "adapters": digests, "cases": []}  # fmt: skip
    for case, space in [(case, "delta") for case in CASES] + [(case, "lorax") for case in LORAX]:
        (make_case if space == "delta" else make_lorax_case)(case, digests)
        parents = [{"digest": digests[name], "weight": share} for name, share in case["shares"].items()]
        recipe = {"parents": parents, "method": case["method"], "space": space}
        if case["target_rank"] is not None:
            recipe["target_rank"] = case["target_rank"]
        names = list(case["shares"])
        golden["cases"].append({"name": case["name"], "parents": names, "recipe": recipe,
                                "recipe_digest": recipe_digest(recipe)})  # fmt: skip
    (OUT / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
