#!/usr/bin/env python3
"""One node's whole life under valgrind's memcheck, as a follower and as a leader: no invalid access,
and after a clean stop nothing that it allocated is lost."""
import os
import re
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import Cluster, main

VALGRIND = ["valgrind", "--leak-check=full", "--show-leak-kinds=definite,indirect,possible",
            "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=98", "--num-callers=30",
            "--child-silent-after-fork=yes"]


class Valgrind(unittest.TestCase):
    def test_no_leak_and_no_invalid_access_in_a_life(self):
        # An election timeout that a node which runs 30 times slower can keep to.
        self.cluster = c = Cluster(3, ["-heartbeat", "500ms", "-election-timeout", "5s",
                                       "-request-timeout", "60s"])
        self.addCleanup(c.close)
        node = c[2]
        plain = node.command
        node.command = lambda: VALGRIND + plain()
        for n in c.nodes:
            n.start()
        c.wait_ready(timeout=12)
        self.use(c, node)
        # and once as the leader
        self.assertEqual(200, c[0].post("/v1/cluster/leader", {"id": node.name}, timeout=60).status)
        self.assertIs(node, c.leader())
        self.use(c, node)
        node.terminate()
        self.assertEqual(0, node.wait_exit(), node.log()[-6000:])
        log = node.log()
        self.assertIn("ERROR SUMMARY: 0 errors", log)
        lost = re.search(r"definitely lost: ([\d,]+) bytes", log)
        self.assertEqual("0", lost.group(1) if lost else "0", log[-6000:])
        print("    " + (re.search(r"total heap usage: .*", log) or [""])[0])

    def use(self, c, node):
        get, ok = node.get, lambda r: self.assertIn(r.status, (200, 201), r)
        w = node.watch("k", "prefix").wait_established(60)
        for i in range(60):
            ok(node.put("/v1/kv/k%d?prev" % (i % 20), os.urandom(i * 40), timeout=60))
            ok(get("/v1/kv/k%d" % (i % 20)))
        lease = node.post("/v1/lease", {"ttl": 600}).json()["id"]
        ok(node.put("/v1/kv/leased?lease=" + lease, b"1"))
        ok(node.post("/v1/lease/%s/keepalive" % lease, b""))
        ok(get("/v1/lease/" + lease))
        ok(get("/v1/lease"))
        ok(node.delete("/v1/lease/" + lease))
        ok(get("/v1/kv/k?prefix&limit=7"))
        ok(get("/v1/kv/k1?history"))
        ok(node.post("/v1/txn", {"if": [{"key": "k1", "version": {"gt": 0}}],
                                 "then": [{"put": {"key": "t", "value": "1"}},
                                          {"txn": {"then": [{"get": {"key": "k", "prefix": True}}]}},
                                          {"delete": {"key": "k2"}}]}))
        for target in ("/health", "/metrics", "/status", "/v1/cluster", "/version"):
            ok(get(target))
        for bad in ("/v1/kv/%zz", "/nowhere", "/v1/kv/absent", "/v1/kv/k?revision=99999999"):
            self.assertGreaterEqual(get(bad).status, 400)
        self.assertEqual(400, node.post("/v1/txn", b"{nonsense").status)
        ok(node.delete("/v1/kv/k?prefix"))
        ok(node.post("/v1/compact", {"revision": node.get("/v1/kv/t").revision}))
        ok(node.post("/key", {"a": "b"}))
        for n in c.nodes:
            ok(n.put("/v1/kv/elsewhere", b"1"))
        w.wait_events(60, 60)
        w.close()


if __name__ == "__main__":
    main()
