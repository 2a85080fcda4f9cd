"""What schemathesis cannot know of the mesh: names that are there, packages, and that each token costs time.

Only requests that the description allows are changed, and only to others that it allows.
"""

import json
import zlib
from pathlib import Path

import schemathesis
from schemathesis import GenerationMode

ROOT = Path(__file__).resolve().parents[2]
# Another tenant has what generated requests clean up.
TENANT, CLEANED, ADAPTER, EXPERIMENT = "harbour", "attic", "pirate", "split"
TOKENS_MAX = 4
# Fields that say how many tokens there will be; without any, it is as many as the context has.
TOKENS = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/": ("max_new_tokens",),
    "/generate": ("max_new_tokens",),
    "/generate_stream": ("max_new_tokens",),
    "/invocations": ("max_new_tokens",),
}
KNOWN = {"tenant": TENANT, "name": ADAPTER, "alias": "live", "version": 1}
EXPERIMENT_BODY = {
    "id": EXPERIMENT, "adapter": ADAPTER, "alias": "live", "primary": "error", "observations_min": 50,
    "arms": [
        {"name": "old", "version": "live", "role": "control", "weight": 90},
        {"name": "new", "version": 1, "weight": 10},
    ],
    "metrics": [{"name": "error", "kind": "binary", "better": "lower"}],
}  # fmt: skip


def is_positive(case):
    return case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE


def one_in(case, of):
    """A choice that is the same for the same request, in every run."""
    text = json.dumps([case.path, case.path_parameters, case.query, repr(case.body)], default=str, sort_keys=True)
    return zlib.crc32(text.encode()) % of == 0


def bound_tokens(case):
    """Generation is slow where there is no GPU, so that it is short in every request that would generate at all."""
    fields = TOKENS.get(case.path)
    if fields is None or not isinstance(case.body, dict):
        return
    parameters = case.body
    if "max_new_tokens" in fields:
        if case.body.get("parameters", None) is None:
            case.body["parameters"] = {}
        parameters = case.body["parameters"]
    if not isinstance(parameters, dict):
        return
    given = [field for field in fields if isinstance(parameters.get(field), (int, float))]
    for field in given:
        if parameters[field] > TOKENS_MAX:
            parameters[field] = TOKENS_MAX
    if not any(parameters.get(field) is not None for field in fields):
        parameters[fields[0]] = TOKENS_MAX


def name_what_is_there(case):
    """Three of four requests name things that exist; others are answered 404 all the time."""
    if one_in(case, 4):
        return
    named = case.path_parameters or {}
    for field in named:
        if field == "id":
            if "/experiments/" in case.path:
                named[field] = EXPERIMENT
            # Of keys none is named: links between routes find those that were created.
        elif field in KNOWN:
            named[field] = KNOWN[field]
    if case.path in TOKENS and isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = ADAPTER if one_in(case, 2) else "base"
        if isinstance(case.body.get("parameters"), dict) and "adapter_id" in case.body["parameters"]:
            case.body["parameters"]["adapter_id"] = ADAPTER
        if isinstance(case.body.get("messages"), list) and not case.body["messages"]:
            case.body["messages"] = [{"role": "user", "content": "word"}]


def send_what_is_meant(case):
    """The description of an experiment has no schema; half of them are whole."""
    if case.path.endswith("/experiments") and isinstance(case.body, dict) and one_in(case, 2):
        case.body = EXPERIMENT_BODY


def clean_up_elsewhere(case):
    """Without any age or number to keep, a clean-up leaves nothing that the other requests name."""
    if case.path == "/admin/v1/gc" and isinstance(case.body, dict):
        case.body["tenant"] = CLEANED


@schemathesis.serializer("application/gzip", "application/x-tar")
def archive(context, value):
    """As it is: an archive is bytes."""
    return value if isinstance(value, bytes) else bytes(str(value), "utf-8")


@schemathesis.hook
def map_case(context, case):
    bound_tokens(case)
    if is_positive(case):
        name_what_is_there(case)
        send_what_is_meant(case)
        clean_up_elsewhere(case)
    return case
