/* Expected counts of a hidden Markov model over a tree of prefixes, in double precision.
 *
 *     forward    a_n = (a_u T) * E_o / m_n,          m_n = sum_s of the numerator,
 *     backward   b_u = e_u + T R_u,                  R_u = sum over children n of E_o * b_n / m_n,
 *     counts     emission_o += a_n * b_n,            moves += a_u' R_u,
 *
 * with u the parent of n and o its token; forward_backward.py says what they mean. Nodes are
 * numbered level by level with siblings together, so the children of u are first[u]..first[u + 1]-1.
 * A few nodes of one level and their children go through all formulas together while they are in the
 * nearest cache. The three products are one kernel, each of whose tiles stays in registers.
 *
 * States are padded with zeros to whole vectors. An impossible token has m_n = 0 and zeros for a_n;
 * its backward vector may be infinite, so padding is never multiplied by it: products run over the
 * real states only, where each may be infinite.
 */
#include <float.h>

#include "../lowrank/vectors.h"

#define TOGETHER 16 /* nodes: whole tiles, and in the nearest cache with tables of many states */
#define TILE 8      /* rows whose sums fit in registers, of vectors that are the machine's */
#if defined __AVX512F__
#define PART 8
#elif defined __AVX__
#define PART 4
#else
#define PART 2
#endif
typedef double part __attribute__((vector_size(PART * sizeof(double)), may_alias));

struct task {
    int64_t states, alphabet, levels, moves, emissions; /* sizes; the last table serves all later */
    const int64_t *starts;                              /* (levels + 1): each level's first node */
    const int32_t *tokens, *first;                      /* (node), (node + 1) */
    const double *ends;                                 /* (node): e_n */
    /* the last index padded: (state), (move, state, state) T and its transpose, (emission, token,
     * state) E */
    const double *initial, *move, *back, *emission;
    double *filtered, *mass; /* (node, state) a_n, (node) m_n */
    double *later[2], *room; /* (widest level, state) b_n of even and odd levels; (TOGETHER, state) */
    double *initial_counts, *move_counts, *emission_counts; /* added to; all states padded */
};

/* y (rows, width) += x m, with x_ik at x[i down + k right] and m (depth, width) */
INLINE void product(double *y, const double *x, long down, long right, const double *m, long rows,
                    long depth, long width) {
    for (long j = 0; j < width; j += PART)
        for (long i = 0; i < rows; i += TILE) {
            part sum[TILE];
            _Pragma("GCC unroll 8") for (int r = 0; r < TILE; r++)
                sum[r] = *(part *)(y + (i + r) * width + j);
            for (long k = 0; k < depth; k++) {
                part row = *(const part *)(m + k * width + j);
                _Pragma("GCC unroll 8") for (int r = 0; r < TILE; r++)
                    sum[r] += x[(i + r) * down + k * right] * row;
            }
            _Pragma("GCC unroll 8") for (int r = 0; r < TILE; r++)
                *(part *)(y + (i + r) * width + j) = sum[r];
        }
}

/* the number of the table, of `count`, that serves a position */
INLINE long at(long position, long count) { return position < count ? position : count - 1; }

/* what divides: a mass of zero leaves zeros, not NaN */
INLINE double scale(double mass) { return 1 / larger(mass, DBL_MIN); }

/* a and m of nodes whose parent's a T is `predicted` */
INLINE void filter(const struct task *t, const double *emission, const double *predicted, long from,
                   long to, long width) {
    for (long n = from; n < to; n++) {
        const double *seen = emission + t->tokens[n] * width;
        double *a = t->filtered + n * width;
        vec sum = {0};
        for (long j = 0; j < width; j += LANES) {
            vec joint = *(const vec *)(predicted + j) * *(const vec *)(seen + j);
            *(vec *)(a + j) = joint, sum += joint;
        }
        t->mass[n] = across(sum);
        double by = scale(t->mass[n]);
        for (long j = 0; j < width; j += LANES) *(vec *)(a + j) *= by;
    }
}

INLINE void forward(const struct task *t, long width) {
    filter(t, t->emission, t->initial, 0, t->starts[1], width);
    for (long level = 1; level < t->levels; level++) {
        const double *move = t->move + at(level - 1, t->moves) * t->states * width;
        const double *emission = t->emission + at(level, t->emissions) * t->alphabet * width;
        for (long u = t->starts[level - 1]; u < t->starts[level]; u += TOGETHER) {
            long count = t->starts[level] - u < TOGETHER ? t->starts[level] - u : TOGETHER;
            clear(t->room, padded(count) * width);
            product(t->room, t->filtered + u * width, width, 1, move, padded(count), t->states,
                    width);
            for (long i = 0; i < count; i++)
                filter(t, emission, t->room + i * width, t->first[u + i], t->first[u + i + 1],
                       width);
        }
    }
}

/* adds to the counts of emissions, and E_o b / m to r, which may be NULL */
INLINE void smooth(const struct task *t, long level, const double *later, double *r, long from,
                   long to, long width) {
    long table = at(level, t->emissions) * t->alphabet;
    for (long n = from; n < to; n++) {
        long token = (table + t->tokens[n]) * width;
        const double *a = t->filtered + n * width, *b = later + (n - t->starts[level]) * width;
        double by = scale(t->mass[n]);
        for (long j = 0; j < width; j += LANES) {
            vec joint = *(const vec *)(a + j) * *(const vec *)(b + j);
            vec seen = *(const vec *)(t->emission + token + j) * *(const vec *)(b + j);
            *(vec *)(t->emission_counts + token + j) += joint;
            if (r) *(vec *)(r + j) += seen * by;
            else *(vec *)(t->initial_counts + j) += joint;
        }
    }
}

/* b begins as e_n in every state */
INLINE void fill(double *b, const double *ends, long count, long width) {
    for (long i = 0; i < count; i++)
        for (long j = 0; j < width; j += LANES) *(vec *)(b + i * width + j) = ends[i] + (vec){0};
}

INLINE void backward(const struct task *t, long width) {
    long last = t->levels - 1;
    double *later = t->later[last % 2];
    fill(later, t->ends + t->starts[last], t->starts[last + 1] - t->starts[last], width);
    for (long level = last; level; level--) {
        long table = at(level - 1, t->moves) * width, start = t->starts[level - 1];
        double *above = t->later[(level - 1) % 2];
        later = t->later[level % 2];
        for (long u = start; u < t->starts[level]; u += TOGETHER) {
            long count = t->starts[level] - u < TOGETHER ? t->starts[level] - u : TOGETHER;
            double *b = above + (u - start) * width;
            clear(t->room, padded(count) * width);
            for (long i = 0; i < count; i++)
                smooth(t, level, later, t->room + i * width, t->first[u + i], t->first[u + i + 1],
                       width);
            product(t->move_counts + table * width, t->filtered + u * width, 1, width, t->room, width,
                    count, width);
            fill(b, t->ends + u, count, width);
            product(b, t->room, width, 1, t->back + table * t->states, padded(count), t->states, width);
        }
    }
    smooth(t, 0, t->later[0], NULL, 0, t->starts[1], width);
}

/* the same with a width that the compiler knows, where vectors are few */
#define FOR_WIDTH(pass, t)                            \
    switch (padded((t)->states)) {                    \
    case LANES: pass(t, LANES); break;                \
    case 2 * LANES: pass(t, 2 * LANES); break;        \
    default: pass(t, padded((t)->states));            \
    }

void myna_forward(const struct task *t) { FOR_WIDTH(forward, t) }
void myna_backward(const struct task *t) { FOR_WIDTH(backward, t) }
