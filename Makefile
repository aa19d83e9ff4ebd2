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
CORE_SRC   := raft/config.c raft/entry.c raft/message.c
RAFT_SRC   := $(CORE_SRC)
KV_PROTO   := kv/kv.proto kv/rpc.proto kv/command.proto
KV_SRC     :=
SERVER_SRC :=
HTTP_SRC   :=

GEN_SRC    := $(KV_PROTO:%.proto=build/gen/%.pb-c.c)
GEN_HDR    := $(GEN_SRC:.c=.h)

UNIT_TESTS :=

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
	$(Q)cp $< $@

$(B)/bin/kvraftd: $(ALL_OBJ) $(B)/server/main.o
	@mkdir -p $(@D)
	@echo "  LD   $@"
	$(Q)$(CC) $(OUR_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_HTTP) $(LIBS_KV) $(LIBS_BASE) -lm

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
$(GEN_HDR:.h=.c): $(GEN_HDR)

build/deps-checked: Makefile
	@mkdir -p build
	$(Q)sh server/deps.sh check
	@touch $@

-include $(shell find build -name '*.d' 2>/dev/null)
