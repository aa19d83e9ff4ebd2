/* json_in.h - JSON read strictly, over jansson: one object a body, no member twice, none that is
 * not known, whole numbers exact, NUL allowed in strings, errors that say where.
 *
 * Errors stick as in query.h: the caller asks for what it knows and looks at `error` at the end.
 * Strings point into the tree (or the arena when they were base64): valid until json_in_close.
 * Thread: belongs to its request. */
#ifndef KRD_HTTP_JSON_IN_H
#define KRD_HTTP_JSON_IN_H

#include "base/arena.h"
#include "base/base.h"

#include <jansson.h>

struct json_in {
    json_t *root;      /* NULL when the text was bad */
    const char *error; /* for humans, in the arena; NULL while all is well */
    struct krd_arena *arena;
    char where[160]; /* path of the object at hand, for messages: `then[2].put`; "" at the top */
    size_t where_len;
};

/* The object that the body is, or NULL with error set. */
json_t *json_in_open(struct json_in *in, struct slice body, struct krd_arena *arena);
void json_in_close(struct json_in *in);
void json_in_fail(struct json_in *in, const char *fmt, ...) KRD_PRINTF(2, 3);

/* Steps into a member for messages' sake; index < 0: not an array's. Returns what leave needs. */
size_t json_in_enter(struct json_in *in, const char *name, long index);
void json_in_leave(struct json_in *in, size_t mark);

/* Complains about a member of obj that is not in the NULL-terminated list. */
void json_in_known(struct json_in *in, json_t *obj, const char *const *names);

/* Each answers whether the member is there and good; *out is written only then. */
bool json_in_i64(struct json_in *in, json_t *obj, const char *name, int64_t min, int64_t max,
                 int64_t *out);
bool json_in_bool(struct json_in *in, json_t *obj, const char *name, bool *out);
/* NAME as a string or NAME_base64 (standard or URL alphabet, padding optional), not both. */
bool json_in_bytes(struct json_in *in, json_t *obj, const char *name, struct slice *out);
/* A lease's id as 1 to 16 hex digits. */
bool json_in_lease(struct json_in *in, json_t *obj, const char *name, int64_t *out);
bool json_in_text(struct json_in *in, json_t *obj, const char *name, struct slice *out);

/* The same of a value that is already at hand; name is for the message. */
bool json_in_as_i64(struct json_in *in, const char *name, json_t *v, int64_t min, int64_t max,
                    int64_t *out);
bool json_in_as_bytes(struct json_in *in, const char *name, json_t *v, bool base64,
                      struct slice *out);
bool json_in_as_lease(struct json_in *in, const char *name, json_t *v, int64_t *out);

/* Decodes into dst (src.len bytes are enough). False: not base64. */
KRD_MUST_CHECK bool json_base64_decode(struct slice src, uint8_t *dst, size_t *dst_len);

#endif
