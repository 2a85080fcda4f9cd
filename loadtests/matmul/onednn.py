"""The same linears by PyTorch, whose products on processors are oneDNN's and MKL's. Usage: onednn.py [--threads N] [--repeats N]"""

import argparse
import time

import torch

LAYERS = 30
LINEARS = [(960, 576), (576, 576), (3072, 576), (576, 1536)]
ROWS = [1, 8, 32, 256]


def report(name, repeats, layers, dtype):
    weights = LAYERS * sum(outputs * inputs for outputs, inputs in LINEARS)
    for rows in ROWS:
        x = {inputs: torch.randn(rows, inputs).to(dtype) for inputs in (576, 1536)}
        fastest = float("inf")
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for layer, inputs in layers:
                layer(x[inputs])
            fastest = min(fastest, time.perf_counter() - start)
        print(f"{name:<24} {rows:>4} rows {fastest * 1e3:>9.2f} ms {2 * weights * rows / fastest / 1e9:>8.1f} GOP/s", flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            layers = [
                (torch.nn.Linear(inputs, outputs, bias=False).to(dtype), inputs)
                for _ in range(LAYERS)
                for outputs, inputs in LINEARS
            ]
            report(f"torch {str(dtype).removeprefix('torch.')}", options.repeats, layers, dtype)
        for engine in ("onednn", "fbgemm"):
            if engine not in torch.backends.quantized.supported_engines:
                print(f"torch int8 {engine}: not in this build")
                continue
            torch.backends.quantized.engine = engine
            layers = []
            for _ in range(LAYERS):
                for outputs, inputs in LINEARS:
                    plain = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False))
                    layers.append((torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, torch.qint8), inputs))
            report(f"torch int8 {engine}", options.repeats, layers, torch.float32)


main()
