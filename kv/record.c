/* record.c - see record.h, which draws the bytes. Encoders and decoders stand in pairs. */
#include "kv/record.h"

#include "kv/hash.h"

static KRD_NORETURN void damaged(const char *what)
{
    krd_fatal("kv: a record in the store does not decode (%s). The store's directory is damaged; "
              "see 'LevelDB is damaged' in docs/OPERATIONS.md.",
              what);
}

/* --- Engine keys ----------------------------------------------------------------------------- */

struct slice kv_raw_key(struct krd_arena *a, char kind, struct slice key)
{
    uint8_t *p = krd_arena_alloc(a, 1 + key.len);
    p[0] = (uint8_t)kind;
    if (key.len > 0)
        memcpy(p + 1, key.ptr, key.len);
    return slice_of(p, 1 + key.len);
}

struct slice kv_raw_attached(struct krd_arena *a, int64_t lease, struct slice key)
{
    uint8_t *p = krd_arena_alloc(a, KV_ID_KEY_BYTES + key.len);
    kv_raw_id(p, 'a', (uint64_t)lease);
    if (key.len > 0)
        memcpy(p + KV_ID_KEY_BYTES, key.ptr, key.len);
    return slice_of(p, KV_ID_KEY_BYTES + key.len);
}

struct slice kv_raw_change(uint8_t buf[KV_CHANGE_KEY_BYTES], struct kv_place at)
{
    buf[0] = 'r';
    krd_put_be64(buf + 1, (uint64_t)at.revision);
    krd_put_le32(buf + 9, __builtin_bswap32(at.sub));
    return slice_of(buf, KV_CHANGE_KEY_BYTES);
}

struct kv_place kv_place_of_raw(struct slice raw)
{
    if (raw.len != KV_CHANGE_KEY_BYTES || raw.ptr[0] != 'r')
        damaged("key of a change");
    return (struct kv_place){(int64_t)krd_get_be64(raw.ptr + 1),
                             __builtin_bswap32(krd_get_le32(raw.ptr + 9))};
}

struct slice kv_raw_id(uint8_t buf[KV_ID_KEY_BYTES], char kind, uint64_t id)
{
    buf[0] = (uint8_t)kind;
    krd_put_be64(buf + 1, id);
    return slice_of(buf, KV_ID_KEY_BYTES);
}

struct kv_raw_range kv_raw_range_of(struct krd_arena *a, const struct kv_range *r)
{
    struct kv_raw_range raw;
    raw.start = kv_raw_key(a, 'k', r->key);
    if (r->range_end.len == 0) {
        uint8_t *p = krd_arena_alloc(a, raw.start.len + 1);
        memcpy(p, raw.start.ptr, raw.start.len);
        p[raw.start.len] = 0; /* the key's successor */
        raw.end = slice_of(p, raw.start.len + 1);
    } else if (r->range_end.len == 1 && r->range_end.ptr[0] == 0) {
        raw.end = slice_str("l"); /* behind every 'k' */
    } else {
        raw.end = kv_raw_key(a, 'k', r->range_end);
    }
    return raw;
}

/* --- Newest versions ------------------------------------------------------------------------- */

struct slice kv_head_encode(struct krd_arena *a, const struct kv_head *h)
{
    struct slice value = h->pair.value;
    bool far = value.len > KV_NEAR_VALUE_MAX;
    size_t len = KV_HEAD_BYTES + (far ? (size_t)KV_VALUE_HASH_BYTES : value.len);
    uint8_t *p = krd_arena_alloc(a, len);
    krd_put_le64(p, (uint64_t)h->pair.create_revision);
    krd_put_le64(p + 8, (uint64_t)h->pair.mod_revision);
    krd_put_le64(p + 16, (uint64_t)h->pair.version);
    krd_put_le64(p + 24, (uint64_t)h->pair.lease);
    krd_put_le32(p + 32, h->sub);
    krd_put_le32(p + 36, far ? (uint32_t)value.len : 0);
    if (far)
        kv_sum_store(p + KV_HEAD_BYTES, kv_hash_item(0, value));
    else if (value.len > 0)
        memcpy(p + KV_HEAD_BYTES, value.ptr, value.len);
    return slice_of(p, len);
}

struct kv_head kv_head_decode(struct slice key, struct slice record)
{
    if (record.len < KV_HEAD_BYTES)
        damaged("newest version of a key");
    const uint8_t *p = record.ptr;
    uint32_t far_len = krd_get_le32(p + 36);
    if (far_len != 0 &&
        (far_len <= KV_NEAR_VALUE_MAX || record.len != KV_HEAD_BYTES + KV_VALUE_HASH_BYTES))
        damaged("newest version of a key");
    struct kv_head h = {
        .pair = {.key = key,
                 .value = far_len != 0 ? slice_of(NULL, far_len)
                                       : slice_of(p + KV_HEAD_BYTES, record.len - KV_HEAD_BYTES),
                 .create_revision = (int64_t)krd_get_le64(p),
                 .mod_revision = (int64_t)krd_get_le64(p + 8),
                 .version = (int64_t)krd_get_le64(p + 16),
                 .lease = (int64_t)krd_get_le64(p + 24)},
        .sub = krd_get_le32(p + 32),
        .far = far_len != 0,
    };
    if (h.far)
        memcpy(h.value_hash, p + KV_HEAD_BYTES, sizeof h.value_hash);
    return h;
}

bool kv_head_value_matches(const struct kv_head *h, struct slice value)
{
    uint8_t hash[KV_VALUE_HASH_BYTES];
    KRD_ASSERT(h->far);
    kv_sum_store(hash, kv_hash_item(0, value));
    return value.len == h->pair.value.len && memcmp(hash, h->value_hash, sizeof hash) == 0;
}

bool kv_head_is_live(struct slice record)
{
    if (record.len < KV_HEAD_BYTES)
        damaged("newest version of a key");
    return krd_get_le64(record.ptr + 16) != 0;
}

/* --- Changes ---------------------------------------------------------------------------------- */

struct slice kv_change_encode(struct krd_arena *a, const struct kv_change *c)
{
    size_t len = KV_CHANGE_BYTES + c->pair.key.len + c->pair.value.len;
    uint8_t *p = krd_arena_alloc(a, len);
    krd_put_le64(p, c->time_ms);
    krd_put_le64(p + 8, (uint64_t)c->prev.revision);
    krd_put_le64(p + 16, (uint64_t)c->pair.create_revision);
    krd_put_le64(p + 24, (uint64_t)c->pair.version);
    krd_put_le64(p + 32, (uint64_t)c->pair.lease);
    krd_put_le32(p + 40, c->prev.sub);
    krd_put_le32(p + 44, (uint32_t)c->pair.key.len);
    memcpy(p + KV_CHANGE_BYTES, c->pair.key.ptr, c->pair.key.len);
    if (c->pair.value.len > 0)
        memcpy(p + KV_CHANGE_BYTES + c->pair.key.len, c->pair.value.ptr, c->pair.value.len);
    return slice_of(p, len);
}

struct kv_change kv_change_decode(struct kv_place at, struct slice record)
{
    if (record.len < KV_CHANGE_BYTES)
        damaged("change");
    const uint8_t *p = record.ptr;
    size_t key_len = krd_get_le32(p + 44);
    if (key_len > record.len - KV_CHANGE_BYTES)
        damaged("key in a change");
    return (struct kv_change){
        .pair = {.key = slice_of(p + KV_CHANGE_BYTES, key_len),
                 .value = slice_of(p + KV_CHANGE_BYTES + key_len,
                                   record.len - KV_CHANGE_BYTES - key_len),
                 .create_revision = (int64_t)krd_get_le64(p + 16),
                 .mod_revision = at.revision,
                 .version = (int64_t)krd_get_le64(p + 24),
                 .lease = (int64_t)krd_get_le64(p + 32)},
        .sub = at.sub,
        .prev = {(int64_t)krd_get_le64(p + 8), krd_get_le32(p + 40)},
        .time_ms = krd_get_le64(p),
    };
}

/* --- Leases ----------------------------------------------------------------------------------- */

void kv_lease_encode(uint8_t buf[KV_LEASE_BYTES], const struct kv_lease_record *l)
{
    krd_put_le64(buf, (uint64_t)l->ttl);
    krd_put_le64(buf + 8, l->deadline_ms);
    krd_put_le64(buf + 16, (uint64_t)l->keys);
}

struct kv_lease_record kv_lease_decode(struct slice record)
{
    if (record.len != KV_LEASE_BYTES)
        damaged("lease");
    return (struct kv_lease_record){.ttl = (int64_t)krd_get_le64(record.ptr),
                                    .deadline_ms = krd_get_le64(record.ptr + 8),
                                    .keys = (int64_t)krd_get_le64(record.ptr + 16)};
}

/* --- The state -------------------------------------------------------------------------------- */

void kv_meta_encode(uint8_t buf[KV_META_BYTES], const struct kv_meta *m)
{
    krd_put_le32(buf, KV_FORMAT);
    krd_put_le32(buf + 4, 0);
    krd_put_le64(buf + 8, m->index);
    krd_put_le64(buf + 16, m->term);
    krd_put_le64(buf + 24, m->time_ms);
    krd_put_le64(buf + 32, (uint64_t)m->revision);
    krd_put_le64(buf + 40, (uint64_t)m->compacted);
    memcpy(buf + 48, m->sum, sizeof m->sum);
}

bool kv_meta_decode(struct slice record, struct kv_meta *m)
{
    if (record.len != KV_META_BYTES || krd_get_le32(record.ptr) != KV_FORMAT)
        return false;
    const uint8_t *p = record.ptr;
    m->index = krd_get_le64(p + 8);
    m->term = krd_get_le64(p + 16);
    m->time_ms = krd_get_le64(p + 24);
    m->revision = (int64_t)krd_get_le64(p + 32);
    m->compacted = (int64_t)krd_get_le64(p + 40);
    memcpy(m->sum, p + 48, sizeof m->sum);
    return true;
}
