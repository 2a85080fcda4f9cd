"""The mesh under test: real processes on fixed ports of loopback, each of which can be killed, stopped and started again."""

import asyncio
import collections
import os
import pathlib
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

ADMIN_KEY = "chaos-admin-key"
S3_KEY, S3_SECRET = "chaos", "chaos-secret"
# What Debian's packages put outside of everybody's PATH.
SYSTEM = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
# Longer than any service takes to end or to get ready.
PATIENCE_S = 90


class Failed(Exception):
    """The mesh did what it must never do."""


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def program(name, folder=None):
    path = shutil.which(name, path=str(folder) if folder else SYSTEM)
    if path is None:
        sys.exit(f"{name} is missing: build it with cargo, or install the Debian package of this name")
    return path


class Service:
    """One process with a name. It may be down only while somebody holds `busy`."""

    def __init__(self, name, kind, command, log, ready=None):
        self.name, self.kind, self.command, self.log, self.ready = name, kind, command, log, ready
        self.process = None
        self.busy = asyncio.Lock()

    async def start(self):
        with open(self.log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def kill(self):
        self.process.kill()
        await self.process.wait()

    async def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(self.process.wait(), PATIENCE_S)
        if status not in (0, -signal.SIGTERM):
            raise Failed(f"{self.name} ended with status {status} when it was told to end; see {self.log}")

    def ended_by_itself(self):
        return not self.busy.locked() and self.process is not None and self.process.returncode is not None

    async def until_ready(self):
        if self.ready is None:
            return
        give_up = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(answers, self.ready):
            if self.process.returncode is not None:
                raise Failed(f"{self.name} ended with status {self.process.returncode} at its start; see {self.log}")
            if time.monotonic() > give_up:
                raise Failed(f"{self.name} is not ready after {PATIENCE_S} s; see {self.log}")
            await asyncio.sleep(0.05)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


class Mesh:
    """Two gateways, two registries, two nodes with a cache daemon and a worker each, NATS, Redis and an S3 server."""

    def __init__(self, folder, binaries, model):
        self.folder = pathlib.Path(folder)
        self.binaries, self.model = binaries, model
        self.services = {}
        ports = iter(free_ports(23))
        nats, redis, s3 = next(ports), next(ports), next(ports)
        self.plain("s3", program("weft-embedded-s3", binaries), {
            "dir": self.folder / "s3", "listen": f"127.0.0.1:{s3}",
            "access-key-id": S3_KEY, "secret-access-key": S3_SECRET,
        })
        self.add("nats", "nats", [program("nats-server"), "--addr", "127.0.0.1", "--port", str(nats)])
        self.add("redis", "redis", [program("redis-server"), "--bind", "127.0.0.1", "--port", str(redis), "--save", ""])
        bus = {"nats-url": f"nats://127.0.0.1:{nats}"}
        store = {
            "s3-endpoint": f"http://127.0.0.1:{s3}", "s3-bucket": "weft", "s3-access-key-id": S3_KEY,
            "s3-secret-access-key": S3_SECRET, "s3-path-style": "true",
        }
        drain = {"drain-delay-ms": "1000"}
        registries = [next(ports), next(ports)]
        for number, port in enumerate(registries):
            self.weft(f"registry-{number}", "weft-adapter-registry", port, next(ports), {**bus, **store, **drain})
        for node in range(2):
            daemon, worker = next(ports), next(ports)
            self.weft(f"cache-{node}", "weft-cache-daemon", daemon, next(ports), {
                **bus, **store, **drain, "name": f"cache-{node}", "dir": self.folder / f"cache-{node}",
            })
            self.weft(f"worker-{node}", "weft-worker", worker, next(ports), {
                **bus, "name": f"worker-{node}", "model": model, "dtype": "int8", "threads": "1",
                "cache": f"127.0.0.1:{daemon}", "registry": f"127.0.0.1:{registries[node]}",
            })
        self.gateways = []
        for number, registry in enumerate(registries):
            data, admin = next(ports), next(ports)
            self.gateways.append((f"http://127.0.0.1:{data}", f"http://127.0.0.1:{admin}"))
            self.plain(f"gateway-{number}", program("weft-gateway", binaries), {
                **bus, **drain, "listen": f"127.0.0.1:{data}", "admin-listen": f"127.0.0.1:{admin}",
                "admin-key": ADMIN_KEY, "registry": f"127.0.0.1:{registry}", "redis-url": f"redis://127.0.0.1:{redis}",
                "limits-gateways": "2",
            }, kind="gateway", ready=f"http://127.0.0.1:{data}/readyz")

    def add(self, name, kind, command, ready=None):
        self.services[name] = Service(name, kind, command, self.folder / f"{name}.log", ready)

    def plain(self, name, binary, flags, kind=None, ready=None):
        self.add(name, kind or name, [binary, *(f"--{flag}={value}" for flag, value in flags.items())], ready)

    def weft(self, name, binary, port, metrics, flags):
        own = {"listen": f"127.0.0.1:{port}", "metrics-listen": f"127.0.0.1:{metrics}"}
        kind = name.rsplit("-", 1)[0]
        self.plain(name, program(binary, self.binaries), {**own, **flags}, kind, f"http://127.0.0.1:{metrics}/readyz")

    async def start(self):
        for service in self.services.values():
            await service.start()
        await self.until_ready()

    async def until_ready(self):
        await asyncio.gather(*(service.until_ready() for service in self.services.values()))

    async def stop(self):
        for service in self.services.values():
            if service.process is not None and service.process.returncode is None:
                await service.kill()

    def check_nobody_ended(self):
        for service in self.services.values():
            if service.ended_by_itself():
                raise Failed(f"{service.name} ended by itself with status {service.process.returncode}; see {service.log}")

    def of_weft(self):
        return [service for service in self.services.values() if service.kind in ("gateway", "registry", "cache", "worker")]

    def counts(self, events):
        return ", ".join(f"{name} {count}" for name, count in sorted(collections.Counter(events).items()))
