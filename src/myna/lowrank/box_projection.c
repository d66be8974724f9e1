/* Proposals for projections onto a box of sketches: weights and multipliers, row by row.
 *
 *     minimise  sum_j phi_j(z_j)   over   z = x R,  sum x = 1,  low <= x <= high,  z >= floor
 *
 * L2 is one quadratic program whose matrix R R' is the same for all rows (box_quadratic.h), L1 a
 * linear one that starts where L2 ends (box_absolute.h). KL takes Newton steps, each a quadratic
 * program with matrix R diag(1/z) R'. All of a row's numbers stay in the nearest caches. A row
 * that fails gets NaN; who calls this certifies the others.
 */
#include <stdlib.h>

#include "box_vectors.h"

#include "box_quadratic.h"

#include "box_absolute.h"

#define NEWTON_STEPS 40
#define KEEP 0.9     /* how much of the way to z = 0 a step may go */
#define CLOSE 1e-3   /* relative: after steps this short the matrix hardly changes */
#define LEAST 1e-200 /* a smaller target may ask for z = 0, which no number of steps reaches */

enum way { KL, L1, L2 };

struct task {
    int64_t n, m, rows, way;
    const double *sketch, *floor, *targets; /* (n, m), (m), (rows, m) */
    double low, high;
    double *weights, *multipliers; /* (rows, n), (rows, m) */
};

struct space { /* padded; each (mp) but where noted */
    struct quadratic s;
    struct absolute a;
    double *rows, *columns, *scaled;   /* R (n, mp); R' and D R' (m, np) */
    double *prepared, *work, *h;       /* (n, np) each: J of R R', J in use, R D R' */
    double *g, *x, *low, *high;        /* (np) each */
    double *w, *log_w, *z, *slope, *curvature, *dz, *next, *next_slope, *floor;
};

static double *taken(double *block, long *used, long count) {
    long here = *used;
    *used += padded(count);
    return block ? block + here : NULL;
}

/* rooms in one block; the numbers needed where `block` is NULL */
static long laid_out(struct space *p, double *block, long n, long m) {
    long np = padded(n), mp = padded(m);
    long used = 0;
    double **squares[] = {&p->prepared, &p->work, &p->h, &p->s.u, &p->a.edges};
    double **shorts[] = {&p->g, &p->x, &p->low, &p->high, &p->s.low, &p->s.high, &p->s.x, &p->s.d,
                         &p->s.r, &p->s.step, &p->s.multiplier, &p->a.g, &p->a.d, &p->a.y,
                         &p->a.low, &p->a.high, &p->a.score, &p->a.hit,
                         &p->a.length};
    double **longs[] = {&p->w, &p->log_w, &p->z, &p->slope, &p->curvature, &p->dz, &p->next,
                        &p->next_slope, &p->floor, &p->s.z, &p->s.moved, &p->a.z, &p->a.sign,
                        &p->a.rate, &p->a.when, &p->a.bottom};
    for (unsigned i = 0; i < sizeof squares / sizeof *squares; i++) *squares[i] = taken(block, &used, n * np);
    for (unsigned i = 0; i < sizeof shorts / sizeof *shorts; i++) *shorts[i] = taken(block, &used, n);
    for (unsigned i = 0; i < sizeof longs / sizeof *longs; i++) *longs[i] = taken(block, &used, m);
    p->rows = taken(block, &used, n * mp), p->columns = taken(block, &used, m * np), p->scaled = taken(block, &used, m * np);
    p->s.active = (long *)taken(block, &used, n);
    p->a.corner = (long *)taken(block, &used, n);
    return used;
}

/* h (n, np), its upper blocks, = sum_j left_j' right_j, eight columns and rows at a time */
KERNEL void squared(const double *left, const double *right, long n, long np, long m, double *h) {
    for (long a = 0; a < np; a += LANES)
        for (long b = a; b < np; b += LANES) {
            vec sum[LANES] = {0};
            for (long j = 0; j < m; j++) {
                vec row = *(const vec *)(right + j * np + b);
                _Pragma("GCC unroll 8") for (int i = 0; i < LANES; i++)
                    sum[i] += left[j * np + a + i] * row;
            }
            for (long i = 0; i < LANES && a + i < n; i++) *(vec *)(h + (a + i) * np + b) = sum[i];
        }
}

static void prepare(struct space *p, const struct task *t) {
    long n = t->n, m = t->m;
    struct quadratic *s = &p->s;
    s->n = n, s->np = padded(n), s->m = m, s->mp = padded(m);
    s->rows = p->rows, s->columns = p->columns;
    p->a.w = p->w;
    for (long i = n; i < s->np; i++) p->a.low[i] = -INFINITY, p->a.high[i] = INFINITY;
    memcpy(p->floor, t->floor, m * sizeof *p->floor);
    for (long i = 0; i < n; i++) {
        p->low[i] = t->low, p->high[i] = t->high, p->x[i] = 1. / n;
        for (long j = 0; j < m; j++)
            p->rows[i * s->mp + j] = p->columns[j * s->np + i] = t->sketch[i * m + j];
    }
}

/* the quadratic program's J for the matrix of the moment; 0 where it is not definite */
KERNEL int factorised(struct space *p, const double *left, double *j) {
    struct quadratic *s = &p->s;
    squared(left, p->columns, s->n, s->np, s->m, p->h);
    if (!whitened(p->h, s->n, s->np, j)) return 0;
    s->j = j;
    begin(s);
    return 1;
}

INLINE void pull(const struct quadratic *s, const double *y, double scale, double *g) {
    for (long i = 0; i < s->n; i++) g[i] = scale * dot(s->rows + i * s->mp, y, s->mp);
}

INLINE void clamp(struct quadratic *s) {
    for (long i = 0; i < s->n; i++) s->x[i] = smaller(larger(s->x[i], s->low[i]), s->high[i]);
}

/* less the multipliers of active floors */
INLINE void less_floors(const struct quadratic *s, double *y) {
    for (long k = 1; k < s->count; k++)
        if (s->active[k] >= 2 * s->n) y[s->active[k] - 2 * s->n] -= s->multiplier[k];
}

KERNEL int nearest(struct space *p, double *y) { /* L2 */
    struct quadratic *s = &p->s;
    double slack;
    pull(s, p->w, -1, p->g);
    s->j = p->prepared;
    over_sum(s, p->g, 1);
    long name = violated(s, &slack);
    if (name >= 0) {
        memcpy(p->work, p->prepared, s->n * s->np * sizeof *p->work);
        s->j = p->work;
        if (!into_bounds(s, name, slack)) return 0;
    }
    clamp(s);
    if (!y) return 1;
    clear(p->z, s->mp);
    combine(s->x, s->rows, s->n, s->mp, p->z);
    for (long j = 0; j < s->m; j++) y[j] = p->z[j] - p->w[j];
    less_floors(s, y);
    return 1;
}

/* KL's value at z > 0, and slopes log(z / w) */
KERNEL double entropy(const struct space *p, const double *z, double *slope) {
    double sum = 0;
    for (long j = 0; j < p->s.m; j++) {
        slope[j] = log(z[j]) - p->log_w[j];
        sum += z[j] * slope[j] - z[j];
    }
    return sum;
}

/* one step of the quadratic model at x; how long its changes of z are, relative to z, or -1 */
KERNEL double stepped(struct space *p, double *most_down) {
    struct quadratic *s = &p->s;
    double total = 1, longest = 0, down = 0, slack;
    for (long j = 0; j < s->m; j++)
        for (long i = 0; i < s->np; i += LANES)
            *(vec *)(p->scaled + j * s->np + i) =
                p->curvature[j] * *(const vec *)(p->columns + j * s->np + i);
    for (long i = 0; i < s->n; i++) {
        s->low[i] = p->low[i] - p->x[i], s->high[i] = p->high[i] - p->x[i];
        total -= p->x[i];
    }
    if (!factorised(p, p->scaled, p->work)) return -1;
    pull(s, p->slope, 1, p->g);
    over_sum(s, p->g, total);
    long name = violated(s, &slack);
    if (name >= 0 && !into_bounds(s, name, slack)) return -1;
    clear(p->dz, s->mp);
    combine(s->x, s->rows, s->n, s->mp, p->dz);
    for (long j = 0; j < s->m; j++) {
        double change = p->dz[j] / p->z[j];
        longest = larger(longest, fabs(change)), down = smaller(down, change);
    }
    *most_down = -down;
    return longest;
}

/* take the step, halved until the value falls; 0 where it never does */
KERNEL int shortened(struct space *p, double down, double *value, int any) {
    struct quadratic *s = &p->s;
    double length = down > KEEP ? KEEP / down : 1, gain = dot(p->g, s->x, s->np);
    for (int tries = 0; tries < 30; tries++, length /= 2) {
        for (long j = 0; j < s->m; j++) p->next[j] = p->z[j] + length * p->dz[j];
        double here = entropy(p, p->next, p->next_slope);
        if (!any && !(here <= *value + 1e-4 * length * gain)) continue;
        *value = here;
        add(p->x, length, s->x, s->np);
        memcpy(p->slope, p->next_slope, s->m * sizeof *p->slope);
        memcpy(p->z, p->next, s->m * sizeof *p->z);
        return 1;
    }
    return 0;
}

/* one more step by the matrix and the active set of the last, and multipliers */
INLINE void polished(struct space *p, double *y) {
    struct quadratic *s = &p->s;
    long last;
    pull(s, p->slope, 1, p->g);
    for (long k = 0; k < s->n; k++) s->d[k] = dot(s->j + k * s->np, p->g, s->np);
    dual_room(s, &last); /* U r = d: the active set's multipliers */
    clear(s->step, s->np);
    combine(s->d + s->count, s->j + s->count * s->np, s->n - s->count, s->np, s->step);
    clear(p->dz, s->mp);
    combine(s->step, s->rows, s->n, s->mp, p->dz);
    for (long j = 0; j < s->m; j++) y[j] = p->slope[j] - p->curvature[j] * p->dz[j];
    for (long k = 1; k < s->count; k++)
        if (s->active[k] >= 2 * s->n) y[s->active[k] - 2 * s->n] -= s->r[k];
    for (long i = 0; i < s->n; i++)
        s->x[i] = smaller(larger(p->x[i] - s->step[i], p->low[i]), p->high[i]);
}

KERNEL int newton(struct space *p, double *y) { /* KL */
    struct quadratic *s = &p->s;
    double value = INFINITY, down;
    for (long i = 0; i < s->n; i++) p->x[i] = 1. / s->n;
    clear(p->z, s->mp);
    combine(p->x, s->rows, s->n, s->mp, p->z);
    for (long j = 0; j < s->m; j++) {
        if (!(p->w[j] > LEAST) || !(p->z[j] > 0)) return 0;
        p->log_w[j] = log(p->w[j]);
        /* the first model is the one around the target, where KL is sum (z - w)^2 / 2 w */
        p->curvature[j] = 1 / p->w[j], p->slope[j] = p->z[j] / p->w[j] - 1;
    }
    for (int steps = 0; steps < NEWTON_STEPS; steps++) {
        double longest = stepped(p, &down);
        if (longest < 0) return 0;
        if (!shortened(p, down, &value, !steps || longest < CLOSE)) return 0;
        if (steps && longest < CLOSE) {
            polished(p, y);
            return 1;
        }
        for (long j = 0; j < s->m; j++) p->curvature[j] = 1 / p->z[j];
    }
    return 0;
}

static int solved(struct space *p, const struct task *t, double *y) {
    struct quadratic *s = &p->s;
    if (t->way == KL) return newton(p, y);
    memcpy(s->low, p->low, s->np * sizeof *s->low);
    memcpy(s->high, p->high, s->np * sizeof *s->high);
    if (t->way == L2) return nearest(p, y);
    return nearest(p, NULL) && descend(s, &p->a, y);
}

/* 0, or 1 where there is no memory */
int64_t myna_box(const struct task *t) {
    struct space p;
    long size = laid_out(&p, NULL, t->n, t->m) * sizeof(double), some = 0;
    double *block = aligned_alloc(sizeof(vec), size);
    if (!block) return 1;
    memset(block, 0, size);
    laid_out(&p, block, t->n, t->m);
    prepare(&p, t);
    for (long j = 0; j < t->m; j++) some |= t->floor[j] > 0;
    /* where z > 0 anyway, KL needs no floor */
    p.s.floor = t->way != KL || some ? p.floor : NULL;
    if (t->way == KL) p.s.z = p.z;
    int fit = t->way == KL || factorised(&p, p.columns, p.prepared);
    for (long row = 0; row < t->rows; row++) {
        double *x = t->weights + row * t->n, *y = t->multipliers + row * t->m;
        memcpy(p.w, t->targets + row * t->m, t->m * sizeof *p.w);
        if (fit && solved(&p, t, y)) memcpy(x, p.s.x, t->n * sizeof *x);
        else
            for (long j = 0; j < t->m; j++) y[j] = NAN;
    }
    free(block);
    return 0;
}
