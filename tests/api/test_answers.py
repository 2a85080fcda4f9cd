"""Requests that reach what generated ones rarely do: each answer has its status, and is what the document says."""

import io
import json
import tarfile
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / "examples/adapters"
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
FILES = ("adapter_config.json", "adapter_model.safetensors")
WHOLE = {"prompt": ["One,", "two,"], "n": 2, "echo": True, "logprobs": 2, "max_tokens": 2, "stop": ["x", "y"]}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}}
LORAX = {"adapter_id": "pirate", "max_new_tokens": 3, "details": True, "return_k_alternatives": 2}


def events(answer):
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]


def test_chats(data):
    chat = "/v1/chat/completions"
    for body in (
        {"model": "pirate", "logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 2},
        {"model": "pirate@live", "response_format": SCHEMA, "seed": -1, "max_completion_tokens": 8},
        {"guided_regex": "(yes|no)", "max_tokens": 4, "stop": None},
    ):
        data.ask("POST", chat, body={"messages": QUESTION, **body})
    told = events(data.ask("POST", chat, body={"messages": QUESTION, "logprobs": True, **STREAMED}))
    assert told[-1] == "[DONE]" and len(told) > 3
    assert json.loads(told[-2])["usage"]["completion_tokens"] == 3
    data.ask("POST", chat, status=404, body={"messages": QUESTION, "model": "nobody"})
    data.ask("POST", chat, status=400, body={"messages": QUESTION, "temperature": 3})


def test_completions(data):
    for body in (
        WHOLE,
        {"prompt": [1, 2, 3], "max_tokens": 0},
        {"prompt": [[1], [2, 3]], "max_tokens": 1, "stop": "x"},
    ):
        data.ask("POST", "/v1/completions", body={"model": "pirate", **body})
    told = events(
        data.ask("POST", "/v1/completions", body={"prompt": "One,", "logprobs": 1, "echo": False, **STREAMED})
    )
    assert told[-1] == "[DONE]" and len(told) > 3


def test_models(data):
    names = [model["id"] for model in data.ask("GET", "/v1/models").json()["data"]]
    assert "pirate" in names
    for name in (*names, "pirate@live", "pirate@1"):
        data.ask("GET", "/v1/models/{id}", names={"id": name})


@pytest.mark.parametrize("path", ["/generate", "/", "/invocations"])
def test_lorax_answers(data, path):
    for more in (
        {},
        {"decoder_input_details": True},
        {"best_of": 2, "do_sample": True},
        {"response_format": {"type": "text"}},
    ):
        data.ask("POST", path, body={"inputs": "One, two,", "parameters": {**LORAX, **more}})
    data.ask("POST", path, status=422, body={"inputs": "One, two,", "parameters": {**LORAX, "best_of": 2}})


@pytest.mark.parametrize(("path", "stream"), [("/generate_stream", None), ("/", True), ("/invocations", True)])
def test_lorax_streams(data, path, stream):
    told = events(data.ask("POST", path, body={"inputs": "One, two,", "parameters": LORAX, "stream": stream}))
    assert json.loads(told[-1])["details"]["generated_tokens"] == 3


def test_tokens_and_feedback(data):
    data.ask("POST", "/tokenize", body={"inputs": "One, two"})
    answer = data.ask("POST", "/v1/completions", body={"prompt": "One,", "max_tokens": 1}).json()
    data.ask("POST", "/v1/feedback", body={"id": answer["id"], "score": 1})
    data.ask("POST", "/v1/feedback", status=404, body={"id": "cmpl-of-somebody-else", "score": 1})


def package(name):
    return {part: (PACKAGES / name / file).read_bytes() for part, file in zip(("config", "weights"), FILES)}


def archive(name):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as tar:
        for file in FILES:
            tar.add(PACKAGES / name / file, arcname=file)
    return written.getvalue()


def test_the_life_of_an_adapter(admin):
    admin.ask(
        "POST", "/admin/v1/tenants", status=201, body={"name": "life", "weight": 2, "limits": {"queue_length": 9}}
    )
    admin.ask("POST", "/admin/v1/tenants", status=200, body={"name": "life"})
    tenant = {"tenant": "life"}
    key = admin.ask("POST", "/admin/v1/tenants/{tenant}/keys", status=201, names=tenant).json()["id"]
    admin.ask("PATCH", "/admin/v1/tenants/{tenant}/keys/{id}", names={**tenant, "id": key}, body={"limits": {}})
    admin.ask("DELETE", "/admin/v1/tenants/{tenant}/keys/{id}", status=204, names={**tenant, "id": key})
    admin.ask("GET", "/admin/v1/tenants/{tenant}/keys", names=tenant)
    admin.ask("PATCH", "/admin/v1/tenants/{tenant}", names=tenant, body={"places": {"floor": 1, "ceiling": None}})

    adapter = {**tenant, "name": "pirate"}
    at = "/admin/v1/tenants/{tenant}/adapters/{name}"
    form = "multipart/form-data"
    admin.ask("POST", f"{at}/versions", status=201, names=adapter, body=package("pirate"), kind=form)
    admin.ask("POST", f"{at}/versions", status=200, names=adapter, body=archive("pirate"), kind="application/gzip")
    admin.ask("POST", f"{at}/versions", status=201, names=adapter, body=package("sql-writer"), kind=form)
    broken = {**package("pirate"), "config": b"{}"}
    admin.ask("POST", f"{at}/versions", status=422, names=adapter, body=broken, kind=form)
    merged = {"parents": [{"adapter": "pirate"}, {"adapter": "pirate", "version": "1"}], "method": "linear"}
    admin.ask("POST", f"{at}/merges", status=201, names=adapter, query={"alias": "none"}, body=merged)
    admin.ask("POST", f"{at}/imports", status=422, names=adapter, body={"source": "file:///etc"})
    admin.ask("GET", f"{at}/versions", names=adapter)
    admin.ask("GET", "/admin/v1/tenants/{tenant}/adapters", names=tenant)

    live = {**adapter, "alias": "live"}
    etag = admin.ask("GET", f"{at}/aliases/{{alias}}", names=live).headers["etag"][0]
    moved = admin.ask("PUT", f"{at}/aliases/{{alias}}", names=live, headers={"If-Match": etag}, body={"version": 1})
    assert moved.json()["version"] == 1
    admin.ask("PUT", f"{at}/aliases/{{alias}}", status=412, names=live, headers={"If-Match": etag}, body={"version": 2})
    admin.ask("PUT", f"{at}/aliases/{{alias}}", status=404, names=live, body={"version": 9})
    admin.ask("POST", f"{at}/aliases/{{alias}}/rollback", names=live)
    admin.ask("GET", f"{at}/aliases/{{alias}}/history", names=live)
    admin.ask("GET", f"{at}/aliases", names=adapter)
    admin.ask("PUT", f"{at}/pin", names=adapter)
    admin.ask("POST", f"{at}/evict", status=409, names=adapter)
    admin.ask("GET", "/admin/v1/residency")
    admin.ask("DELETE", f"{at}/pin", names=adapter)
    admin.ask("POST", f"{at}/evict", names=adapter)
    admin.ask("DELETE", f"{at}/versions/{{version}}", status=409, names={**adapter, "version": 2})
    admin.ask("DELETE", f"{at}/versions/{{version}}", status=204, names={**adapter, "version": 3})
    admin.ask("POST", "/admin/v1/gc", body={"tenant": "life", "dry_run": True, "keep_versions": 0, "age_min_s": 0})


def test_the_life_of_an_experiment(admin):
    at = "/admin/v1/tenants/{tenant}/experiments"
    tenant = {"tenant": "harbour"}
    arms = [
        {"name": "old", "version": "live", "role": "control", "weight": 90},
        {"name": "new", "version": 1, "weight": 10},
    ]
    metrics = [{"name": "error", "kind": "binary", "better": "lower"}]
    described = {"id": "life", "adapter": "pirate", "primary": "error", "arms": arms, "metrics": metrics}
    admin.ask("POST", at, status=400, names=tenant, body={**described, "arms": []})
    admin.ask("POST", at, status=201, names=tenant, body=described)
    one = {**tenant, "id": "life"}
    admin.ask("POST", f"{at}/{{id}}/start", names=one)
    admin.ask("POST", f"{at}/{{id}}/weight", names=one, body={"arm": "new", "weight": 20})
    admin.ask("POST", f"{at}/{{id}}/weight", status=400, names=one, body={"arm": "nobody", "weight": 20})
    admin.ask("GET", f"{at}/{{id}}", names=one)
    admin.ask("GET", f"{at}/{{id}}", names=one, headers={"Accept": "text/html"})
    admin.ask("GET", f"{at}/{{id}}/exposures", names=one)
    admin.ask("GET", at, names=tenant)
    admin.ask("POST", f"{at}/{{id}}/stop", names=one)
    admin.ask("POST", f"{at}/{{id}}/promote", status=409, names=one, body={"arm": "new"})
    admin.ask("POST", f"{at}/{{id}}/start", status=404, names={**tenant, "id": "none"})


def test_tables(admin):
    for kind in ("json", "csv", "parquet"):
        admin.ask("GET", "/admin/v1/usage", query={"format": kind})
        status = 400 if kind == "json" else 200
        admin.ask("GET", "/admin/v1/usage", status=status, query={"format": kind, "records": "true"})
    for path in ("/admin/v1/workers", "/admin/v1/placement", "/admin/v1/tenants", "/metrics", "/readyz", "/docs"):
        admin.ask("GET", path)
