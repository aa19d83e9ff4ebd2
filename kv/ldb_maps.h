/* ldb_maps.h - keeps the tables that LevelDB maps into memory from counting as this process's for
 * ever. LevelDB 1.23 maps every open table and offers no bound; what was once read stays in the
 * resident set, up to the size of the store, although the kernel's page cache holds it anyway.
 *
 * Thread: any. */
#ifndef KRD_KV_LDB_MAPS_H
#define KRD_KV_LDB_MAPS_H

#include "base/base.h"

/* When more than resident_max bytes of files are mapped in and resident, lets go of all mapped
 * tables' pages: they stay in the page cache, and a reader takes a minor fault. Costs a file read
 * of /proc and, when it acts, a system call per table. */
void ldb_maps_trim(size_t resident_max);

#endif
