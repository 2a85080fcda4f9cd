"""What is written through the admin API while everything is killed, and whether all of it that was acknowledged is there
afterwards."""

import asyncio
import time

import httpx2

from mesh import ADMIN_KEY


class Writes:
    """Publishes versions and creates keys, at either gateway. What was not acknowledged is simply tried again: it may be there twice,
    which is no loss."""

    def __init__(self, gateways, random):
        self.urls = [f"{admin}/admin/v1" for _, admin in gateways]
        self.data_urls = [data for data, _ in gateways]
        self.random = random
        self.http = httpx2.AsyncClient(headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=60)
        self.versions, self.keys, self.refused = [], [], 0

    async def call(self, method, path, at=0, give_up_s=60, **body):
        """One write or read that is tried until it is acknowledged."""
        give_up = time.monotonic() + give_up_s
        pause = 0.1
        while True:
            try:
                answer = await self.http.request(method, f"{self.urls[at % len(self.urls)]}/{path}", **body)
                if answer.is_success:
                    return answer.json()
                if answer.status_code not in (409, 429, 502, 503, 504):
                    raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
                why = answer.text
            except httpx2.HTTPError as error:
                why = repr(error)
            self.refused += 1
            if time.monotonic() > give_up:
                raise AssertionError(f"{method} {path} was not acknowledged within {give_up_s} s: {why}")
            at += 1
            await asyncio.sleep(pause * self.random.uniform(0.5, 1))
            pause = min(pause * 2, 2)

    async def tenant(self, name):
        limits = {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000}
        await self.call("POST", "tenants", json={"name": name, "limits": limits})
        return await self.key(name)

    async def key(self, tenant, at=0):
        return (await self.call("POST", f"tenants/{tenant}/keys", at, json={}))["secret"]

    async def publish(self, tenant, name, package, at=0):
        files = {
            "config": ("adapter_config.json", (package / "adapter_config.json").read_bytes()),
            "weights": ("adapter_model.safetensors", (package / "adapter_model.safetensors").read_bytes()),
        }
        return await self.call("POST", f"tenants/{tenant}/adapters/{name}/versions?alias=live", at, files=files)

    async def run(self, tenant, packages, until):
        """Goes on until then: a version, a key, a version of other bytes."""
        number = 0
        while time.monotonic() < until:
            package = packages[number % len(packages)]
            published = await self.publish(tenant, "written", package, number)
            self.versions.append((tenant, "written", published["version"], published["digest"]))
            self.keys.append((tenant, await self.key(tenant, number + 1)))
            number += 1
            await asyncio.sleep(self.random.uniform(0.2, 1))

    async def lost(self):
        """Everything acknowledged that is not there, seen through each gateway."""
        lost = []
        for at in range(len(self.urls)):
            for tenant, name in {(tenant, name) for tenant, name, _, _ in self.versions}:
                listed = await self.call("GET", f"tenants/{tenant}/adapters/{name}/versions", at)
                there = {(version["version"], version["digest"]) for version in listed["versions"]}
                lost += [f"{name}@{v} {d}" for t, n, v, d in self.versions if (t, n) == (tenant, name) and (v, d) not in there]
            for tenant, secret in self.keys:
                if not await self.knows(self.data_urls[at], secret):
                    lost.append(f"a key of {tenant}")
        return lost

    async def knows(self, url, secret):
        """Whether the gateway lets the key in. It may take one listing of the registry until it does."""
        for _ in range(200):
            answer = await self.http.get(f"{url}/v1/models", headers={"authorization": f"Bearer {secret}"})
            if answer.status_code != 401:
                return answer.is_success
            await asyncio.sleep(0.1)
        return False
