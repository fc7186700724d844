/* Causal attention without a T x T matrix (FlashAttention, Dao et al. 2022). The softmax goes over blocks of keys; the
 * result so far is scaled down whenever a larger score turns up. Scores are kept transposed, p[key][query]: each lane is a
 * query, so that the softmax needs no sum across lanes. Only the queries are transposed, once.
 *
 *   p   = K q_t       p[j][i]   = sum over d of k[j][d] q_t[d][i]
 *   out = p' V        out[i][d] = sum over j of p[j][i] v[j][d]
 *
 * Blocks of keys begin at multiples of KB, wherever a task begins. So no bit depends on how queries are shared out. */
#include <float.h>
#include "attention_amx.h"
#include "attention_one.h"
#include "dropout.h"

enum { SUBS = 4 }; /* the blocks of queries that use a packed block of keys together */

/* A block of queries. Its out and sum so far are scaled by exp(-largest score). */
typedef struct {
    float *q_t, *out;     /* (hp, QB), (QB, hp); on tiles out is (hp, QB) */
    float *largest, *sum; /* (QB) */
    int at, window;       /* the position of the first query; the most keys that one of them sees */
    const int *own;       /* their offsets; NULL: all rows are of one document */
} Queries;
/* One thread's part of the workspace. */
typedef struct {
    Queries queries[SUBS];
    float *k, *v, *p; /* (KB, hp), (KB, hp), on tiles (hp, KB/2); (KB, QB) */
} Scratch;

/* Places a thread's scratch at base and returns its size in floats; base may be NULL. */
static int64_t scratch_at(Scratch *s, float *base, int hs) {
    const int64_t hp = padded(hs);
    int64_t used = 0;
    for (int i = 0; i < SUBS; i++) {
        Queries *q = &s->queries[i];
        q->q_t = take(base, &used, QB * hp), q->out = take(base, &used, QB * hp);
        q->largest = take(base, &used, QB), q->sum = take(base, &used, QB);
    }
    s->k = take(base, &used, KB * hp), s->v = take(base, &used, KB * hp), s->p = take(base, &used, KB * QB);
    return used;
}
static Scratch thread_scratch(const Context *ctx, int thread, int hs) {
    Scratch s;
    const int64_t size = scratch_at(&s, NULL, hs);
    scratch_at(&s, (float *)ctx->workspace + thread * size, hs);
    return s;
}

int64_t K(attention_workspace)(int B, int T, int C, int NH, int threads) {
    Scratch s;
    const int64_t forward = scratch_at(&s, NULL, C / NH) * threads * (int64_t)sizeof(float);
    const int64_t backward = K(attention_backward_workspace)((int64_t)B * NH, T, C / NH, threads);
    return forward > backward ? forward : backward;
}

/* A mask of VL queries from i on: those that see key j. own: their offsets, if the block has a boundary between documents. */
INLINE vi that_see(Block b, const int *own, int i, int j) {
    const vi seen = visible_to_queries(b, i, j);
    return own ? seen & (vi_lanes(0) + (b.shift + i - j) <= vi_load(own + i)) : seen;
}

/* exp(score - largest) of VL queries, from i on, with key j. */
INLINE vf weights(Block b, const int *own, const float *p, vf largest, Log2 to_log2, int i, int j, const int masked) {
    const vf x = weight_of(vf_load(p + j * QB + i) - largest, to_log2, TERMS_OF_SUMS);
    return masked ? (vf)((vi)x & that_see(b, own, i, j)) : x;
}

/* The factors of dropout for VL queries from i on, and for the keys of a block that they see. */
static void drop_lanes(vf factors[KB], Block b, const Queries *q, const Head *h, int i, Range seen) {
    const int at = q->at + i, key = q->at - b.shift;
    for (int j = seen.from / 8 * 8; j < seen.to; j += 8)
        factors_of_rows(h->dropout, h->row + (uint32_t)at, (uint32_t)(key + j) / 8, factors + j);
}

/* The scores of VL queries from i on with key j; where it is invisible, less than any score. */
INLINE vf score_of(Block b, const int *own, const float *p, int i, int j, const int masked) {
    const vf x = vf_load(p + j * QB + i);
    return masked ? vf_pick(that_see(b, own, i, j), x, vf_set(-FLT_MAX)) : x;
}

/* The largest of these scores with some keys, and `largest`. Four maxima go on by turns, as one alone would wait for itself. */
INLINE vf largest_of(Block b, const int *own, const float *p, vf largest, int i, Range keys, const int masked) {
    enum { TURNS = 4 };
    vf most[TURNS] = {largest, largest, largest, largest};
    int j = keys.from;
    for (; j + TURNS <= keys.to; j += TURNS)
        UNROLL for (int l = 0; l < TURNS; l++) most[l] = vf_max(most[l], score_of(b, own, p, i, j + l, masked));
    for (; j < keys.to; j++) most[0] = vf_max(most[0], score_of(b, own, p, i, j, masked));
    return vf_max(vf_max(most[0], most[1]), vf_max(most[2], most[3]));
}

/* For VL queries p becomes exp(score - largest), times its factor where weights are dropped; where HAS_BF16, two keys to a
 * word; 0 for invisible keys. */
INLINE void softmax_lanes(Block b, const int *own, Queries *q, float *p, const Head *h, int i, float *shrink,
                          const int masked, const int drops) {
    const Range all = {0, b.keys}, seen = in_steps(masked ? keys_of(b, i, i + VL) : all);
    const Log2 to_log2 = h->to_log2;
    const int each = HAS_BF16 ? 2 : 1;
    const Range keys = {seen.from * each, seen.to * each};
    const vf before = vf_load(q->largest + i), largest = largest_of(b, own, p, before, i, keys, masked);
    vf sum = vf_set(0), factors[KB];
    if (drops) drop_lanes(factors, b, q, h, i, keys);
    for (int j = seen.from; j < seen.to; j++) {
        const vf x = weights(b, own, p, largest, to_log2, i, j * each, masked);
        sum += x;
        if (!HAS_BF16) {
            vf_store(p + j * QB + i, drops ? x * factors[j] : x);
            continue;
        }
        const vf y = weights(b, own, p, largest, to_log2, i, j * each + 1, masked);
        sum += y;
        vf_store(p + j * QB + i,
                 (vf)(drops ? bf16_interleave(x * factors[2 * j], y * factors[2 * j + 1]) : bf16_interleave(x, y)));
    }
    for (int j = 0; j < seen.from; j++) vf_store(p + j * QB + i, vf_set(0));
    for (int j = max(seen.from, seen.to); j < steps(b.keys); j++) vf_store(p + j * QB + i, vf_set(0));
    const vf factor = weight_of(before - largest, to_log2, TERMS_OF_SUMS);
    vf_store(q->largest + i, largest);
    vf_store(q->sum + i, vf_load(q->sum + i) * factor + sum);
    vf_store(shrink + i, factor);
}

/* One version serves all blocks here: a mask costs little beside the random numbers. */
APART void softmax_dropped(Block b, Queries *q, float *p, const Head *h, float *shrink) {
    for (int i = 0; i < b.queries; i += VL) softmax_lanes(b, NULL, q, p, h, i, shrink, 1, 1);
}

/* A block that a boundary between documents crosses. */
APART void softmax_documents(Block b, Queries *q, float *p, const Head *h, float *shrink) {
    int own[QB] = {0}; /* as long as the lanes of the last vector are read */
    memcpy(own, q->own, (size_t)b.queries * sizeof *own);
    for (int i = 0; i < b.queries; i += VL) softmax_lanes(b, own, q, p, h, i, shrink, 1, h->dropout != NULL);
}

static void softmax(Block b, Queries *q, float *p, const Head *h) {
    const int hp = padded(h->hs);
    float shrink[QB];
    if (has_boundary(q->own, b)) softmax_documents(b, q, p, h, shrink);
    else if (h->dropout) softmax_dropped(b, q, p, h, shrink);
    else if (all_visible(b))
        for (int i = 0; i < b.queries; i += VL) softmax_lanes(b, NULL, q, p, h, i, shrink, 0, 0);
    else
        for (int i = 0; i < b.queries; i += VL) softmax_lanes(b, NULL, q, p, h, i, shrink, 1, 0);
    if (HAS_AMX) {
        scale_columns(q->out, hp, shrink, b.queries);
        clear_words(p, b.keys);
        return;
    }
    for (int i = 0; i < b.queries; i++)
        if (shrink[i] != 1)
            for (int d = 0; d < hp; d += VL) vf_store(q->out + i * hp + d, vf_load(q->out + i * hp + d) * shrink[i]);
}

/* p[j][i] = k[j] . q_t[.][i]. Here and below, a strip leaves out the keys that none of its queries sees. */
static void scores(Block b, float *p, const float *k, const float *q_t, const Head *h, Ahead *next) {
    const int length = row_length(h->hs), depth = steps(h->hs);
    if (HAS_AMX) {
        amx_scores(p, k, q_t, b, b.keys, queries_of, h->hs, next);
        return;
    }
    for (int j = 0; j < b.keys; j += MR) {
        const int m = min(MR, b.keys - j);
        const Range r = in_vectors(queries_of(b, j, j + m));
        ask(next);
        strip(p + j * QB + r.from, QB, &(Factor){k + j * length, length, 1}, q_t + r.from, QB, m, (r.to - r.from) / VL,
              depth, 0);
    }
}
/* out[i] += sum over j of p[j][i] v[j]. */
static void add_values(Block b, float *out, const float *p, const float *v, const Head *h, Ahead *next) {
    const int hp = padded(h->hs);
    if (HAS_AMX) {
        amx_sums(out, v, p, b, b.queries, keys_of, h->hs, next);
        return;
    }
    for (int i = 0; i < b.queries; i += MR) {
        const int m = min(MR, b.queries - i);
        const Range r = in_steps(keys_of(b, i, i + m));
        ask(next);
        strip(out + i * hp, hp, &(Factor){p + r.from * QB + i, 1, QB}, v + r.from * hp, hp, m, hp / VL, r.to - r.from,
              1);
    }
}

static void start(Queries *q, const Head *h, const floatX *rows, int at, int n) {
    q->at = at, q->own = offsets_at(h->offsets, at), q->window = most_seen(q->own, n, h->window);
    pack_columns(q->q_t, QB, (Rows){rows, h->stride, n, h->hs});
    memset(q->out, 0, (size_t)QB * padded(h->hs) * sizeof *q->out);
    for (int i = 0; i < QB; i++) q->largest[i] = -FLT_MAX, q->sum[i] = 0;
}

static void finish(const Queries *q, const Head *h, floatX *out, int64_t C, float *lse, int n) {
    const int hp = padded(h->hs);
    const double scale = 1 / sqrt(h->hs);
    float share[QB];
    for (int i = 0; i < QB; i++) share[i] = i < n ? 1 / q->sum[i] : 0;
    for (int i = 0; lse && i < n; i++) lse[i] = (float)(q->largest[i] * scale + (double)logf(q->sum[i]));
    if (HAS_AMX) {
        store_columns(out, C, q->out, n, h->hs, share);
        return;
    }
    for (int i = 0; i < n; i++) store_rows(out + i * C, C, q->out + i * hp, 1, h->hs, share[i]);
}

/* The block of keys, or of values, from `key` on; it stops at `end`. */
static Rows keys_at(const Head *h, const floatX *x, int key, int end) {
    return (Rows){x + key * h->stride, h->stride, max(0, min(KB, end - key)), h->hs};
}

/* Computes out and lse (unless NULL) of n <= SUBS QB queries from position `at` on. Rows of out are C apart. */
APART void attend(Scratch *s, floatX *out, int64_t C, float *lse, const Head *h, const floatX *q, int at, int n) {
    const int end = at + n;
    for (int i = 0; i < n; i += QB) start(&s->queries[i / QB], h, q + i * h->stride, at + i, min(QB, n - i));
    for (int key = first_seen(h->offsets, at, h->window) / KB * KB; key < end; key += KB) {
        const Rows k = keys_at(h, h->k, key, end), v = keys_at(h, h->v, key, end);
        const int keys = k.n;
        Ahead next_k = rows_ahead(keys_at(h, h->k, key + KB, end));
        Ahead next_v = rows_ahead(keys_at(h, h->v, key + KB, end));
        pack_rows(s->k, k);
        if (HAS_AMX) pack_pair_columns(s->v, v);
        else pack_pairs(s->v, v);
        for (int i = 0; i < n; i += QB) {
            Queries *const q_block = &s->queries[i / QB];
            const Block b = {at + i - key, min(QB, n - i), keys, q_block->window};
            if (none_visible(b) || is_of_others(q_block->own, b)) continue;
            scores(b, s->p, s->k, q_block->q_t, h, &next_k);
            softmax(b, q_block, s->p, h);
            add_values(b, q_block->out, s->p, s->v, h, &next_v);
        }
    }
    for (int i = 0; i < n; i += QB)
        finish(&s->queries[i / QB], h, out + i * C, C, lse ? lse + i : NULL, min(QB, n - i));
}

/* The number of queries in a task: many, so that a block of keys is packed seldom, but few enough for every thread to get
 * tasks. */
static int task_queries(const Context *ctx, int64_t heads, int n) {
    const int64_t blocks = heads * ((n + QB - 1) / QB) / (4 * ctx->threads);
    return QB * (int)(blocks < 1 ? 1 : blocks > SUBS ? SUBS : blocks);
}

typedef struct Forward {
    const Context *ctx;
    floatX *out;
    float *lse;
    const floatX *qkv;
    const int *offsets;
    const Dropout *dropout;
    int T, C, NH, window, each, parts;
} Forward;
static void forward_tasks(const void *given, Part tasks) {
    const Forward a = *(const Forward *)given;
    const int hs = a.C / a.NH;
    amx_begin();
    for (int64_t task = tasks.from; task < tasks.to; task++) {
        const int64_t head = task / a.parts, b = head / a.NH, at = (a.parts - 1 - task % a.parts) * a.each;
        const floatX *q = a.qkv + b * a.T * 3 * a.C + head % a.NH * hs;
        Head h = head_at(q, a.C, hs, a.window);
        h.dropout = a.dropout, h.row = (uint32_t)(head * a.T), h.offsets = offsets_at(a.offsets, b * a.T);
        Scratch s = thread_scratch(a.ctx, tasks.thread, hs);
        attend(&s, a.out + (b * a.T + at) * a.C + head % a.NH * hs, a.C, a.lse + head * a.T + at, &h, q + at * 3 * a.C,
               (int)at, min(a.each, a.T - (int)at));
    }
    end_products();
}

void K(attention_forward)(Context *ctx, floatX *out, float *lse, const floatX *qkv, const int *offsets,
                          const Dropout *dropout, int B, int T, int C, int NH, int window) {
    const int seen = effective(window, T), each = task_queries(ctx, (int64_t)B * NH, T);
    const int parts = (T + each - 1) / each;
    parallel_dynamic(threads_for(ctx, elements((int64_t)B * T, seen, C)), (int64_t)B * NH * parts, forward_tasks,
                     &(Forward){ctx, out, lse, qkv, offsets, dropout, T, C, NH, seen, each, parts});
}

/* One query reads each key and value once. Nothing is used twice, so they are read where they lie, and the weights of values
 * are not rounded. */
static void attend_one(Scratch *s, floatX *out, const Head *h, const floatX *q, int at) {
    const int hp = padded(h->hs);
    float largest = -FLT_MAX, sum = 0, *row = s->queries->q_t, *acc = s->queries->out;
    for (int d = 0; d < hp; d += VL) vf_store(row + d, vector_of(&(Rows){q, 0, 1, h->hs}, 0, d));
    memset(acc, 0, (size_t)hp * sizeof *acc);
    for (int key = first_key(at, h->window); key <= at; key += KB) {
        const int keys = min(KB, at + 1 - key);
        const float here = scores_of_block(s->p, row, h, key, keys), before = largest;
        if (!(here <= largest)) largest = here;
        const float factor = expf((before - largest) / sqrtf((float)h->hs));
        sum = sum * factor + softmax_of_block(s->p, keys, largest, h->to_log2);
        for (int d = 0; d < hp; d += VL) vf_store(acc + d, vf_load(acc + d) * factor);
        values_of_block(acc, s->p, h, key, keys);
    }
    store_rows(out, 0, acc, 1, h->hs, 1 / sum);
}

typedef struct Cached {
    const Context *ctx;
    floatX *out, *cache;
    const floatX *qkv;
    const int *pos;
    int n, R, C, NH, window, rows, blocks; /* rows: the queries of a task; blocks: the tasks of a head */
    floatX *whole;
    int T;
} Cached;

static void copy_row(const Cached *a, floatX *to, int64_t i, const floatX *from, int64_t j) {
    memcpy(to + i * 3 * a->C, from + j * 3 * a->C, (size_t)3 * a->C * sizeof *to);
}

/* The last R of n new rows stay. */
static void store_new_rows(const void *given, Part rows) {
    const Cached a = *(const Cached *)given;
    for (int64_t row = rows.from; row < rows.to; row++) {
        const int64_t b = row / a.n, t = row % a.n;
        if (t + a.R >= a.n) copy_row(&a, a.cache, b * a.R + (a.pos[b] + t) % a.R, a.qkv, row);
    }
}

/* The earlier rows that the new ones see, from a ring to their places in `whole`. attend() reads whole blocks of keys: rows that
 * nobody sees become those that have their place in the ring, because they must be finite. */
static int unrolled(const Cached *a) { return a->window + KB; }
static void unroll(const void *given, Part rows) {
    const Cached a = *(const Cached *)given;
    for (int64_t row = rows.from; row < rows.to; row++) {
        const int64_t b = row / unrolled(&a);
        const int p = first_key(a.pos[b], a.window) / KB * KB + (int)(row % unrolled(&a));
        if (p < a.pos[b]) copy_row(&a, a.whole, b * a.T + p, a.cache, b * a.R + p % a.R);
    }
}

static void cached_tasks(const void *given, Part tasks) {
    const Cached a = *(const Cached *)given;
    const int hs = a.C / a.NH;
    if (a.rows > 1) amx_begin();
    for (int64_t task = tasks.from; task < tasks.to; task++) {
        const int64_t head = task / a.blocks, b = head / a.NH, i = (a.blocks - 1 - task % a.blocks) * a.rows;
        const int at = a.pos[b] + (int)i, first = (int)(head % a.NH) * hs;
        const floatX *q = a.qkv + (b * a.n + i) * 3 * a.C + first;
        floatX *o = a.out + (b * a.n + i) * a.C + first;
        Head h = head_at(a.cache + b * a.R * 3 * a.C + first, a.C, hs, a.window);
        h.R = a.R;
        Scratch s = thread_scratch(a.ctx, tasks.thread, hs);
        if (a.rows == 1) attend_one(&s, o, &h, q, at);
        else attend(&s, o, a.C, NULL, &h, q, at, min(QB, a.n - (int)i));
    }
    if (a.rows > 1) end_products();
}

static int furthest(const int *pos, int B) {
    int last = 0;
    for (int b = 0; b < B; b++) last = max(last, pos[b]);
    return last;
}

void K(attention_cached)(Context *ctx, floatX *out, floatX *cache, floatX *whole, const floatX *qkv, const int *pos,
                         int B, int n, int R, int T, int C, int NH, int window) {
    enum { FEW = 3 }; /* up to so many queries are faster one by one than as lanes of a block */
    const int rows = n <= FEW ? 1 : QB, blocks = (n + rows - 1) / rows, seen = effective(window, T);
    const int keys = min(seen, furthest(pos, B) + n);
    const int64_t queries = (int64_t)B * n;
    const int64_t work = rows == 1 ? queries * keys * C : elements(queries, keys, C);
    Cached given = {ctx, out, cache, qkv, pos, n, R, C, NH, seen, rows, blocks, whole, T};
    const int64_t old = (int64_t)B * unrolled(&given);
    if (R < T && n > 1) parallel_static(threads_for(ctx, old * 3 * C), old, unroll, &given);
    parallel_static(threads_for(ctx, queries * 3 * C), queries, store_new_rows, &given);
    if (R < T && n > 1) {
        given.cache = whole, given.R = T;
        parallel_static(threads_for(ctx, queries * 3 * C), queries, store_new_rows, &given);
    }
    parallel_dynamic(threads_for(ctx, work), (int64_t)B * NH * blocks, cached_tasks, &given);
}
