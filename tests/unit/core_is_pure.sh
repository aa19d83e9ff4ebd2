#!/bin/sh
# core_is_pure.sh - the consensus core calls nothing that touches the world. Its sources are compiled
# without hardening or sanitizers, and every symbol that none of them defines must be on the list:
# moving bytes, and base's memory, asserts, random generator, buffers, blobs and checksum. A clock, a
# file, a lock or a log line would show here.
#
# usage: tests/unit/core_is_pure.sh, in the root of the source tree. CC chooses the compiler.
set -eu
export LC_ALL=C
cd "$(dirname "$0")/../.."

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

sources=$(sed -n '/^CORE_SRC/,/[^\\]$/p' Makefile | tr -d '\\' | sed 's/^CORE_SRC *:=//')
[ -n "$sources" ] || { echo "no CORE_SRC in the Makefile"; echo "0 passed, 1 failed"; exit 1; }

for source in $sources; do
    ${CC:-cc} -std=gnu11 -O2 -I. -fno-stack-protector -U_FORTIFY_SOURCE -c "$source" \
        -o "$dir/$(basename "$source" .c).o"
done

nm -u "$dir"/*.o | awk '$1 == "U" { print $2 }' | sort -u >"$dir/used"
nm --defined-only "$dir"/*.o | awk 'NF == 3 { print $3 }' | sort -u >"$dir/defined"
cat >"$dir/allowed" <<'LIST'
memcmp
memcpy
memmove
memset
krd_alloc
krd_assert_failed
krd_blob_create
krd_blob_ref
krd_blob_unref
krd_buf_put
krd_buf_reserve
krd_calloc
krd_crc32c
krd_free
krd_grow
krd_rand_below
krd_rand_seed
krd_rand_u64
krd_read_bytes
krd_read_le16
krd_read_le32
krd_read_le64
krd_read_u8
krd_zalloc
LIST
sort -u "$dir/allowed" >"$dir/allowed.sorted"
sort -u "$dir/defined" "$dir/allowed" >"$dir/known"
strange=$(comm -23 "$dir/used" "$dir/known")
if [ -n "$strange" ]; then
    echo "the core must not use:" $strange
    echo "0 passed, 1 failed"
    exit 1
fi
echo "$(echo $sources | wc -w) sources use $(comm -12 "$dir/used" "$dir/allowed.sorted" | wc -l) symbols from outside"
echo "1 passed, 0 failed"
