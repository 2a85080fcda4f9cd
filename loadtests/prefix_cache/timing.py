"""Measures whether one tenant can tell from times to the first token what another tenant asked.

Usage: timing.py DATA_URL ADMIN_URL ADMIN_KEY [--rounds N] [--tokens N] [--model NAME] [--out FILE.json]

Needs nothing but Python and a running mesh (`weft up`) with nobody else on it. In every round tenant "victim" sends a
fresh random prompt. Then tenant "prober" sends, in random order, the same prompt (a right guess) and a fresh one of the same
length, and at last the fresh one again (a hit of its own). A distinguisher looks at the times alone. Printed is its chance
to order a pair right (the Mann-Whitney statistic, 0.5: no signal) with the two-sided p-value of the rank-sum test and of a
paired sign test, for right guesses against fresh prompts, and, to show that the method sees a signal where there is one, for
own hits against fresh prompts. `cached_tokens` of all three are printed beside.

Floor: prefill of the prompt. What a hit saves must be large against the noise for the comparison to mean something.
"""

import argparse
import http.client
import json
import math
import random
import statistics
import time
import urllib.error
import urllib.parse
import urllib.request


def admin(url, key, path, body):
    request = urllib.request.Request(
        f"{url}/admin/v1/{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def tenant(url, key, name):
    admin(url, key, "tenants", {"name": name})
    return admin(url, key, f"tenants/{name}/keys", {})["secret"]


class Client:
    """One kept connection, so that connecting is no part of a time."""

    def __init__(self, url, secret, model):
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=600)
        self.headers = {"content-type": "application/json", "authorization": f"Bearer {secret}"}
        self.model = model

    def ask(self, prompt):
        """Seconds to the first event of the answer, and its `cached_tokens`."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(body).encode()
        begin = time.perf_counter()
        self.connection.request("POST", "/v1/completions", body, self.headers)
        answer = self.connection.getresponse()
        line = answer.readline()
        seconds = time.perf_counter() - begin
        text = (line + answer.read()).decode()
        if answer.status != 200:
            raise RuntimeError(text)
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        usage = next(event["usage"] for event in reversed(events) if event.get("usage"))
        return seconds, usage["prompt_tokens_details"]["cached_tokens"]


def normal_tail(z):
    return math.erfc(abs(z) / math.sqrt(2))


def rank_sum(left, right):
    """Chance that a value of `left` is smaller than one of `right`, and the two-sided p-value (normal approximation)."""
    pairs = len(left) * len(right)
    smaller = sum((l < r) + 0.5 * (l == r) for l in left for r in right)
    deviation = math.sqrt(pairs * (len(left) + len(right) + 1) / 12)
    return smaller / pairs, normal_tail((smaller - pairs / 2) / deviation)


def sign(left, right):
    """Share of rounds in which `left` was faster, and the two-sided p-value: immune to slow drifts."""
    faster = sum(l < r for l, r in zip(left, right))
    return faster / len(left), normal_tail((faster - len(left) / 2) / math.sqrt(len(left) / 4))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data_url")
    parser.add_argument("admin_url")
    parser.add_argument("admin_key")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=49_000)
    parser.add_argument("--model", default="base")
    parser.add_argument("--out")
    options = parser.parse_args()

    suffix = f"{random.randrange(1 << 32):08x}"
    clients = {}
    for name in ["victim", "prober"]:
        secret = tenant(options.admin_url, options.admin_key, f"{name}-{suffix}")
        clients[name] = Client(options.data_url, secret, options.model)

    def fresh_prompt():
        return [random.randrange(options.vocabulary // 2, options.vocabulary) for _ in range(options.tokens)]

    for client in clients.values():
        for _ in range(5):
            client.ask(fresh_prompt())
    times = {"guess": [], "fresh": [], "own": []}
    hits = {kind: set() for kind in times}
    for _ in range(options.rounds):
        secret, fresh = fresh_prompt(), fresh_prompt()
        clients["victim"].ask(secret)
        order = [("guess", secret), ("fresh", fresh)]
        random.shuffle(order)
        for kind, prompt in order + [("own", fresh)]:
            seconds, cached = clients["prober"].ask(prompt)
            times[kind].append(seconds)
            hits[kind].add(cached)

    print(f"{options.rounds} rounds, prompts of {options.tokens} tokens, model {options.model}")
    for kind, values in times.items():
        print(f"{kind:<6} median {statistics.median(values) * 1e3:7.2f} ms  cached_tokens {sorted(hits[kind])}")
    figures = {"rounds": options.rounds, "tokens": options.tokens, "seconds": times}
    for kind, what in [("guess", "another tenant's prompt against a fresh one"), ("own", "an own hit against a fresh one")]:
        chance, p = rank_sum(times[kind], times["fresh"])
        faster, sign_p = sign(times[kind], times["fresh"])
        figures[kind] = {"chance": chance, "rank_sum_p": p, "faster": faster, "sign_p": sign_p}
        print(f"{what}: ordered right {chance:.3f} (p {p:.2g}), faster in its round {faster:.3f} (p {sign_p:.2g})")
    if options.out:
        with open(options.out, "w") as file:
            json.dump(figures, file)


main()
