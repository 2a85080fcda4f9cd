"""Conditional puts that were applied, but whose answers nobody got."""

import pytest
from between import breaks, fails, held

# A put is given up after 15 s.
LATE_S = 17
# Tries of a put.
ATTEMPTS = 4


@pytest.mark.parametrize("loses", [breaks, fails])
def test_a_write_whose_every_answer_is_lost_once_is_one_write(mesh, orderly, loses):
    with orderly.losing(loses) as lost:
        assert mesh.ask("POST", "/admin/v1/tenants", {"name": "helpdesk"})[0] == 201
        key = mesh.tell("POST", "/admin/v1/tenants/helpdesk/keys", {})
        status, published = mesh.publish("helpdesk", "triage", "rank4")
        assert (status, published["version"]) == (201, 1), published
        status, published = mesh.publish("helpdesk", "triage", "rank8")
        assert (status, published["version"]) == (201, 2), published
        moved = mesh.tell("PUT", "/admin/v1/tenants/helpdesk/adapters/triage/aliases/live", {"version": 1})
        assert moved["version"] == 1
    # The tenant, the key, two blobs, two versions, and the alias, each of which was written at least once.
    assert len(lost) >= 7, lost
    assert set(lost.values()) == {1}, lost
    at = "/admin/v1/tenants/helpdesk"
    assert [one["id"] for one in mesh.tell("GET", f"{at}/keys")["keys"]] == [key["id"]]
    assert [one["version"] for one in mesh.tell("GET", f"{at}/adapters/triage/versions")["versions"]] == [1, 2]
    history = mesh.tell("GET", f"{at}/adapters/triage/aliases/live/history")
    assert [history["alias"]["version"], *(move["version"] for move in history["earlier"])] == [1, 2, 1]
    assert mesh.complete(key["secret"], "triage@2")[0] == published["digest"]


def test_a_version_whose_answer_comes_too_late_is_one_version(mesh, orderly):
    with orderly.losing(held(LATE_S), keys="/versions/") as lost:
        status, published = mesh.publish("harbour", "pirate", "rank4")
    assert (status, published["version"]) == (201, 1), published
    assert sum(lost.values()) == 1, lost
    versions = mesh.tell("GET", "/admin/v1/tenants/harbour/adapters/pirate/versions")["versions"]
    assert [one["version"] for one in versions] == [1]


def test_a_publish_that_could_not_be_acknowledged_is_finished_by_the_next(mesh, orderly):
    with orderly.losing(breaks, keys="/versions/", times=ATTEMPTS) as lost:
        status, refused = mesh.publish("harbour", "pirate", "rank4")
    # Nobody could know that the first try wrote.
    assert set(lost.values()) == {ATTEMPTS}, lost
    assert status == 503, refused
    status, published = mesh.publish("harbour", "pirate", "rank4")
    assert (status, published["version"]) == (200, 1), published
    at = "/admin/v1/tenants/harbour/adapters/pirate"
    assert [one["version"] for one in mesh.tell("GET", f"{at}/versions")["versions"]] == [1]
    assert mesh.tell("GET", f"{at}/aliases/live")["version"] == 1
