#!/usr/bin/env python3
"""server/cluster.sh, which stands behind make cluster, cluster-status and cluster-stop."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BIN, ROOT, bound, free_port, main, wait_for

SCRIPT = os.path.join(ROOT, "server", "cluster.sh")


def free_row(n):
    """n ports in a row."""
    while True:
        first = free_port()
        row = [first] + [free_port() for _ in range(n - 1)]
        if row == list(range(first, first + n)):
            return first


class ClusterScript(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="kvraftd-script-")
        self.http, self.raft = free_row(5), free_row(5)
        self.addCleanup(self.end)

    def end(self):
        self.script("stop")
        for name in os.listdir(self.dir):
            if name.endswith(".pid"):
                pid = int(open(os.path.join(self.dir, name)).read() or 0)
                if pid:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
        shutil.rmtree(self.dir)

    def script(self, command, **env):
        e = dict(os.environ, DATA=self.dir, HTTP_PORT=str(self.http), RAFT_PORT=str(self.raft), BIN=BIN)
        e.pop("NODES", None)
        e.update(env)
        p = subprocess.run(["sh", SCRIPT, command], cwd=ROOT, env=e, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=bound(90))
        return p.returncode, p.stdout.decode()

    def pid(self, i):
        return int(open(os.path.join(self.dir, "n%d.pid" % i)).read())

    def alive(self, pid):
        try:
            with open("/proc/%d/stat" % pid) as f:
                return f.read().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def test_start_status_again_and_stop(self):
        status, out = self.script("start")
        self.assertEqual(0, status, out)
        self.assertEqual(3, out.count("serves"), out)
        for line in [x.strip() for x in out.split("\n") if x.strip().startswith("curl")]:
            if "watch" not in line:
                self.assertEqual(0, subprocess.run(line.replace("curl", "curl -sf", 1), shell=True,
                                                   stdout=subprocess.DEVNULL).returncode, line)
        status, out = self.script("status")
        self.assertEqual(0, status, out)
        rows = [x.split() for x in out.strip().split("\n")][1:]
        self.assertEqual(["n1", "n2", "n3"], [r[0] for r in rows], out)
        self.assertEqual(1, sum(r[3] == "leader" for r in rows), out)
        self.assertEqual(["ok"] * 3, [r[-1] for r in rows], out)

        pids = [self.pid(i) for i in (1, 2, 3)]
        status, out = self.script("start")
        self.assertEqual((0, 3), (status, out.count("runs already")), out)
        self.assertEqual(pids, [self.pid(i) for i in (1, 2, 3)])

        os.kill(pids[1], signal.SIGKILL)
        wait_for("its end", lambda: not self.alive(pids[1]))
        status, out = self.script("status")
        self.assertNotEqual(0, status)
        self.assertIn("does not run", out)
        status, out = self.script("start")
        self.assertEqual((0, 2, 1), (status, out.count("runs already"), out.count("serves:")), out)
        self.assertEqual([pids[0], pids[2]], [self.pid(1), self.pid(3)])

        pids = [self.pid(i) for i in (1, 2, 3)]
        status, out = self.script("stop")
        self.assertEqual((0, 3), (status, out.count("stopped")), out)
        self.assertFalse(any(map(self.alive, pids)))
        status, out = self.script("stop")
        self.assertEqual(0, status)
        self.assertIn("no node runs", out)

    def test_five_nodes_and_no_mixing(self):
        status, out = self.script("start", NODES="5")
        self.assertEqual((0, 5), (status, out.count("serves:")), out)
        status, out = self.script("start", NODES="3")
        self.assertNotEqual(0, status)
        self.assertIn("holds a cluster of 5", out)
        status, out = self.script("status")
        self.assertEqual((0, 6), (status, len(out.strip().split("\n"))), out)
        status, out = self.script("stop")
        self.assertEqual((0, 5), (status, out.count("stopped")), out)

    def test_a_port_that_is_taken(self):
        for port in (self.http + 1, self.raft + 2):
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(("127.0.0.1", port))
                s.listen()
                status, out = self.script("start", WAIT_S="10")
                self.assertNotEqual(0, status, out)
                self.assertIn("other ports", out.lower())
            self.script("stop")

    def test_a_pid_of_somebody_else_is_left_alone(self):
        other = subprocess.Popen(["sleep", "100"])
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        with open(os.path.join(self.dir, "n1.pid"), "w") as f:
            f.write("%d\n" % other.pid)
        status, out = self.script("stop")
        self.assertEqual(0, status, out)
        self.assertIsNone(other.poll())

    def test_wrong_use(self):
        self.assertEqual(2, self.script("nonsense")[0])
        status, out = self.script("start", NODES="x")
        self.assertNotEqual(0, status)
        status, out = self.script("start", BIN="/nonexistent/kvraftd")
        self.assertNotEqual(0, status)
        self.assertIn("make", out)


if __name__ == "__main__":
    main()
