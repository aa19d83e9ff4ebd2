/* json_out.h - JSON written straight into a buffer, without a tree: commas are put by themselves.
 * Keys and values that are not UTF-8 come out as NAME_base64.
 *
 *   struct jout j = jout_into(&buf);
 *   jout_object(&j); jout_i64(&j, "revision", 12); jout_end_object(&j);
 *
 * A name of NULL stands for a member of an array (or the whole text). Names are ours: plain ASCII,
 * never escaped. Thread: belongs to whoever owns the buffer. */
#ifndef KRD_HTTP_JSON_OUT_H
#define KRD_HTTP_JSON_OUT_H

#include "base/buf.h"

struct jout {
    struct krd_buf *buf;
    bool comma;  /* something stands before, on this level */
    bool base64; /* every key and value as NAME_base64 */
};

static inline struct jout jout_into(struct krd_buf *buf)
{
    return (struct jout){buf, false, false};
}

void jout_object(struct jout *j, const char *name);
void jout_end_object(struct jout *j);
void jout_array(struct jout *j, const char *name);
void jout_end_array(struct jout *j);
void jout_i64(struct jout *j, const char *name, int64_t v);
void jout_u64(struct jout *j, const char *name, uint64_t v);
void jout_bool(struct jout *j, const char *name, bool v);
void jout_null(struct jout *j, const char *name);
/* v / 1000 with three decimals. */
void jout_millis(struct jout *j, const char *name, int64_t v);
/* Text that is meant for humans: what is not UTF-8 becomes U+FFFD. */
void jout_text(struct jout *j, const char *name, struct slice v);
void jout_str(struct jout *j, const char *name, const char *v);
/* 16 hex digits in a string: ids of leases, members, clusters. */
void jout_hex(struct jout *j, const char *name, uint64_t v);
/* Bytes of a user's: NAME when they are UTF-8, else NAME_base64. name is not NULL. */
void jout_bytes(struct jout *j, const char *name, struct slice v);
/* A member whose name is a user's (hraftd's answers); replaces as json_text does. */
void jout_text_member(struct jout *j, struct slice name, struct slice v);

/* Unicode's own definition: no surrogates, nothing overlong, nothing above U+10FFFF. */
bool jout_utf8_valid(struct slice s);
/* Standard alphabet, padded, without quotes. */
void jout_base64(struct krd_buf *b, struct slice s);

#endif
