"""A mesh over moto: an S3 server that honours conditions, written by others."""


def test_what_was_acknowledged_survives_kills(mesh):
    secret = mesh.tell("POST", "/admin/v1/tenants/harbour/keys", {"label": "app"})["secret"]
    revoked = mesh.tell("POST", "/admin/v1/tenants/harbour/keys", {})["id"]
    mesh.tell("DELETE", f"/admin/v1/tenants/harbour/keys/{revoked}")
    mesh.tell("PATCH", "/admin/v1/tenants/harbour", {"weight": 2, "limits": {"requests_per_minute": 1000}})
    digests = []
    for number, package in enumerate(("rank4", "rank8", "rank16"), 1):
        status, published = mesh.publish("harbour", "org%2Fpirate", package)
        assert (status, published["version"]) == (201, number), published
        digests.append(published["digest"])
    at = "/admin/v1/tenants/harbour/adapters/org%2Fpirate/aliases"
    mesh.tell("PUT", f"{at}/canary", {"version": 3}, {"if-none-match": "*"})
    status, headers, _ = mesh.ask("POST", f"{at}/live/rollback")
    assert status == 200
    status, _, refused = mesh.ask("PUT", f"{at}/live", {"version": 1}, {"if-match": '"an older state"'})
    assert (status, refused["error"]["code"]) == (412, "precondition_failed")
    mesh.tell("PUT", f"{at}/live", {"version": 1}, {"if-match": headers["etag"]})
    before = mesh.records("harbour", "org%2Fpirate")
    answers = [mesh.complete(secret, f"org/pirate@{number}") for number in (1, 2, 3)]
    assert [digest for digest, _ in answers] == digests

    for killed in ("registry", "gateway"):
        mesh.services[killed].kill()
        mesh.services[killed].start().until_ready()
        mesh.until(lambda: mesh.records("harbour", "org%2Fpirate") == before)
    # The bytes come from S3 again.
    for killed in ("worker", "cache"):
        mesh.services[killed].kill()
    for blob in mesh.folder.glob("cache/**/*"):
        if blob.is_file():
            blob.unlink()
    for killed in ("cache", "worker"):
        mesh.services[killed].start().until_ready()
    mesh.services["gateway"].until_ready()
    mesh.until(lambda: mesh.complete(secret, "org/pirate@canary"))
    assert [mesh.complete(secret, f"org/pirate@{number}") for number in (1, 2, 3)] == answers
    assert mesh.complete(secret, "org/pirate")[0] == digests[0]

    status, again = mesh.publish("harbour", "org%2Fpirate", "rank16")
    assert (status, again["version"], again["digest"]) == (200, 3, digests[2])
    status, new = mesh.publish("harbour", "org%2Fpirate", "rank64")
    assert (status, new["version"]) == (201, 4)
