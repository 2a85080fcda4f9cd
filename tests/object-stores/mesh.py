"""Registry, gateway, cache daemon and worker as processes over one S3 endpoint, and their HTTP."""

import http.client
import json
import time
import uuid
from pathlib import Path

from processes import Process, free_port

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "crates/engine/tests/golden"
ADMIN_KEY = "object-stores-admin-key"
S3_KEY, S3_SECRET = "mesh", "mesh-secret"


def store_flags(endpoint, bucket):
    return {
        "s3-endpoint": endpoint, "s3-bucket": bucket, "s3-access-key-id": S3_KEY, "s3-secret-access-key": S3_SECRET,
        "s3-path-style": "true",
    }  # fmt: skip


class Mesh:
    """Those four, with a tiny model."""

    def __init__(self, binaries, folder, endpoint, bucket):
        self.binaries, self.folder = binaries, folder
        store = store_flags(endpoint, bucket)
        registry, cache, worker, data, admin = (free_port() for _ in range(5))
        self.data, self.admin = ("127.0.0.1", data), ("127.0.0.1", admin)
        self.services = {
            "registry": self.service("weft-adapter-registry", registry, store),
            "cache": self.service("weft-cache-daemon", cache, {**store, "dir": folder / "cache"}),
            "worker": self.service(
                "weft-worker",
                worker,
                {
                    "model": GOLDEN / "tiny",
                    "dtype": "f32",
                    "threads": "1",
                    "cache": f"127.0.0.1:{cache}",
                    "registry": f"127.0.0.1:{registry}",
                },
            ),
        }
        self.services["gateway"] = Process(
            "weft-gateway",
            [
                binaries / "weft-gateway",
                f"--listen=127.0.0.1:{data}",
                f"--admin-listen=127.0.0.1:{admin}",
                f"--admin-key={ADMIN_KEY}",
                f"--registry=127.0.0.1:{registry}",
                f"--workers=127.0.0.1:{worker}",
            ],
            folder,
            f"http://127.0.0.1:{data}/readyz",
        )

    def service(self, binary, port, flags):
        metrics = free_port()
        flags = {"listen": f"127.0.0.1:{port}", "metrics-listen": f"127.0.0.1:{metrics}", **flags}
        command = [self.binaries / binary, *(f"--{flag}={value}" for flag, value in flags.items())]
        return Process(binary, command, self.folder, f"http://127.0.0.1:{metrics}/readyz")

    def start(self):
        for service in self.services.values():
            service.start()
        for service in self.services.values():
            service.until_ready()
        return self

    def stop(self):
        for service in self.services.values():
            service.kill()

    def ask(self, method, path, body=None, headers=None, where=None, key=ADMIN_KEY):
        """Status, headers and JSON of one request; by default to the admin plane."""
        content = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        connection = http.client.HTTPConnection(*(where or self.admin), timeout=120)
        try:
            all_headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
            connection.request(method, path, body=content, headers=all_headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, dict(answer.getheaders()), json.loads(text) if text else None
        finally:
            connection.close()

    def tell(self, method, path, body=None, headers=None):
        """The same, where only success will do."""
        status, _, said = self.ask(method, path, body, headers)
        assert status < 300, f"{method} {path}: {status} {said}"
        return said

    def publish(self, tenant, name, package, query=""):
        """Status and answer of an upload of one of the golden adapters."""
        boundary, folder = uuid.uuid4().hex, GOLDEN / "adapters" / package
        body = b""
        for part, file in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors")):
            head = f'--{boundary}\r\ncontent-disposition: form-data; name="{part}"; filename="{file}"\r\n\r\n'
            body += head.encode() + (folder / file).read_bytes() + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        path = f"/admin/v1/tenants/{tenant}/adapters/{name}/versions{query}"
        status, _, said = self.ask("POST", path, body, {"content-type": f"multipart/form-data; boundary={boundary}"})
        return status, said

    def complete(self, secret, model):
        """The digest that answered, and what it said."""
        body = {"model": model, "prompt": "word", "max_tokens": 4, "temperature": 0}
        status, headers, said = self.ask("POST", "/v1/completions", body, where=self.data, key=secret)
        assert status == 200, said
        return headers["x-weft-adapter-digest"], said["choices"][0]["text"]

    def records(self, tenant, adapter):
        """All that the admin plane tells of a tenant and one of its adapters, but for what ages."""
        at = f"/admin/v1/tenants/{tenant}"
        paths = ["/keys", "/adapters", f"/adapters/{adapter}/versions", f"/adapters/{adapter}/aliases/live/history"]
        tenants = [one for one in self.tell("GET", "/admin/v1/tenants")["tenants"] if one["name"] == tenant]
        return tenants, [self.tell("GET", at + path) for path in paths]

    def until(self, what, seconds=30):
        """The first true value of `what()`; a refused or failed call counts as not yet."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                last = what()
                if last:
                    return last
            except (AssertionError, OSError) as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {last!r}")
