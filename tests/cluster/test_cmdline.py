#!/usr/bin/env python3
"""kvraftd's command line: what it accepts, how it refuses, how it ends."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import (BIN, LOG_FAULTS, QUICK, WRAP, Cluster, Connection, HttpError, Node, _die_with_parent, bound,
                     free_port, main, node_environment, now, wait_for)

LOGFMT = re.compile(r'^[a-z_]+=("(\\.|[^"\\])*"|[^ "=]*)( [a-z_]+=("(\\.|[^"\\])*"|[^ "=]*))*$')


def logfmt(line):
    return {k: v.strip('"') for k, v in re.findall(r'([a-z_]+)=("(?:\\.|[^"\\])*"|[^ ]*)', line)}


class CmdlineTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="kvraftd-cmdline-")
        self.addCleanup(shutil.rmtree, self.dir, True)

    def run_it(self, *args, env=None, timeout=15):
        """To its end: (status, what it said)."""
        e = node_environment()
        e["ASAN_OPTIONS"] += ":detect_leaks=0"  # whoever refuses to start leaves its memory to the end
        e.update(env or {})
        p = subprocess.run(WRAP + [BIN] + list(args), env=e, stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           timeout=bound(timeout), preexec_fn=_die_with_parent)
        return p.returncode, p.stdout.decode()

    def refused(self, *args, says, env=None):
        """Ends by itself, not with 0, and says what is wrong in one line."""
        status, text = self.run_it(*args, env=env)
        self.assertNotEqual(0, status, text)
        self.assertGreater(status, 0, "killed by a signal: " + text)
        lines = [x for x in text.split("\n") if x and "level=info" not in x]
        self.assertEqual(1, len(lines), "not one clear line: " + text)
        self.assertRegex(lines[0], says)
        return text

    def node(self, name="n1", host="127.0.0.1", **members):
        n = Node(name, self.dir, host)
        for k, v in members.items():
            setattr(n, k, v)
        self.addCleanup(self.end_node, n)
        return n

    def end_node(self, n):
        n.stop()
        m = LOG_FAULTS.search(n.log())
        if m:
            n.faults.append(n.log()[m.start():m.start() + 3000])
        self.assertEqual([], n.faults, n.log()[-3000:])

    def up(self, *nodes):
        for n in nodes:
            n.start()
        for n in nodes:
            wait_for("%s to be ready" % n.name, lambda: not n.running() or n.ready())
            self.assertTrue(n.running(), n.log()[-2000:])
        return nodes[0]

    def serves(self, n):
        self.assertIn(n.put("/v1/kv/x", b"1").status, (200, 201))
        self.assertEqual(b"1", n.get("/v1/kv/x").body)


class Telling(CmdlineTest):
    def test_version(self):
        for flag in ("-version", "--version"):
            status, text = self.run_it(flag)
            self.assertEqual(0, status)
            self.assertRegex(text, r"\d+\.\d+\.\d+")
            self.assertLess(len(text.split("\n")), 8)

    def test_help_is_grouped_and_names_every_flag(self):
        for flag in ("-help", "--help"):
            status, text = self.run_it(flag)
            self.assertEqual(0, status, flag)
            for name in ("-id", "-haddr", "-raddr", "-initial-cluster", "-join", "-version", "KVRAFTD_"):
                self.assertIn(name, text)
            lines = text.split("\n")
            self.assertLess(max(map(len, lines)), 101, "wider than 100 columns")
            headings = [x for x, y in zip(lines, lines[1:]) if x[:1].isupper() and y.startswith("  -")]
            self.assertGreaterEqual(len(headings), 3, "not grouped: %r" % headings)


class Refusing(CmdlineTest):
    def fresh(self, *more):
        return ["-haddr", "127.0.0.1:%d" % free_port(), "-raddr", "127.0.0.1:%d" % free_port(),
                *more, os.path.join(self.dir, "d")]

    def test_wrong_flags(self):
        d = os.path.join(self.dir, "d")
        self.refused("-nonsense", d, says="nonsense")
        self.refused("--nonsense=5", d, says="nonsense")
        self.refused("-id", says="id")
        self.refused("-initial-cluster", "n1", d, says="initial-cluster")
        self.refused("-initial-cluster", "n1=", d, says="initial-cluster")
        self.refused("-initial-cluster", "n1=a:1,n1=b:2", "-id", "n1", d, says="n1")
        self.refused("-initial-cluster", "n2=127.0.0.1:1", "-id", "n1", d, says="n1")
        self.refused("-haddr", "nonsense", "-id", "n1", d, says="haddr|nonsense")
        self.refused("-haddr", "127.0.0.1:99999", "-id", "n1", d, says="99999")
        self.refused("-raddr", "127.0.0.1:x", "-id", "n1", d, says="raddr|127.0.0.1:x")
        self.refused("-id", "", d, says="id")
        self.assertFalse(os.path.exists(d), "a directory was made for a command that was refused")

    def test_no_directory(self):
        self.refused("-id", "n1", says="[Dd]irectory|DIR")

    def test_two_directories(self):
        self.refused("-id", "n1", self.dir + "/a", self.dir + "/b", says="/b")

    def test_wrong_values_of_numbers(self):
        _, text = self.run_it("-help")
        numbers = re.findall(r"^\s+--?(http-threads|max-request-bytes)\b", text, re.M)
        self.assertTrue(numbers, "no flag with a number in -help")
        for flag in numbers:
            for bad in ("x", "-1", "", "99999999999999999999999", "1.5"):
                self.refused("-" + flag, bad, *self.fresh("-id", "n1"), says=flag)

    def test_a_wrong_environment_variable(self):
        self.refused(*self.fresh("-id", "n1"), env={"KVRAFTD_INITIAL_CLUSTER": "nonsense"},
                     says="(?i)initial.cluster")

    def test_a_locked_directory(self):
        n = self.up(self.node())
        text = self.refused("-id", "n1", "-haddr", "127.0.0.1:%d" % free_port(), "-raddr",
                            "127.0.0.1:%d" % free_port(), n.dir, says="in use|locked|held")
        self.assertIn(str(n.proc.pid), text)
        self.serves(n)

    def test_a_port_in_use(self):
        n = self.up(self.node())
        for flag, taken, other in (("-haddr", n.http, "-raddr"), ("-raddr", n.raft, "-haddr")):
            self.refused("-id", "n9", flag, taken, other, "127.0.0.1:%d" % free_port(),
                         os.path.join(self.dir, "other"), says=taken)
        self.serves(n)

    def test_an_address_that_is_not_ours(self):
        self.refused("-id", "n1", "-haddr", "192.0.2.1:%d" % free_port(), "-raddr",
                     "127.0.0.1:%d" % free_port(), os.path.join(self.dir, "d"), says="192.0.2.1")

    def test_a_name_that_does_not_resolve(self):
        self.refused("-id", "n1", "-haddr", "no-such-host.invalid:%d" % free_port(), "-raddr",
                     "127.0.0.1:%d" % free_port(), os.path.join(self.dir, "d"), says="no-such-host.invalid")

    def test_the_data_of_another_cluster(self):
        n = self.node()
        n.initial_cluster = "n1=" + n.raft
        self.up(n)
        n.stop()
        text = self.refused("-id", "n1", "-haddr", n.http, "-raddr", n.raft, "-initial-cluster",
                            "n1=%s,n2=127.0.0.1:%d,n3=127.0.0.1:%d" % (n.raft, free_port(), free_port()),
                            "-cluster-name" if "-cluster-name" in self.run_it("-help")[1] else "-id",
                            "other" if "-cluster-name" in self.run_it("-help")[1] else "n1",
                            n.dir, says="cluster")
        self.assertIn(n.dir, text)

    def test_the_data_of_another_member(self):
        n = self.up(self.node())
        n.stop()
        self.refused("-id", "somebody-else", "-haddr", n.http, "-raddr", n.raft, n.dir, says="somebody-else")

    def test_a_file_where_the_directory_should_be(self):
        path = os.path.join(self.dir, "file")
        open(path, "w").close()
        self.refused("-id", "n1", *self.fresh()[:-1], path, says=re.escape(path))
        self.refused("-id", "n1", *self.fresh()[:-1], path + "/below", says=re.escape(path))

    def test_a_disk_that_cannot_be_read(self):
        """Root reads through every mode, so files stand where directories should be as well."""
        n = self.up(self.node())
        self.serves(n)
        n.stop()
        args = ["-id", "n1", "-haddr", n.http, "-raddr", n.raft, n.dir]
        for inner in sorted(os.listdir(n.dir)):
            path = os.path.join(n.dir, inner)
            if os.path.isdir(path):
                shutil.move(path, path + ".away")
                open(path, "w").close()
                self.refused(*args, says=re.escape(path))
                os.unlink(path)
                shutil.move(path + ".away", path)
        if os.geteuid() != 0:
            os.chmod(n.dir, 0)
            self.refused(*args, says=re.escape(n.dir))
            os.chmod(n.dir, 0o700)
        self.up(n)
        self.assertEqual(b"1", n.get("/v1/kv/x").body)

    def test_a_damaged_identity(self):
        n = self.up(self.node())
        n.stop()
        path = os.path.join(n.dir, "identity")
        with open(path, "wb") as f:
            f.write(b"\0garbage")
        self.refused("-id", "n1", "-haddr", n.http, "-raddr", n.raft, n.dir, says=re.escape(path))


class Accepting(CmdlineTest):
    def test_a_fresh_directory_starts_a_cluster_of_one(self):
        n = self.up(self.node())
        self.serves(n)
        self.assertEqual(["n1"], [m["id"] for m in n.get("/v1/cluster").json()["members"]])
        n.stop()
        self.up(n)
        self.assertEqual(b"1", n.get("/v1/kv/x").body)

    def test_hraftds_command_line(self):
        h, r = free_port(""), free_port("")
        n = self.node("node1", http_port=h, raft_port=r)
        n.command = lambda: WRAP + [BIN, "-id", "node1", "-haddr", ":%d" % h, "-raddr", ":%d" % r, n.dir]
        self.up(n)
        self.serves(n)
        with Connection("::1", h) as c:
            self.assertEqual(b"1", c.request("GET", "/v1/kv/x").body)

    def test_one_and_two_dashes_and_equals_signs(self):
        n = self.node()
        n.command = lambda: WRAP + [BIN, "--id=n1", "-haddr=" + n.http, "--raddr", n.raft, n.dir]
        self.up(n)
        self.serves(n)

    def test_environment_variables(self):
        n = self.node()
        n.command = lambda: WRAP + [BIN, n.dir]
        n.env = {"KVRAFTD_ID": "from-env", "KVRAFTD_HADDR": n.http, "KVRAFTD_RADDR": n.raft}
        self.up(n)
        self.assertEqual("from-env", n.health()["id"])

    def test_a_flag_wins_over_the_environment(self):
        n = self.node()
        n.env = {"KVRAFTD_ID": "from-env", "KVRAFTD_HADDR": "127.0.0.1:1"}
        self.up(n)
        self.assertEqual("n1", n.health()["id"])

    def test_ipv6(self):
        nodes = [self.node("n%d" % i, "::1") for i in (1, 2, 3)]
        for n in nodes:
            n.initial_cluster = ",".join("%s=%s" % (x.name, x.raft) for x in nodes)
        self.up(*nodes)
        for n in nodes:
            self.serves(n)

    def test_names(self):
        nodes = [self.node("n%d" % i) for i in (1, 2, 3)]
        members = ",".join("%s=localhost:%d" % (x.name, x.raft_port) for x in nodes)
        for n in nodes:
            n.command = (lambda n: lambda: WRAP + [
                BIN, "-id", n.name, "-haddr", "localhost:%d" % n.http_port, "-raddr",
                "localhost:%d" % n.raft_port, "-initial-cluster", members, n.dir])(n)
        self.up(*nodes)
        for n in nodes:
            self.serves(n)

    def test_advertised_addresses_differ_from_the_listening_ones(self):
        nodes = [self.node("n%d" % i) for i in (1, 2, 3)]
        members = ",".join("%s=%s" % (x.name, x.raft) for x in nodes)
        for i, n in enumerate(nodes):
            n.command = (lambda n, i: lambda: WRAP + [
                BIN, "-id", n.name, "-haddr", ":%d" % n.http_port, "-raddr", "0.0.0.0:%d" % n.raft_port,
                "-haddr-advertise", "kv%d.example:80" % i, "-initial-cluster", members, n.dir])(n, i)
        self.up(*nodes)
        for n in nodes:
            self.serves(n)
        wait_for("all advertised addresses", lambda: all(
            "kv%d.example:80" % i in nodes[0].get("/v1/cluster").body.decode() for i in range(3)))

    def test_join_says_that_it_cannot_yet(self):
        status, text = self.run_it("-id", "n1", "-join", "127.0.0.1:1", os.path.join(self.dir, "d"))
        self.assertEqual(2, status)
        self.assertIn("-join", text)

    def test_nodes_started_late_and_in_any_order(self):
        c = Cluster(3)
        self.addCleanup(c.close)
        c[2].start()
        wait_for("an answer", lambda: c[2].get("/livez").status == 200)
        self.assertEqual(503, c[2].get("/readyz").status)
        c[0].start()
        c.wait_ready([c[0], c[2]])
        self.serves(c[0])
        c[1].start()
        c.wait_ready()
        self.serves(c[1])


class Ending(CmdlineTest):
    def test_sigterm_and_sigint_end_it_with_0(self):
        import signal
        for sig in (signal.SIGTERM, signal.SIGINT):
            n = self.up(self.node("s%d" % sig))
            self.serves(n)
            n.expected_end = True
            n.proc.send_signal(sig)
            self.assertEqual(0, n.wait_exit())

    def test_sigterm_under_load_hands_over_and_nothing_breaks(self):
        c = Cluster(3)
        self.addCleanup(c.close)
        c.start()
        halt, gaps, bad, acked = threading.Event(), [], [], {}

        def write(node, tag):
            conn, i, last = node.connect(), 0, now()
            while not halt.is_set():
                i += 1
                key = "/v1/kv/%s/%d" % (tag, i)
                try:
                    r = conn.request("PUT", key, b"%d" % i)
                except (OSError, HttpError):
                    if node.running() and not node.expected_end:
                        bad.append("%s: connection broke" % tag)
                        return
                    return  # this node is the one that ends
                if r.status in (200, 201):
                    acked[key] = b"%d" % i
                    gaps.append((now() - last, node.name))
                    last = now()
                elif r.status == 503 and node.expected_end:
                    return
                else:
                    bad.append(repr(r))
                    return
        threads = []
        for i in range(2 if QUICK else 4):
            leader = c.leader()
            others = [x for x in c.nodes if x is not leader]
            threads = [threading.Thread(target=write, args=(x, "%d%s%d" % (i, x.name, k)), daemon=True)
                       for x in c.nodes for k in range(2)]
            mark = len(acked) + 100
            [t.start() for t in threads]
            wait_for("writes", lambda: len(acked) > mark or bad, 20)
            del gaps[:]
            leader.terminate()
            self.assertEqual(0, leader.wait_exit())
            mark = len(acked) + 100
            wait_for("writes after the leader's end", lambda: len(acked) > mark or bad, 20)
            worst = max(g for g, name in gaps if name != leader.name)
            print("    longest gap for a writer on another node: %.0f ms" % (worst * 1000))
            self.assertLess(worst, bound(0.5))
            halt.set()
            [t.join(bound(20)) for t in threads]
            halt.clear()
            self.assertEqual([], bad[:3])
            leader.start()
            c.wait_ready()
        for key, value in acked.items():
            self.assertEqual(value, c[0].get(key).body, key)

    def test_sigterm_with_watchers_and_idle_clients(self):
        n = self.up(self.node())
        watches = [n.watch("w", "prefix").wait_established() for _ in range(20)]
        idle = [n.connect() for _ in range(50)]
        poll = n.connect()
        poll.send(b"GET /v1/watch/x?once&timeout=60s HTTP/1.1\r\nHost: x\r\n\r\n")
        began = now()
        n.terminate()
        self.assertEqual(0, n.wait_exit())
        self.assertLess(now() - began, bound(10))
        for w in watches:
            wait_for("the end of the watch", lambda: w.ended)
            w.close()
        for c in idle + [poll]:
            c.close()

    def test_twice_sigterm_is_no_harm(self):
        n = self.up(self.node())
        n.terminate()
        try:
            n.proc.terminate()
        except ProcessLookupError:
            pass
        self.assertIn(n.wait_exit(), (0, -15))


class Logs(CmdlineTest):
    def log_of_a_life(self, *args):
        c = Cluster(3, args)
        self.addCleanup(c.close)
        c.start()
        c[0].put("/v1/kv/x", b"1")
        c.leader().kill9()
        c.leader()
        alive = c.alive()
        for n in alive:
            n.stop()
        return c, [x for n in alive for x in n.log().split("\n") if x]

    def test_lines_are_logfmt(self):
        c, lines = self.log_of_a_life()
        self.assertGreater(len(lines), 5)
        for line in lines:
            self.assertRegex(line, LOGFMT)
            parsed = logfmt(line)
            self.assertLessEqual({"ts", "level", "node", "msg"}, set(parsed), line)
            self.assertIn(parsed["level"], ("debug", "info", "warn", "error"))
        text = "\n".join(lines)
        self.assertRegex(text, "(?i)elect|leader")
        self.assertNotIn("level=error", text)
        self.assertLess(len(lines), 200, "floods")

    def test_lines_are_json_when_asked(self):
        c, lines = self.log_of_a_life("-log-format", "json")
        for line in lines:
            parsed = json.loads(line)
            self.assertLessEqual({"ts", "level", "node", "msg"}, set(parsed), line)

    def test_levels(self):
        c, lines = self.log_of_a_life("-log-level", "error")
        self.assertEqual([], lines)

    def test_a_node_alone_does_not_flood(self):
        c = Cluster(3)
        self.addCleanup(c.close)
        c[0].start()
        end = now() + 5
        wait_for("five seconds alone", lambda: now() > end)
        lines = c[0].log().count("\n")
        self.assertLess(lines, 60, c[0].log()[-3000:])


if __name__ == "__main__":
    main()
