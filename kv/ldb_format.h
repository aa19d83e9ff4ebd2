/* ldb_format.h - reading the two files of LevelDB that decide what a crash has left: its log
 * (*.log, one write batch a record) and its MANIFEST (one version edit a record). Both are made of
 * the same records.
 *
 * A file is a row of blocks of 32 KiB; a record is one or more pieces, none crosses a block:
 *
 *    0        4        6      7
 *    | crc32c | length | type | payload (length bytes)      little-endian
 *    '-masked-'        '--- covered by the crc ---'
 *
 *    type 1: a whole record; 2, 3, 4: its first, middle, last piece. Fewer than 7 bytes at the end
 *    of a block stay unused.
 *
 * The reader is strict where LevelDB's own skips or guesses: the first thing that is not a record
 * ends the reading. Thread: a reader belongs to whoever made it. */
#ifndef KRD_LDB_FORMAT_H
#define KRD_LDB_FORMAT_H

#include "base/buf.h"
#include "base/vfs.h"

#define LDB_BLOCK_BYTES  32768u
#define LDB_HEADER_BYTES 7u

enum ldb_read {
    LDB_RECORD, /* a whole record is in ->record */
    LDB_END,    /* the file ends behind a whole record, or is empty */
    LDB_DAMAGE, /* something else stands at ->good; ->why says what */
    LDB_ERROR,  /* the disk: ->error is -errno */
};

struct ldb_reader {
    const struct krd_vfs *vfs;
    struct krd_file *file; /* the caller's */
    uint64_t size;         /* of the file, when the reader was made */
    uint64_t good;         /* end of the last whole record. good <= size */
    uint64_t at;           /* next piece. at >= good */
    uint64_t block_at;     /* file offset of block; UINT64_MAX: none was read yet */
    size_t block_len;
    struct krd_buf record;
    const char *why; /* static */
    int error;
    uint8_t block[LDB_BLOCK_BYTES];
};

/* 0 or -errno. */
KRD_MUST_CHECK int ldb_reader_init(struct ldb_reader *r, const struct krd_vfs *v,
                                   struct krd_file *f);
void ldb_reader_deinit(struct ldb_reader *r);
/* After anything but LDB_RECORD the reader has come to its end. */
enum ldb_read ldb_reader_next(struct ldb_reader *r);
/* After LDB_DAMAGE: does an intact start of a later record follow it? Looks at every offset.
 * LDB_RECORD: yes; LDB_END: no. */
enum ldb_read ldb_reader_find_later(struct ldb_reader *r);

/* The head of a log's record: records of this batch have the numbers sequence, sequence + 1, ... */
struct ldb_batch {
    uint64_t sequence;
    uint32_t count;
};
KRD_MUST_CHECK bool ldb_batch_decode(struct slice record, struct ldb_batch *out);

/* What matters here of a version edit; the fields of several edits add up, the last one wins. */
struct ldb_edit {
    bool has_log_number, has_next_file, has_last_sequence;
    uint64_t log_number;      /* logs below are in tables */
    uint64_t prev_log_number; /* 0: none. Written by versions of LevelDB before 1.0 */
    uint64_t last_sequence;   /* at the time of the edit: beyond what the tables hold */
};
/* Adds an edit to *e. */
KRD_MUST_CHECK bool ldb_edit_add(struct slice record, struct ldb_edit *e);

#endif
