"""Runs real kvraftd processes on free ports and talks to them as a stranger would.

A test's journey: Cluster() picks ports and a directory of its own, start() runs the processes,
wait_ready() waits until each one serves; the test writes, reads, kills; close() sends SIGTERM, and
then looks at what is left: every node that the test did not kill itself must have exited with 0,
and no log may hold a failed assertion or a sanitizer's report. Anything else fails the test.

Whatever happens to the test, no process survives it: each node asks the kernel to be killed when
its parent dies. Nothing here waits for an amount of time; everything waits for a condition, and
gives up with a message that says what was awaited and what was seen last.

The HTTP client is a small one on plain sockets, since the contract speaks of bytes: any target can
be sent, also one that no library would let through.

Environment:
  KVRAFTD_BIN   the binary, default bin/kvraftd
  KVRAFTD_WRAP  put before the command, such as "valgrind --quiet"
  TIME_SCALE    stretches every bound on time, for slow builds; default 1
  QUICK         "1": a shorter run of the long tests
  KEEP          "1": directories stay
"""
import atexit
import ctypes
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("KVRAFTD_BIN") or os.path.join(ROOT, "bin", "kvraftd")
WRAP = shlex.split(os.environ.get("KVRAFTD_WRAP", ""))
TIME_SCALE = float(os.environ.get("TIME_SCALE", "1"))
QUICK = os.environ.get("QUICK", "") == "1"
KEEP = os.environ.get("KEEP", "") == "1"
# Exit codes that sanitizers are told to use, so that they cannot be taken for anything else.
SANITIZER_EXIT = 99
LOG_FAULTS = re.compile(
    r"assertion failed|level=error msg=\"?fatal|AddressSanitizer|LeakSanitizer|ThreadSanitizer"
    r"|UndefinedBehaviorSanitizer|runtime error:|stack smashing|buffer overflow detected"
    r"|double free|free\(\): invalid|malloc\(\): ")


def now():
    return time.monotonic()


def bound(seconds):
    """A bound on time, stretched for slow builds."""
    return seconds * TIME_SCALE


def wait_for(what, condition, timeout=10.0, every=0.01):
    """Returns the first true value of condition(); after the timeout says what was awaited."""
    end = now() + bound(timeout)
    last = None
    while True:
        try:
            last = condition()
            if last:
                return last
        except (OSError, HttpError) as e:
            last = e
        if now() > end:
            raise AssertionError("waited %.1f s for: %s; seen last: %r" % (bound(timeout), what, last))
        time.sleep(every)


# --- HTTP ------------------------------------------------------------------------------------------

class HttpError(Exception):
    """The connection ended or answered something that is not HTTP."""


def quote(key):
    """A key's bytes as they stand in a path: everything but the plain ones percent-encoded."""
    if isinstance(key, str):
        key = key.encode()
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/"
    return "".join(chr(b) if b in plain else "%%%02X" % b for b in key)


class Response:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers  # list of (lower-case name, value)
        self.body = body

    def header(self, name, default=None):
        for n, v in self.headers:
            if n == name.lower():
                return v
        return default

    def json(self):
        try:
            return json.loads(self.body.decode())
        except ValueError as e:
            raise HttpError("no JSON (%s) in %r" % (e, self.body[:500]))

    @property
    def code(self):
        """The code of an error's body, None when there is none."""
        try:
            error = self.json().get("error")
        except (HttpError, AttributeError):
            return None
        return error.get("code") if isinstance(error, dict) else None

    @property
    def revision(self):
        return int(self.header("Kv-Revision"))

    def __repr__(self):
        return "<%d %s %r>" % (self.status, self.headers, self.body[:300])


class Connection:
    """One keep-alive connection. Not for several threads at once."""

    def __init__(self, host, port, timeout=20.0):
        self.sock = socket.create_connection((host, port), timeout=bound(timeout))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf = b""

    def close(self):
        try:
            self.sock.close()
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *ignored):
        self.close()

    def send(self, data):
        self.sock.sendall(data)

    def fill(self):
        data = self.sock.recv(262144)
        if not data:
            raise HttpError("connection closed by the server after %r" % self.buf[:200])
        self.buf += data

    def read_until(self, mark):
        at = self.buf.find(mark)
        while at < 0:
            searched = max(0, len(self.buf) - len(mark) + 1)
            self.fill()
            at = self.buf.find(mark, searched)
        out, self.buf = self.buf[:at + len(mark)], self.buf[at + len(mark):]
        return out

    def read_exactly(self, n):
        while len(self.buf) < n:
            self.fill()
        out, self.buf = self.buf[:n], self.buf[n:]
        return out

    def read_rest(self):
        """Everything until the server closes."""
        out, self.buf = self.buf, b""
        while True:
            try:
                data = self.sock.recv(262144)
            except ConnectionResetError:
                return out
            if not data:
                return out
            out += data

    def read_head(self):
        head = self.read_until(b"\r\n\r\n").decode("latin-1")
        lines = head.split("\r\n")
        m = re.match(r"HTTP/1\.[01] (\d\d\d)", lines[0])
        if m is None:
            raise HttpError("no status line: %r" % lines[0])
        headers = []
        for line in lines[1:-2]:
            name, colon, value = line.partition(":")
            if not colon:
                raise HttpError("bad header line %r" % line)
            headers.append((name.lower(), value.strip()))
        return int(m.group(1)), headers

    def read_chunk(self):
        size = int(self.read_until(b"\r\n").split(b";")[0], 16)
        data = self.read_exactly(size)
        if self.read_exactly(2) != b"\r\n":
            raise HttpError("chunk of %d bytes does not end with CRLF" % size)
        return data

    def read_body(self, method, status, headers):
        h = dict(headers)
        if method == "HEAD" or status in (204, 304) or status < 200:
            return b""
        if h.get("transfer-encoding", "").lower() == "chunked":
            out = []
            while True:
                data = self.read_chunk()
                if not data:
                    return b"".join(out)
                out.append(data)
        if "content-length" in h:
            return self.read_exactly(int(h["content-length"]))
        return self.read_rest()

    def read_response(self, method="GET"):
        status, headers = self.read_head()
        while status == 100:
            status, headers = self.read_head()
        return Response(status, headers, self.read_body(method, status, headers))

    def request(self, method, target, body=None, headers=None):
        self.send(encode_request(method, target, body, headers))
        return self.read_response(method)


def encode_request(method, target, body=None, headers=None, host="kv.test"):
    if isinstance(target, str):
        target = target.encode("latin-1")
    if isinstance(body, str):
        body = body.encode()
    out = [method.encode(), b" ", target, b" HTTP/1.1\r\nHost: ", host.encode(), b"\r\n"]
    names = set()
    for name, value in (headers or {}).items():
        names.add(name.lower())
        value = value if isinstance(value, bytes) else str(value).encode("latin-1")
        out.append(name.encode() + b": " + value + b"\r\n")
    if body is not None or method in ("PUT", "POST"):
        if "content-length" not in names and "transfer-encoding" not in names:
            out.append(b"Content-Length: %d\r\n" % len(body or b""))
    out.append(b"\r\n")
    if body:
        out.append(body)
    return b"".join(out)


class Stream:
    """An endless answer (a watch), read by a thread of its own and parsed line by line.

    items holds what came, in order; each is (time, object). ended is set with the reason."""

    def __init__(self, node, target, headers=None, timeout=20.0):
        self.node = node
        self.conn = Connection(node.host, node.http_port, timeout)
        self.items = []
        self.raw_chunks = []
        self.ended = None
        self.cond = threading.Condition()
        self.conn.send(encode_request("GET", target, None, headers))
        self.status, self.headers = self.conn.read_head()
        self.sse = dict(self.headers).get("content-type", "").startswith("text/event-stream")
        if self.status != 200:
            body = self.conn.read_body("GET", self.status, self.headers)
            self.error = Response(self.status, self.headers, body)
            self.ended = "status %d" % self.status
            self.conn.close()
            return
        self.error = None
        self.conn.sock.settimeout(None)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        pending = b""
        mark = b"\n\n" if self.sse else b"\n"
        try:
            while True:
                data = self.conn.read_chunk()
                if not data:
                    raise HttpError("end of answer")
                pending += data
                *lines, pending = pending.split(mark)
                t = now()
                parsed = [self._parse(line) for line in lines if line]
                with self.cond:
                    self.raw_chunks.append(data)
                    self.items += [(t, x) for x in parsed if x is not None]
                    self.cond.notify_all()
        except (OSError, ValueError, HttpError) as e:
            with self.cond:
                self.ended = repr(e)
                self.cond.notify_all()

    def _parse(self, block):
        if not self.sse:
            return json.loads(block.decode())
        event = {}
        data = []
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            value = value[1:] if value.startswith(" ") else value
            if name == "data":
                data.append(value)
            elif name:
                event[name] = value
        if not data:
            return {"type": "comment"} if "id" not in event else {"type": "id", "id": event["id"]}
        parsed = json.loads("\n".join(data))
        parsed["sse"] = event
        return parsed

    def objects(self, *types):
        with self.cond:
            return [x for _, x in self.items if not types or x.get("type") in types]

    def events(self):
        return self.objects("put", "delete")

    def wait(self, what, predicate, timeout=10.0):
        """Until predicate(list of objects) is true; returns the objects."""
        end = now() + bound(timeout)
        with self.cond:
            while True:
                objects = [x for _, x in self.items]
                if predicate(objects):
                    return objects
                left = end - now()
                if left <= 0 or self.ended:
                    raise AssertionError("watch on %s: waited for %s; ended: %s; %d objects, the last: %r"
                                         % (self.node.name, what, self.ended, len(objects), objects[-5:]))
                self.cond.wait(min(left, 0.5))

    def wait_events(self, n, timeout=10.0):
        self.wait("%d events" % n,
                  lambda xs: sum(x.get("type") in ("put", "delete") for x in xs) >= n, timeout)
        return self.events()

    def wait_established(self, timeout=10.0):
        self.wait("the first bookmark",
                  lambda xs: any(x.get("type") == "bookmark" for x in xs), timeout)
        return self

    def close(self):
        try:
            self.conn.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.conn.close()


# --- Processes ---------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent():
    PR_SET_PDEATHSIG = 1
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# Below the range that the kernel takes outgoing connections' ports from: a node that is restarted
# must not find its port lent to somebody's client meanwhile.
_port = random.Random(os.getpid() ^ time.time_ns()).randrange(13000, 30000)


def free_port(host="127.0.0.1"):
    global _port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(15000):
        _port = 13000 if _port >= 31999 else _port + 1
        with socket.socket(family, socket.SOCK_STREAM) as s:
            try:
                s.bind((host, _port))
                return _port
            except OSError:
                continue
    raise AssertionError("no free port")


def node_environment():
    env = {k: v for k, v in os.environ.items() if not k.startswith("KVRAFTD_")}
    common = "exitcode=%d" % SANITIZER_EXIT
    env["ASAN_OPTIONS"] = "detect_leaks=1:abort_on_error=0:%s:%s" % (common, env.get("ASAN_OPTIONS", ""))
    env["UBSAN_OPTIONS"] = "print_stacktrace=1:%s:%s" % (common, env.get("UBSAN_OPTIONS", ""))
    env["TSAN_OPTIONS"] = "halt_on_error=0:second_deadlock_stack=1:suppressions=%s:%s" % (
        os.path.join(ROOT, "tests", "tsan.supp"), common)
    return env


class Node:
    def __init__(self, name, directory, host="127.0.0.1", http_port=None, raft_port=None):
        self.name = name
        self.host = host
        self.http_port = http_port or free_port(host)
        self.raft_port = raft_port or free_port(host)
        self.dir = os.path.join(directory, name)
        self.log_path = os.path.join(directory, name + ".log")
        self.initial_cluster = None
        self.args = []
        self.env = {}
        self.proc = None
        self.paused = False
        self.faults = []  # what went wrong with this node's processes

    @property
    def http(self):
        return "%s:%d" % ("[%s]" % self.host if ":" in self.host else self.host, self.http_port)

    @property
    def raft(self):
        return "%s:%d" % ("[%s]" % self.host if ":" in self.host else self.host, self.raft_port)

    def command(self):
        c = WRAP + [BIN, "-id", self.name, "-haddr", self.http, "-raddr", self.raft]
        if self.initial_cluster:
            c += ["-initial-cluster", self.initial_cluster]
        return c + self.args + [self.dir]

    def start(self):
        assert not self.running(), "%s runs already" % self.name
        self.note_exit()
        log = open(self.log_path, "ab")
        env = node_environment()
        env.update(self.env)
        self.proc = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     env=env, preexec_fn=_die_with_parent)
        log.close()
        self.paused = False
        self.expected_end = False
        return self

    def running(self):
        return self.proc is not None and self.proc.poll() is None

    def note_exit(self):
        """A process that ended without being asked to is a fault of its own."""
        if self.proc is not None and self.proc.poll() is not None and not self.expected_end:
            self.faults.append("%s ended by itself with status %s" % (self.name, self.proc.returncode))
            self.expected_end = True

    def kill9(self):
        self.note_exit()
        if self.running():
            self.expected_end = True
            self.proc.kill()
            self.proc.wait()
        return self

    def terminate(self):
        self.note_exit()
        if self.running():
            if self.paused:
                self.resume()
            self.expected_end = True
            self.proc.send_signal(signal.SIGTERM)

    def wait_exit(self, timeout=20.0):
        try:
            return self.proc.wait(bound(timeout))
        except subprocess.TimeoutExpired:
            self.faults.append("%s did not end within %.0f s of SIGTERM" % (self.name, bound(timeout)))
            self.proc.kill()
            self.proc.wait()
            return None

    def stop(self, timeout=20.0):
        """SIGTERM; the exit status must be 0."""
        if not self.running():
            self.note_exit()
            return
        self.terminate()
        status = self.wait_exit(timeout)
        if status not in (0, None):
            self.faults.append("%s exited with %d after SIGTERM" % (self.name, status))

    def pause(self):
        self.proc.send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self):
        self.proc.send_signal(signal.SIGCONT)
        self.paused = False

    def log(self):
        try:
            with open(self.log_path, "rb") as f:
                return f.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    # One request on a connection of its own.
    def request(self, method, target, body=None, headers=None, timeout=20.0):
        with Connection(self.host, self.http_port, timeout) as c:
            return c.request(method, target, body, headers)

    def get(self, target, headers=None, timeout=20.0):
        return self.request("GET", target, None, headers, timeout)

    def put(self, target, body=b"", headers=None, timeout=20.0):
        return self.request("PUT", target, body, headers, timeout)

    def post(self, target, obj, timeout=20.0):
        body = obj if isinstance(obj, (bytes, str)) else json.dumps(obj)
        return self.request("POST", target, body, {"Content-Type": "application/json"}, timeout)

    def delete(self, target, headers=None, timeout=20.0):
        return self.request("DELETE", target, None, headers, timeout)

    def connect(self, timeout=20.0):
        return Connection(self.host, self.http_port, timeout)

    def watch(self, key, query="", headers=None):
        return Stream(self, "/v1/watch/%s%s" % (quote(key), "?" + query if query else ""), headers)

    def health(self, timeout=2.0):
        return self.get("/health", timeout=timeout).json()

    def ready(self):
        return self.running() and self.get("/readyz", timeout=2.0).status == 200

    def metric(self, name):
        """The sum of a metric's samples over its labels; None when there is no such metric."""
        total = None
        for line in self.get("/metrics").body.decode().split("\n"):
            m = re.match(r"([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$", line)
            if m and m.group(1) == name:
                total = (total or 0.0) + float(m.group(3))
        return total


_clusters = []


class Cluster:
    def __init__(self, n=3, args=(), env=None, host="127.0.0.1"):
        self.dir = tempfile.mkdtemp(prefix="kvraftd-test-", dir=os.environ.get("TEST_TMPDIR"))
        self.nodes = [Node("n%d" % (i + 1), self.dir, host) for i in range(n)]
        members = ",".join("%s=%s" % (x.name, x.raft) for x in self.nodes)
        for node in self.nodes:
            node.initial_cluster = members
            node.args = list(args)
            node.env = dict(env or {})
        self.closed = False
        _clusters.append(self)

    def __getitem__(self, i):
        return self.nodes[i] if isinstance(i, int) else next(x for x in self.nodes if x.name == i)

    def start(self):
        for node in self.nodes:
            node.start()
        self.wait_ready()
        return self

    def alive(self):
        return [x for x in self.nodes if x.running() and not x.paused]

    def wait_ready(self, nodes=None, timeout=15.0):
        for node in nodes or self.alive():
            wait_for("%s to be ready" % node.name, lambda: self._ready_or_dead(node), timeout)

    def _ready_or_dead(self, node):
        if not node.running():
            raise AssertionError("%s ended with status %s:\n%s"
                                 % (node.name, node.proc.returncode, node.log()[-2000:]))
        return node.ready()

    def leader(self, timeout=10.0, among=None):
        """The node that leads and that a majority of the members agrees on."""
        def agreed():
            seen = {}
            for node in among or self.alive():
                try:
                    h = node.health()
                except (OSError, HttpError):
                    continue
                if h.get("leader"):
                    seen.setdefault((h["term"], h["leader"]), []).append((node, h))
            for (_, leader), who in seen.items():
                if len(who) * 2 > len(self.nodes):
                    for node, h in who:
                        if node.name == leader and h["role"] == "leader":
                            return node
            return None
        return wait_for("a leader", agreed, timeout)

    def followers(self, timeout=10.0):
        leader = self.leader(timeout)
        return [x for x in self.alive() if x is not leader]

    def wait_caught_up(self, nodes=None, timeout=20.0):
        """Until each node's own state holds what the cluster had when this was called."""
        nodes = nodes or self.alive()
        target = wait_for("a linearizable read", lambda: self._revision(nodes), timeout)
        for node in nodes:
            wait_for("%s to reach revision %d" % (node.name, target),
                     lambda: node.get("/v1/kv/%00nothing?consistency=serializable").revision >= target,
                     timeout)
        return target

    def _revision(self, nodes):
        r = nodes[0].get("/v1/kv/%00nothing")
        return r.revision if r.status == 404 else None

    def faults(self):
        out = []
        for node in self.nodes:
            node.note_exit()
            out += node.faults
            text = node.log()
            m = LOG_FAULTS.search(text)
            if m:
                start = text.rfind("\n", 0, m.start()) + 1
                out.append("%s's log: %s" % (node.name, text[start:start + 3000]))
        return out

    def close(self, check=True):
        """Stops every node; raises AssertionError when anything was not as it must be."""
        if self.closed:
            return
        self.closed = True
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            if node.proc is not None:
                killed = node.proc.returncode is not None
                status = node.wait_exit() if not killed else 0
                if status not in (0, None):
                    node.faults.append("%s exited with %d after SIGTERM" % (node.name, status))
        faults = self.faults()
        if faults and check:
            self.keep_logs()
            raise AssertionError("after the test:\n" + "\n".join(faults))
        self.remove()

    def remove(self):
        if not KEEP:
            shutil.rmtree(self.dir, ignore_errors=True)
        if self in _clusters:
            _clusters.remove(self)

    def keep_logs(self):
        """Prints each log's tail, and leaves the whole of it under build/test-logs/."""
        to = os.path.join(ROOT, "build", "test-logs", os.path.basename(self.dir))
        os.makedirs(to, exist_ok=True)
        for node in self.nodes:
            if os.path.exists(node.log_path):
                shutil.copy(node.log_path, to)
            lines = node.log().split("\n")[-25:]
            print("--- %s (whole log: %s/%s.log)" % (node.name, to, node.name), file=sys.stderr)
            print("\n".join(lines), file=sys.stderr)


@atexit.register
def _kill_all():
    for cluster in list(_clusters):
        for node in cluster.nodes:
            if node.running():
                node.proc.kill()
                node.proc.wait()
        if not KEEP:
            shutil.rmtree(cluster.dir, ignore_errors=True)


# --- Tests -------------------------------------------------------------------------------------------

class ClusterTest(unittest.TestCase):
    """One cluster for all tests of a class; NODES and ARGS choose it. Tests ask any node in turn:
    what they see must not depend on which."""
    NODES = 3
    ARGS = ()
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(cls.NODES, cls.ARGS)
        cls.turn = 0
        try:
            cls.cluster.start()
        except BaseException:
            cls.cluster.keep_logs()
            cls.cluster.close(check=False)
            raise

    @classmethod
    def tearDownClass(cls):
        cls.cluster.close()

    def any(self):
        """The next node in turn."""
        alive = self.cluster.alive()
        type(self).turn += 1
        return alive[type(self).turn % len(alive)]

    def get(self, target, headers=None):
        return self.any().get(target, headers)

    def put(self, target, body=b"", headers=None):
        return self.any().put(target, body, headers)

    def post(self, target, obj):
        return self.any().post(target, obj)

    def delete(self, target, headers=None):
        return self.any().delete(target, headers)

    def request(self, method, target, body=None, headers=None):
        return self.any().request(method, target, body, headers)

    def ok(self, response, *statuses):
        self.assertIn(response.status, statuses or (200, 201), repr(response))
        return response

    def error(self, response, status, code):
        """The contract's error: status, code, a message for humans, nothing else on the top."""
        self.assertEqual((response.status, response.code), (status, code), repr(response))
        body = response.json()
        self.assertEqual(list(body), ["error"], repr(response))
        self.assertIsInstance(body["error"].get("message"), str, repr(response))
        self.assertGreater(len(body["error"]["message"]), 5, repr(response))
        self.assertTrue(response.header("Content-Type", "").startswith("application/json"),
                        repr(response))
        return response


class _Result(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began = now()

    def addSuccess(self, test):
        super(unittest.TextTestResult, self).addSuccess(test)
        self.passed = getattr(self, "passed", 0) + 1
        self._line("ok", test)

    def addFailure(self, test, err):
        super(unittest.TextTestResult, self).addFailure(test, err)
        self._failed(test, self.failures)

    def addError(self, test, err):
        super(unittest.TextTestResult, self).addError(test, err)
        self._failed(test, self.errors)

    def _failed(self, test, where):
        self._line("FAILED", test)
        print(where[-1][1], flush=True)
        self._logs(test)

    def addSkip(self, test, reason):
        super(unittest.TextTestResult, self).addSkip(test, reason)
        self._line("skipped (%s)" % reason, test)

    def _line(self, word, test):
        name = test.id().replace("__main__.", "")
        print("  %-8s %s (%.1f s)" % (word, name, now() - getattr(self, "began", now())), flush=True)

    def _logs(self, test):
        cluster = getattr(test, "cluster", None)
        if cluster is not None and not cluster.closed:
            cluster.keep_logs()

    def printErrors(self):
        pass  # each was printed when it happened


def main():
    """Runs the tests of the calling file. Closes with `N passed, N failed`."""
    if not os.access(BIN, os.X_OK):
        print("no program at %s: run make first" % BIN)
        print("0 passed, 1 failed")
        sys.exit(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    program = unittest.main(module="__main__", exit=False, verbosity=0,
                            testRunner=unittest.TextTestRunner(
                                stream=open(os.devnull, "w"), resultclass=_Result))
    result = program.result
    failed = len(result.failures) + len(result.errors)
    passed = getattr(result, "passed", 0)
    skipped = len(result.skipped)
    print("%d passed, %d failed%s" % (passed, failed, ", %d skipped" % skipped if skipped else ""))
    if passed + failed == 0:
        print("no test was run")
        failed = 1
    sys.stdout.flush()
    sys.exit(1 if failed else 0)
