/* transcript.c - runs the stories of tests/raft/NAME.txt against the core.
 *
 *   transcript [--rewrite] [file ...]        without files: all of tests/raft
 *
 * A story is a list of blocks: comment lines (#), one or more commands, `----`, all that came out,
 * an empty line. What comes out is state and effects (sim.c), never log lines; a command after
 * which nothing came out says `ok`. --rewrite writes what came out into the files; the diff is the
 * review.
 *
 * Nodes take a turn (one ready) after every command that touched them.
 *
 *   cluster V [learners=L] [option=n ...]  V voters from empty disks (see set_option)
 *   disk N terms=1x3,4 [term=] [vote=] [commit=]   restarts N with this log on its disk
 *   tick N [times]          campaign N (ticks until it starts one)    lead N (until it leads)
 *   propose N [times]       config N voters=1,2 [learners=3] [outgoing=1]
 *   read N ctx              transfer N [to]
 *   persist N [writes]      fetch N [entries]       compact N index    now ms
 *   deliver A->B [type] [#k]   drop A->B [type] [#k]   double A->B [type] [#k]   (* is anybody)
 *   inject A->B type field=value ...   a message that nobody sent (see inject)
 *   stabilize [N ...]       delivers and persists among these until nothing happens
 *   crash N [writes that survive]      restart N
 *   peer-lost N peer        unreachable N peer
 *   status [N ...]          log N      network      time N     config-of N     counters N
 *   hold / turn N           no turns by themselves from here on / one turn
 *   unwatched               the watchdogs sleep
 *   quiet COMMAND ...       the command, without what comes out */
#include "tests/raft/sim.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { WORDS_MAX = 32 };

struct story {
    struct sim sim;
    bool begun, hold;
    struct krd_buf out;
    const char *words[WORDS_MAX];
    size_t n_words;
};

/* --- Words of a command ----------------------------------------------------------------------- */

static const char *word(const struct story *s, size_t i)
{
    return i < s->n_words ? s->words[i] : "";
}

static bool is(const struct story *s, const char *command)
{
    return strcmp(word(s, 0), command) == 0;
}

static uint64_t number(const struct story *s, size_t i, uint64_t otherwise)
{
    return i < s->n_words ? strtoull(s->words[i], NULL, 10) : otherwise;
}

/* The text after name=, NULL without it. */
static const char *field_text(const struct story *s, const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 1; i < s->n_words; i++)
        if (strncmp(s->words[i], name, len) == 0 && s->words[i][len] == '=')
            return s->words[i] + len + 1;
    return NULL;
}

static uint64_t field(const struct story *s, const char *name, uint64_t otherwise)
{
    const char *text = field_text(s, name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

/* "1x3,4" is 1 1 1 4. */
static size_t read_list(const char *text, uint64_t *to, size_t max)
{
    size_t n = 0;
    while (text && *text != '\0') {
        char *end;
        uint64_t value = strtoull(text, &end, 10);
        uint64_t times = 1;
        if (*end == 'x')
            times = strtoull(end + 1, &end, 10);
        for (; times > 0 && n < max; times--)
            to[n++] = value;
        text = *end == ',' ? end + 1 : end;
        if (end == text && *end != '\0')
            break;
    }
    return n;
}

static void say(struct story *s, const char *what)
{
    krd_buf_puts(&s->out, what);
    krd_buf_puts(&s->out, "\n");
}

static void say_status(struct story *s, enum krd_status st)
{
    if (st != KRD_OK)
        say(s, krd_status_code(st));
}

/* --- Nodes -------------------------------------------------------------------------------------
 */

static struct raft *raft_of(struct story *s, raft_id id)
{
    if (id == 0 || id > s->sim.n) {
        fprintf(stderr, "%s: no such node\n", word(s, 0));
        abort();
    }
    return sim_node(&s->sim, id)->raft;
}

static void turn(struct story *s, raft_id id)
{
    if (!s->hold && raft_of(s, id))
        sim_turn(&s->sim, id);
}

static bool selected(const bool nodes[], raft_id id)
{
    return nodes[id - 1];
}

/* One message or write of these nodes, then the turns that follow. False: nothing left. */
static bool stabilize_once(struct story *s, const bool nodes[])
{
    bool busy = false;
    for (raft_id id = 1; id <= s->sim.n; id++)
        if (selected(nodes, id) && raft_of(s, id))
            busy = sim_turn(&s->sim, id) || busy;
    for (raft_id id = 1; id <= s->sim.n; id++) {
        if (!selected(nodes, id) || !raft_of(s, id))
            continue;
        busy = busy || sim_node(&s->sim, id)->n_writes > 0 || sim_node(&s->sim, id)->n_fetches > 0;
        sim_persist(&s->sim, id, SIZE_MAX);
        sim_answer_fetch(&s->sim, id, SIZE_MAX);
    }
    size_t n = s->sim.n_queue; /* what these send in reply waits for the next time */
    for (size_t k = 0; n > 0; n--) {
        const struct sim_message *m = &s->sim.queue[k];
        if (!selected(nodes, m->from) || !selected(nodes, m->to)) {
            k++;
            continue;
        }
        sim_deliver(&s->sim, k);
        busy = true;
    }
    return busy;
}

static void stabilize(struct story *s, const bool nodes[])
{
    for (int i = 0; i < 1000; i++)
        if (!stabilize_once(s, nodes))
            return;
    say(s, "no end of it");
}

static void command_stabilize(struct story *s)
{
    bool nodes[SIM_NODES_MAX];
    for (size_t i = 0; i < SIM_NODES_MAX; i++)
        nodes[i] = s->n_words == 1;
    for (size_t i = 1; i < s->n_words; i++)
        nodes[number(s, i, 1) - 1] = true;
    stabilize(s, nodes);
}

static enum raft_role role_of(struct story *s, raft_id id)
{
    struct raft_status st;
    raft_get_status(raft_of(s, id), &st);
    return st.role;
}

static void campaign(struct story *s, raft_id id)
{
    struct raft_status before, st;
    raft_get_status(raft_of(s, id), &before);
    do {
        raft_tick(raft_of(s, id));
        raft_get_status(raft_of(s, id), &st);
    } while (st.elections == before.elections);
    turn(s, id);
}

static void lead(struct story *s, raft_id id)
{
    bool all[SIM_NODES_MAX];
    for (size_t i = 0; i < SIM_NODES_MAX; i++)
        all[i] = true;
    for (int i = 0; i < 20 && role_of(s, id) != RAFT_LEADER; i++) {
        campaign(s, id);
        stabilize(s, all);
    }
    if (role_of(s, id) != RAFT_LEADER)
        say(s, "it does not get to lead");
}

/* --- Commands: the cluster ------------------------------------------------------------------- */

static void set_options(struct story *s, struct raft_options *o)
{
    *o = (struct raft_options){.id = 1};
    raft_options_default(o);
    o->election_ticks = (uint32_t)field(s, "election", 10);
    o->heartbeat_ticks = (uint32_t)field(s, "heartbeat", 3);
    o->crash_delay_ticks = (uint32_t)field(s, "crash-delay", 2);
    o->inflight_messages_max = (uint32_t)field(s, "window", 16);
    o->inflight_bytes_max = field(s, "window-bytes", 1 << 20);
    o->append_bytes_max = field(s, "append-bytes", 1 << 20);
    o->uncommitted_bytes_max = field(s, "uncommitted-bytes", 1 << 20);
    o->cache_bytes = field(s, "cache-bytes", 1 << 20);
}

static void command_cluster(struct story *s)
{
    struct raft_options o;
    set_options(s, &o);
    if (s->begun)
        sim_deinit(&s->sim);
    sim_init(&s->sim, &o, field(s, "seed", 1), number(s, 1, 3), field(s, "learners", 0));
    s->begun = true;
    s->hold = false;
}

static void command_disk(struct story *s)
{
    raft_id id = number(s, 1, 1);
    raft_term terms[64];
    size_t n = read_list(field_text(s, "terms"), terms, KRD_ARRAY_LEN(terms));
    struct raft_hard_state hs = {.term = field(s, "term", n > 0 ? terms[n - 1] : 0),
                                 .vote = field(s, "vote", 0),
                                 .commit = field(s, "commit", 0)};
    if (raft_of(s, id))
        sim_crash(&s->sim, id, 0);
    sim_set_disk(&s->sim, id, terms, n, hs);
    sim_start(&s->sim, id);
    turn(s, id);
}

static void command_config(struct story *s)
{
    raft_id id = number(s, 1, 1);
    uint64_t voters[8], learners[8], outgoing[8];
    size_t nv = read_list(field_text(s, "voters"), voters, 8);
    size_t nl = read_list(field_text(s, "learners"), learners, 8);
    size_t no = read_list(field_text(s, "outgoing"), outgoing, 8);
    struct raft_config_state c = {.joint = no > 0};
    for (raft_id m = 1; m <= s->sim.n; m++) {
        struct raft_member member = {.id = m};
        bool in = false;
        for (size_t i = 0; i < nv; i++)
            in = (voters[i] == m && (member.voter = true)) || in;
        for (size_t i = 0; i < no; i++)
            in = (outgoing[i] == m && (member.voter_outgoing = true)) || in;
        for (size_t i = 0; i < nl; i++)
            in = learners[i] == m || in;
        snprintf(member.name, sizeof member.name, "n%d", (int)m);
        if (in)
            c.members[c.n++] = member;
    }
    struct krd_buf bytes = KRD_BUF_INIT;
    raft_config_encode(&c, &bytes);
    say_status(s, sim_propose(&s->sim, id, RAFT_ENTRY_CONFIG, krd_buf_slice(&bytes)));
    krd_buf_deinit(&bytes);
    turn(s, id);
}

static void command_propose(struct story *s)
{
    raft_id id = number(s, 1, 1);
    for (uint64_t n = number(s, 2, 1); n > 0; n--)
        say_status(s, sim_propose(&s->sim, id, RAFT_ENTRY_COMMAND, slice_str("x")));
    turn(s, id);
}

static void command_tick(struct story *s)
{
    raft_id id = number(s, 1, 1);
    for (uint64_t n = number(s, 2, 1); n > 0; n--) {
        raft_tick(raft_of(s, id));
        turn(s, id);
    }
}

static void command_now(struct story *s)
{
    s->sim.now_ms = number(s, 1, 0);
    for (raft_id id = 1; id <= s->sim.n; id++)
        if (raft_of(s, id))
            raft_set_now(raft_of(s, id), s->sim.now_ms);
}

static void command_time(struct story *s)
{
    krd_buf_printf(&s->out, "%llu: %llu ms\n", (unsigned long long)number(s, 1, 1),
                   (unsigned long long)raft_time_ms(raft_of(s, number(s, 1, 1))));
}

/* --- Commands: the network ------------------------------------------------------------------- */

static bool end_matches(const char *text, size_t len, raft_id id)
{
    return (len == 1 && text[0] == '*') || strtoull(text, NULL, 10) == id;
}

/* "1->2 append #2" against a queued message; #k counts those that matched before. */
static bool matches(struct story *s, const struct sim_message *m)
{
    const char *way = word(s, 1);
    const char *arrow = strstr(way, "->");
    if (!arrow || !end_matches(way, (size_t)(arrow - way), m->from) ||
        !end_matches(arrow + 2, strlen(arrow + 2), m->to))
        return false;
    const char *type = word(s, 2);
    return *type == '\0' || *type == '#' || strcmp(type, raft_message_type_name(m->type)) == 0;
}

static uint64_t wanted_one(struct story *s)
{
    const char *last = word(s, s->n_words - 1);
    return *last == '#' ? strtoull(last + 1, NULL, 10) : 0;
}

/* Applies act to the matching messages that are queued now; notes the receivers. */
static void each_match(struct story *s, void (*act)(struct sim *, size_t), bool stays,
                       bool receivers[])
{
    size_t left = s->sim.n_queue, k = 0, count = 0;
    bool any = false;
    for (; left > 0; left--) {
        raft_id to = s->sim.queue[k].to;
        bool chosen = matches(s, &s->sim.queue[k]);
        if (chosen)
            chosen = ++count == wanted_one(s) || wanted_one(s) == 0;
        if (chosen) {
            act(&s->sim, k);
            receivers[to - 1] = true;
            any = true;
        }
        if (!chosen || stays)
            k++;
    }
    if (!any)
        say(s, "no such message");
}

static void command_deliver(struct story *s)
{
    bool receivers[SIM_NODES_MAX] = {false};
    each_match(s, sim_deliver, false, receivers);
    for (raft_id id = 1; id <= s->sim.n; id++)
        if (receivers[id - 1])
            turn(s, id);
}

static void describe_queued(struct story *s, const struct sim_message *queued)
{
    struct raft_message m;
    enum krd_status st = raft_message_decode(queued->bytes, krd_blob_slice(queued->bytes), &m);
    KRD_ASSERT(st == KRD_OK);
    sim_describe_message(&m, &s->out);
    krd_buf_puts(&s->out, "\n");
    raft_message_deinit(&m);
}

static void command_network(struct story *s)
{
    for (size_t i = 0; i < s->sim.n_queue; i++)
        describe_queued(s, &s->sim.queue[i]);
}

/* "3/t1" or "3/1" */
static void read_pair(const char *text, uint64_t *a, uint64_t *b)
{
    *a = *b = 0;
    if (!text)
        return;
    char *end;
    *a = strtoull(text, &end, 10);
    if (*end == '/')
        *b = strtoull(end + 1 + (end[1] == 't'), NULL, 10);
}

static void inject_entries(struct story *s, struct raft_message *m)
{
    raft_term terms[32];
    size_t n = read_list(field_text(s, "entries"), terms, KRD_ARRAY_LEN(terms));
    uint64_t first = field(s, "first", m->u.append.prev_index + 1);
    m->u.append.entries = krd_calloc(n + 1, sizeof *m->u.append.entries);
    m->u.append.n_entries = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_of(&terms[i], 8));
        raft_entry_seal(&e, first + i, terms[i], 0);
        m->u.append.entries[i] = e;
    }
}

static bool inject_body(struct story *s, struct raft_message *m)
{
    const char *type = word(s, 2);
    if (strcmp(type, "append") == 0) {
        m->type = RAFT_MSG_APPEND;
        read_pair(field_text(s, "prev"), &m->u.append.prev_index, &m->u.append.prev_term);
        m->u.append.commit = field(s, "commit", 0);
        m->u.append.time_ms = field(s, "time", 0);
        inject_entries(s, m);
    } else if (strcmp(type, "heartbeat") == 0) {
        m->type = RAFT_MSG_HEARTBEAT;
        m->u.heartbeat.commit = field(s, "commit", 0);
        m->u.heartbeat.round = field(s, "round", 1);
        m->u.heartbeat.time_ms = field(s, "time", 0);
    } else if (strcmp(type, "heartbeat_reply") == 0) {
        m->type = RAFT_MSG_HEARTBEAT_REPLY;
        m->u.heartbeat_reply.round = field(s, "round", 1);
    } else if (strcmp(type, "append_reply") == 0) {
        m->type = RAFT_MSG_APPEND_REPLY;
        m->u.append_reply.index = field(s, "index", 0);
        m->u.append_reply.rejected = field(s, "rejected", 0) == 1;
        read_pair(field_text(s, "hint"), &m->u.append_reply.hint, &m->u.append_reply.hint_term);
    } else if (strcmp(type, "vote") == 0 || strcmp(type, "prevote") == 0) {
        m->type = strcmp(type, "vote") == 0 ? RAFT_MSG_VOTE : RAFT_MSG_PREVOTE;
        read_pair(field_text(s, "last"), &m->u.vote.last_index, &m->u.vote.last_term);
        m->u.vote.transfer = field(s, "transfer", 0) == 1;
    } else if (strcmp(type, "vote_reply") == 0) {
        m->type = RAFT_MSG_VOTE_REPLY;
        m->u.vote_reply.granted = field(s, "granted", 1) == 1;
    } else if (strcmp(type, "timeout_now") == 0) {
        m->type = RAFT_MSG_TIMEOUT_NOW;
    } else if (strcmp(type, "read_index_reply") == 0) {
        m->type = RAFT_MSG_READ_INDEX_REPLY;
        m->u.read_index_reply.index = field(s, "index", 0);
        m->u.read_index_reply.ctx = field(s, "ctx", 0);
    } else {
        return false;
    }
    return true;
}

static void command_inject(struct story *s)
{
    const char *arrow = strstr(word(s, 1), "->");
    KRD_ASSERT(arrow);
    raft_id receiver = strtoull(arrow + 2, NULL, 10);
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.from = strtoull(word(s, 1), NULL, 10);
    m.to = field(s, "to", receiver);
    m.term = field(s, "t", 0);
    if (!inject_body(s, &m)) {
        say(s, "no such type");
        return;
    }
    raft_step(raft_of(s, receiver), &m);
    raft_check(raft_of(s, receiver));
    turn(s, receiver);
}

/* --- Commands: looking ----------------------------------------------------------------------- */

static void command_status(struct story *s)
{
    if (s->n_words == 1)
        for (raft_id id = 1; id <= s->sim.n; id++)
            sim_describe_node(&s->sim, id, &s->out);
    for (size_t i = 1; i < s->n_words; i++)
        sim_describe_node(&s->sim, number(s, i, 1), &s->out);
}

static void command_log(struct story *s)
{
    struct raft_status st;
    raft_get_status(raft_of(s, number(s, 1, 1)), &st);
    krd_buf_printf(&s->out, "%llu: terms of %llu-%llu:", (unsigned long long)st.id,
                   (unsigned long long)st.base + 1, (unsigned long long)st.last);
    for (raft_index i = st.base + 1; i <= st.last; i++)
        krd_buf_printf(&s->out, " %llu", (unsigned long long)raft_term_at(raft_of(s, st.id), i));
    say(s, "");
}

static void command_config_of(struct story *s)
{
    raft_index index;
    const struct raft_config_state *c = raft_config(raft_of(s, number(s, 1, 1)), &index);
    krd_buf_printf(&s->out, "%llu: of entry %llu:", (unsigned long long)number(s, 1, 1),
                   (unsigned long long)index);
    for (uint32_t i = 0; i < c->n; i++) {
        const struct raft_member *m = &c->members[i];
        krd_buf_printf(&s->out, " %llu%s%s%s", (unsigned long long)m->id, m->voter ? " votes" : "",
                       m->voter_outgoing ? " voted" : "",
                       !m->voter && !m->voter_outgoing ? " learns" : "");
        krd_buf_puts(&s->out, i + 1 < c->n ? "," : "");
    }
    say(s, "");
}

static void command_counters(struct story *s)
{
    struct raft_status st;
    raft_get_status(raft_of(s, number(s, 1, 1)), &st);
    krd_buf_printf(&s->out, "%llu: elections=%llu dropped=%llu cached=%zu uncommitted=%zu\n",
                   (unsigned long long)st.id, (unsigned long long)st.elections,
                   (unsigned long long)st.dropped, st.cached_bytes, st.uncommitted_bytes);
}

/* --- All commands ---------------------------------------------------------------------------- */

/* Commands that touch one node by one call, and give it a turn. */
static bool simple_command(struct story *s)
{
    raft_id id = number(s, 1, 1);
    if (is(s, "persist"))
        sim_persist(&s->sim, id, number(s, 2, SIZE_MAX));
    else if (is(s, "fetch"))
        sim_answer_fetch(&s->sim, id, number(s, 2, SIZE_MAX));
    else if (is(s, "compact"))
        sim_compact(&s->sim, id, number(s, 2, 0));
    else if (is(s, "read"))
        say_status(s, sim_read(&s->sim, id, number(s, 2, 0)));
    else if (is(s, "transfer"))
        say_status(s, raft_transfer(raft_of(s, id), number(s, 2, 0)));
    else if (is(s, "peer-lost"))
        raft_peer_lost(raft_of(s, id), number(s, 2, 0));
    else if (is(s, "unreachable"))
        raft_peer_unreachable(raft_of(s, id), number(s, 2, 0));
    else if (is(s, "crash"))
        sim_crash(&s->sim, id, number(s, 2, 0));
    else if (is(s, "restart"))
        sim_start(&s->sim, id);
    else
        return false;
    turn(s, id);
    return true;
}

static void run_command(struct story *s)
{
    bool ignored[SIM_NODES_MAX];
    if (is(s, "cluster"))
        command_cluster(s);
    else if (is(s, "disk"))
        command_disk(s);
    else if (is(s, "tick"))
        command_tick(s);
    else if (is(s, "campaign"))
        campaign(s, number(s, 1, 1));
    else if (is(s, "lead"))
        lead(s, number(s, 1, 1));
    else if (is(s, "propose"))
        command_propose(s);
    else if (is(s, "config"))
        command_config(s);
    else if (is(s, "deliver"))
        command_deliver(s);
    else if (is(s, "drop"))
        each_match(s, sim_drop, false, ignored);
    else if (is(s, "double"))
        each_match(s, sim_duplicate, true, ignored);
    else if (is(s, "inject"))
        command_inject(s);
    else if (is(s, "stabilize"))
        command_stabilize(s);
    else if (is(s, "status"))
        command_status(s);
    else if (is(s, "log"))
        command_log(s);
    else if (is(s, "network"))
        command_network(s);
    else if (is(s, "config-of"))
        command_config_of(s);
    else if (is(s, "counters"))
        command_counters(s);
    else if (is(s, "now"))
        command_now(s);
    else if (is(s, "time"))
        command_time(s);
    else if (is(s, "hold"))
        s->hold = true;
    else if (is(s, "turn"))
        sim_turn(&s->sim, number(s, 1, 1));
    else if (is(s, "unwatched"))
        s->sim.unwatched = true;
    else if (!simple_command(s))
        say(s, "no such command");
}

static void run_line(struct story *s, char *line)
{
    s->n_words = 0;
    for (char *save, *w = strtok_r(line, " \t", &save); w && s->n_words < WORDS_MAX;
         w = strtok_r(NULL, " \t", &save))
        s->words[s->n_words++] = w;
    bool quiet = is(s, "quiet");
    if (quiet)
        memmove(s->words, s->words + 1, --s->n_words * sizeof s->words[0]);
    size_t before = s->out.len;
    s->sim.out = quiet ? NULL : &s->out;
    run_command(s);
    s->sim.out = NULL;
    if (quiet)
        s->out.len = before;
}

/* --- Files ------------------------------------------------------------------------------------ */

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) {
        perror(path);
        abort();
    }
    struct krd_buf text = KRD_BUF_INIT;
    char chunk[4096];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
        krd_buf_put(&text, chunk, n);
    fclose(f);
    krd_buf_put_u8(&text, 0);
    return (char *)text.ptr;
}

/* The next line without its newline; *at moves behind it. NULL at the end. */
static char *next_line(char **at)
{
    if (**at == '\0')
        return NULL;
    char *line = *at;
    char *end = strchr(line, '\n');
    if (end) {
        *end = '\0';
        *at = end + 1;
    } else {
        *at = line + strlen(line);
    }
    return line;
}

/* Runs the story; *now is the file as it would be rewritten. */
static void run_story(char *text, struct krd_buf *now)
{
    struct story s = {.begun = false};
    bool in_output = false;
    for (char *line; (line = next_line(&text));) {
        if (in_output) {
            in_output = *line != '\0'; /* the old output is skipped up to the empty line */
            continue;
        }
        krd_buf_printf(now, "%s\n", line);
        if (*line == '\0' || *line == '#')
            continue;
        if (strcmp(line, "----") != 0) {
            run_line(&s, line);
            continue;
        }
        if (s.out.len == 0)
            say(&s, "ok");
        krd_buf_put_slice(now, krd_buf_slice(&s.out));
        krd_buf_puts(now, "\n");
        s.out.len = 0;
        in_output = true;
    }
    while (now->len > 1 && now->ptr[now->len - 1] == '\n' && now->ptr[now->len - 2] == '\n')
        now->len--;
    krd_buf_deinit(&s.out);
    if (s.begun)
        sim_deinit(&s.sim);
}

static bool rewrite;

/* The first line that differs, with what should be there. */
static void show_difference(const char *path, char *was, char *now)
{
    for (int n = 1;; n++) {
        char *a = next_line(&was), *b = next_line(&now);
        if (a && b && strcmp(a, b) == 0)
            continue;
        print_error("%s:%d\n  expected: %s\n  came out: %s\n", path, n, a ? a : "(the end)",
                    b ? b : "(the end)");
        return;
    }
}

static void comes_out_as_written(void **state)
{
    const char *path = *state;
    char *was = read_file(path);
    char *work = read_file(path);
    struct krd_buf now = KRD_BUF_INIT;
    run_story(work, &now);
    krd_buf_put_u8(&now, 0);
    bool same = strcmp(was, (char *)now.ptr) == 0;
    if (!same && rewrite) {
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        assert_int_equal(fwrite(now.ptr, 1, now.len - 1, f), now.len - 1);
        assert_int_equal(fclose(f), 0);
        print_message("%s: rewritten\n", path);
    } else if (!same) {
        show_difference(path, was, (char *)now.ptr);
    }
    krd_free(was);
    krd_free(work);
    krd_buf_deinit(&now);
    assert_true(same || rewrite);
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int main(int argc, char **argv)
{
    int first = 1;
    if (argc > 1 && strcmp(argv[1], "--rewrite") == 0) {
        rewrite = true;
        first = 2;
    }
    glob_t found = {.gl_pathc = 0};
    char **paths = argv + first;
    size_t n = (size_t)(argc - first);
    if (n == 0 && glob("tests/raft/*.txt", 0, NULL, &found) == 0) {
        paths = found.gl_pathv;
        n = found.gl_pathc;
    }
    if (n == 0) {
        fprintf(stderr, "no stories here: run it in the root of the source tree\n");
        return 1;
    }
    struct CMUnitTest *tests = krd_calloc(n, sizeof *tests);
    for (size_t i = 0; i < n; i++) {
        tests[i].name = file_name(paths[i]);
        tests[i].test_func = comes_out_as_written;
        tests[i].initial_state = paths[i];
    }
    int failed = _cmocka_run_group_tests("transcripts", tests, n, NULL, NULL);
    krd_free(tests);
    globfree(&found);
    return failed;
}
