"""Real processes on free ports of loopback, each with a log that is shown when it fails."""

import os
import signal
import socket
import subprocess
import time
import urllib.request

# Longer than any of them takes to get ready on a busy machine.
PATIENCE_S = 60


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


class Process:
    """A program that runs until it is killed, or says why it does not."""

    def __init__(self, name, command, folder, ready=None):
        self.name, self.command, self.ready = name, [str(part) for part in command], ready
        self.log = folder / f"{name}.log"
        self.process = None

    def start(self):
        # Our services refuse variables of this name that they do not know.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def until_ready(self):
        end = time.monotonic() + PATIENCE_S
        while not answers(self.ready):
            status = self.process.poll()
            assert status is None, f"{self.name} ended with status {status}: {self.said()}"
            assert time.monotonic() < end, f"{self.name} is not ready after {PATIENCE_S} s: {self.said()}"
            time.sleep(0.05)
        return self

    def ended(self):
        """Its exit status, once it has ended by itself."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {PATIENCE_S} s: {self.said()}") from None

    def kill(self):
        """`kill -9`."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def said(self):
        return self.log.read_text(errors="replace")[-4000:]
