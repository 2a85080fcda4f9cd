"""A proxy between the mesh and an S3 server, whose manners a test chooses."""

import collections
import contextlib
import http.client
import http.server
import re
import threading
import time

# Not passed on: of one connection alone, or written anew.
OWN = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class Between:
    """Passes everything on to `port`. What it does to requests and answers beside that is set while it runs."""

    def __init__(self, port):
        self.port = port
        # Header that is taken from every request, in lower case.
        self.strips = None
        # Whether one put ends before the next begins.
        self.one_at_a_time = False
        # What is done to the answer of a put that the server has applied: a function of the handler, how often for
        # each key, and which keys.
        self.loses, self.times, self.keys = None, 1, re.compile("")
        self.lost = collections.Counter()
        self.lock, self.turn = threading.Lock(), threading.Lock()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    @contextlib.contextmanager
    def losing(self, loses, keys="", times=1):
        """Within it, the first `times` answers of conditional puts of each key that `keys` finds are lost.

        Yields how often it happened, by path.
        """
        with self.lock:
            self.lost.clear()
            self.loses, self.keys, self.times = loses, re.compile(keys), times
        try:
            yield self.lost
        finally:
            self.loses = None

    def is_lost(self, method, path, headers):
        """Whether this answer is lost: only of a put with a condition."""
        conditional = "if-none-match" in headers or "if-match" in headers
        with self.lock:
            if not (self.loses and method == "PUT" and conditional and self.keys.search(path)):
                return False
            if self.lost[path] >= self.times:
                return False
            self.lost[path] += 1
            return True

    def handler(self):
        between = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                headers = {name.lower(): value for name, value in self.headers.items() if name.lower() not in OWN}
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers.pop(between.strips, None)
                turn = between.turn if between.one_at_a_time and self.command == "PUT" else contextlib.nullcontext()
                with turn:
                    # A connection for each request: the server may keep none.
                    there = http.client.HTTPConnection("127.0.0.1", between.port, timeout=60)
                    there.request(self.command, self.path, body=body, headers=headers)
                    answer = there.getresponse()
                    content = answer.read()
                    there.close()
                if between.is_lost(self.command, self.path, headers):
                    between.loses(self)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                length = answer.headers.get("content-length") if self.command == "HEAD" else str(len(content))
                for name, value in answer.getheaders():
                    if name.lower() not in OWN:
                        self.send_header(name, value)
                self.send_header("content-length", length or "0")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

            def log_message(self, *_):
                pass

        return Handler


def breaks(_):
    """The connection ends without an answer."""


def fails(handler):
    """An answer that says that nothing is known."""
    handler.send_response(500)
    handler.send_header("content-length", "0")
    handler.end_headers()


def held(seconds):
    """The answer comes after nobody waits for it any more."""
    return lambda _: time.sleep(seconds)
