#!/usr/bin/env python3
"""The life of an adapter's release, told with `weft` and plain HTTP: published, live, split, judged, promoted, rolled back, cleaned up; and while all
of that happens a client asks on and on, and none of its requests may fail.

Usage: lifecycle.py --weft target/release/weft --model PATH|demo V1 V2 BAD   (three folders with PEFT packages of one base)

The last line is `story: stages N/N, client_failures N`; the exit status is 0 only if every stage held and nothing failed. Needs Python 3.9
and nothing else.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ADMIN_KEY = "admin-key-of-the-story"
TENANT, ADAPTER = "harbour", "assistant"
PROMPT, TOKENS = "The harbour at night is", 4


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--users", type=int, default=300, help="how many users are asked for their opinion, in each split")
    parser.add_argument("packages", nargs=3, type=pathlib.Path, metavar="PACKAGE")
    return parser.parse_args()


class Mesh:
    """`weft up` over a folder of its own."""

    def __init__(self, weft, model):
        self.weft, self.folder = weft, tempfile.mkdtemp(prefix="weft-lifecycle-")
        command = [weft, "up", "--model", model, "--data-dir", self.folder, "--admin-key", ADMIN_KEY]
        command += ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        # Quick to look and to clean up; a real mesh keeps the defaults.
        command += ["--gateway-experiment-report-ms", "200", "--registry-experiment-evaluate-ms", "200"]
        command += ["--registry-gc-grace-s", "2", "--registry-gc-age-min-s", "0", "--registry-gc-keep-versions", "0"]
        self.log = open(os.path.join(self.folder, "log"), "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        for line in self.process.stdout:
            if line.startswith("data plane "):
                self.data = line.split()[-1]
            elif line.startswith("admin plane "):
                self.admin = line.split()[-1]
            elif line.startswith("serving "):
                break
        else:
            raise SystemExit(f"weft up ended early: see {self.log.name}")
        threading.Thread(target=collections.deque, args=(self.process.stdout, 0), daemon=True).start()

    def run(self, *arguments, fails=False):
        """A command of `weft`: what it prints, as JSON if it is; with `fails`, what it complains of."""
        command = [self.weft, *arguments, "--admin-url", self.admin, "--admin-key", ADMIN_KEY]
        done = subprocess.run(command, capture_output=True, text=True)
        if fails:
            assert done.returncode != 0, f"{arguments} did not fail"
            return done.stderr
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        try:
            return json.loads(done.stdout)
        except ValueError:
            return done.stdout

    def stop(self):
        self.process.terminate()
        status = self.process.wait(60)
        shutil.rmtree(self.folder)
        assert status == 0, f"weft up ended with status {status}"


class Client:
    """Asks over one connection after the other, as an application does."""

    def __init__(self, url, key):
        self.host, self.key, self.here = urllib.parse.urlparse(url).netloc, key, threading.local()

    def post(self, path, body):
        # A connection that was idle for long may have been closed by the other side.
        if time.monotonic() - getattr(self.here, "used", 0) > 5:
            self.here.connection = http.client.HTTPConnection(self.host, timeout=120)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        try:
            self.here.connection.request("POST", path, json.dumps(body), headers)
            answer = self.here.connection.getresponse()
            text = answer.read()
        except Exception:
            self.here.used = 0
            raise
        self.here.used = time.monotonic()
        return answer.status, dict(answer.getheaders()), json.loads(text)

    def ask(self, model=ADAPTER, user=None):
        body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
        if user:
            body["user"] = user
        status, headers, answer = self.post("/v1/completions", body)
        assert status == 200, f"{status} {answer}"
        return headers, answer


class Background:
    """Asks for the adapter all the time, as users without a name do."""

    def __init__(self, client):
        self.client, self.answers, self.failures, self.going = client, 0, [], True
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        while self.going:
            try:
                headers, _ = self.client.ask()
                assert headers["x-weft-adapter"].startswith(f"{TENANT}/{ADAPTER}@"), headers
                self.answers += 1
            except Exception as error:  # Whatever it is, it is a failure that is told at the end.
                self.failures.append(f"{time.monotonic() - STARTED:.1f} s: {error!r}")

    def stop(self):
        self.going = False
        self.thread.join()


def description(name, arms, **more):
    return {
        "id": name,
        "adapter": ADAPTER,
        "primary": "feedback",
        "arms": arms,
        "metrics": [
            {"name": "feedback", "kind": "binary", "better": "higher"},
            {"name": "error", "kind": "binary", "better": "lower"},
            {"name": "ttft_ms", "kind": {"positive": {"max": 60000}}, "better": "lower"},
        ],
        **more,
    }


class Story:
    def __init__(self, flags):
        self.flags, self.stages, self.done = flags, 0, 0
        self.mesh = Mesh(flags.weft, flags.model)
        self.mesh.run("tenant", "create", TENANT)
        key = self.mesh.run("key", "create", "--tenant", TENANT)["secret"]
        self.client, self.background = Client(self.mesh.data, key), None
        self.texts = {}

    def stage(self, title, work):
        self.stages += 1
        print(f"{time.monotonic() - STARTED:6.1f} s  {self.stages}. {title}", flush=True)
        try:
            told = work()
        except AssertionError as error:
            print(f"          does not hold: {error}", flush=True)
            return
        self.done += 1
        if told:
            print(f"          {told}", flush=True)

    def experiment(self, command, *arguments):
        return self.mesh.run("experiment", command, *arguments, "--tenant", TENANT)

    def start(self, wanted):
        path = os.path.join(self.mesh.folder, f"{wanted['id']}.json")
        with open(path, "w") as file:
            json.dump(wanted, file)
        return self.experiment("create", path, "--start")

    def publish(self, package, alias):
        made = self.mesh.run("publish", str(package), "--tenant", TENANT, "--name", ADAPTER, "--alias", alias)
        text = self.client.ask(f"{ADAPTER}@{made['version']}")[1]["choices"][0]["text"]
        self.texts[made["version"]] = text
        return made

    def opinions(self, likes, users):
        """Users ask, and say whether they like it. Gives back each one's arm."""

        def one(user):
            headers, answer = self.client.ask(user=user)
            arm = headers["x-weft-experiment"].split("/")[1]
            version = int(headers["x-weft-adapter"].split("@")[1])
            assert answer["choices"][0]["text"] == self.texts[version], f"{arm}: not the words of version {version}"
            status, _, taken = self.client.post("/v1/feedback", {"id": answer["id"], "score": int(likes(user, arm))})
            assert status == 200 and taken["counted"] and taken["arm"] == arm, taken
            return arm

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return dict(zip(users, pool.map(one, users)))

    # The stages, in order.

    def v1_is_live(self):
        made = self.publish(self.flags.packages[0], "live")
        assert made["version"] == 1, made
        headers, _ = self.client.ask()
        assert headers["x-weft-adapter"] == f"{TENANT}/{ADAPTER}@1", headers
        self.background = Background(self.client)
        return f"version 1 says {self.texts[1]!r}; a client asks from now on"

    def bad_release_is_stopped(self):
        bad = self.publish(self.flags.packages[2], "none")["version"]
        assert self.client.ask()[0]["x-weft-adapter"].endswith("@1"), "a version without an alias gets no traffic"
        arms = [
            {"name": "old", "version": "live", "role": "control", "weight": 1},
            {"name": "bad", "version": bad, "weight": 1},
        ]
        guardrails = [{"metric": "feedback", "rule": {"worse_by": 0.1}, "observations_min": 10}]
        self.start(description("bad-release", arms, guardrails=guardrails))
        refused = self.mesh.run("alias", ADAPTER, "live", str(bad), "--tenant", TENANT, fails=True)
        assert "split by experiment bad-release" in refused, refused
        deadline, asked = time.monotonic() + 120, 0
        while self.experiment("show", "bad-release")["experiment"]["state"] == "running":
            assert time.monotonic() < deadline, "the guardrail does not stop it"
            running = [f"critic-{asked + n}" for n in range(20)]
            asked += len(running)
            try:
                self.opinions(lambda user, arm: arm == "old", running)
            except KeyError:
                # It was stopped between two looks: then its users are in no experiment.
                break
            except AssertionError as error:
                if "ended" not in str(error):
                    raise
        shown = self.until_ended("bad-release")
        actors = [change["actor"] for change in shown["changes"]]
        assert actors[-2:] == ["guardrail", "schedule"], shown["changes"]
        assert self.client.ask()[0]["x-weft-adapter"].endswith("@1")
        return f"{shown['changes'][-2]['what']}; after {asked} opinions"

    def until_ended(self, name):
        for _ in range(300):
            shown = self.experiment("show", name)
            if shown["experiment"]["state"] != "running":
                return shown
            time.sleep(0.1)
        raise AssertionError(f"{name} still runs")

    def canary_is_sticky(self):
        self.v2 = self.publish(self.flags.packages[1], "none")["version"]
        arms = [
            {"name": "old", "version": "live", "role": "control", "weight": 90},
            {"name": "new", "version": self.v2, "weight": 10},
        ]
        self.start(description("canary", arms))
        self.users = [f"user-{n}" for n in range(self.flags.users)]
        self.arms = self.opinions(lambda user, arm: arm == "new" or user.endswith("7"), self.users)
        again = {user: self.client.ask(user=user)[0]["x-weft-experiment"].split("/")[1] for user in self.users[:40]}
        assert all(self.arms[user] == arm for user, arm in again.items()), "a user changed its arm"
        share = sum(arm == "new" for arm in self.arms.values()) / len(self.users)
        assert 0.03 <= share <= 0.2, share
        return f"{share:.0%} of {len(self.users)} users have version {self.v2}, and keep it"

    def a_larger_share_moves_only_who_must(self):
        self.experiment("weight", "canary", "new", "90")
        more = [f"more-{n}" for n in range(self.flags.users)]
        self.opinions(lambda user, arm: arm == "new" or user.endswith("7"), more)
        now = {user: self.client.ask(user=user)[0]["x-weft-experiment"].split("/")[1] for user in self.users}
        back = [user for user, arm in self.arms.items() if arm == "new" and now[user] == "old"]
        assert not back, f"{back} went back"
        share = sum(arm == "new" for arm in now.values()) / len(now)
        assert 0.35 <= share <= 0.65, share
        return f"{share:.0%} have it now, and nobody lost it"

    def results_name_a_winner(self):
        for _ in range(100):
            report = self.experiment("show", "canary")["report"]
            if report["decision"] == {"winner": {"arm": "new"}}:
                break
            time.sleep(0.1)
        assert report["decision"] == {"winner": {"arm": "new"}}, report["decision"]
        assert not report["split"]["is_broken"], report["split"]
        feedback = next(row for row in report["comparisons"] if row["metric"] == "feedback")
        log = self.experiment("exposures", "canary")
        kinds = collections.Counter(json.loads(line)["kind"] for line in log.splitlines())
        assert kinds["feedback"] == 2 * self.flags.users, kinds
        low, high = feedback["interval"]["low"], feedback["interval"]["high"]
        return f"feedback differs by {feedback['estimate']:+.2f}, surely by {low:+.2f} to {high:+.2f}; {kinds['exposure']} exposures are logged"

    def winner_is_promoted(self):
        promoted = self.experiment("promote", "canary", "new")
        assert promoted["experiment"]["state"] == {"promoted": {"arm": "new"}}, promoted
        headers, answer = self.client.ask(user="user-0")
        assert headers["x-weft-adapter"] == f"{TENANT}/{ADAPTER}@{self.v2}", headers
        assert "x-weft-experiment" not in headers
        assert answer["choices"][0]["text"] == self.texts[self.v2]

    def it_is_rolled_back_in_one_call(self):
        started = time.monotonic()
        back = self.mesh.run("rollback", ADAPTER, "--tenant", TENANT)
        took = time.monotonic() - started
        assert back["version"] == 1, back
        headers, answer = self.client.ask()
        assert headers["x-weft-adapter"].endswith("@1") and answer["choices"][0]["text"] == self.texts[1]
        history = self.mesh.run("history", ADAPTER, "--tenant", TENANT)
        assert [earlier["version"] for earlier in history["earlier"]][:2] == [self.v2, 1], history
        forth = self.mesh.run("rollback", ADAPTER, "--tenant", TENANT)
        assert forth["version"] == self.v2, "twice is forth again"
        return f"in {took:.2f} s; and forth again"

    def what_nobody_needs_is_collected(self):
        refused = self.mesh.run("delete", ADAPTER, str(self.v2), "--tenant", TENANT, fails=True)
        assert "alias live means it" in refused, refused
        planned = self.mesh.run("gc", "--dry-run", "--rollback-s", "3600")["versions"]
        assert [found["version"] for found in planned] == [2], f"version 1 can be rolled back to: {planned}"
        condemned = self.mesh.run("gc", "--rollback-s", "0")["versions"]
        assert sorted(found["version"] for found in condemned) == [1, 2], condemned
        assert {found["stage"] for found in condemned} == {"condemned"}, condemned
        status, _, _ = self.client.post("/v1/completions", {"model": f"{ADAPTER}@1", "prompt": PROMPT, "max_tokens": 1})
        assert status == 404, status
        time.sleep(2.5)
        done = self.mesh.run("gc", "--rollback-s", "0")
        assert {found["stage"] for found in done["versions"]} == {"collected"} and done["bytes_collected"] > 0, done
        assert self.client.ask()[1]["choices"][0]["text"] == self.texts[self.v2]
        again = self.publish(self.flags.packages[0], "none")
        assert again["version"] == 4, f"a number is never given again: {again}"
        return f"{done['bytes_collected']} bytes are free; version 1's package again is version 4"

    def tell(self):
        self.stage("version 1 is published and live", self.v1_is_live)
        self.stage("a bad release is split off, and its guardrail stops it", self.bad_release_is_stopped)
        self.stage("a canary gets a tenth, sticky by user", self.canary_is_sticky)
        self.stage("a larger share moves only who must move", self.a_larger_share_moves_only_who_must)
        self.stage("feedback names a winner", self.results_name_a_winner)
        self.stage("the winner is promoted", self.winner_is_promoted)
        self.stage("a rollback is one call", self.it_is_rolled_back_in_one_call)
        self.stage("what nobody needs is collected", self.what_nobody_needs_is_collected)


def main():
    story = Story(options())
    try:
        story.tell()
    finally:
        if story.background:
            story.background.stop()
        story.mesh.stop()
    background = story.background
    for failure in background.failures[:10]:
        print(f"          the client failed after {failure}")
    print(f"          the client was answered {background.answers} times meanwhile")
    print(f"story: stages {story.done}/{story.stages}, client_failures {len(background.failures)}")
    sys.exit(0 if story.done == story.stages and not background.failures else 1)


STARTED = time.monotonic()
if __name__ == "__main__":
    main()
