"""The document has every route with every method, and each is on one listener or both."""

import json
import os
import urllib.error
import urllib.request

import pytest

DOCUMENT = json.load(open(os.environ["WEFT_TEST_DOCUMENT"], encoding="utf-8"))
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
BOTH = {"/livez", "/readyz", "/openapi.json", "/docs"}


def is_admin(path):
    return path.startswith("/admin/") or path == "/metrics"


def listeners(path):
    return [name for name, there in (("data", not is_admin(path)), ("admin", is_admin(path) or path in BOTH)) if there]


def status(plane, method, path):
    """Of a request that names nothing, and is no valid one."""
    path = path.replace("{version}", "1").replace("{", "no-").replace("}", "")
    request = urllib.request.Request(plane.url + path, method=method, headers={"authorization": f"Bearer {plane.key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_a_method_is_described_if_it_is_served(path, data, admin):
    described = {method.upper() for method in DOCUMENT["paths"][path]}
    for name in listeners(path):
        plane = {"data": data, "admin": admin}[name]
        served = {method for method in METHODS if status(plane, method, path)[0] != 405}
        assert served == described, f"{path} on the {name} listener"


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_a_route_is_not_on_the_other_listener(path, data, admin):
    for name, plane in (("data", data), ("admin", admin)):
        if name not in listeners(path):
            code, body = status(plane, "GET", path)
            assert (code, body["error"]["code"]) == (404, "unknown_url"), f"{path} on the {name} listener"


def test_an_operation_has_an_id_of_its_own_and_a_summary():
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert sorted(ids) == sorted(set(ids))
    assert all(operation["summary"] for operation in operations)


def test_what_needs_a_key_says_so(data, admin):
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            plane = admin if is_admin(path) else data
            keyless = type(plane)(plane.url, "no-key")
            is_refused = status(keyless, method.upper(), path)[0] == 401
            assert is_refused == ("security" in operation), f"{method} {path}"
