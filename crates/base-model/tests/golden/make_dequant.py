"""Makes dequant.json: random blocks of every supported tensor type, with the f32 values the package `gguf` reads.

    python make_dequant.py

Needs: pip install gguf numpy. Blocks are random bytes with sane scales put in where the format keeps f16 numbers.
"""

import json
import pathlib

import gguf
import numpy
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

# Type, and where its blocks hold f16 numbers (scales, minima).
KINDS = [
    (T.F32, None), (T.F16, [0]), (T.BF16, None), (T.Q4_0, [0]), (T.Q4_1, [0, 2]), (T.Q5_0, [0]), (T.Q5_1, [0, 2]),
    (T.Q8_0, [0]), (T.Q4_K, [0, 2]), (T.Q5_K, [0, 2]), (T.Q6_K, [208]),
]


def blocks(rng, kind, scales):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = max(3, 96 // elements)
    if kind == T.F32:
        return rng.standard_normal(count, dtype=numpy.float32).view(numpy.uint8)
    if kind == T.BF16:
        return (rng.standard_normal(count, dtype=numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8)
    raw = rng.integers(0, 256, (count, size), dtype=numpy.uint8)
    for at in scales:
        raw[:, at:at + 2] = (rng.standard_normal(count) * 0.02).astype(numpy.float16).reshape(-1, 1).view(numpy.uint8)
    return raw.reshape(-1)


def main():
    rng = numpy.random.default_rng(7)
    cases = []
    for kind, scales in KINDS:
        raw = blocks(rng, kind, scales)
        values = dequantize(raw if kind not in (T.F32, T.F16) else raw.view({T.F32: numpy.float32, T.F16: numpy.float16}[kind]), kind)
        values = numpy.ascontiguousarray(values, dtype="<f4").reshape(-1)
        cases.append({"type": kind.name, "code": int(kind), "stored": raw.tobytes().hex(), "f32": values.tobytes().hex()})
    out = pathlib.Path(__file__).with_name("dequant.json")
    out.write_text(json.dumps(cases, indent=0) + "\n", encoding="ascii")
    print({case["type"]: len(case["f32"]) // 8 for case in cases})


if __name__ == "__main__":
    main()
