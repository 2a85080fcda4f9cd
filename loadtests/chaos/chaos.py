"""Chaos: a whole mesh of real processes, an independent client, and for two minutes a rolling restart of every service with a
`kill -9` of any process every five seconds.

Usage: chaos.py [--seconds N] [--kill-every S] [--no-kills] [--concurrency N] [--requests-min N] [--seed N] [--keep DIR]

The last line is `chaos: requests N, correct N, retryable N, wrong_digest N, lost_acknowledged N`. The exit status is 0 only if
enough requests were made, at least 99.9 % of them were answered correctly and the others ended with an error that says to try
again, no answer came from another adapter, and everything that was acknowledged is there. docs/failures.md says more.
"""

import argparse
import asyncio
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time

from mesh import Failed, Mesh
from traffic import Traffic
from trouble import Trouble
from writes import Writes

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = [("harbour", "base"), ("harbour", "pirate"), ("helpdesk", "support-triage"), ("shop", "sql-writer")]
# Of all requests, and so many in two minutes.
CORRECT_SHARE, REQUESTS_PER_SECOND = 0.999, 2000 / 120


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--kill-every", type=float, default=5)
    parser.add_argument("--no-kills", action="store_true", help="only the rolling restart: then nothing may break at all")
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--requests-min", type=int, help="what is enough; 2,000 in two minutes, and as many in other times")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--model", required=True, help="the demo model (weft model fetch demo)")
    parser.add_argument("--keep", help="a folder for logs and data, which is kept")
    return parser.parse_args()


def say(text):
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


async def prepared(mesh, draw):
    """Tenants, adapters, and the answers of the undisturbed mesh."""
    writes = Writes(mesh.gateways, draw)
    keys = {tenant: await writes.tenant(tenant) for tenant in sorted({tenant for tenant, _ in MODELS} | {"writer"})}
    for tenant, model in MODELS:
        if model != "base":
            await writes.publish(tenant, model, ROOT / "examples/adapters" / model)
    for at, secret in enumerate(keys.values()):
        for url in writes.data_urls:
            assert await writes.knows(url, secret), f"key {at}"
    traffic = Traffic(mesh.gateways, keys, MODELS, draw, say)
    await traffic.learn()
    return writes, traffic


async def run(options, folder):
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    say(f"seed {seed}")
    draw = random.Random(seed)
    binaries = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release"
    mesh = Mesh(folder, binaries, options.model)
    try:
        await mesh.start()
        say(f"{len(mesh.services)} processes are ready")
        writes, traffic = await prepared(mesh, draw)
        say(f"{len(traffic.expected)} answers of the undisturbed mesh are known")
        trouble = Trouble(mesh, random.Random(seed + 1), say)
        until = time.monotonic() + options.seconds
        packages = [ROOT / "examples/adapters" / model for _, model in MODELS if model != "base"]
        work = [
            traffic.run(options.concurrency, until),
            writes.run("writer", packages, until),
            trouble.rolling_restart(until),
        ]
        if not options.no_kills:
            work.append(trouble.kills(until, options.kill_every))
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
        say("over; everything must get ready again")
        await mesh.until_ready()
        mesh.check_nobody_ended()
        lost = await writes.lost()
        return report(options, mesh, trouble, traffic.tally, writes, lost)
    finally:
        await mesh.stop()


def report(options, mesh, trouble, tally, writes, lost):
    seconds = sorted(tally.seconds)
    at = lambda share: seconds[min(int(share * len(seconds)), len(seconds) - 1)]
    print(f"killed: {mesh.counts(trouble.killed) or 'nothing'}")
    print(f"restarted: {mesh.counts(trouble.restarted)}")
    print(f"tried again by the client: {dict(tally.retries) or 'nothing'}")
    print(f"seconds of a request with its retries: median {at(0.5):.2f}, p99 {at(0.99):.2f}, longest {seconds[-1]:.2f}")
    print(f"written: {len(writes.versions)} versions and {len(writes.keys)} keys acknowledged; {writes.refused} calls tried again")
    for text in tally.wrong[:10] + lost[:10]:
        print(f"WRONG  {text}")
    wanted = options.requests_min or int(REQUESTS_PER_SECOND * options.seconds)
    bars = {
        f"at least {wanted} requests": tally.requests >= wanted,
        "correct + retryable = requests": tally.correct + tally.retryable == tally.requests,
        f"correct ≥ {CORRECT_SHARE:.1%}": tally.correct >= CORRECT_SHARE * tally.requests,
        "no wrong digest": tally.wrong_digest == 0,
        "nothing acknowledged is lost": not lost,
    }
    if options.no_kills:
        # A client that finds a port closed goes to the other gateway, as a balancer would; nothing else may be seen.
        seen = {why: count for why, count in tally.retries.items() if why != "cannot connect"}
        bars["nothing broke in a rolling restart"] = not seen and tally.retryable == 0
    for bar, holds in bars.items():
        print(f"{'holds' if holds else 'FAILS'}  {bar}")
    print(
        f"chaos: requests {tally.requests}, correct {tally.correct}, retryable {tally.retryable}, "
        f"wrong_digest {tally.wrong_digest}, lost_acknowledged {len(lost)}"
    )
    return all(bars.values())


def main():
    chosen = options()
    folder = pathlib.Path(chosen.keep or tempfile.mkdtemp(prefix="weft-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = asyncio.run(run(chosen, folder))
    except* (Failed, AssertionError) as failures:
        for failure in failures.exceptions:
            print(f"FAILS  {failure}")
        print(f"logs are in {folder}")
        sys.exit(1)
    if held and chosen.keep is None:
        shutil.rmtree(folder)
    elif not held:
        print(f"logs are in {folder}", file=sys.stderr)
    sys.exit(0 if held else 1)


STARTED = time.monotonic()
if __name__ == "__main__":
    main()
