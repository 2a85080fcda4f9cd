"""Makes pretokenizers.json: where the published pre-tokenizers cut the lines of tokenizer_lines.jsonl.

    python make_pretokenizers.py

Needs: pip install tokenizers. The pipelines are those of the published tokenizer.json files (Llama 3, Qwen 2, GPT-2,
SmolLM2), run by the Python package, whose regular expressions are Oniguruma's; ours are another engine's. Kept per
line is only a fingerprint (FNV-1a) of the borders, in characters of the normalized text.
"""

import json
import pathlib
import struct

from tokenizers import Regex, normalizers, pre_tokenizers as pre

HERE = pathlib.Path(__file__).resolve().parent
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern):
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])


KINDS = {
    "gpt-2": pre.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False, use_regex=True)]),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
}


def fingerprint(borders):
    hash = 0x811C9DC5
    for byte in b"".join(struct.pack("<I", border) for border in borders):
        hash = (hash ^ byte) * 0x01000193 & 0xFFFFFFFF
    return hash


def main():
    texts = [json.loads(line)[0] for line in (HERE / "tokenizer_lines.jsonl").read_text().splitlines()]
    golden = {}
    for name, kind in KINDS.items():
        normalize = normalizers.NFC().normalize_str if name == "qwen2" else str
        golden[name] = [fingerprint(end for _, (_, end) in kind.pre_tokenize_str(normalize(text))) for text in texts]
    (HERE / "pretokenizers.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
