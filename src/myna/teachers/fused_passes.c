/* A low-rank model's scores, laws, draws and steps, each row's numbers read once a token.
 *
 * With A_o[i, j] = L[i, o] G[i, o, j], reading a token o takes a row c to c A_o / q_o, where
 * q = c L, and Q(o) = max(q_o, 0) / sum_o' max(q_o', 0) (uniform where nothing is positive).
 * Scores do not need the division: Q is the same for every positive multiple of c, so rows are
 * only divided where they leave (LOW, HIGH). Where no entry can be negative and all laws sum to
 * one, sum_j c_j is the probability of what was read, and q is not needed either.
 *
 * Who compiles this sets REAL (double or float), BYTES (of a vector) and RANK (0: ranks differ). Logarithms are taken of products.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SIDE 4 /* strings read side by side: chains of additions that do not wait for each other */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define INT __typeof__(_Generic((REAL)0, double: (int64_t)0, float: (int32_t)0))
#define LANES ((long)(BYTES / sizeof(REAL)))
/* a few large functions: with all of them inlined, compiling takes minutes */
#define KERNEL static __attribute__((noinline))
#define LOW (sizeof(REAL) == 8 ? (REAL)1e-30 : (REAL)1e-6)
#define HIGH (sizeof(REAL) == 8 ? (REAL)1e30 : (REAL)1e6)

/* rows of tables are padded with zeros to whole vectors */
struct step {
    const REAL *laws;      /* (rank, token), L */
    const REAL *emissions; /* (token, rank), L transposed */
    const REAL *moves;     /* (token, rank, next), A; or (rank, next), T: G[i, o, :] = T[i, :] */
    int64_t rank, next;
};

struct model {
    const struct step *steps;
    const REAL *first;
    int64_t count, tokens, stop, widest; /* stop is -1 where there is none */
    int64_t positive, shared, blocks;
};

struct text { /* row i is tokens[i * width ...], lengths[i] of them; order: longest first, or NULL */
    const int64_t *tokens, *lengths, *order;
    int64_t count, width;
};

struct rows { /* what is NULL is not wanted */
    const REAL *x;         /* (count, rank) */
    REAL *y;               /* (count, next) */
    int64_t *token;        /* (count,), read, or drawn where there are uniforms */
    double *log_prob, *law; /* (count,) and (count, token) */
    const double *uniform; /* (count,) */
    int64_t count, position;
};

struct tally { /* log Q so far is log(product) + log */
    double product, log;
};

INLINE void count_in(struct tally *tally, double p) {
    double next = tally->product * p;
    if (next < 1e-150) {
        tally->log += log(tally->product) + log(p);
        next = 1;
    }
    tally->product = next;
}

INLINE double chance(REAL q, REAL total, int64_t tokens) {
    return total > 0 ? (q > 0 ? (double)q / total : 0.) : 1. / tokens;
}

INLINE const struct step *step_at(const struct model *m, long t) {
    return m->steps + (t < m->count ? t : m->count - 1);
}

INLINE long index_of(const struct text *text, long k) { return text->order ? text->order[k] : k; }
INLINE long length_of(const struct text *text, long k) { return text->lengths[index_of(text, k)]; }
INLINE const int64_t *row_of(const struct text *text, long k) {
    return text->tokens + index_of(text, k) * text->width;
}

static REAL *room_for(long numbers) { /* whole cache lines */
    return aligned_alloc(64, (numbers * sizeof(REAL) + 63) / 64 * 64);
}

/* the first token whose cumulative mass exceeds u of the total; never one of probability zero */
static int64_t drawn(const REAL *q, REAL total, int64_t tokens, double u) {
    double mass = 0, wanted = total > 0 ? u * total : u * tokens;
    int64_t last = 0;
    for (int64_t o = 0; o < tokens; o++) {
        double here = total > 0 ? (q[o] > 0 ? q[o] : 0.) : 1.;
        if (here <= 0) continue;
        last = o, mass += here;
        if (mass > wanted) break;
    }
    return last;
}

typedef REAL vec __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef INT ivec __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

INLINE long padded(long n) { return (n + LANES - 1) / LANES * LANES; }

INLINE REAL across(vec a) { /* halves added to halves: short chains */
    REAL b[LANES];
    memcpy(b, &a, BYTES);
    for (long n = LANES / 2; n; n /= 2)
        for (long l = 0; l < n; l++) b[l] += b[l + n];
    return b[0];
}

/* V vectors of the rows x[s] times m[s] (of m[0] where all are the same), kept in registers */
INLINE void times(const int S, const int V, const int same, long rank, REAL *const *x,
                      const REAL *const *m, long stride, long from, REAL *const *y) {
    vec acc[SIDE][4];
    UNROLL for (int s = 0; s < S; s++) UNROLL for (int v = 0; v < V; v++) acc[s][v] = (vec){0};
    for (long i = 0; i < rank; i++) UNROLL for (int s = 0; s < S; s++) {
        const REAL *row = m[same ? 0 : s] + i * stride + from, c = x[s][i];
        UNROLL for (int v = 0; v < V; v++) acc[s][v] += c * *(const vec *)(row + v * LANES);
    }
    UNROLL for (int s = 0; s < S; s++) UNROLL for (int v = 0; v < V; v++)
        *(vec *)(y[s] + from + v * LANES) = acc[s][v];
}

/* y[s] = x[s] m[s], rows of `stride` numbers, rank RANK where all ranks are */
INLINE void product(const int S, const int same, long rank, REAL *const *x, const REAL *const *m,
                    long stride, REAL *const *y) {
    rank = RANK ? RANK : rank;
    for (long from = 0; from < stride; from += 4 * LANES) switch ((stride - from) / LANES) {
        case 1: times(S, 1, same, rank, x, m, stride, from, y); break;
        case 2: times(S, 2, same, rank, x, m, stride, from, y); break;
        case 3: times(S, 3, same, rank, x, m, stride, from, y); break;
        default: times(S, 4, same, rank, x, m, stride, from, y);
        }
}

KERNEL void alone(long rank, REAL *const *x, const REAL *const *m, long stride, REAL *const *y) {
    product(1, 1, rank, x, m, stride, y);
}
KERNEL void by_one(long rank, REAL *const *x, const REAL *const *m, long stride, REAL *const *y) {
    product(SIDE, 1, rank, x, m, stride, y);
}
KERNEL void by_each(long rank, REAL *const *x, const REAL *const *m, long stride, REAL *const *y) {
    product(SIDE, 0, rank, x, m, stride, y);
}
INLINE void products(const int S, const int same, long rank, REAL *const *x, const REAL *const *m,
                     long stride, REAL *const *y) {
    (S == 1 ? alone : same ? by_one : by_each)(rank, x, m, stride, y);
}

/* clipped next-token weights of each row, unclipped ones in q; their sum, 0 where none is > 0 */
INLINE void weigh(const int S, const struct model *m, const struct step *step,
                      REAL *const *x, REAL *const *q, REAL *total) {
    const REAL *laws[SIDE] = {step->laws};
    long wide = padded(m->tokens);
    products(S, 1, step->rank, x, laws, wide, q);
    UNROLL for (int s = 0; s < S; s++) {
        vec sum = {0};
        for (long o = 0; o < wide; o += LANES) {
            vec a = *(const vec *)(q[s] + o);
            sum += (vec)((ivec)a & (a > 0));
        }
        total[s] = across(sum);
    }
}

/* y[s] = x[s] A_o, o = token[s]; with a shared transition (x[s] * L[:, o]) T, x overwritten */
INLINE void move(const int S, const int same, const struct model *m, const struct step *step,
                     REAL *const *x, const int64_t *token, REAL *const *y) {
    long rank = padded(step->rank), stride = padded(step->next);
    const REAL *moves[SIDE];
    if (m->shared) {
        UNROLL for (int s = 0; s < S; s++) {
            const REAL *emission = step->emissions + token[s] * rank;
            for (long i = 0; i < rank; i += LANES)
                *(vec *)(x[s] + i) *= *(const vec *)(emission + i);
        }
        moves[0] = step->moves;
        products(S, 1, step->rank, x, moves, stride, y);
    } else {
        UNROLL for (int s = 0; s < S; s++) moves[s] = step->moves + token[s] * step->rank * stride;
        products(S, same, step->rank, x, moves, stride, y);
    }
}

/* an impossible token leaves zeros */
INLINE void divide(REAL *y, long next, REAL by) {
    long stride = padded(next);
    if (by > 0)
        for (long j = 0; j < stride; j += LANES) *(vec *)(y + j) /= by;
    else memset(y, 0, sizeof(REAL) * stride);
}

/* one token of S rows: scores, and y unless it is the last */
INLINE void read(const int S, const int same, const struct model *m, const struct step *step,
                     REAL *const *x, const int64_t *token, REAL *const *y, REAL *const *q,
                     struct tally *const *tally, const int last) {
    long rank = padded(step->rank), stride = padded(step->next);
    if (m->positive) { /* masses telescope: only the last is a score, others keep it in range */
        if (!last) move(S, same, m, step, x, token, y);
        UNROLL for (int s = 0; s < S; s++) {
            const REAL *emission = step->emissions + token[s] * rank;
            vec sum = {0};
            if (last)
                for (long i = 0; i < rank; i += LANES)
                    sum += *(vec *)(x[s] + i) * *(const vec *)(emission + i);
            else
                for (long j = 0; j < stride; j += LANES) sum += *(vec *)(y[s] + j);
            REAL mass = across(sum);
            if (last || (mass < LOW && mass > 0)) {
                tally[s]->log += log(mass);
                if (!last) divide(y[s], step->next, mass);
            }
        }
        return;
    }
    REAL total[SIDE];
    weigh(S, m, step, x, q, total);
    UNROLL for (int s = 0; s < S; s++)
        count_in(tally[s], chance(q[s][token[s]], total[s], m->tokens));
    if (last) return;
    move(S, same, m, step, x, token, y);
    UNROLL for (int s = 0; s < S; s++) {
        REAL here = q[s][token[s]];
        if (!(here > LOW && here < HIGH)) divide(y[s], step->next, here);
    }
}

/* rows `row` of strings read side by side from position `from` to `to`; x and y are swapped */
INLINE void stretch(const int S, const struct model *m, const int64_t *const *text, long from,
                        long to, REAL **x, REAL **y, REAL *const *q, struct tally *const *tally,
                        const int last) {
    for (long t = from; t < to; t++) {
        int64_t token[SIDE];
        UNROLL for (int s = 0; s < S; s++) token[s] = text[s][t];
        read(S, 0, m, step_at(m, t), x, token, y, q, tally, last);
        UNROLL for (int s = 0; s < S; s++) {
            REAL *keep = x[s];
            x[s] = y[s], y[s] = keep;
        }
    }
}

/* strings SIDE at a time, each from its beginning to its end; longest first */
static int side_by_side(const struct model *m, const struct text *text, double *out) {
    long wide = padded(m->widest), most = padded(m->tokens);
    REAL *room = room_for(SIDE * (2 * wide + most));
    if (!room) return 1;
    for (long first = 0; first < text->count; first += SIDE) {
        long n = text->count - first < SIDE ? text->count - first : SIDE, together = 0;
        REAL *x[SIDE], *y[SIDE], *q[SIDE];
        struct tally held[SIDE], *tally[SIDE];
        const int64_t *row[SIDE];
        for (long s = 0; s < n; s++) {
            x[s] = room + s * (2 * wide + most), y[s] = x[s] + wide, q[s] = y[s] + wide;
            memset(x[s], 0, sizeof(REAL) * wide);
            memcpy(x[s], m->first, sizeof(REAL) * m->steps->rank);
            held[s] = (struct tally){1, 0}, tally[s] = held + s;
            row[s] = row_of(text, first + s);
        }
        if (n == SIDE) {
            together = length_of(text, first + SIDE - 1) - 1; /* the shortest ends apart */
            stretch(SIDE, m, row, 0, together, x, y, q, tally, 0);
            if (together < 0) together = 0;
        }
        for (long s = 0; s < n; s++) {
            long end = length_of(text, first + s);
            stretch(1, m, row + s, together, end - 1, x + s, y + s, q + s, tally + s, 0);
            if (end) stretch(1, m, row + s, end - 1, end, x + s, y + s, q + s, tally + s, 1);
            out[index_of(text, first + s)] = log(held[s].product) + held[s].log;
        }
    }
    free(room);
    return 0;
}

/* a block of strings position by position, those that read the same token SIDE at a time, so that
 * an operator too large for the nearest cache is loaded once for several strings */
static void block(const struct model *m, const struct text *text, long first, long n,
                      REAL *room, struct tally *held, long *sorted, long *starts, double *out) {
    long wide = padded(m->widest), most = padded(m->tokens);
    REAL *xs = room, *ys = xs + n * wide, *q[SIDE];
    for (long s = 0; s < SIDE; s++) q[s] = ys + n * wide + s * most;
    memset(xs, 0, sizeof(REAL) * n * wide);
    for (long r = 0; r < n; r++) {
        memcpy(xs + r * wide, m->first, sizeof(REAL) * m->steps->rank);
        held[r] = (struct tally){1, 0};
    }
    for (long t = 0, alive = n;; t++) {
        while (alive && length_of(text, first + alive - 1) <= t) alive--;
        if (!alive) break;
        memset(starts, 0, sizeof(long) * (m->tokens + 1));
        for (long r = 0; r < alive; r++) starts[row_of(text, first + r)[t] + 1]++;
        for (long o = 0; o < m->tokens; o++) starts[o + 1] += starts[o];
        for (long r = 0; r < alive; r++) sorted[starts[row_of(text, first + r)[t]]++] = r;
        for (long k = 0, size; k < alive; k += size) { /* the last of a token, or of a string: alone */
            REAL *x[SIDE], *y[SIDE];
            struct tally *tally[SIDE];
            int64_t token[SIDE];
            int together = k + SIDE <= alive;
            for (long s = 0; s < SIDE && k + s < alive; s++) {
                long r = sorted[k + s];
                x[s] = xs + r * wide, y[s] = ys + r * wide, tally[s] = held + r;
                token[s] = row_of(text, first + r)[t];
                together &= token[s] == token[0] && t + 1 < length_of(text, first + r);
            }
            size = together ? SIDE : 1;
            const struct step *step = step_at(m, t);
            if (together) read(SIDE, 1, m, step, x, token, y, q, tally, 0);
            else if (t + 1 < length_of(text, first + sorted[k]))
                read(1, 1, m, step, x, token, y, q, tally, 0);
            else read(1, 1, m, step, x, token, y, q, tally, 1);
        }
        REAL *keep = xs;
        xs = ys, ys = keep;
    }
    for (long r = 0; r < n; r++) out[index_of(text, first + r)] = log(held[r].product) + held[r].log;
}

static int in_blocks(const struct model *m, const struct text *text, double *out) {
    long wide = padded(m->widest), most = padded(m->tokens);
    long n = 32 * m->tokens < 512 ? 512 : 32 * m->tokens > 8192 ? 8192 : 32 * m->tokens;
    if (n > text->count) n = text->count;
    REAL *room = room_for(2 * n * wide + SIDE * most);
    struct tally *held = malloc(n * sizeof(struct tally));
    long *sorted = malloc((n + m->tokens + 1) * sizeof(long));
    int failed = !room || !held || !sorted;
    for (long first = 0; !failed && first < text->count; first += n) {
        long here = text->count - first < n ? text->count - first : n;
        block(m, text, first, here, room, held, sorted, sorted + n, out);
    }
    free(room), free(held), free(sorted);
    return failed;
}

/* one position of single rows: laws where `law`, tokens drawn where `uniform`, moved where `y` */
int myna_rows(const struct model *m, const struct rows *rows) {
    const struct step *step = step_at(m, rows->position);
    long wide = padded(m->widest), most = padded(m->tokens);
    REAL *room = room_for(2 * wide + most), *x = room, *y = room + wide, *q = y + wide;
    if (!room) return 1;
    memset(x, 0, sizeof(REAL) * wide);
    for (long r = 0; r < rows->count; r++) {
        REAL total;
        memcpy(x, rows->x + r * step->rank, sizeof(REAL) * step->rank);
        weigh(1, m, step, &x, &q, &total);
        if (rows->law) /* in natural logarithms */
            for (long o = 0; o < m->tokens; o++)
                rows->law[r * m->tokens + o] = log(chance(q[o], total, m->tokens));
        if (rows->uniform) rows->token[r] = drawn(q, total, m->tokens, rows->uniform[r]);
        if (!rows->token) continue;
        int64_t token = rows->token[r];
        if (rows->log_prob) rows->log_prob[r] = log(chance(q[token], total, m->tokens));
        if (!rows->y) continue; /* nothing follows */
        move(1, 1, m, step, &x, &token, &y);
        divide(y, step->next, q[token]);
        memcpy(rows->y + r * step->next, y, sizeof(REAL) * step->next);
    }
    free(room);
    return 0;
}

/* whether all tokens lie in the alphabet and none follows the stop token */
static int well_formed(const struct model *m, const struct text *text) {
    uint64_t bad = 0;
    for (long i = 0; i < text->count; i++) {
        const int64_t *row = text->tokens + i * text->width;
        long n = text->lengths[i];
        if (n < 0 || n > text->width) return 0;
        for (long t = 0; t < n; t++) bad |= (uint64_t)row[t] >= (uint64_t)m->tokens;
        for (long t = 0; t < n - 1; t++) bad |= row[t] == m->stop;
    }
    return !bad;
}

/* 0 done, 1 no memory, 2 malformed strings */
int myna_score(const struct model *m, const struct text *text, double *out) {
    if (!well_formed(m, text)) return 2;
    return m->blocks ? in_blocks(m, text, out) : side_by_side(m, text, out);
}
