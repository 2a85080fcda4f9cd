"""What all peers have in common: the workload that `weft bench --export` wrote, rounds of it, and the file of figures.

The folder holds PEFT packages `bench-000`... and `prompts.json`: rounds of prompts, as token ids. The first round only
warms up. Each case is one (name, runner); a runner takes the prompts of a round and returns (seconds, tokens).
"""

import argparse
import json
import pathlib
import statistics

BASE, SHARED, DIFFERENT = "base alone", "one shared adapter", "a different adapter each"
CHECK_TOKENS = 16


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="GGUF file of the base")
    parser.add_argument("workload", type=pathlib.Path, help="folder written by `weft bench --export`")
    parser.add_argument("out", type=pathlib.Path, help="JSON file of the figures")
    parser.add_argument("--rounds", type=int, default=4, help="the first only warms up")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def adapters(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.startswith("bench-"))


def rounds(options):
    prompts = json.loads((options.workload / "prompts.json").read_text())[: options.rounds]
    if len(prompts) < options.rounds:
        raise SystemExit(f"the workload has {len(prompts)} rounds, {options.rounds} are wanted: export it with --rounds")
    return prompts


def check_adapters(engine, logprobs):
    """Log-probabilities of the tokens of one greedy answer by the base, by two adapters, and by the base again."""
    base, one, other, again = logprobs

    def differ(a, b):
        return len(a) != len(b) or any(abs(x - y) > 1e-3 for x, y in zip(a, b))

    if differ(base, again):
        raise SystemExit(f"{engine} answers differently when asked again: nothing can be said of its adapters")
    if not (differ(base, one) and differ(base, other) and differ(one, other)):
        raise SystemExit(f"{engine} did not apply the adapters")


def measure(prompts, cases, tokens):
    """Runs all cases in every round, in turn; the rates of all but the first round, and their medians."""
    rates = {name: [] for name, _ in cases}
    for number, batch in enumerate(prompts):
        for name, runner in cases:
            seconds, answered = runner(batch)
            if answered != tokens * len(batch):
                raise SystemExit(f"{name}: {answered} tokens came, not {tokens} x {len(batch)}")
            if number > 0:
                rates[name].append(answered / seconds)
    return {name: {"tokens_per_second": statistics.median(values), "rounds": values} for name, values in rates.items()}


def write(out, engine, version, variants):
    """`variants`: name of the weights -> cases, and what else was measured."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"engine": engine, "version": version, "variants": variants}, indent=2))
    for weights, cases in variants.items():
        for name, case in cases.items():
            print(f"{engine} {weights:<6} {name:<26} {case['tokens_per_second']:8.1f} tokens/s", flush=True)
