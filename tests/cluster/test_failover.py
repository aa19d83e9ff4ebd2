#!/usr/bin/env python3
"""Nodes are killed, stopped and continued under load. What must hold afterwards: no acknowledged
write is lost, none is applied twice, none is answered wrongly, watches have neither gap nor
duplicate, leases live exactly as long as they must.

How a double application shows: each writer owns a counter key. Its version counts the applied puts,
its history says in which order, and each put is answered with the version it made; a transaction
compares with the revision that the writer saw last, so that a second application of anything makes
it fail; a key that may only be created answers 412 when the creation is tried twice."""
import json
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import (QUICK, Cluster, ClusterTest, HttpError, bound, main, now, quote,
                     wait_for)


class Writer(threading.Thread):
    """Writes through one node in a closed loop until told to stop; remembers every answer."""

    def __init__(self, name, node, others=()):
        super().__init__(daemon=True)
        self.tag = name
        self.node = node
        self.others = [x for x in others if x is not node]
        self.halt = threading.Event()
        self.conn = None
        self.acked = {}     # key -> value: answered 2xx, must be there
        self.unknown = {}   # key -> value: may be there
        self.denied = {}    # key -> value: answered "nothing was written", must not be there
        self.counter = "count/" + name
        self.counter_acks = []  # (version, revision, value) as answered
        self.counter_unknown = 0
        self.wrong = []     # answers that must not be
        self.statuses = {}
        self.slowest = 0.0
        self.acks = 0
        self.last_mod = None  # of the counter, when it is known for certain

    def run(self):
        i = 0
        while not self.halt.is_set():
            i += 1
            self.create(i)
            self.count(i)
            self.swap(i)

    def stop(self):
        self.halt.set()
        self.join(bound(60))
        assert not self.is_alive(), "%s hangs" % self.tag

    def call(self, method, target, body, headers=None):
        """A response, or None when the connection broke and nobody knows."""
        began = now()
        try:
            if self.conn is None:
                self.conn = self.node.connect(timeout=30)
        except OSError:  # nothing was sent; a killed node: another one is as good
            if self.others:
                self.node, self.others = self.others[0], self.others[1:] + [self.node]
            time.sleep(0.01)
            return False
        try:
            r = self.conn.request(method, target, body, headers)
        except (OSError, HttpError):
            self.conn.close()
            self.conn = None
            self.statuses["broken"] = self.statuses.get("broken", 0) + 1
            return None
        self.statuses[r.status] = self.statuses.get(r.status, 0) + 1
        self.slowest = max(self.slowest, now() - began)
        if r.status in (200, 201):
            self.acks += 1
        return r

    def settle(self, r, key, value, good, fine):
        """Files the outcome of writing key = value."""
        if r is False:
            return False
        if r is None or r.status == 504:
            self.unknown[key] = value
            return False
        if r.status == 503:
            self.denied[key] = value
            return False
        if r.status not in good or not fine(r):
            self.wrong.append((key, value, repr(r)))
            return False
        self.acked[key] = value
        return True

    def create(self, i):
        key, value = "new/%s/%06d" % (self.tag, i), "%s-%d" % (self.tag, i)
        r = self.call("PUT", "/v1/kv/" + quote(key), value, {"If-None-Match": "*"})
        self.settle(r, key, value, (201,), lambda r: True)

    def count(self, i):
        value = "c-%d" % i
        r = self.call("PUT", "/v1/kv/" + quote(self.counter), value)
        if r is False or r is not None and r.status == 503:
            return
        if r is None or r.status == 504:
            self.counter_unknown += 1
            self.last_mod = None
            return
        if r.status not in (200, 201):
            self.wrong.append((self.counter, value, repr(r)))
            return
        self.last_mod = r.revision
        self.counter_acks.append((int(r.header("Kv-Version")), r.revision, value))

    def swap(self, i):
        if self.last_mod is None:
            return
        key, value = "swap/%s/%06d" % (self.tag, i), "s-%d" % i
        r = self.call("POST", "/v1/txn", json.dumps({
            "if": [{"key": self.counter, "mod_revision": self.last_mod}, {"key": key, "version": 0}],
            "then": [{"put": {"key": key, "value": value}}],
            "else": [{"get": {"key": key}}]}))
        self.settle(r, key, value, (200,), lambda r: r.json()["succeeded"])


def read_all(node, query="consistency=serializable"):
    """Every key of a node, page by page: {key: pair}."""
    out, after = {}, ""
    while True:
        body = node.get("/v1/kv/?prefix&limit=5000&%s%s" % (query, after)).json()
        for p in body["kvs"]:
            out[p["key"]] = p
        if not body["more"]:
            return out
        after = "&after=" + quote(body["kvs"][-1]["key"])


class FailoverTest(ClusterTest):
    def setUp(self):
        """A cluster for each test: every one of them breaks something."""
        self.cluster = Cluster(self.NODES, self.ARGS)
        self.addCleanup(self.end)
        self.cluster.start()

    def end(self):
        self.cluster.close()

    @classmethod
    def setUpClass(cls):
        cls.turn = 0

    @classmethod
    def tearDownClass(cls):
        pass

    def writers(self, count, nodes, tag="w"):
        ws = [Writer("%s%d" % (tag, i), nodes[i % len(nodes)], self.cluster.nodes) for i in range(count)]
        for w in ws:
            w.start()
        return ws

    def wait_progress(self, writers, each=20):
        marks = [(w, w.acks + each) for w in writers]
        for w, mark in marks:
            wait_for("%s to get on" % w.tag, lambda: w.acks >= mark or w.wrong, 20)

    def check(self, writers, nodes=None):
        """The whole truth, on every node."""
        for w in writers:
            w.stop()
        nodes = nodes or self.cluster.alive()
        self.cluster.wait_ready(nodes)
        self.cluster.wait_caught_up(nodes)
        contents = [read_all(x) for x in nodes]
        for node, content in zip(nodes[1:], contents[1:]):
            self.assertEqual(contents[0].keys(), content.keys(), node.name)
            self.assertTrue(contents[0] == content, "%s differs from %s" % (node.name, nodes[0].name))
        acked = unknown = 0
        statuses = {}
        for w in writers:
            self.assertEqual([], w.wrong[:3])
            for content in contents[:1]:
                for key, value in w.acked.items():
                    pair = content.get(key)
                    self.assertIsNotNone(pair, "lost: %s" % key)
                    self.assertEqual((value, 1), (pair["value"], pair["version"]), "twice or wrong: %s" % key)
                for key, value in w.unknown.items():
                    if key in content:
                        self.assertEqual((value, 1), (content[key]["value"], content[key]["version"]))
                for key in w.denied:
                    self.assertNotIn(key, content, "answered 503 and yet written")
                self.check_counter(w, content.get(w.counter))
            acked += len(w.acked) + len(w.counter_acks)
            unknown += len(w.unknown) + w.counter_unknown
            for status, n in w.statuses.items():
                statuses[status] = statuses.get(status, 0) + n
        print("    %d writers: %d acknowledged, %d unknown, answers %s, slowest %.0f ms"
              % (len(writers), acked, unknown, statuses, max(w.slowest for w in writers) * 1000))
        return statuses

    def check_counter(self, w, pair):
        if not w.counter_acks and pair is None:
            return
        versions = [v for v, _, _ in w.counter_acks]
        revisions = [r for _, r, _ in w.counter_acks]
        self.assertEqual(sorted(set(versions)), versions, "a version was answered twice")
        self.assertEqual(sorted(set(revisions)), revisions)
        self.assertGreaterEqual(pair["version"], len(versions), w.tag)
        self.assertLessEqual(pair["version"], len(versions) + w.counter_unknown, "applied twice: " + w.tag)
        if w.counter_unknown == 0:
            self.assertEqual(list(range(1, len(versions) + 1)), versions)
        history = json.loads(self.cluster.alive()[0].get(
            "/v1/kv/%s?history" % quote(w.counter)).body.decode())
        values = [p["value"] for p in next(v for v in history.values() if isinstance(v, list))]
        self.assertEqual(len(set(values)), len(values), "applied twice: %s" % w.tag)
        for _, _, value in w.counter_acks[-len(values) // 2:]:
            self.assertIn(value, values)

    def first_ack_after(self, began, nodes):
        """Tries each node at once; how long until one of them has acknowledged a new write."""
        done = []

        def probe(node):
            while not done:
                try:
                    if node.put("/v1/kv/probe", b"%f" % began, timeout=10).status in (200, 201):
                        done.append(now() - began)
                except (OSError, HttpError):
                    pass
        threads = [threading.Thread(target=probe, args=(x,), daemon=True) for x in nodes]
        [t.start() for t in threads]
        wait_for("a write after the leader's end", lambda: done, 15, every=0.001)
        return done[0]


class LeaderKilled(FailoverTest):
    def test_writes_through_followers_while_leaders_die(self):
        rounds = 2 if QUICK else 5
        gaps = []
        writers = self.writers(9, self.cluster.nodes)
        for _ in range(rounds):
            self.wait_progress(writers)
            leader = self.cluster.leader()
            survivors = [x for x in self.cluster.nodes if x is not leader]
            watched = [(w, dict(w.statuses)) for w in writers if w.node in survivors]
            began = now()
            leader.kill9()
            gaps.append(self.first_ack_after(began, survivors))
            self.wait_progress([w for w, _ in watched])
            for w, before in watched:
                if w.node in survivors:
                    for status in (503, 504, "broken"):
                        self.assertEqual(before.get(status, 0), w.statuses.get(status, 0),
                                         "%s on %s, which lived on, was answered %s: %s"
                                         % (w.tag, w.node.name, status, w.statuses))
            leader.start()
            self.cluster.wait_ready([leader])
        self.check(writers)
        print("    from kill -9 to the next acknowledged write through a survivor: %s ms"
              % ", ".join("%.0f" % (g * 1000) for g in gaps))
        self.assertLess(max(gaps), bound(1.0))

    def test_all_nodes_killed_at_once_and_restarted(self):
        rounds = 1 if QUICK else 3
        writers = self.writers(9, self.cluster.nodes)
        for _ in range(rounds):
            self.wait_progress(writers)
            for node in self.cluster.nodes:
                node.expected_end = True
                node.proc.kill()
            for node in self.cluster.nodes:
                node.proc.wait()
            for node in self.cluster.nodes:
                node.start()
            self.cluster.wait_ready()
        self.wait_progress(writers)
        self.check(writers)

    def test_killed_while_starting(self):
        writers = self.writers(3, self.cluster.nodes)
        self.wait_progress(writers)
        victim = self.cluster.followers()[0]
        victim.kill9()
        for i in range(8):
            victim.start()
            end = now() + 0.02 * i
            wait_for("its turn", lambda: now() > end, every=0.001)
            victim.kill9()
        victim.start()
        self.cluster.wait_ready([victim])
        self.check(writers)

    def test_leadership_is_handed_around_under_load(self):
        writers = self.writers(6, self.cluster.nodes)
        self.wait_progress(writers)
        for i in range(4 if QUICK else 12):
            leader = self.cluster.leader()
            target = next(x for x in self.cluster.nodes if x is not leader)
            r = self.cluster[i % 3].post("/v1/cluster/leader", {"id": target.name})
            self.assertEqual(200, r.status, r)
            self.assertIs(target, self.cluster.leader())
        self.wait_progress(writers)
        statuses = self.check(writers)
        self.assertFalse({503, 504, "broken"} & set(statuses), statuses)


class Stopped(FailoverTest):
    def test_a_follower_stopped_for_three_seconds(self):
        victim = self.cluster.followers()[0]
        others = [x for x in self.cluster.nodes if x is not victim]
        leader, term = self.cluster.leader(), self.cluster.leader().health()["term"]
        writers = self.writers(6, others)
        self.wait_progress(writers)
        victim.pause()
        end = now() + 3
        wait_for("three seconds of writes", lambda: now() > end)
        self.wait_progress(writers)
        victim.resume()
        self.cluster.wait_caught_up([victim])
        statuses = self.check(writers, self.cluster.nodes)
        self.assertFalse({503, 504, "broken"} & set(statuses), statuses)
        self.assertEqual((leader.name, term), (self.cluster.leader().name,
                                               self.cluster.leader().health()["term"]),
                         "a follower that slept cost the leader its term")

    def test_a_leader_that_slept_answers_nothing_stale(self):
        for i in range(1 if QUICK else 3):
            leader = self.cluster.leader()
            survivors = [x for x in self.cluster.nodes if x is not leader]
            key = "/v1/kv/stale%d" % i
            self.ok(leader.put(key, b"old"))
            readers = [leader.connect() for _ in range(20)]
            for c in readers[:5]:
                c.request("GET", key)
            leader.pause()
            for c in readers[:10]:  # these lie in its socket while it sleeps
                c.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % key.encode())
            began = now()
            self.first_ack_after(began, survivors)
            self.ok(survivors[0].put(key, b"new"))
            for c in readers[10:]:
                c.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % key.encode())
            leader.resume()
            # the first ten were asked before "new" was written and may see either; of the rest, whose
            # question came after it was acknowledged, none may see "old"
            for n, c in enumerate(readers):
                r = c.read_response()
                self.assertIn(r.status, (200, 503, 504), r)
                if n >= 10 and r.status == 200:
                    self.assertEqual(b"new", r.body, "a stale read from the old leader")
                c.close()
            self.cluster.wait_ready(self.cluster.nodes)
            self.assertEqual(b"new", leader.get(key).body)

    def test_writes_carry_over_while_the_leader_sleeps(self):
        writers = self.writers(6, self.cluster.nodes)
        for _ in range(2):
            self.wait_progress(writers)
            leader = self.cluster.leader()
            awake = [x for x in self.cluster.nodes if x is not leader]
            leader.pause()
            self.first_ack_after(now(), awake)
            self.wait_progress([w for w in writers if w.node in awake])
            leader.resume()
            self.cluster.wait_ready([leader])
        self.wait_progress(writers)
        self.check(writers, self.cluster.nodes)


class Minority(FailoverTest):
    ARGS = ("-request-timeout", "1s") if QUICK else ()

    def test_a_node_without_a_majority(self):
        self.ok(self.cluster[0].put("/v1/kv/kept", b"1"))
        self.cluster.wait_caught_up()
        alone = self.cluster.leader()
        others = [x for x in self.cluster.nodes if x is not alone]
        for node in others:
            node.kill9()
        r = alone.put("/v1/kv/kept", b"2", timeout=60)
        self.assertIn((r.status, r.code), ((503, "no_leader"), (504, "outcome_unknown")), r)
        first_unknown = r.status == 504
        r = wait_for("the refusal of a write", lambda: [
            x for x in [alone.put("/v1/kv/kept2", b"2", timeout=60)] if x.status == 503], 60)[0]
        self.error(r, 503, "no_leader")
        self.assertIsNotNone(r.header("Retry-After"), r)
        self.error(alone.get("/v1/kv/kept", timeout=60), 503, "no_leader")
        r = alone.get("/v1/kv/kept?consistency=serializable")
        self.assertEqual((200, b"1"), (r.status, r.body), r)
        self.assertEqual(503, alone.get("/v1/kv/kept?max_stale=100ms").status)
        h = alone.get("/health")
        self.assertEqual((503, False), (h.status, h.json()["ok"]), h)
        self.assertEqual(503, alone.get("/readyz").status)
        self.assertEqual(200, alone.get("/livez").status)
        self.assertEqual(200, alone.get("/metrics").status)
        self.assertEqual(200, alone.get("/v1/cluster").status)
        others[0].start()
        self.cluster.wait_ready([alone, others[0]])
        self.ok(alone.put("/v1/kv/kept3", b"3"))
        self.assertEqual(404, alone.get("/v1/kv/kept2").status, "answered 503 and yet written")
        self.assertIn(alone.get("/v1/kv/kept").body, (b"1", b"2") if first_unknown else (b"1",))

    def test_a_minority_that_never_led_refuses_too(self):
        leader = self.cluster.leader()
        alone, other = self.cluster.followers()
        self.ok(leader.put("/v1/kv/kept", b"1"))
        self.cluster.wait_caught_up()
        leader.kill9()
        other.kill9()
        r = alone.put("/v1/kv/kept", b"2", timeout=60)
        self.assertIn(r.status, (503, 504), r)
        self.assertEqual(503, alone.get("/v1/kv/kept", timeout=60).status)
        self.assertEqual(b"1", alone.get("/v1/kv/kept?consistency=serializable").body)


class FiveNodes(FailoverTest):
    NODES = 5

    def test_two_of_five_die(self):
        writers = self.writers(5, self.cluster.nodes)
        self.wait_progress(writers)
        leader = self.cluster.leader()
        second = self.cluster.followers()[0]
        survivors = [x for x in self.cluster.nodes if x not in (leader, second)]
        began = now()
        for node in (leader, second):
            node.expected_end = True
            node.proc.kill()
        gap = self.first_ack_after(began, survivors)
        for node in (leader, second):
            node.proc.wait()
        print("    two of five killed at once: next write after %.0f ms" % (gap * 1000))
        self.wait_progress([w for w in writers if w.node in survivors])
        for node in survivors:
            self.ok(node.put("/v1/kv/five", b"1"))
            self.assertEqual(b"1", node.get("/v1/kv/five").body)
        leader.start()
        second.start()
        self.cluster.wait_ready()
        self.check(writers)


class Reads(FailoverTest):
    def test_reads_never_go_back_while_leaders_change(self):
        """One writer counts up; readers on every node must never see less than what had been
        acknowledged when they asked."""
        acked = [0]
        halt = threading.Event()
        stale, reads = [], [0]

        def write(node):
            i = 0
            while not halt.is_set():
                i += 1
                try:
                    r = node.put("/v1/kv/up", b"%d" % i, timeout=30)
                except (OSError, HttpError):
                    continue
                if r.status in (200, 201):
                    acked[0] = i

        def read(node):
            while not halt.is_set():
                floor = acked[0]
                try:
                    r = node.get("/v1/kv/up", timeout=30)
                except (OSError, HttpError):
                    time.sleep(0.01)
                    continue
                if r.status == 200:
                    reads[0] += 1
                    if int(r.body) < floor:
                        stale.append((node.name, floor, r.body))
        writer_node = self.cluster.followers()[0]
        threads = [threading.Thread(target=write, args=(writer_node,), daemon=True)]
        threads += [threading.Thread(target=read, args=(x,), daemon=True) for x in self.cluster.nodes]
        [t.start() for t in threads]
        for i in range(2 if QUICK else 4):
            mark = acked[0] + 30
            wait_for("writes", lambda: acked[0] >= mark, 20)
            leader = self.cluster.leader()
            if leader is writer_node:
                leader.pause()
                wait_for("another leader", lambda: self.cluster.leader() is not leader)
                leader.resume()
            else:
                leader.kill9()
                wait_for("another leader", lambda: self.cluster.leader() is not leader)
                leader.start()
            self.cluster.wait_ready(self.cluster.nodes)
        halt.set()
        [t.join(bound(40)) for t in threads]
        self.assertEqual([], stale[:5])
        self.assertGreater(reads[0], 100)
        print("    %d linearizable reads beside %d writes" % (reads[0], acked[0]))


class WatchResumed(FailoverTest):
    def test_a_watch_across_leader_changes_has_no_gap_and_no_duplicate(self):
        writers = self.writers(4, self.cluster.nodes)
        steady = self.cluster.followers()[0]
        whole = steady.watch("", "prefix&from=1").wait_established()
        got, resumed = [], 0
        stream = self.cluster.leader().watch("", "prefix&from=1")
        for _ in range(2 if QUICK else 4):
            self.wait_progress(writers)
            victim = next(x for x in (stream.node, self.cluster.leader()) if x is not steady
                          or x is self.cluster.leader())
            if victim is steady:
                self.cluster[0].post("/v1/cluster/leader", {"id": next(
                    x for x in self.cluster.nodes if x is not steady).name})
                victim = self.cluster.leader()
            victim.kill9()
            if stream.node is victim:
                wait_for("the end of the watch", lambda: stream.ended)
                got += stream.events()
                last = max([e["mod_revision"] for e in got], default=0)
                # what came of the last revision came whole: events of one revision go together
                resumed += 1
                alive = self.cluster.alive()
                stream = alive[resumed % len(alive)].watch("", "prefix&from=%d" % (last + 1))
            victim.start()
            self.cluster.wait_ready([victim])
        self.wait_progress(writers)
        self.check(writers)
        end = self.cluster[0].put("/v1/kv/the-end", b"1").revision
        for s in (whole, stream):
            s.wait("the last write", lambda xs: any(x.get("key") == "the-end" for x in xs), 20)
        got += stream.events()
        steady_events = whole.events()
        self.assertEqual(len(steady_events), len(got))
        self.assertTrue(steady_events == got, "the resumed watch saw something else")
        self.check_events(steady_events)
        for w in writers:
            revisions = {e["mod_revision"] for e in steady_events}
            for _, revision, _ in w.counter_acks:
                self.assertIn(revision, revisions)
        self.assertEqual(end, steady_events[-1]["mod_revision"])
        print("    %d events, watch resumed %d times" % (len(got), resumed))
        whole.close()
        stream.close()

    def check_events(self, events):
        """Ordered, and every key's versions run on from 1 without a gap."""
        at, versions, seen = 0, {}, set()
        for e in events:
            self.assertGreaterEqual(e["mod_revision"], at)
            at = e["mod_revision"]
            self.assertNotIn((e["key"], at), seen)
            seen.add((e["key"], at))
            if e["type"] == "put":
                self.assertEqual(versions.get(e["key"], 0) + 1, e["version"], e)
                versions[e["key"]] = e["version"]
            else:
                versions[e["key"]] = 0
        # revisions have no gap either: this watch saw every key
        revisions = sorted({e["mod_revision"] for e in events})
        self.assertEqual(list(range(revisions[0], revisions[0] + len(revisions))), revisions)


class Leases(FailoverTest):
    def test_a_lease_lives_through_a_leader_change_exactly_as_long_as_it_must(self):
        ttl = 4
        for end_leader in ("kill",) if QUICK else ("kill", "pause", "transfer"):
            leader = self.cluster.leader()
            survivor = next(x for x in self.cluster.nodes if x is not leader)
            lease = survivor.post("/v1/lease", {"ttl": ttl}).json()["id"]
            w = survivor.watch("lease/", "prefix").wait_established()
            for i in range(5):
                self.ok(survivor.put("/v1/kv/lease/%d?lease=%s" % (i, lease), b"1"))
            # time passes, so that a lease that started anew with the new leader would show
            half = now() + ttl / 2
            wait_for("half of the lease's time", lambda: now() >= half)
            asked = now()
            self.ok(survivor.post("/v1/lease/%s/keepalive" % lease, b""), 200)
            answered = now()
            quarter = now() + ttl / 4
            wait_for("a quarter of it", lambda: now() >= quarter)
            if end_leader == "kill":
                leader.kill9()
            elif end_leader == "pause":
                leader.pause()
            else:
                self.ok(leader.post("/v1/cluster/leader", {"id": survivor.name}), 200)
            r = wait_for("the lease's remaining time", lambda: [
                x for x in [survivor.get("/v1/lease/" + lease)] if x.status == 200])[0]
            left = next(v for k, v in r.json().items() if "remaining" in k)
            left = left / 1000 if "ms" in next(k for k in r.json() if "remaining" in k) else left
            self.assertLessEqual(left, ttl - (now() - answered) + ttl / 4, "renewed by the change")
            w.wait("the lease's end", lambda xs: sum(x["type"] == "delete" for x in xs) >= 5, ttl * 3)
            t, _ = next(x for x in w.items if x[1]["type"] == "delete")
            deletes = w.objects("delete")
            self.assertEqual(1, len({e["mod_revision"] for e in deletes}), deletes)
            self.assertEqual(5, len(deletes))
            lived = (t - asked, t - answered)
            print("    leader %-8s: a %d s lease ended %.2f s after its last keep-alive"
                  % (end_leader, ttl, lived[0]))
            self.assertGreaterEqual(lived[0], ttl - 0.05, "ended too early")
            self.assertLess(lived[1], ttl + bound(1.5), "renewed by the change")
            w.close()
            if end_leader == "kill":
                leader.start()
            elif end_leader == "pause":
                leader.resume()
            self.cluster.wait_ready(self.cluster.nodes)

    def test_a_lease_outlives_the_whole_cluster(self):
        """All nodes are killed and restarted: a lease does not end while nobody could renew it and
        is not lost either."""
        lease = self.cluster[0].post("/v1/lease", {"ttl": 3}).json()["id"]
        self.ok(self.cluster[1].put("/v1/kv/out?lease=" + lease, b"1"))
        for node in self.cluster.nodes:
            node.kill9()
        for node in self.cluster.nodes:
            node.start()
        self.cluster.wait_ready()
        began = now()
        wait_for("the end of the lease", lambda: self.cluster[2].get("/v1/kv/out").status == 404, 8)
        print("    the key ended %.2f s after the restart" % (now() - began))

    def test_keepalives_go_on_while_leaders_die(self):
        lease = self.cluster[0].post("/v1/lease", {"ttl": 3}).json()["id"]
        self.ok(self.cluster[1].put("/v1/kv/alive?lease=" + lease, b"1"))
        steady = self.cluster.followers()[0]
        halt, bad = threading.Event(), []

        def renew():
            while not halt.is_set():
                r = steady.post("/v1/lease/%s/keepalive" % lease, b"")
                if r.status != 200:
                    bad.append(repr(r))
                halt.wait(0.5)
        t = threading.Thread(target=renew, daemon=True)
        t.start()
        for _ in range(1 if QUICK else 3):
            leader = self.cluster.leader()
            if leader is steady:
                self.ok(steady.post("/v1/cluster/leader", {"id": next(
                    x for x in self.cluster.nodes if x is not steady).name}), 200)
                leader = self.cluster.leader()
            leader.kill9()
            end = now() + 3.5
            while now() < end:
                self.assertEqual(200, steady.get("/v1/kv/alive").status)
                time.sleep(0.1)
            leader.start()
            self.cluster.wait_ready([leader])
        halt.set()
        t.join(bound(20))
        self.assertEqual([], bad)


if __name__ == "__main__":
    main()
