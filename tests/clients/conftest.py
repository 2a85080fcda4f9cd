"""The real clients run against a real `weft up`; scripts/test-clients.sh starts it and sets these variables."""

import os

import pytest


@pytest.fixture(scope="session")
def url():
    return os.environ["WEFT_TEST_URL"]


@pytest.fixture(scope="session")
def key():
    return os.environ["WEFT_TEST_KEY"]
