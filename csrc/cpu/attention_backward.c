/* The gradients of attention. P is computed again from lse. With P = exp(s - lse) and dP = dout V':
 *     dv = P' dout,  ds = P (dP - D) / sqrt(hs),  D = dout . out per query,  dq = ds K,  dk = ds' q
 * Here each lane is a key: keys and values are transposed once for all queries that see them.
 *
 *     p[i][j]  = sum over d of q[i][d] k_t[d][j]              dp[i][j] = sum over d of dout[i][d] v_t[d][j]
 *     dv[j][d] = sum over i of p[i][j] dout[i][d]             dk[j][d] = sum over i of ds[i][j] q[i][d]
 *     dq[i][d] = sum over j of ds[i][j] k[j][d]
 *
 * Keys are taken in segments of SEGMENT, which fit the second cache. A segment's dk and dv are complete when all queries
 * have seen it; dq is the sum of the segments' parts, in their order, which is stored when the last part has been added. Few
 * heads are split: several segments are computed at once, and their parts wait in the workspace for that sum, so the bits
 * are the same. */
#include "attention_gradient.h"

enum { SEGMENT = 256, AT_ONCE = 4, FEW_HEADS = 3 }; /* heads are split if there are fewer than FEW_HEADS for a thread */

/* The rows of T queries in whole blocks. */
static inline int whole_blocks(int T) { return (T + QB - 1) / QB * QB; }

/* Places a thread's scratch at base and returns its size in floats; base may be NULL. */
static int64_t scratch_at(Scratch *s, float *base, int T, int hs) {
    const int64_t hp = padded(hs), rows = whole_blocks(T);
    int64_t used = 0;
    float **keys[] = {&s->k, &s->k_t, &s->v_t, &s->dk, &s->dv}, **block[] = {&s->p, &s->ds, &s->ds_rows};
    float **each[] = {&s->lse, &s->rest, &s->D};
    for (int i = 0; i < 5; i++) *keys[i] = take(base, &used, min(SEGMENT, (int)rows) * hp);
    for (int i = 0; i < 3; i++) *block[i] = take(base, &used, QB * KB), *each[i] = take(base, &used, rows);
    s->dq = take(base, &used, QB * hp), s->dq_sum = take(base, &used, rows * hp);
    s->q_pairs = s->q = take(base, &used, rows * row_length(hs));
    s->dout_pairs = s->dout = take(base, &used, rows * row_length(hs));
    if (HAS_BF16) s->q_pairs = take(base, &used, rows / 2 * hp), s->dout_pairs = take(base, &used, rows / 2 * hp);
    return used;
}

static int split(int64_t heads, int T, int threads) {
    return threads > 1 && T > SEGMENT && heads < FEW_HEADS * (int64_t)threads;
}

/* The floats of one part of dq for all heads. Split heads have AT_ONCE of them, and the sum. */
static int64_t part_floats(int64_t heads, int T, int hs) { return heads * whole_blocks(T) * padded(hs); }

/* Enough for `heads` or fewer. Fewer than FEW_HEADS a thread are split. */
int64_t K(attention_backward_workspace)(int64_t heads, int T, int hs, int threads) {
    Scratch s;
    const int64_t own = scratch_at(&s, NULL, T, hs) * threads, few = FEW_HEADS * (int64_t)threads - 1;
    const int64_t parts = split(1, T, threads) ? (AT_ONCE + 1) * part_floats(heads < few ? heads : few, T, hs) : 0;
    return (own + parts) * (int64_t)sizeof(float);
}

/* One head of one sequence. Rows of qkv and dqkv are 3C apart, those of out and dout C. */
typedef struct {
    floatX *dqkv;
    const floatX *qkv, *out, *dout;
    const float *lse;
    const Dropout *dropout; /* NULL: none */
    int T, C, hs, window;
    uint32_t row;       /* the number of its first query among those of all heads */
    const int *offsets; /* (B,T), here of one sequence; NULL: all rows are of one document */
} Head;

/* Picks one head from all of them. */
static Head head_of(Head all, int64_t head) {
    const int NH = all.C / all.hs;
    const int64_t row = head / NH * all.T, column = head % NH * all.hs;
    all.qkv += row * 3 * all.C + column, all.dqkv += row * 3 * all.C + column;
    all.out += row * all.C + column, all.dout += row * all.C + column;
    all.lse += head * all.T, all.row = (uint32_t)(head * all.T), all.offsets = offsets_at(all.offsets, row);
    return all;
}

/* The n rows of x from position `at` on. A position has `stride` numbers, 3C or C. */
static Rows rows_at(const Head *h, const floatX *x, int64_t stride, int at, int n) {
    return (Rows){x + at * stride, stride, n, h->hs};
}

/* ---- one segment ---- */

/* Fills in all that the scratch holds of the n queries from `at` on. `at` is a multiple of QB. */
static void load_queries(const Scratch *s, const Head *h, int at, int n) {
    const Rows q = rows_at(h, h->qkv, 3 * h->C, at, n);
    const Rows dout = rows_at(h, h->dout, h->C, at, n), out = rows_at(h, h->out, h->C, at, n);
    const int hp = padded(h->hs), length = row_length(h->hs);
    pack_rows(s->q + (int64_t)at * length, q);
    pack_rows(s->dout + (int64_t)at * length, dout);
    float *const q_pairs = s->q_pairs + (int64_t)at / 2 * hp, *const dout_pairs = s->dout_pairs + (int64_t)at / 2 * hp;
    if (HAS_AMX) pack_pair_columns(q_pairs, q), pack_pair_columns(dout_pairs, dout);
    else if (HAS_BF16) pack_pairs(q_pairs, q), pack_pairs(dout_pairs, dout);
    for (int i = 0; i < n; i += VL) vf_store(s->D + at + i, dot_of_rows(&dout, &out, i));
    const double scale = sqrt(h->hs);
    for (int i = at; i < at + n; i++) {
        const double lse = h->lse[i] * scale;
        s->lse[i] = (float)lse;
        s->rest[i] = (float)(lse - (double)s->lse[i]);
    }
}

/* The scratch as seen by the block of queries at `at`: its first query is number 0. */
static Scratch queries_from(Scratch s, const Head *h, int at) {
    const int64_t hp = padded(h->hs), length = row_length(h->hs);
    s.q += at * length, s.dout += at * length;
    s.q_pairs += steps(at) * hp, s.dout_pairs += steps(at) * hp;
    s.lse += at, s.rest += at, s.D += at;
    s.dropout = h->dropout, s.row = h->row + (uint32_t)at, s.at = at, s.own = offsets_at(h->offsets, at);
    return s;
}

static void load_keys(const Scratch *s, const Head *h, int from, int n) {
    const int hp = padded(h->hs);
    for (int key = 0; key < n; key += KB) {
        const Rows k = rows_at(h, h->qkv + h->C, 3 * h->C, from + key, min(KB, n - key));
        pack_pairs(s->k + steps(key) * hp, k);
        pack_columns(s->k_t + key * hp, KB, k);
        pack_columns(s->v_t + key * hp, KB, (Rows){k.at + h->C, k.stride, k.n, k.hs});
    }
    const size_t bytes = (size_t)(n + KB - 1) / KB * KB * hp * sizeof(float);
    memset(s->dk, 0, bytes);
    memset(s->dv, 0, bytes);
}

/* Whether the queries at `at` see keys of the segment that begins at `from`; and whether they see no key before it. */
static int sees(const Head *h, int at, int from) {
    return at >= from && at < h->T && first_seen(h->offsets, at, h->window) < from + SEGMENT;
}
static int sees_first(const Head *h, int at, int from) { return first_seen(h->offsets, at, h->window) >= from; }

/* Scales n rows of a segment's part of dq. If add_part did it, the compiler could choose to round product and sum at once. */
static void scale_part(float *part, int n, int hs) {
    const float scale = 1 / sqrtf((float)hs);
    for (int i = 0; i < n * padded(hs); i += VL) vf_store(part + i, vf_load(part + i) * scale);
}

/* Adds a segment's part of dq, of the queries at `at`, to their sum so far, and stores dq if they see no later segment. */
static void add_part(const Head *h, float *sum, const float *part, int at, int from) {
    const int hp = padded(h->hs), n = min(QB, h->T - at), first = sees_first(h, at, from), last = at < from + SEGMENT;
    floatX *dq = h->dqkv + (int64_t)at * 3 * h->C;
    for (int i = 0; i < n; i++, dq += 3 * h->C, sum += hp, part += hp)
        for (int d = 0; d < h->hs; d += VL) {
            const vf x = vf_load(part + d), y = first ? x : vf_load(sum + d) + x;
            if (last) fx_store_n(dq + d, y, LANES(d, h->hs));
            else vf_store(sum + d, y);
        }
}

/* Prefetches for the queries at `at`, unless they were loaded before. */
static void next_queries(Ahead next[3], const Head *h, int at, int from, int parts) {
    const int n = sees(h, at, from) && (parts || sees_first(h, at, from)) ? min(QB, h->T - at) : 0;
    next[0] = rows_ahead(rows_at(h, h->qkv, 3 * h->C, at, n));
    next[1] = rows_ahead(rows_at(h, h->dout, h->C, at, n));
    next[2] = rows_ahead(rows_at(h, h->out, h->C, at, n));
}

static void store_keys(const Scratch *s, const Head *h, int from, int keys) {
    floatX *const dk = h->dqkv + (int64_t)from * 3 * h->C + h->C;
    store_sums(dk, 3 * h->C, s->dk, keys, h->hs, 1 / sqrtf((float)h->hs));
    store_sums(dk + h->C, 3 * h->C, s->dv, keys, h->hs, 1);
}

/* Computes dk and dv of the segment's keys and its parts of dq, which are added at once or left in parts(T, hp). */
static void segment_backward(const Scratch *own, const Head *h, int from, float *parts) {
    const int hp = padded(h->hs), keys = min(SEGMENT, h->T - from);
    load_keys(own, h, from, keys);
    for (int at = from; sees(h, at, from); at += QB) {
        const int n = min(QB, h->T - at);
        Scratch s = queries_from(*own, h, at);
        const int window = most_seen(s.own, n, h->window);
        if (parts || sees_first(h, at, from)) load_queries(own, h, at, n);
        if (parts) s.dq = parts + (int64_t)at * hp;
        Ahead next[3];
        next_queries(next, h, at + QB, from, parts != NULL);
        memset(s.dq, 0, (size_t)n * hp * sizeof *s.dq);
        for (int key = 0; key < keys; key += KB) {
            const Block b = {at - from - key, n, min(KB, keys - key), window};
            if (!none_visible(b) && !is_of_others(s.own, b)) block_backward(b, &s, key, h->hs, next);
        }
        scale_part(s.dq, n, h->hs);
        if (!parts) add_part(h, own->dq_sum + (int64_t)at * hp, s.dq, at, from);
    }
    store_keys(own, h, from, keys);
}

/* ---- all heads ---- */

static Scratch thread_scratch(const Context *ctx, int thread, const Head *h) {
    Scratch s;
    const int64_t size = scratch_at(&s, NULL, h->T, h->hs);
    scratch_at(&s, (float *)ctx->workspace + thread * size, h->T, h->hs);
    return s;
}

typedef struct Heads {
    const Context *ctx;
    const Head *all;
    int64_t heads;
    int from;     /* the first key of the segments computed at once */
    float *parts; /* their parts of dq, AT_ONCE for each head, then the sums */
} Heads;

static void segment_tasks(const void *given, Part tasks) { /* the early segments first: most queries see them */
    const Heads a = *(const Heads *)given;
    amx_begin();
    for (int64_t task = tasks.from; task < tasks.to; task++) {
        const Head h = head_of(*a.all, task % a.heads);
        const int at = a.from + (int)(task / a.heads) * SEGMENT;
        const Scratch own = thread_scratch(a.ctx, tasks.thread, &h);
        if (at < h.T) segment_backward(&own, &h, at, a.parts + part_floats(task, h.T, h.hs));
    }
    end_products();
}

static void add_parts(const void *given, Part tasks) {
    const Heads a = *(const Heads *)given;
    for (int64_t task = tasks.from; task < tasks.to; task++) {
        const Head h = head_of(*a.all, task % a.heads);
        const int at = (int)(task / a.heads) * QB;
        float *const part = a.parts + part_floats(task % a.heads, h.T, h.hs) + (int64_t)at * padded(h.hs);
        const int64_t next = part_floats(a.heads, h.T, h.hs);
        for (int i = 0; i < AT_ONCE; i++)
            if (sees(&h, at, a.from + i * SEGMENT))
                add_part(&h, part + AT_ONCE * next, part + i * next, at, a.from + i * SEGMENT);
    }
}

static void head_tasks(const void *given, Part tasks) {
    const Heads a = *(const Heads *)given;
    amx_begin();
    for (int64_t head = tasks.from; head < tasks.to; head++) {
        const Head h = head_of(*a.all, head);
        const Scratch s = thread_scratch(a.ctx, tasks.thread, &h);
        for (int from = 0; from < h.T; from += SEGMENT) segment_backward(&s, &h, from, NULL);
    }
    end_products();
}

/* Computes AT_ONCE segments of all heads from `from` on, then adds their parts of dq in order. */
static void split_backward(Context *ctx, const Head *all, int64_t heads, int from) {
    Scratch s;
    const int blocks = (all->T + QB - 1) / QB;
    float *parts = (float *)ctx->workspace + scratch_at(&s, NULL, all->T, all->hs) * ctx->threads;
    const Heads given = {ctx, all, heads, from, parts};
    parallel_dynamic(ctx->threads, heads * AT_ONCE, segment_tasks, &given);
    parallel_static(ctx->threads, heads * blocks, add_parts, &given);
}

void K(attention_backward)(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                           const floatX *qkv, const int *offsets, const Dropout *dropout, int B, int T, int C, int NH,
                           int window) {
    const int64_t heads = (int64_t)B * NH;
    const Head all = {dqkv, qkv, out, dout, lse, dropout, T, C, C / NH, effective(window, T), 0, offsets};
    if (split(heads, T, ctx->threads)) {
        for (int from = 0; from < T; from += AT_ONCE * SEGMENT) split_backward(ctx, &all, heads, from);
        return;
    }
    parallel_dynamic(threads_for(ctx, elements((int64_t)B * T, all.window, C)), heads, head_tasks,
                     &(Heads){ctx, &all, heads, 0, NULL});
}
