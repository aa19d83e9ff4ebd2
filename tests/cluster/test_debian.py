#!/usr/bin/env python3
"""Real input: every package that Debian knows, loaded by examples/debian-packages/load through all
nodes while the leader is killed twice; then all nodes are restarted and every value is read back
from each node's own state and compared byte for byte."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import (QUICK, ROOT, Cluster, _die_with_parent, bound, main, now, wait_for)
import unittest

LOAD = os.path.join(ROOT, "examples", "debian-packages", "load")


def source():
    """Which packages there are to load: arguments, how many, in words."""
    try:
        run = subprocess.run(["apt-cache", "dumpavail"], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
        n = run.stdout.count(b"\nPackage: ") + run.stdout.startswith(b"Package: ")
    except OSError:
        n = 0
    if n < 10000:
        n = 3000 if QUICK else 60000
        return ["--generate", str(n)], n, "%d made-up packages (this machine has no package lists)" % n
    if QUICK:
        return ["--limit", "3000"], 3000, "3000 of apt's %d packages" % n
    return [], n, "apt's %d packages" % n


class DebianPackages(unittest.TestCase):
    def test_every_package_survives(self):
        args, n, words = source()
        print("    with %s" % words)
        self.cluster = c = Cluster(3)
        self.addCleanup(c.close)
        c.start()
        nodes = ",".join(x.http for x in c.nodes)
        command = [sys.executable, LOAD, "--nodes", nodes] + args
        began = now()
        load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                preexec_fn=_die_with_parent)
        self.addCleanup(load.stdout.close)
        self.addCleanup(load.wait)
        self.addCleanup(load.kill)
        for part in (n // 3, 2 * n // 3):
            wait_for("%d packages" % part, lambda: load.poll() is not None
                     or c.alive()[0].get("/v1/kv/x?consistency=serializable").revision > part, 60)
            self.assertIsNone(load.poll(), "it ended before the leader was killed")
            leader = c.leader()
            leader.kill9()
            print("    killed the leader, %s, after %d packages" % (leader.name, part))
            c.leader(among=c.alive())
            leader.start()
        out, _ = load.communicate(timeout=bound(120))
        print("    " + out.decode().strip().split("\n")[-1])
        self.assertEqual(0, load.returncode, out)
        c.wait_ready()
        c.wait_caught_up()
        for node in c.nodes:
            node.stop()
        for node in c.nodes:
            node.start()
        c.wait_ready()
        c.wait_caught_up()
        check = subprocess.run(command + ["--verify-only"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, timeout=bound(200))
        for line in check.stdout.decode().strip().split("\n"):
            print("    " + line)
        self.assertEqual(0, check.returncode)
        self.assertEqual(3, check.stdout.count(b" 0 differ"))
        print("    all of it in %.1f s" % (now() - began))


if __name__ == "__main__":
    main()
