"""Measures vLLM on the processor with the workload of `weft bench`: same base in bf16, same adapters, same prompts.

Usage: vllm_peer.py MODEL.gguf WORKLOAD_DIR OUT.json [--rounds N] [--threads N]

The GGUF file becomes a Hugging Face folder first. Eager: compilation needs Triton, which the package index has for
GPUs alone. Two engines, one after the other: the bare base without LoRA, then one with room for all adapters. Log-
probabilities with different adapters must differ before anything is timed.
"""

import importlib.metadata
import os
import time

import gguf
import gguf_base
import workload

RANK_MAX = 8


def main():
    options = workload.arguments(__doc__).parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-" + str(options.threads - 1))
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import vllm
    from vllm.lora.request import LoRARequest

    folder = options.workload / "base-huggingface"
    config = gguf_base.write_huggingface(gguf.GGUFReader(options.model), folder)
    prompts = workload.rounds(options)
    length = len(prompts[0][0]) + options.tokens + 1

    def engine(**more):
        return vllm.LLM(
            model=str(folder), skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
            enable_prefix_caching=False, max_model_len=min(max(256, length), config["max_position_embeddings"]),
            max_num_seqs=len(prompts[0]), max_num_batched_tokens=2048, **more,
        )

    def generate(llm, batch, tokens, lora=None, **more):
        params = vllm.SamplingParams(
            temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False, **more
        )
        return llm.generate([{"prompt_token_ids": ids} for ids in batch], params, lora_request=lora, use_tqdm=False)

    def timed(llm, lora):
        def run(batch):
            begin = time.monotonic()
            results = generate(llm, batch, options.tokens, lora(len(batch)))
            return time.monotonic() - begin, sum(len(result.outputs[0].token_ids) for result in results)

        return run

    bare = engine()
    cases = workload.measure(prompts, [(workload.BASE, timed(bare, lambda _: None))], options.tokens)
    del bare

    adapters = [
        LoRARequest(path.name, number + 1, str(path)) for number, path in enumerate(workload.adapters(options.workload))
    ]
    llm = engine(enable_lora=True, max_loras=len(adapters), max_cpu_loras=len(adapters), max_lora_rank=RANK_MAX)

    def fingerprint(lora):
        output = generate(llm, prompts[0][:1], workload.CHECK_TOKENS, lora, logprobs=0)[0].outputs[0]
        return [logprobs[token].logprob for token, logprobs in zip(output.token_ids, output.logprobs)]

    workload.check_adapters("vLLM", [fingerprint(lora) for lora in [None, adapters[0], adapters[1], None]])
    cases.update(workload.measure(prompts, [
        (workload.SHARED, timed(llm, lambda count: [adapters[0]] * count)),
        (workload.DIFFERENT, timed(llm, lambda count: adapters[:count])),
    ], options.tokens))
    workload.write(options.out, "vLLM", importlib.metadata.version("vllm-cpu"), {"bf16": cases})


if __name__ == "__main__":
    main()
