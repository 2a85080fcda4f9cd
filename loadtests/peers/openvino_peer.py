"""Measures OpenVINO GenAI's continuous batching with the workload of `weft bench`, on the base alone.

Usage: openvino_peer.py MODEL.gguf WORKLOAD_DIR OUT.json [--rounds N] [--threads N]

It reads the GGUF file itself. Adapters are not measured: the pipeline from a GGUF file refuses them, and one that takes
them does not mix different ones in a batch. Prompts are token ids.
"""

import importlib.metadata
import time

import numpy
import openvino
import openvino_genai
import workload

CACHE_GIB = 1


def main():
    options = workload.arguments(__doc__).parse_args()
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 1}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(options.model), scheduler, "CPU", properties)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = options.tokens
    config.min_new_tokens = options.tokens
    config.ignore_eos = True
    config.do_sample = False

    def base(prompts):
        tensors = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        begin = time.monotonic()
        results = pipeline.generate(tensors, [config] * len(tensors))
        return time.monotonic() - begin, sum(len(result.m_generation_ids[0]) for result in results)

    cases = workload.measure(workload.rounds(options), [(workload.BASE, base)], options.tokens)
    version = importlib.metadata.version("openvino-genai")
    workload.write(options.out, "OpenVINO GenAI", version, {"file": cases})


if __name__ == "__main__":
    main()
