#!/usr/bin/env python3
"""The HTTP contract, sentence by sentence, on three nodes. Every request goes to the next node in
turn, so that followers answer two thirds of them: nothing below may depend on which it was."""
import base64
import json
import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import (ClusterTest, Connection, bound, encode_request, main, now, quote,
                     wait_for)

UNDECODABLE = b"\xff\xfe\x80\x00\x01"


class ContractTest(ClusterTest):
    def kv(self, key, query=""):
        return "/v1/kv/%s%s" % (quote(key), "?" + query if query else "")

    def put_ok(self, key, value=b"", query=""):
        return self.ok(self.put(self.kv(key, query), value))

    def list(self, prefix, query=""):
        r = self.ok(self.get(self.kv(prefix, "prefix" + ("&" + query if query else ""))), 200)
        self.assertTrue(r.header("Content-Type").startswith("application/json"), r)
        body = r.json()
        self.assertEqual({"revision", "kvs", "count", "more"}, set(body), r)
        return body

    def keys(self, body):
        return [p["key"] for p in body["kvs"]]

    def txn(self, **members):
        return self.post("/v1/txn", members)

    def txn_ok(self, **members):
        body = self.ok(self.txn(**members), 200).json()
        self.assertEqual({"succeeded", "revision", "results"}, set(body) - {"failed_compare"})
        return body

    def grant(self, ttl):
        r = self.ok(self.post("/v1/lease", {"ttl": ttl})).json()
        self.assertEqual(ttl, r["ttl"])
        self.assertIsInstance(r["id"], str)
        return r["id"]


class Keys(ContractTest):
    def test_put_is_201_when_the_key_is_new_and_200_otherwise(self):
        a = self.put(self.kv("new"), b"1")
        b = self.put(self.kv("new"), b"2")
        self.assertEqual((201, 200), (a.status, b.status), (a, b))
        self.ok(self.delete(self.kv("new")), 200)
        self.assertEqual(201, self.put(self.kv("new"), b"3").status)

    def test_a_write_is_answered_with_its_revision(self):
        a = self.put_ok("rev", b"1")
        b = self.put_ok("rev", b"2")
        self.assertEqual(a.json()["revision"], a.revision)
        self.assertEqual(a.revision + 1, b.revision)

    def test_get_gives_the_bytes_that_were_put(self):
        value = bytes(range(256)) * 40
        self.put_ok("bytes", value)
        r = self.ok(self.get(self.kv("bytes")), 200)
        self.assertEqual(value, r.body)
        self.assertEqual(str(len(value)), r.header("Content-Length"))

    def test_get_and_delete_of_an_absent_key_are_404(self):
        for r in (self.get(self.kv("absent")), self.delete(self.kv("absent"))):
            self.error(r, 404, "not_found")
            self.assertIsNotNone(r.header("Kv-Revision"), r)

    def test_delete_says_how_many(self):
        self.put_ok("del", b"1")
        r = self.ok(self.delete(self.kv("del")), 200)
        self.assertEqual(1, r.json()["deleted"])
        self.assertEqual(r.json()["revision"], r.revision)
        self.error(self.get(self.kv("del")), 404, "not_found")

    def test_an_empty_value_is_a_value(self):
        self.put_ok("empty", b"")
        r = self.ok(self.get(self.kv("empty")), 200)
        self.assertEqual(b"", r.body)
        self.assertEqual("0", r.header("Content-Length"))
        self.assertEqual([("empty", "")], [(p["key"], p["value"]) for p in self.list("empty")["kvs"]])

    def test_values_from_one_byte_to_one_mebibyte(self):
        for n in (1, 255, 4096, 65537, 1 << 20):
            value = os.urandom(n)
            self.put_ok("size/%d" % n, value)
            self.assertEqual(value, self.ok(self.get(self.kv("size/%d" % n)), 200).body)

    def test_every_byte_is_allowed_in_a_key(self):
        for b in range(256):
            self.assertEqual(201, self.put("/v1/kv/every/%%%02x" % b, b"%d" % b).status, b)
        for b in range(256):
            r = self.ok(self.get("/v1/kv/every/%%%02X" % b), 200)
            self.assertEqual(b"%d" % b, r.body)
        body = self.list("every/")
        self.assertEqual(256, body["count"])
        got = [p["key"].encode() if "key" in p else base64.b64decode(p["key_base64"])
               for p in body["kvs"]]
        self.assertEqual([b"every/" + bytes([b]) for b in range(256)], got)

    def test_raw_bytes_in_the_path_are_the_key(self):
        self.put_ok("raw/\u00fc", b"1")
        self.assertEqual(b"1", self.get(b"/v1/kv/raw/\xc3\xbc").body)
        self.ok(self.put(b"/v1/kv/raw/\xfe\xff", b"2"), 201)
        self.assertEqual(b"2", self.get("/v1/kv/raw/%fe%ff").body)

    def test_slashes_and_dots_belong_to_the_key(self):
        keys = ["a/b/c", "a//b", "/a", "//", "a/", "a/./b", "a/../b", "..", ".", "../..", "a/b/..",
                "/../x", "%2e%2e", "a/%2e"]
        for k in keys:
            self.assertEqual(201, self.put(self.kv("dots/" + k), b"=" + k.encode()).status, k)
        for k in keys:
            self.assertEqual(b"=" + k.encode(), self.ok(self.get(self.kv("dots/" + k)), 200).body)
        self.assertEqual(len(keys), self.list("dots/")["count"])
        for k in ["/lead", "//", "../up", "."]:
            self.assertEqual(201, self.put("/v1/kv/" + k, b"=" + k.encode()).status, k)
            self.assertEqual(b"=" + k.encode(), self.ok(self.get("/v1/kv/" + k), 200).body)
            self.ok(self.delete("/v1/kv/" + k), 200)

    def test_percent_encoding_is_decoded_once(self):
        self.put_ok("pct/a%41", b"1")
        self.assertEqual(b"1", self.get("/v1/kv/pct/a%2541").body)
        self.assertEqual(404, self.get("/v1/kv/pct/aA").status)
        self.ok(self.put("/v1/kv/pct%2Fslash", b"2"), 201)
        self.assertEqual(b"2", self.get("/v1/kv/pct/slash").body)
        self.ok(self.put("/v1/kv/pct/plus+plus", b"3"), 201)
        self.assertEqual(b"3", self.get("/v1/kv/pct/plus%2Bplus").body)
        self.assertEqual(404, self.get("/v1/kv/pct/plus%20plus").status)
        self.ok(self.put("/v1/kv/pct/q%3Fprefix", b"4"), 201)
        self.assertEqual(b"4", self.get("/v1/kv/pct/q%3fprefix").body)

    def test_the_longest_key(self):
        key = "L" * 65536
        self.assertEqual(201, self.put(self.kv(key), b"long").status)
        self.assertEqual(b"long", self.get(self.kv(key)).body)
        self.ok(self.delete(self.kv(key)), 200)

    def test_headers_tell_about_the_key(self):
        a = self.put_ok("head", b"1").revision
        b = self.put_ok("head", b"2").revision
        self.put_ok("head-other", b"x")
        r = self.ok(self.get(self.kv("head")), 200)
        self.assertEqual('"%d"' % b, r.header("ETag"))
        self.assertEqual((str(a), str(b), "2"), (r.header("Kv-Create-Revision"),
                                                r.header("Kv-Mod-Revision"), r.header("Kv-Version")))
        self.assertGreater(r.revision, b)
        self.assertIsNone(r.header("Kv-Lease"))

    def test_a_puts_answer_tells_about_the_key_as_well(self):
        self.put_ok("headput", b"1")
        r = self.put_ok("headput", b"2")
        self.assertEqual('"%d"' % r.revision, r.header("ETag"), r)
        self.assertEqual(("2", str(r.revision), str(r.revision - 1)),
                         (r.header("Kv-Version"), r.header("Kv-Mod-Revision"),
                          r.header("Kv-Create-Revision")), r)

    def test_head_is_get_without_a_body(self):
        self.put_ok("headreq", b"12345")
        g, h = self.get(self.kv("headreq")), self.request("HEAD", self.kv("headreq"))
        self.assertEqual((200, b"", "5"), (h.status, h.body, h.header("Content-Length")), h)
        for name in ("ETag", "Kv-Version", "Kv-Create-Revision", "Kv-Mod-Revision"):
            self.assertEqual(g.header(name), h.header(name))
        self.assertEqual(404, self.request("HEAD", self.kv("headreq-absent")).status)

    def test_version_counts_from_the_creation(self):
        for _ in range(3):
            self.put_ok("ver", b"x")
        self.assertEqual("3", self.get(self.kv("ver")).header("Kv-Version"))
        self.delete(self.kv("ver"))
        r = self.put_ok("ver", b"y")
        g = self.get(self.kv("ver"))
        self.assertEqual(("1", str(r.revision)), (g.header("Kv-Version"),
                                                 g.header("Kv-Create-Revision")))

    def test_prev_gives_what_was_replaced(self):
        self.put_ok("prev", b"old")
        mod = self.get(self.kv("prev")).header("Kv-Mod-Revision")
        r = self.put_ok("prev", b"new", "prev").json()
        self.assertEqual(("prev", "old", int(mod), 1), tuple(
            r["prev"][k] for k in ("key", "value", "mod_revision", "version")), r)
        fresh = self.put_ok("prev-fresh", b"1", "prev").json()
        self.assertIsNone(fresh.get("prev"), fresh)
        d = self.ok(self.delete(self.kv("prev", "prev")), 200).json()
        self.assertIn("new", json.dumps(d))

    def test_prev_of_a_value_that_is_no_utf8_stands_in_base64(self):
        self.put_ok("prevbin", UNDECODABLE)
        r = self.put_ok("prevbin", b"x", "prev").json()
        self.assertEqual(UNDECODABLE, base64.b64decode(r["prev"]["value_base64"]))

    def test_revision_reads_the_past(self):
        revs = [self.put_ok("past", b"%d" % i).revision for i in range(5)]
        gone = self.delete(self.kv("past")).revision
        for i, rev in enumerate(revs):
            r = self.ok(self.get(self.kv("past", "revision=%d" % rev)), 200)
            self.assertEqual((b"%d" % i, str(rev)), (r.body, r.header("Kv-Mod-Revision")))
        self.assertEqual(404, self.get(self.kv("past", "revision=%d" % gone)).status)
        self.assertEqual(404, self.get(self.kv("past", "revision=%d" % (revs[0] - 1))).status)

    def test_lists_read_the_past_too(self):
        a = self.put_ok("pastlist/a", b"1").revision
        self.put_ok("pastlist/b", b"2")
        self.put_ok("pastlist/a", b"3")
        body = self.list("pastlist/", "revision=%d" % a)
        self.assertEqual([("pastlist/a", "1")], [(p["key"], p["value"]) for p in body["kvs"]])

    def test_history_newest_first(self):
        revs = [self.put_ok("hist", b"%d" % i).revision for i in range(3)]
        gone = self.delete(self.kv("hist")).revision
        again = self.put_ok("hist", b"again").revision
        r = self.ok(self.get(self.kv("hist", "history")), 200)
        text = json.dumps(r.json())
        mods = [int(x) for x in re.findall(r'"mod_revision": (\d+)', text)]
        self.assertEqual([again, gone] + revs[::-1], mods, r)
        self.assertEqual(["again", "2", "1", "0"],
                         [v for v in re.findall(r'"value": "([^"]*)"', text) if v], r)

    def test_reads_by_consistency(self):
        rev = self.put_ok("cons", b"1").revision
        self.assertEqual(b"1", self.get(self.kv("cons", "consistency=linearizable")).body)
        for node in self.cluster.nodes:
            wait_for("%s to have it" % node.name,
                     lambda: node.get(self.kv("cons", "consistency=serializable")).body == b"1")
        self.assertGreaterEqual(self.get(self.kv("cons", "consistency=linearizable")).revision, rev)

    def test_max_stale_reads_locally_or_says_503(self):
        self.put_ok("stale", b"1")
        for node in self.cluster.nodes:
            wait_for("a local read of %s" % node.name,
                     lambda: node.get(self.kv("stale", "max_stale=5s")).body == b"1")

    def test_a_write_is_seen_through_every_other_node_at_once(self):
        for i in range(60):
            self.cluster[i % 3].put(self.kv("ryw"), b"%d" % i)
            for node in self.cluster.nodes:
                self.assertEqual(b"%d" % i, node.get(self.kv("ryw")).body, node.name)


class Conditions(ContractTest):
    def test_if_match_compares_and_swaps(self):
        rev = self.put_ok("cas", b"1").revision
        self.error(self.put(self.kv("cas"), b"x", {"If-Match": '"%d"' % (rev - 1)}), 412,
                   "precondition_failed")
        self.assertEqual(b"1", self.get(self.kv("cas")).body)
        self.ok(self.put(self.kv("cas"), b"2", {"If-Match": '"%d"' % rev}), 200)
        self.error(self.put(self.kv("cas"), b"3", {"If-Match": '"%d"' % rev}), 412,
                   "precondition_failed")
        self.assertEqual(b"2", self.get(self.kv("cas")).body)

    def test_if_match_of_an_absent_key_does_not_hold(self):
        self.error(self.put(self.kv("cas-none"), b"x", {"If-Match": '"5"'}), 412,
                   "precondition_failed")
        self.assertEqual(404, self.get(self.kv("cas-none")).status)

    def test_if_none_match_star_creates_only(self):
        self.assertEqual(201, self.put(self.kv("create"), b"1", {"If-None-Match": "*"}).status)
        self.error(self.put(self.kv("create"), b"2", {"If-None-Match": "*"}), 412,
                   "precondition_failed")
        self.assertEqual(b"1", self.get(self.kv("create")).body)

    def test_preconditions_hold_for_delete(self):
        rev = self.put_ok("cdel", b"1").revision
        self.error(self.delete(self.kv("cdel"), {"If-Match": '"%d"' % (rev + 7)}), 412,
                   "precondition_failed")
        self.error(self.delete(self.kv("cdel"), {"If-None-Match": "*"}), 412, "precondition_failed")
        self.assertEqual(200, self.get(self.kv("cdel")).status)
        self.ok(self.delete(self.kv("cdel"), {"If-Match": '"%d"' % rev}), 200)
        self.assertEqual(404, self.get(self.kv("cdel")).status)

    def test_a_refused_write_changes_no_revision(self):
        rev = self.put_ok("refused", b"1").revision
        for _ in range(5):
            self.put(self.kv("refused"), b"2", {"If-None-Match": "*"})
        self.assertEqual(rev, self.get(self.kv("refused")).revision)

    def test_get_with_the_present_etag_is_304(self):
        self.put_ok("etag", b"1")
        etag = self.get(self.kv("etag")).header("ETag")
        r = self.get(self.kv("etag"), {"If-None-Match": etag})
        self.assertEqual((304, b""), (r.status, r.body))
        self.assertEqual(etag, r.header("ETag"))
        self.put_ok("etag", b"2")
        self.assertEqual(b"2", self.ok(self.get(self.kv("etag"), {"If-None-Match": etag}), 200).body)

    def test_many_create_at_once_and_one_wins(self):
        import threading
        results = []

        def run(i):
            results.append(self.cluster[i % 3].put(self.kv("race"), b"%d" % i,
                                                   {"If-None-Match": "*"}).status)
        threads = [threading.Thread(target=run, args=(i,)) for i in range(24)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        self.assertEqual([201] + [412] * 23, sorted(results))


class Lists(ContractTest):
    def test_a_list_has_the_contracts_members(self):
        self.put_ok("one/a", b"1")
        rev = self.put_ok("one/a", b"2").revision
        body = self.list("one/")
        self.assertEqual([{"key": "one/a", "value": "2", "create_revision": rev - 1,
                           "mod_revision": rev, "version": 2}], body["kvs"])
        self.assertEqual((1, False), (body["count"], body["more"]))
        self.assertGreaterEqual(body["revision"], rev)

    def test_an_empty_list_is_200(self):
        body = self.list("nothing-begins-so/")
        self.assertEqual(([], 0, False), (body["kvs"], body["count"], body["more"]))

    def test_key_order_is_byte_order_and_the_prefix_is_exact(self):
        for k in ["o/b", "o/a", "o/B", "o/a/x", "o/\u00fc", "o/~", "o", "o0", "p"]:
            self.put_ok(k, b"")
        self.assertEqual(["o/B", "o/a", "o/a/x", "o/b", "o/~", "o/\u00fc"], self.keys(self.list("o/")))

    def test_order_desc(self):
        for i in range(5):
            self.put_ok("desc/%d" % i, b"")
        self.assertEqual(["desc/%d" % i for i in (4, 3, 2, 1, 0)],
                         self.keys(self.list("desc/", "order=desc")))
        self.assertEqual(["desc/%d" % i for i in range(5)], self.keys(self.list("desc/", "order=asc")))
        page = self.list("desc/", "order=desc&limit=2")
        self.assertEqual(["desc/4", "desc/3"], self.keys(page))

    def test_pages_by_limit_and_after(self):
        for i in range(25):
            self.put_ok("page/%02d" % i, b"v%d" % i)
        seen, after, pages = [], "", 0
        while True:
            body = self.list("page/", "limit=10" + after)
            seen += self.keys(body)
            pages += 1
            if not body["more"]:
                break
            self.assertEqual(10, len(body["kvs"]))
            after = "&after=" + quote(body["kvs"][-1]["key"])
        self.assertEqual((["page/%02d" % i for i in range(25)], 3), (seen, pages))
        exact = self.list("page/", "limit=25")
        self.assertEqual((25, False), (len(exact["kvs"]), exact["more"]))

    def test_pages_backwards(self):
        for i in range(7):
            self.put_ok("back/%d" % i, b"")
        page = self.list("back/", "order=desc&limit=3&after=" + quote("back/4"))
        self.assertEqual((["back/3", "back/2", "back/1"], True), (self.keys(page), page["more"]))

    def test_keys_leaves_the_values_out(self):
        self.put_ok("ko/a", b"value")
        pair = self.list("ko/", "keys")["kvs"][0]
        self.assertEqual("ko/a", pair["key"])
        self.assertNotIn("value", pair)
        self.assertNotIn("value_base64", pair)

    def test_what_is_no_utf8_stands_in_base64(self):
        self.ok(self.put("/v1/kv/b64/%ff", UNDECODABLE), 201)
        pair = self.list("b64/")["kvs"][0]
        self.assertEqual((b"b64/\xff", UNDECODABLE), (base64.b64decode(pair["key_base64"]),
                                                     base64.b64decode(pair["value_base64"])))
        self.assertFalse({"key", "value"} & set(pair))

    def test_invalid_utf8_of_every_kind_is_seen(self):
        bad = [b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf0\x80\x80\x80",
               b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"a\xff", b"\xc3("]
        good = ["\u00e9", "\u20ac", "\U0001f600", "\ud7ff", "\ue000", "\U0010ffff", "\u0000", "\u007f",
                '"\\/\b\f\n\r\t\x01\x1f', "\u2028"]
        for i, v in enumerate(bad):
            self.put_ok("u8/bad/%02d" % i, v)
        for i, v in enumerate(good):
            self.put_ok("u8/good/%02d" % i, v.encode())
        self.assertEqual(bad, [base64.b64decode(p["value_base64"]) for p in self.list("u8/bad/")["kvs"]])
        self.assertEqual(good, [p["value"] for p in self.list("u8/good/")["kvs"]])

    def test_encoding_base64_forces_it(self):
        self.put_ok("force/a", b"plain")
        pair = self.list("force/", "encoding=base64")["kvs"][0]
        self.assertEqual((b"force/a", b"plain"), (base64.b64decode(pair["key_base64"]),
                                                 base64.b64decode(pair["value_base64"])))
        self.assertFalse({"key", "value"} & set(pair))

    def test_the_lease_stands_in_the_list(self):
        lease = self.grant(60)
        self.put_ok("ll/a", b"1", "lease=" + lease)
        self.assertEqual(lease, self.list("ll/")["kvs"][0]["lease"])

    def test_delete_by_prefix_is_one_revision(self):
        for i in range(30):
            self.put_ok("dp/%d" % i, b"x")
        self.put_ok("dq", b"stays")
        before = self.get(self.kv("dq")).revision
        w = self.cluster[1].watch("dp/", "prefix").wait_established()
        r = self.ok(self.delete(self.kv("dp/", "prefix")), 200)
        self.assertEqual((30, before + 1), (r.json()["deleted"], r.revision))
        events = w.wait_events(30)
        self.assertEqual({r.revision}, {e["mod_revision"] for e in events})
        w.close()
        self.assertEqual(0, self.list("dp/")["count"])
        self.assertEqual(200, self.get(self.kv("dq")).status)

    def test_the_empty_prefix_is_every_key(self):
        self.put_ok("zz-last", b"1")
        r = self.ok(self.get("/v1/kv/?prefix&keys"), 200).json()
        self.assertIn("zz-last", [p.get("key") for p in r["kvs"]])

    def test_a_list_longer_than_any_buffer(self):
        value = b"v" * 1000
        ops = [{"put": {"key": "long/%05d" % i, "value": value.decode()}} for i in range(5000)]
        for i in range(0, len(ops), 100):
            self.txn_ok(then=ops[i:i + 100])
        body = self.list("long/")
        self.assertEqual(5000, body["count"])
        self.assertEqual(["long/%05d" % i for i in range(5000)], self.keys(body))
        self.assertTrue(all(p["value"] == value.decode() for p in body["kvs"]))


class Watches(ContractTest):
    ARGS = ("-http-threads", "2")

    def watch(self, key, query="", headers=None):
        w = self.any().watch(key, query, headers)
        self.assertIsNone(w.error, w.error)
        self.addCleanup(w.close)
        return w.wait_established()

    def test_put_and_delete_arrive_as_the_contract_says(self):
        w = self.watch("w1")
        self.assertTrue(dict(w.headers)["content-type"].startswith("application/x-ndjson"))
        a = self.put_ok("w1", b"1").revision
        d = self.delete(self.kv("w1")).revision
        events = w.wait_events(2)
        self.assertEqual({"type": "put", "key": "w1", "value": "1", "mod_revision": a,
                          "create_revision": a, "version": 1}, events[0])
        self.assertEqual({"type": "delete", "key": "w1", "mod_revision": d}, events[1])

    def test_a_bookmark_comes_first_and_then_every_few_seconds(self):
        w = self.watch("w2")
        first = w.objects()[0]
        self.assertEqual({"type", "revision"}, set(first))
        self.assertEqual("bookmark", first["type"])
        rev = self.put_ok("unwatched", b"1").revision
        w.wait("a bookmark at or after revision %d" % rev,
               lambda xs: any(x["type"] == "bookmark" and x["revision"] >= rev for x in xs), 15)

    def test_only_the_watched_key(self):
        w = self.watch("w3")
        for k in ("w3/x", "w", "w30", "w3"):
            self.put_ok(k, b"")
        self.assertEqual(["w3"], [e["key"] for e in w.wait_events(1)])

    def test_prefix(self):
        w = self.watch("w4/", "prefix")
        for k in ("w4/a", "w4", "w40", "w4/b", "w5"):
            self.put_ok(k, b"")
        self.put_ok("w4/end", b"")
        self.assertEqual(["w4/a", "w4/b", "w4/end"], [e["key"] for e in w.wait_events(3)])

    def test_from_a_past_revision_on(self):
        revs = [self.put_ok("w5from", b"%d" % i).revision for i in range(20)]
        for node in self.cluster.nodes:
            w = node.watch("w5from", "from=%d" % revs[5])
            self.addCleanup(w.close)
            self.assertEqual([(r, str(i)) for i, r in enumerate(revs)][5:],
                             [(e["mod_revision"], e["value"]) for e in w.wait_events(15)])
            last = self.put_ok("w5from", b"live").revision
            self.assertEqual(last, w.wait_events(16)[15]["mod_revision"])
            revs.append(last)
            self.delete(self.kv("w5from"))
            self.put_ok("w5from", b"x")
            revs = [self.put_ok("w5from", b"%d" % i).revision for i in range(20)]

    def test_from_the_future_waits_for_it(self):
        now_rev = self.put_ok("w6", b"0").revision
        w = self.any().watch("w6", "from=%d" % (now_rev + 3))
        self.addCleanup(w.close)
        self.assertIsNone(w.error)
        revs = [self.put_ok("w6", b"%d" % i).revision for i in range(1, 6)]
        self.assertEqual(revs[2:], [e["mod_revision"] for e in w.wait_events(3)])

    def test_prev_stands_in_the_events(self):
        old = self.put_ok("w7", b"old").revision
        # The node that watches may not have applied it yet: "from now on" would show it.
        w = self.watch("w7", "prev&from=%d" % (old + 1))
        self.put_ok("w7", b"new")
        self.delete(self.kv("w7"))
        put, delete = w.wait_events(2)
        self.assertEqual(("old", 1), (put["prev"]["value"], put["prev"]["version"]), put)
        self.assertEqual(("new", 2), (delete["prev"]["value"], delete["prev"]["version"]), delete)

    def test_filters(self):
        p, d = self.watch("w8", "put"), self.watch("w8", "delete")
        for i in range(3):
            self.put_ok("w8", b"%d" % i)
            self.delete(self.kv("w8"))
        self.put_ok("w8", b"end")
        self.assertEqual(["put"] * 4, [e["type"] for e in p.wait_events(4)])
        self.assertEqual(["delete"] * 3, [e["type"] for e in d.wait_events(3)])

    def test_binary_keys_and_values(self):
        w = self.watch("w9", "prefix")
        self.ok(self.put("/v1/kv/w9%ff", UNDECODABLE))
        e = w.wait_events(1)[0]
        self.assertEqual((b"w9\xff", UNDECODABLE), (base64.b64decode(e["key_base64"]),
                                                   base64.b64decode(e["value_base64"])))

    def test_the_events_of_one_revision_come_together_and_in_order(self):
        w = self.watch("w10/", "prefix")
        r = self.txn_ok(then=[{"put": {"key": "w10/%d" % i, "value": "x"}} for i in range(50)])
        events = w.wait_events(50)
        self.assertEqual({r["revision"]}, {e["mod_revision"] for e in events})
        self.assertEqual(["w10/%d" % i for i in range(50)], [e["key"] for e in events])

    def test_server_sent_events(self):
        w = self.any().watch("w11", "", {"Accept": "text/event-stream"})
        self.addCleanup(w.close)
        self.assertTrue(w.sse, w.headers)
        wait_for("something to come", lambda: w.items)
        a = self.put_ok("w11", b"1").revision
        b = self.put_ok("w11", b"2").revision
        events = w.wait_events(2)
        self.assertEqual([(str(a), "1"), (str(b), "2")],
                         [(e["sse"].get("id"), e["value"]) for e in events])
        c = self.put_ok("w11", b"3").revision
        again = self.any().watch("w11", "", {"Accept": "text/event-stream", "Last-Event-ID": str(a)})
        self.addCleanup(again.close)
        self.assertEqual([b, c], [e["mod_revision"] for e in again.wait_events(2)])

    def test_long_poll_gives_the_first_revisions_events_and_ends(self):
        import threading
        answers = []
        node = self.any()
        before = self.put_ok("w12", b"0").revision
        t = threading.Thread(target=lambda: answers.append(
            node.get("/v1/watch/w12?once&timeout=30s&from=%d" % (before + 1))))
        t.start()
        rev = self.txn_ok(then=[{"put": {"key": "w12", "value": "1"}}])["revision"]
        self.put_ok("w12", b"2")
        t.join(bound(20))
        self.assertEqual(1, len(answers))
        self.assertEqual(200, answers[0].status)
        lines = [json.loads(x) for x in answers[0].body.decode().split("\n") if x]
        events = [x for x in lines if x["type"] == "put"]
        self.assertEqual([rev], [e["mod_revision"] for e in events], answers)

    def test_long_poll_ends_when_nothing_happens(self):
        began = now()
        r = self.get("/v1/watch/w13?once&timeout=300ms")
        took = now() - began
        self.assertIn(r.status, (200, 204), r)
        self.assertFalse([x for x in r.body.decode().split("\n") if '"put"' in x])
        self.assertGreater(took, 0.25)
        self.assertLess(took, bound(5))

    def test_many_watchers_see_the_same(self):
        ws = [self.watch("w14/", "prefix") for _ in range(60)]
        revs = [self.put_ok("w14/%d" % (i % 7), b"%d" % i).revision for i in range(100)]
        for w in ws:
            self.assertEqual(revs, [e["mod_revision"] for e in w.wait_events(100, 20)])
            for w2 in w.objects("bookmark"):
                self.assertIsInstance(w2["revision"], int)

    def test_a_bookmark_never_overtakes_an_event(self):
        w = self.watch("w15", "")
        for i in range(200):
            self.put_ok("w15", b"%d" % i)
        w.wait_events(200)
        at = 0
        for x in w.objects():
            rev = x.get("revision", x.get("mod_revision"))
            self.assertTrue(rev > at if x["type"] != "bookmark" else rev >= at, x)
            at = max(at, rev)

    def test_a_slow_watcher_delays_nobody_and_misses_nothing(self):
        slow = Connection(self.cluster[2].host, self.cluster[2].http_port)
        self.addCleanup(slow.close)
        slow.send(encode_request("GET", "/v1/watch/w16?prefix"))
        slow.read_head()
        self.assertIn(b"bookmark", slow.read_chunk())
        fast = self.cluster[2].watch("w16", "prefix").wait_established()
        self.addCleanup(fast.close)
        value = b"x" * 60000
        revs = [self.put_ok("w16/%d" % i, value).revision for i in range(200)]  # 12 MB unread
        self.assertEqual(revs, [e["mod_revision"] for e in fast.wait_events(200, 20)])
        got, text = [], b""
        while len(got) < 200:
            text += slow.read_chunk()
            *lines, text = text.split(b"\n")
            got += [e["mod_revision"] for e in map(json.loads, lines) if e["type"] == "put"]
        self.assertEqual(revs, got)


class Transactions(ContractTest):
    def test_then_and_else(self):
        a = self.txn_ok(**{"if": [{"key": "t1", "version": 0}],
                           "then": [{"put": {"key": "t1", "value": "1"}}],
                           "else": [{"get": {"key": "t1"}}]})
        self.assertTrue(a["succeeded"])
        b = self.txn_ok(**{"if": [{"key": "t1", "version": 0}],
                           "then": [{"put": {"key": "t1", "value": "2"}}],
                           "else": [{"get": {"key": "t1"}}]})
        self.assertFalse(b["succeeded"])
        self.assertIn('"value": "1"', json.dumps(b["results"]))
        self.assertEqual(b"1", self.get(self.kv("t1")).body)

    def test_everything_in_one_revision(self):
        self.put_ok("t2/d1", b"x")
        self.put_ok("t2/d2", b"x")
        before = self.put_ok("t2/x", b"x").revision
        r = self.txn_ok(then=[{"put": {"key": "t2/a", "value": "1"}}, {"put": {"key": "t2/b", "value": "2"}},
                              {"delete": {"key": "t2/d", "prefix": True}}, {"get": {"key": "t2/a"}}])
        self.assertEqual(before + 1, r["revision"])
        self.assertEqual(4, len(r["results"]))
        self.assertEqual(['"%d"' % r["revision"]] * 2,
                         [self.get(self.kv(k)).header("ETag") for k in ("t2/a", "t2/b")])
        self.assertEqual(0, self.list("t2/d")["count"])
        self.assertIn('"value": "1"', json.dumps(r["results"][3]))

    def test_every_target_with_every_operator(self):
        lease = self.grant(60)
        self.put_ok("t3", b"0")
        rev = self.put_ok("t3", b"m", "lease=" + lease).revision
        state = {"version": 2, "create_revision": rev - 1, "mod_revision": rev}
        cases = [(t, v + d, d) for t, v in state.items() for d in (-1, 0, 1)]
        cases += [("value", v, d) for v, d in (("l", -1), ("m", 0), ("n", 1))]
        for target, operand, d in cases:
            # d < 0: the operand is smaller than what is there
            for op, holds in (("eq", d == 0), ("ne", d != 0), ("lt", d > 0), ("gt", d < 0)):
                r = self.txn_ok(**{"if": [{"key": "t3", target: {op: operand}}]})
                self.assertEqual(holds, r["succeeded"], (target, op, operand))
            r = self.txn_ok(**{"if": [{"key": "t3", target: operand}]})
            self.assertEqual(d == 0, r["succeeded"], (target, "default", operand))
        self.assertTrue(self.txn_ok(**{"if": [{"key": "t3", "lease": lease}]})["succeeded"])
        self.assertTrue(self.txn_ok(**{"if": [{"key": "t3", "lease": {"eq": lease}}]})["succeeded"])
        self.assertFalse(self.txn_ok(**{"if": [{"key": "t3", "lease": {"ne": lease}}]})["succeeded"])

    def test_all_compares_must_hold(self):
        self.put_ok("t4", b"1")
        both = [{"key": "t4", "value": "1"}, {"key": "t4-none", "version": 0}]
        self.assertTrue(self.txn_ok(**{"if": both})["succeeded"])
        self.assertFalse(self.txn_ok(**{"if": both + [{"key": "t4", "version": {"gt": 1}}]})["succeeded"])
        self.assertTrue(self.txn_ok(**{"if": []})["succeeded"])

    def test_an_absent_key_has_zeros_and_no_value(self):
        for target in ("version", "create_revision", "mod_revision"):
            self.assertTrue(self.txn_ok(**{"if": [{"key": "t5", target: 0}]})["succeeded"], target)
        for op in ("eq", "ne", "lt", "gt"):
            self.assertFalse(self.txn_ok(**{"if": [{"key": "t5", "value": {op: "x"}}]})["succeeded"], op)

    def test_nested_transactions(self):
        self.put_ok("t6", b"1")
        inner = {"if": [{"key": "t6", "value": "1"}], "then": [{"put": {"key": "t6/in", "value": "then"}}],
                 "else": [{"put": {"key": "t6/in", "value": "else"}}]}
        r = self.txn_ok(then=[{"put": {"key": "t6/out", "value": "o"}}, {"txn": inner}])
        self.assertEqual(b"then", self.get(self.kv("t6/in")).body)
        self.assertEqual(['"%d"' % r["revision"]] * 2,
                         [self.get(self.kv(k)).header("ETag") for k in ("t6/in", "t6/out")])
        inner["if"][0]["value"] = "2"
        self.txn_ok(then=[{"txn": inner}])
        self.assertEqual(b"else", self.get(self.kv("t6/in")).body)

    def test_a_get_sees_what_stands_before_it(self):
        self.put_ok("t7", b"before")
        r = self.txn_ok(then=[{"get": {"key": "t7"}}, {"put": {"key": "t7", "value": "after"}},
                              {"get": {"key": "t7"}}])
        self.assertIn("before", json.dumps(r["results"][0]))
        self.assertIn("after", json.dumps(r["results"][2]))

    def test_leases_in_transactions(self):
        lease = self.grant(60)
        self.txn_ok(then=[{"put": {"key": "t8", "value": "1", "lease": lease}}])
        self.assertEqual(lease, self.get(self.kv("t8")).header("Kv-Lease"))

    def test_binary_members(self):
        self.txn_ok(then=[{"put": {"key_base64": base64.b64encode(b"t9\xff").decode(),
                                   "value_base64": base64.b64encode(UNDECODABLE).decode()}}])
        self.assertEqual(UNDECODABLE, self.get("/v1/kv/t9%ff").body)
        r = self.txn_ok(**{"if": [{"key_base64": base64.b64encode(b"t9\xff").decode(),
                                   "value_base64": base64.b64encode(UNDECODABLE).decode()}],
                           "then": [{"get": {"key_base64": base64.b64encode(b"t9\xff").decode()}}]})
        self.assertTrue(r["succeeded"])
        self.assertIn(base64.b64encode(UNDECODABLE).decode(), json.dumps(r["results"]))

    def test_a_transaction_that_only_reads_takes_no_revision(self):
        rev = self.put_ok("t10", b"1").revision
        r = self.txn_ok(then=[{"get": {"key": "t10"}}])
        self.assertEqual(rev, r["revision"])
        self.assertEqual(rev, self.get(self.kv("t10")).revision)

    def test_counters_lose_nothing_under_contention(self):
        import threading
        self.put_ok("t11", b"0")

        def run(node):
            done = 0
            while done < 15:
                n = int(node.get(self.kv("t11")).body)
                r = node.post("/v1/txn", {"if": [{"key": "t11", "value": str(n)}],
                                          "then": [{"put": {"key": "t11", "value": str(n + 1)}}]})
                done += r.json()["succeeded"]
        threads = [threading.Thread(target=run, args=(node,)) for node in self.cluster.nodes] * 1
        [t.start() for t in threads]
        [t.join(bound(60)) for t in threads]
        self.assertEqual(b"45", self.get(self.kv("t11")).body)
        self.assertEqual("46", self.get(self.kv("t11")).header("Kv-Version"))


class Leases(ContractTest):
    def lease(self, lease):
        return self.get("/v1/lease/" + lease)

    def test_grant_keepalive_get_list_and_end(self):
        lease = self.grant(30)
        self.assertEqual(30, self.ok(self.post("/v1/lease/%s/keepalive" % lease, b""), 200).json()["ttl"])
        self.put_ok("l1/a", b"1", "lease=" + lease)
        self.put_ok("l1/b", b"1", "lease=" + lease)
        info = self.ok(self.lease(lease), 200).json()
        self.assertEqual((lease, 30), (info["id"], info["ttl"]), info)
        text = json.dumps(info)
        self.assertTrue("l1/a" in text and "l1/b" in text, text)
        self.assertIn(lease, self.ok(self.get("/v1/lease"), 200).body.decode())
        self.ok(self.delete("/v1/lease/" + lease), 200)
        self.error(self.lease(lease), 404, "not_found")
        self.error(self.delete("/v1/lease/" + lease), 404, "not_found")
        self.error(self.post("/v1/lease/%s/keepalive" % lease, b""), 404, "not_found")
        self.assertEqual(0, self.list("l1/")["count"])
        self.assertNotIn(lease, self.get("/v1/lease").body.decode())

    def test_the_end_of_a_lease_is_one_revision(self):
        lease = self.grant(60)
        for i in range(20):
            self.put_ok("l2/%d" % i, b"1", "lease=" + lease)
        w = self.cluster[2].watch("l2/", "prefix").wait_established()
        self.ok(self.delete("/v1/lease/" + lease), 200)
        events = w.wait_events(20)
        w.close()
        self.assertEqual({"delete"}, {e["type"] for e in events})
        self.assertEqual(1, len({e["mod_revision"] for e in events}), events)

    def test_a_lease_ends_by_itself_not_before_its_time(self):
        w = self.cluster[1].watch("l3/", "prefix").wait_established()
        lease = self.grant(2)
        self.put_ok("l3/a", b"1", "lease=" + lease)
        self.put_ok("l3/b", b"1", "lease=" + lease)
        asked = now()  # the last moment of which we know that the lease still had its whole time
        self.ok(self.post("/v1/lease/%s/keepalive" % lease, b""), 200)
        w.wait_events(4, 12)
        t, first = next(x for x in w.items if x[1]["type"] == "delete")
        lived = t - asked
        w.close()
        deletes = w.objects("delete")
        self.assertEqual(1, len({e["mod_revision"] for e in deletes}), deletes)
        self.assertGreaterEqual(lived, 1.95, "ended too early")
        self.assertLess(lived, 2 + bound(2))
        self.error(self.lease(lease), 404, "not_found")

    def test_keepalives_through_any_node_keep_it_alive(self):
        lease = self.grant(2)
        self.put_ok("l4", b"1", "lease=" + lease)
        end = now() + 5
        while now() < end:
            self.ok(self.post("/v1/lease/%s/keepalive" % lease, b""), 200)
            self.assertEqual(200, self.get(self.kv("l4")).status)
            time.sleep(0.3)
        self.ok(self.delete("/v1/lease/" + lease), 200)

    def test_put_with_a_lease_moves_and_removes_it(self):
        one, two = self.grant(60), self.grant(60)
        self.put_ok("l5", b"1", "lease=" + one)
        self.assertEqual(one, self.get(self.kv("l5")).header("Kv-Lease"))
        self.put_ok("l5", b"2", "lease=" + two)
        self.ok(self.delete("/v1/lease/" + one), 200)
        self.assertEqual(b"2", self.get(self.kv("l5")).body)
        self.put_ok("l5", b"3")
        self.ok(self.delete("/v1/lease/" + two), 200)
        r = self.ok(self.get(self.kv("l5")), 200)
        self.assertEqual((b"3", None), (r.body, r.header("Kv-Lease")))

    def test_put_with_a_ttl_of_its_own(self):
        w = self.any().watch("l6").wait_established()
        r = self.put_ok("l6", b"1", "ttl=2")
        asked = now()
        self.assertIsNotNone(r.header("Kv-Lease"), r)
        g = self.get(self.kv("l6"))
        self.assertEqual((b"1", r.header("Kv-Lease")), (g.body, g.header("Kv-Lease")))
        w.wait_events(2, 12)
        t, event = w.items[-1]
        w.close()
        self.assertEqual("delete", w.events()[1]["type"])
        lived = next(t for t, x in w.items if x["type"] == "delete") - asked
        self.assertGreater(lived, 1.8)
        self.assertLess(lived, 2 + bound(2))

    def test_an_unknown_lease_refuses_the_put(self):
        before = self.get(self.kv("l7")).revision
        r = self.put(self.kv("l7", "lease=7777777"), b"1")
        self.error(r, 404, "not_found")
        self.assertEqual(404, self.get(self.kv("l7")).status)
        self.assertEqual(before, self.get(self.kv("l7")).revision)


class Operation(ContractTest):
    def test_cluster_tells_members_roles_leader_and_term(self):
        leader = self.cluster.leader()
        for node in self.cluster.nodes:
            body = self.ok(node.get("/v1/cluster"), 200).json()
            text = json.dumps(body)
            self.assertGreaterEqual(body["term"], 1)
            self.assertEqual(leader.name, body["leader"], body)
            self.assertEqual({"n1", "n2", "n3"}, {m["id"] for m in body["members"]}, body)
            roles = {m["id"]: m["role"] for m in body["members"]}
            self.assertEqual({"leader": 1, "follower": 2},
                             {r: list(roles.values()).count(r) for r in set(roles.values())}, body)
            self.assertEqual("leader", roles[leader.name])
            for member in self.cluster.nodes:
                self.assertIn(member.raft, text)

    def test_leadership_is_handed_over_from_any_node(self):
        for i in range(4):
            leader = self.cluster.leader()
            target = next(x for x in self.cluster.nodes if x is not leader)
            asked = self.cluster[i % 3]
            self.ok(asked.post("/v1/cluster/leader", {"id": target.name}), 200)
            self.assertIs(target, self.cluster.leader())
            self.ok(self.put(self.kv("moved"), b"%d" % i))

    def test_handing_over_to_an_unknown_member_is_404(self):
        self.error(self.post("/v1/cluster/leader", {"id": "nobody"}), 404, "not_found")

    def test_compaction_forgets_the_past_and_only_that(self):
        revs = [self.put_ok("cmp", b"%d" % i).revision for i in range(10)]
        self.put_ok("cmp-other", b"stays")
        self.ok(self.post("/v1/compact", {"revision": revs[5]}), 200)
        for node in self.cluster.nodes:
            wait_for("%s to have compacted" % node.name, lambda: node.get(
                self.kv("cmp", "revision=%d&consistency=serializable" % revs[4])).status == 410)
        r = self.get(self.kv("cmp", "revision=%d" % revs[4]))
        self.error(r, 410, "compacted")
        self.assertEqual(410, self.get(self.kv("cmp", "prefix&revision=%d" % revs[2])).status)
        self.assertEqual(b"5", self.get(self.kv("cmp", "revision=%d" % revs[5])).body)
        self.assertEqual(b"9", self.get(self.kv("cmp")).body)
        self.assertEqual(b"stays", self.get(self.kv("cmp-other")).body)
        self.error(self.post("/v1/compact", {"revision": revs[4]}), 410, "compacted")
        w = self.any().watch("cmp", "from=%d" % revs[2])
        self.assertIsNotNone(w.error)
        self.assertEqual(410, w.error.status)
        self.assertIn('"oldest_revision":', w.error.body.decode().replace(" ", ""))
        oldest = int(re.search(r'"oldest_revision":\s*(\d+)', w.error.body.decode()).group(1))
        again = self.any().watch("cmp", "from=%d" % oldest)
        self.assertIsNone(again.error, again.error)
        again.wait_events(4)
        again.close()
        self.assertEqual(revs[-1], again.events()[-1]["mod_revision"])

    def test_health(self):
        leader = self.cluster.leader()
        for node in self.cluster.nodes:
            r = self.ok(node.get("/health"), 200)
            h = r.json()
            self.assertEqual((True, True, node.name, leader.name),
                             (h["ok"], h["db_rw"], h["id"], h["leader"]), h)
            self.assertEqual("leader" if node is leader else "follower", h["role"])
            for member in ("term", "applied_lag", "uptime_s"):
                self.assertIsInstance(h[member], (int, float), h)
            self.assertIn("backup_age_hours", h)

    def test_probes_and_version(self):
        for target in ("/livez", "/readyz"):
            for node in self.cluster.nodes:
                self.ok(node.get(target), 200)
        v = self.ok(self.get("/version"), 200)
        self.assertRegex(v.body.decode(), r"\d+\.\d+\.\d+")
        self.assertIsInstance(v.json(), dict)

    def test_metrics_are_prometheus_text_with_the_names_that_dashboards_know(self):
        name = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
        label = name + r'="(?:[^"\\\n]|\\.)*"'
        sample = re.compile(r"^%s(\{%s(,%s)*,?\})? (NaN|[+-]?(Inf|[0-9.]+([eE][+-]?\d+)?))$"
                            % (name, label, label))
        comment = re.compile(r"^# (HELP %s .*|TYPE %s (counter|gauge|histogram|summary|untyped))$"
                             % (name, name))
        for node in self.cluster.nodes:
            r = self.ok(node.get("/metrics"), 200)
            self.assertTrue(r.header("Content-Type").startswith("text/plain"), r.headers)
            text = r.body.decode()
            for line in text.rstrip("\n").split("\n"):
                self.assertTrue(sample.match(line) or comment.match(line), line)
            for metric in ("etcd_server_has_leader", "etcd_server_is_leader",
                           "etcd_server_leader_changes_seen_total",
                           "etcd_disk_wal_fsync_duration_seconds_count",
                           "process_resident_memory_bytes"):
                self.assertIsNotNone(node.metric(metric), metric)
            self.assertEqual(1, node.metric("etcd_server_has_leader"))
        self.assertEqual(1, sum(n.metric("etcd_server_is_leader") for n in self.cluster.nodes))


    def test_every_answer_carries_the_stores_revision(self):
        rev = self.put_ok("rev-everywhere", b"1").revision
        lease = self.grant(60)
        answers = [self.get(t) for t in (
            self.kv("rev-everywhere"), self.kv("rev-none"), self.kv("rev", "prefix"), "/v1/cluster",
            "/health", "/livez", "/readyz", "/version", "/metrics", "/v1/lease", "/v1/lease/" + lease,
            "/status", "/key/rev-everywhere", "/nowhere", "/v1/kv/%zz", self.kv("x", "history"))]
        answers += [self.post("/v1/lease/%s/keepalive" % lease, b""), self.post("/v1/txn", {"then": []}),
                    self.post("/v1/txn", b"{"), self.request("PATCH", "/v1/kv/x"),
                    self.request("OPTIONS", "/v1/kv/x"), self.delete("/v1/lease/" + lease)]
        for a in answers:
            self.assertGreater(a.revision, 0, a)
        self.assertEqual(rev, self.get(self.kv("rev-everywhere")).revision)


class Cors(ContractTest):
    NODES = 1
    ARGS = ("-cors", "https://app.example")

    def test_a_browser_is_let_in_by_flag(self):
        self.put_ok("cors", b"1")
        r = self.get(self.kv("cors"), {"Origin": "https://app.example"})
        self.assertEqual("https://app.example", r.header("Access-Control-Allow-Origin"))
        exposed = r.header("Access-Control-Expose-Headers", "").lower()
        for name in ("etag", "kv-revision", "kv-version", "kv-lease"):
            self.assertIn(name, exposed)
        self.assertEqual("https://app.example", self.get(self.kv("cors-none")).header(
            "Access-Control-Allow-Origin"), "errors must be readable too")

    def test_the_browsers_question_before_a_put_is_answered(self):
        r = self.request("OPTIONS", self.kv("cors"), None, {
            "Origin": "https://app.example", "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "if-match, content-type"})
        self.assertIn(r.status, (200, 204))
        self.assertEqual("https://app.example", r.header("Access-Control-Allow-Origin"))
        self.assertIn("PUT", r.header("Access-Control-Allow-Methods", ""))
        allowed = r.header("Access-Control-Allow-Headers", "").lower()
        for name in ("if-match", "if-none-match", "content-type"):
            self.assertIn(name, allowed)


class Hraftd(ContractTest):
    def test_without_the_flag_no_origin_is_let_in(self):
        r = self.get("/version", {"Origin": "https://evil.example"})
        self.assertIsNone(r.header("Access-Control-Allow-Origin"))
        r = self.request("OPTIONS", "/v1/kv/x", None, {"Origin": "https://evil.example"})
        self.assertIsNone(r.header("Access-Control-Allow-Origin"))
        self.assertIn("PUT", r.header("Allow", ""), r)

    def test_key(self):
        self.ok(self.post("/key", {"hk": "hv"}), 200)
        r = self.ok(self.get("/key/hk"), 200)
        self.assertEqual({"hk": "hv"}, r.json())
        self.assertEqual(b"hv", self.get(self.kv("hk")).body)

    def test_a_missing_key_is_empty(self):
        self.assertEqual({"hmiss": ""}, self.ok(self.get("/key/hmiss"), 200).json())

    def test_delete_of_a_missing_key_is_200(self):
        self.ok(self.request("DELETE", "/key/hmiss"), 200)
        self.post("/key", {"hdel": "1"})
        self.ok(self.request("DELETE", "/key/hdel"), 200)
        self.assertEqual({"hdel": ""}, self.get("/key/hdel").json())

    def test_all_pairs_in_one_revision(self):
        self.ok(self.post("/key", {"hp1": "a", "hp2": "b", "hp3": "c"}), 200)
        self.assertEqual(1, len({self.get(self.kv("hp%d" % i)).header("ETag") for i in (1, 2, 3)}))

    def test_strings_only(self):
        before = self.get(self.kv("hs")).revision
        for bad in ({"hs": 1}, {"hs": None}, {"hs": ["x"]}, {"hs": {}}, {"hs2": "x", "hs": True}, [], "x"):
            self.assertEqual(400, self.post("/key", bad).status, bad)
        self.assertEqual(before, self.get(self.kv("hs")).revision)

    def test_status(self):
        leader = self.cluster.leader()
        for node in self.cluster.nodes:
            s = self.ok(node.get("/status"), 200).json()
            self.assertEqual({"me", "leader", "followers"}, set(s), s)
            self.assertEqual((node.name, leader.name), (s["me"]["id"], s["leader"]["id"]), s)
            self.assertEqual({x.name for x in self.cluster.nodes if x is not leader},
                             {f["id"] for f in s["followers"]}, s)
            for who in [s["me"], s["leader"]] + s["followers"]:
                self.assertEqual({"id", "address"}, set(who), s)


class Transport(ContractTest):
    """HTTP/1.1 itself."""

    def test_keep_alive_serves_many_requests(self):
        with self.any().connect() as c:
            for i in range(200):
                self.ok(c.request("PUT", self.kv("ka"), b"%d" % i))
                self.assertEqual(b"%d" % i, c.request("GET", self.kv("ka")).body)

    def test_pipelined_requests_are_answered_in_order(self):
        for node in self.cluster.nodes:
            with node.connect() as c:
                n = 50
                c.send(b"".join(encode_request("PUT", self.kv("pipe/%d" % i), b"%d" % i)
                                + encode_request("GET", self.kv("pipe/%d" % i)) for i in range(n)))
                for i in range(n):
                    self.ok(c.read_response("PUT"))
                    self.assertEqual(b"%d" % i, self.ok(c.read_response("GET"), 200).body)

    def test_pipelined_reads_and_errors_keep_their_order(self):
        self.put_ok("po", b"here")
        with self.any().connect() as c:
            c.send(b"".join(encode_request("GET", t) for t in
                            (self.kv("po"), self.kv("po-none"), "/version", "/nowhere", self.kv("po"))))
            self.assertEqual([200, 404, 200, 404, 200], [c.read_response().status for _ in range(5)])

    def test_chunked_bodies(self):
        with self.any().connect() as c:
            c.send(b"PUT /v1/kv/chunk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for part in (b"hello ", b"chunked ", b"world"):
                c.send(b"%x\r\n%s\r\n" % (len(part), part))
            c.send(b"0\r\n\r\n")
            self.ok(c.read_response("PUT"))
            self.assertEqual(b"hello chunked world", c.request("GET", self.kv("chunk")).body)

    def test_expect_100_continue(self):
        with self.any().connect() as c:
            c.send(b"PUT /v1/kv/expect HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
                   b"Expect: 100-continue\r\n\r\n")
            status, _ = c.read_head()
            self.assertEqual(100, status)
            c.send(b"hello")
            self.ok(c.read_response("PUT"))
            self.assertEqual(b"hello", c.request("GET", self.kv("expect")).body)

    def test_connection_close_closes(self):
        with self.any().connect() as c:
            c.send(encode_request("GET", "/version", None, {"Connection": "close"}))
            self.assertIn(b"200", c.read_rest().split(b"\r\n")[0])

    def test_http_1_0(self):
        with self.any().connect() as c:
            c.send(b"GET /version HTTP/1.0\r\n\r\n")
            self.assertIn(b" 200 ", c.read_rest().split(b"\r\n")[0] + b" ")

    def test_curl_does_what_the_contract_shows(self):
        import subprocess
        url = "http://" + self.any().http

        def curl(*args):
            return subprocess.run(["curl", "-sS", "--max-time", "10"] + list(args), check=True,
                                  stdout=subprocess.PIPE).stdout
        curl("-X", "PUT", "--data-binary", "by curl", url + "/v1/kv/curl")
        self.assertEqual(b"by curl", curl(url + "/v1/kv/curl"))
        curl("-T", os.path.abspath(__file__), url + "/v1/kv/curl-file")
        with open(__file__, "rb") as f:
            self.assertEqual(f.read(), curl(url + "/v1/kv/curl-file"))
        self.assertEqual(1, json.loads(curl("-X", "DELETE", url + "/v1/kv/curl"))["deleted"])


if __name__ == "__main__":
    main()
