"""A real `weft up` and its OpenAPI document; scripts/test-api.sh starts it and sets these variables."""

import os

import hooks  # noqa: F401, registers how archives are sent
import pytest
import schemathesis
from schemathesis.specs.openapi import checks

CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


class Plane:
    """One of the two listeners. Every answer is held against the document."""

    def __init__(self, url, key):
        self.url, self.key = url, key
        self.document = schemathesis.openapi.from_path(os.environ["WEFT_TEST_DOCUMENT"])

    def ask(self, method, path, status=200, body=None, names=None, kind="application/json", **rest):
        """An answer that has this status, and is what the document says."""
        if body is not None:
            rest.update(body=body, media_type=kind)
        case = self.document[path][method].Case(path_parameters=names or {}, **rest)
        headers = {"authorization": f"Bearer {self.key}"}
        answer = case.call(base_url=self.url, headers=headers)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        case.validate_response(answer, checks=CHECKS, headers=headers)
        return answer


@pytest.fixture(scope="session")
def data():
    return Plane(os.environ["WEFT_TEST_DATA"], os.environ["WEFT_TEST_KEY"])


@pytest.fixture(scope="session")
def admin():
    return Plane(os.environ["WEFT_TEST_ADMIN"], os.environ["WEFT_TEST_ADMIN_KEY"])
