"""One table of what run.sh measured, with the ratios that count. Usage: table.py FOLDER [--check]

Reads weft-*.json and peer-*.json of the folder, writes peers.json. With --check: status 1 if a ratio is below its bound
or its peer is missing.
"""

import json
import pathlib
import sys

BASE, SHARED, DIFFERENT = "base alone", "one shared adapter", "a different adapter each"
DECODE, PREFILL = "decode at batch 1", "prefill of 256"
COLUMNS = [BASE, SHARED, DIFFERENT, DECODE, PREFILL]
# Which of llama.cpp's formats has the weights of which dtype of Weft.
SAME_WEIGHTS = {"bf16": "bf16", "int8": "q8_0", "q4": "q4_1"}


def weft_rows(folder):
    for path in sorted(folder.glob("weft-*.json")):
        figures = json.loads(path.read_text())
        row = {case["name"]: case["tokens_per_second_median"] for case in figures["cases"]}
        single = figures["single"]
        row[DECODE] = single["decode_tokens_per_second"]
        if single["prefill_tokens"] == 256:
            row[PREFILL] = single["prefill_tokens_per_second"]
        yield "weft", figures["dtype"], row


def peer_rows(folder):
    for path in sorted(folder.glob("peer-*.json")):
        figures = json.loads(path.read_text())
        for weights, cases in figures["variants"].items():
            row = {name: case["tokens_per_second"] for name, case in cases.items()}
            yield figures["engine"], weights, row


def best(rows, engine, column):
    found = [row[column] for name, _, row in rows if name == engine and column in row]
    return max(found, default=None)


def ratios(rows):
    """(what, value, least) of each promise whose peers are there."""
    ours = best(rows, "weft", DIFFERENT)
    llama = best(rows, "llama.cpp", DIFFERENT)
    others = {
        "llama.cpp with a shared adapter": best(rows, "llama.cpp", SHARED),
        "OpenVINO GenAI's base": best(rows, "OpenVINO GenAI", BASE),
        "vLLM's base": best(rows, "vLLM", BASE),
    }
    others = {name: rate for name, rate in others.items() if rate}
    if llama:
        yield "32 different adapters ÷ llama.cpp's best with them", ours / llama, 10
    if others:
        name = max(others, key=others.get)
        yield f"32 different adapters ÷ the best of the others ({name})", ours / others[name], 2
    for engine, dtype, row in rows:
        if engine != "weft":
            continue
        same = [peer for name, weights, peer in rows if name == "llama.cpp" and weights == SAME_WEIGHTS.get(dtype)]
        if same and DECODE in same[0]:
            yield f"decode at batch 1 in {dtype} ÷ llama.cpp's in the same", row[DECODE] / same[0][DECODE], 1
    prefill, theirs = best(rows, "weft", PREFILL), best(rows, "llama.cpp", PREFILL)
    if prefill and theirs:
        yield "prefill of 256 ÷ llama.cpp's best", prefill / theirs, 1.2


def main():
    folder = pathlib.Path(sys.argv[1])
    rows = [*weft_rows(folder), *peer_rows(folder)]
    if not any(name == "weft" for name, _, _ in rows):
        sys.exit(f"{folder} has no weft-*.json")
    print(f"\n{'tokens/s':<16} {'weights':<8}" + "".join(f" {column:>24}" for column in COLUMNS))
    for engine, weights, row in rows:
        cells = "".join(f" {row[column]:>24.1f}" if column in row else f" {'-':>24}" for column in COLUMNS)
        print(f"{engine:<16} {weights:<8}{cells}")
    found = list(ratios(rows))
    for what, value, least in found:
        print(f"{'holds' if value >= least else 'FAILS'}  {what}: {value:.2f} (wanted ≥ {least})")
    table = [{"engine": engine, "weights": weights, **row} for engine, weights, row in rows]
    promises = [{"what": what, "value": value, "least": least, "holds": value >= least} for what, value, least in found]
    (folder / "peers.json").write_text(json.dumps({"rows": table, "ratios": promises}, indent=2, ensure_ascii=False))
    engines = {name for name, _, _ in rows}
    missing = {"llama.cpp", "OpenVINO GenAI", "vLLM"} - engines
    if "--check" in sys.argv and (missing or not all(promise["holds"] for promise in promises)):
        sys.exit(f"missing: {', '.join(sorted(missing)) or 'none'}; a ratio is below its bound")


if __name__ == "__main__":
    main()
