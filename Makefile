# kvraftd: plain make. `make help` lists what there is.
#
#   make                      bin/kvraftd (and what else stands in PROGRAMS)
#   make FLAVOUR=asan all     the same with sanitizers, under build/asan/
#   make test                 builds and runs every test
#   make cluster              a running 3-node cluster from a fresh clone
#
# Sources are listed by hand, a list a room. V=1 shows the commands.

.DEFAULT_GOAL := all
.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:

VERSION  := 0.1.0
PREFIX   ?= /usr/local
DESTDIR  ?=
CC       ?= cc
FLAVOUR  ?= release
NODES    ?= 3
B        := build/$(FLAVOUR)
Q        := $(if $(V),,@)

# --- Flavours: ours apart from the user's CFLAGS and LDFLAGS --------------------------------------
release_FLAGS := -O2 -g -fstack-protector-strong -D_FORTIFY_SOURCE=2
debug_FLAGS   := -O0 -g
clang_FLAGS   := -O2 -g
asan_FLAGS    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
tsan_FLAGS    := -O1 -g -fsanitize=thread -fno-omit-frame-pointer
fuzz_FLAGS    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
ifneq ($(filter clang fuzz,$(FLAVOUR)),)
CC := clang
endif

GIT_DESCRIBE := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
OUR_CFLAGS = -std=gnu11 -D_GNU_SOURCE -DH2O_USE_LIBUV=0 -I. -Ibuild/gen -MMD -MP -pthread -fPIC \
             -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
             -Wno-format-zero-length $($(FLAVOUR)_FLAGS)
OUR_LDFLAGS = -pthread $($(FLAVOUR)_FLAGS) -Wl,-z,relro,-z,now

# --- Sources ---------------------------------------------------------------------------------------
BASE_SRC   := base/arena.c base/base.c base/blob.c base/buf.c base/clock.c base/crc32c.c base/log.c \
              base/loop.c base/mailbox.c base/rand.c base/vfs.c base/vfs_posix.c
# The pure core: no clock, no I/O, no thread (tests/unit/core_is_pure.sh looks at its symbols).
CORE_SRC   := raft/check.c raft/config.c raft/core.c raft/election.c raft/entry.c raft/log.c \
              raft/message.c raft/read.c raft/ready.c raft/replicate.c
WAL_SRC    := raft/wal.c raft/wal_format.c raft/wal_map.c raft/wal_read.c raft/wal_recover.c \
              raft/wal_scan.c raft/wal_writer.c
PEER_SRC   := raft/peer_accept.c raft/peer_address.c raft/peer_dial.c raft/peer_frame.c \
              raft/peer_sendq.c raft/peer_tcp.c
RAFT_SRC   := $(CORE_SRC) $(WAL_SRC) $(PEER_SRC)
KV_PROTO   := kv/kv.proto kv/rpc.proto kv/command.proto
KV_SRC     := kv/apply.c kv/chain.c kv/change.c kv/check.c kv/compact.c kv/engine_leveldb.c \
              kv/hash.c kv/ldb_format.c kv/ldb_maps.c kv/ldb_recover.c kv/lease.c kv/op.c kv/overlay.c kv/read.c \
              kv/record.c kv/session.c kv/store.c kv/txn.c kv/types.c kv/watch.c kv/watch_hub.c \
              kv/watch_index.c kv/wire.c
SERVER_SRC := server/apply_loop.c server/face.c server/flags.c server/forward.c server/identity.c \
              server/metrics.c server/node.c server/proposals.c server/raft_loop.c server/replica.c \
              server/upkeep.c
HTTP_SRC   := http/cluster_rest.c http/hraftd.c http/json_in.c http/json_out.c http/kv_rest.c \
              http/lease_rest.c http/listen.c http/metrics.c http/ops.c http/query.c http/refuse.c \
              http/request.c http/route.c http/server.c http/txn_json.c http/txn_rest.c \
              http/watch_rest.c

GEN_SRC    := $(KV_PROTO:%.proto=build/gen/%.pb-c.c)
GEN_HDR    := $(GEN_SRC:.c=.h)

UNIT_TESTS := test_base test_peer_frame test_peer_tcp test_kv_engine test_ldb_recover \
              test_raft_codec test_raft_core test_raft_log test_raft_random test_raft_transcripts \
              test_vfs test_wal test_wal_format test_wal_crash
UNIT_TESTS += test_kv_store test_kv_model test_kv_session test_kv_watch
UNIT_TESTS += test_http_query test_http_json test_http_server
UNIT_TESTS += test_node

LIBS_BASE  :=
LIBS_KV    := -lleveldb -lprotobuf-c -lxxhash
LIBS_HTTP  := $(shell pkg-config --libs libh2o-evloop openssl jansson 2>/dev/null) -lz

obj = $(patsubst build/gen/%.c,$(B)/gen/%.o,$(patsubst %.c,$(B)/%.o,$(1)))

# --- Programs ---------------------------------------------------------------------------------------
PROGRAMS := bin/kvraftd

.PHONY: all
all: $(PROGRAMS)

ALL_OBJ = $(call obj,$(BASE_SRC) $(RAFT_SRC) $(KV_SRC) $(GEN_SRC) $(SERVER_SRC) $(HTTP_SRC))

bin/kvraftd: build/$(FLAVOUR)/bin/kvraftd
	@mkdir -p bin
	$(Q)cp $< $@.new && mv -f $@.new $@

$(B)/bin/kvraftd: $(ALL_OBJ) $(B)/server/main.o
	@mkdir -p $(@D)
	@echo "  LD   $@"
	$(Q)$(CC) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_HTTP) $(LIBS_KV) $(LIBS_BASE) -lm

# Only main knows which build it is; it is made again when the commit changes.
build/build-id: FORCE
	@mkdir -p build
	@echo '$(GIT_DESCRIBE)' | cmp -s - $@ || echo '$(GIT_DESCRIBE)' > $@
$(B)/server/main.o: build/build-id
$(B)/server/main.o: EXTRA_CFLAGS = -DKRD_VERSION='"$(VERSION)"' -DKRD_BUILD='"$(GIT_DESCRIBE)"'
.PHONY: FORCE
FORCE:

# --- Rules -------------------------------------------------------------------------------------------
$(B)/%.o: %.c | build/deps-checked
	@mkdir -p $(@D)
	@echo "  CC   $<"
	$(Q)$(CC) $(OUR_CFLAGS) $(EXTRA_CFLAGS) $(CFLAGS) -c $< -o $@

# Generated code is not ours to warn about.
$(B)/gen/%.o: build/gen/%.c
	@mkdir -p $(@D)
	@echo "  CC   $<"
	$(Q)$(CC) $(OUR_CFLAGS) -w $(CFLAGS) -c $< -o $@

build/gen/%.pb-c.c build/gen/%.pb-c.h: %.proto | build/deps-checked
	@mkdir -p build/gen
	@echo "  GEN  $<"
	$(Q)protoc-c --c_out=build/gen $<

# Whatever includes the schema needs its headers first.
$(call obj,$(KV_SRC) $(SERVER_SRC) $(HTTP_SRC) server/main.c): | $(GEN_HDR)

build/deps-checked: Makefile
	@mkdir -p build
	$(Q)sh base/deps.sh check
	@touch $@

-include $(shell find build -name '*.d' 2>/dev/null)

# --- Tests -------------------------------------------------------------------------------------------
# tests/unit/NAME.c becomes build/FLAVOUR/tests/NAME. It is linked against all objects but main as a
# library: a test of the pure core drags no HTTP in, and may bring its own of what it replaces.
# NAME_SRC: what else it is made of. UNIT_CHECKS: scripts that close with "N passed, N failed".
test_raft_core_SRC   := tests/raft/sim.c
test_raft_random_SRC := tests/raft/sim.c
test_http_json_SRC   := tests/fuzz/fuzz_query_json.c
test_http_server_SRC := tests/unit/fake_node.c
test_peer_frame_SRC  := tests/fuzz/fuzz_frame.c
test_vfs_SRC         := tests/unit/simdisk.c
test_kv_store_SRC    := tests/unit/kv_fixture.c
test_kv_session_SRC  := tests/unit/kv_fixture.c
test_kv_watch_SRC    := tests/unit/kv_fixture.c
test_kv_model_SRC    := tests/unit/kv_fixture.c tests/unit/kv_model.c
test_wal_SRC         := tests/unit/simdisk.c tests/unit/wal_model.c
test_wal_crash_SRC   := tests/unit/simdisk.c tests/unit/wal_model.c
UNIT_CHECKS          := tests/unit/core_is_pure.sh
TEST_FLAVOURS        := release clang asan tsan

$(B)/libkvraftd.a: $(ALL_OBJ)
	@echo "  AR   $@"
	$(Q)rm -f $@ && ar rcs $@ $^

.SECONDEXPANSION:
$(B)/tests/%: $(B)/tests/unit/%.o $$(call obj,$$($$*_SRC)) $(B)/libkvraftd.a
	@mkdir -p $(@D)
	@echo "  LD   $@"
	$(Q)$(CC) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_HTTP) $(LIBS_KV) $(LIBS_BASE) -lcmocka -lm

$(B)/tests/test_raft_transcripts: $(call obj,tests/raft/transcript.c tests/raft/sim.c) $(B)/libkvraftd.a
	@mkdir -p $(@D)
	@echo "  LD   $@"
	$(Q)$(CC) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_HTTP) $(LIBS_KV) $(LIBS_BASE) -lcmocka -lm

$(B)/tests/unit/%.o $(B)/tests/raft/%.o: | $(GEN_HDR)

# Rewrites the expected output of tests/raft/*.txt by what comes out now. The diff is the review.
.PHONY: transcripts
transcripts: $(B)/tests/test_raft_transcripts
	$(Q)$< --rewrite

# The fuzzer of the peer protocol; not part of test, which runs its corpus. bench-peer: see the file.
.PHONY: fuzz-frame fuzz-http bench-peer bench-kv measure
# The figures of docs/PERFORMANCE.md: three nodes and wrk on this machine, beside its own floor.
measure: all $(B)/bin/floor
	$(Q)sh bench/measure.sh

$(B)/bin/floor: $(call obj,bench/floor.c $(BASE_SRC))
	@mkdir -p $(@D)
	@echo "  LD   $@"
	$(Q)$(CC) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^

fuzz-frame:
	$(Q)$(MAKE) --no-print-directory FLAVOUR=fuzz build/fuzz/fuzz_frame
	@echo "build/fuzz/fuzz_frame -max_len=20000 -rss_limit_mb=600 NEW_INPUTS tests/fuzz/corpus_frame"
bench-peer: $(B)/bench/peer_loopback
bench-kv: $(B)/bench/kv_apply
fuzz-http:
	$(Q)$(MAKE) --no-print-directory FLAVOUR=fuzz build/fuzz/fuzz_query_json
	@echo "build/fuzz/fuzz_query_json -max_len=4000 NEW_INPUTS tests/fuzz/corpus_http"
$(B)/fuzz_query_json: $(call obj,tests/fuzz/fuzz_query_json.c http/json_in.c http/json_out.c \
                        http/listen.c http/query.c http/route.c http/txn_json.c kv/types.c \
                        $(GEN_SRC) $(BASE_SRC))
	$(Q)$(CC) $(OUR_LDFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^ $(LIBS_HTTP) $(LIBS_KV)
$(call obj,tests/fuzz/fuzz_query_json.c): | $(GEN_HDR)
$(B)/fuzz_frame: $(call obj,tests/fuzz/fuzz_frame.c raft/peer_frame.c raft/entry.c raft/message.c $(BASE_SRC))
	$(Q)$(CC) $(OUR_LDFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^
$(B)/bench/peer_loopback: $(call obj,bench/peer_loopback.c raft/entry.c raft/message.c $(PEER_SRC) $(BASE_SRC))
	$(Q)$(CC) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^
$(B)/bench/kv_apply: $(call obj,bench/kv_apply.c raft/entry.c $(KV_SRC) $(GEN_SRC) $(BASE_SRC))
	$(Q)$(CC) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_KV)
$(call obj,bench/kv_apply.c): | $(GEN_HDR)

.PHONY: unit-tests test check
unit-tests: $(UNIT_TESTS:%=$(B)/tests/%)

# Everything: each flavour is built, then tests/run.sh runs and counts. STAGES="release asan" and
# ONLY=regex choose less; tests/run.sh says more.
STAGES ?= release clang asan tsan valgrind
test: test-programs
	$(Q)UNIT_TESTS="$(UNIT_TESTS)" UNIT_CHECKS="$(UNIT_CHECKS)" bash tests/run.sh $(STAGES)

.PHONY: test-programs
test-programs:
	$(Q)sh base/deps.sh install test
	$(Q)for f in $(filter $(STAGES),$(TEST_FLAVOURS)) $(if $(filter valgrind,$(STAGES)),release); do \
	    echo "  building $$f"; \
	    $(MAKE) --no-print-directory -j$(shell nproc) FLAVOUR=$$f build/$$f/bin/kvraftd unit-tests || exit 1; \
	done

# Only the release build's tests: a few minutes.
check:
	$(Q)$(MAKE) --no-print-directory test STAGES=release

# --- A cluster on this machine ------------------------------------------------------------------------
# See server/cluster.sh. The build is a make of its own: what pkg-config says can change meanwhile.
.PHONY: cluster cluster-stop cluster-status
cluster:
	$(Q)sh base/deps.sh install
	$(Q)$(MAKE) --no-print-directory -j$(shell nproc) all
	$(Q)$(if $(filter command environment,$(origin NODES)),NODES=$(NODES)) sh server/cluster.sh start
cluster-stop cluster-status:
	$(Q)sh server/cluster.sh $(@:cluster-%=%)

# --- The rest -----------------------------------------------------------------------------------------
.PHONY: deps deps-test install uninstall clean help
deps:
	$(Q)sh base/deps.sh install
deps-test:
	$(Q)sh base/deps.sh install test

install: all
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
uninstall:
	rm -f $(PROGRAMS:bin/%=$(DESTDIR)$(PREFIX)/bin/%)

clean:
	rm -rf build bin

help:
	@echo "make                  build $(PROGRAMS)"
	@echo "make cluster          install what is missing, build, start 3 nodes (NODES=5: five) and"
	@echo "                      leave them running; cluster-status, cluster-stop"
	@echo "make test             build and run every test, with gcc, clang and sanitizers"
	@echo "make check            only the tests of the release build"
	@echo "                      test STAGES='release asan' ONLY=regex: less of it"
	@echo "make install          to PREFIX (/usr/local), below DESTDIR; uninstall"
	@echo "make deps             install the packages that the build needs; deps-test: and the tests"
	@echo "make clean            remove build/ and bin/; data/ stays"
	@echo "FLAVOUR=release|debug|clang|asan|tsan   CC=  CFLAGS=  LDFLAGS=  V=1 shows commands"
