/* Proposals for projections onto a box of sketches: weights and multipliers, row by row.
 *
 *     minimise  sum_j phi_j(z_j)   over   z = x R,  sum x = 1,  low <= x <= high,  z >= floor
 *
 * L2 is one quadratic program whose matrix R R' is the same for all rows (quadratic.h), L1 a
 * linear one that starts where L2 ends (box_absolute.h). KL takes Newton steps, each a quadratic
 * program with matrix R diag(1/z) R'. All of a row's numbers stay in the nearest caches. A row
 * that fails gets NaN; who calls this certifies the others.
 */
#include <stdlib.h>

#include "vectors.h"

#include "entropy.h"
#include "quadratic.h"

#include "box_absolute.h"

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
    struct newton e;
    double *rows, *columns, *scaled;   /* R (n, mp); R' and D R' (m, np) */
    double *prepared, *work, *h;       /* (n, np) each: J of R R', J in use, R D R' */
    double *g, *x, *low, *high;        /* (np) each */
    double *floor;
};

/* rooms in one block; the numbers needed where `block` is NULL */
static long laid_out(struct space *p, double *block, long n, long m) {
    long np = padded(n), mp = padded(m);
    long used = 0;
    double **squares[] = {&p->prepared, &p->work, &p->h, &p->s.u, &p->a.edges};
    double **shorts[] = {&p->g, &p->x, &p->low, &p->high, &p->s.low, &p->s.high, &p->s.x, &p->s.d,
                         &p->s.r, &p->s.step, &p->s.multiplier, &p->a.g, &p->a.d, &p->a.y,
                         &p->a.low, &p->a.high, &p->a.score, &p->a.hit,
                         &p->a.length};
    double **longs[] = {&p->e.w, &p->e.log_w, &p->e.z, &p->e.slope, &p->e.curvature, &p->e.dz, &p->e.next,
                        &p->e.next_slope, &p->floor, &p->s.z, &p->s.moved, &p->a.z, &p->a.sign,
                        &p->a.rate, &p->a.when, &p->a.bottom};
    for (unsigned i = 0; i < sizeof squares / sizeof *squares; i++) *squares[i] = taken(block, &used, n * np);
    for (unsigned i = 0; i < sizeof shorts / sizeof *shorts; i++) *shorts[i] = taken(block, &used, n);
    for (unsigned i = 0; i < sizeof longs / sizeof *longs; i++) *longs[i] = taken(block, &used, m);
    p->rows = taken(block, &used, n * mp), p->columns = taken(block, &used, m * np), p->scaled = taken(block, &used, m * np);
    p->s.active = (long *)taken(block, &used, n);
    p->a.corner = (long *)taken(block, &used, n);
    return used;
}

static void prepare(struct space *p, const struct task *t) {
    long n = t->n, m = t->m;
    struct quadratic *s = &p->s;
    s->n = n, s->np = padded(n), s->m = m, s->mp = padded(m);
    s->rows = p->rows, s->columns = p->columns;
    p->a.w = p->e.w, p->e.m = m;
    for (long i = n; i < s->np; i++) p->a.low[i] = -INFINITY, p->a.high[i] = INFINITY;
    memcpy(p->floor, t->floor, m * sizeof *p->floor);
    for (long i = 0; i < n; i++) {
        p->low[i] = t->low, p->high[i] = t->high, p->x[i] = 1. / n;
        for (long j = 0; j < m; j++)
            p->rows[i * s->mp + j] = p->columns[j * s->np + i] = t->sketch[i * m + j];
    }
}

/* J for the sum alone, from J of the matrix */
KERNEL void begin(struct quadratic *s) {
    double beyond = 0;
    s->count = 0, s->equalities = 1;
    for (long k = 0; k < s->n; k++) {
        s->d[k] = 0;
        for (long i = 0; i < s->n; i++) s->d[k] += s->j[k * s->np + i];
        beyond += s->d[k] * s->d[k];
    }
    activate(s, beyond, -1, 0);
}

/* the minimum over the sum alone; needs `begin` */
INLINE void over_sum(struct quadratic *s, const double *g, double total) {
    s->count = 1;
    s->d[0] = total / s->u[0];
    for (long k = 1; k < s->n; k++) s->d[k] = -dot(s->j + k * s->np, g, s->np);
    clear(s->x, s->np);
    combine(s->d, s->j, s->n, s->np, s->x);
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
    pull(s, p->e.w, -1, p->g);
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
    clear(p->e.z, s->mp);
    combine(s->x, s->rows, s->n, s->mp, p->e.z);
    for (long j = 0; j < s->m; j++) y[j] = p->e.z[j] - p->e.w[j];
    less_floors(s, y);
    return 1;
}

/* one step of the quadratic model at x; how long its changes of z are, relative to z, or -1 */
KERNEL double stepped(struct space *p, double *down) {
    struct quadratic *s = &p->s;
    double total = 1, slack;
    curved(&p->e, p->columns, s->np, p->scaled);
    for (long i = 0; i < s->n; i++) {
        s->low[i] = p->low[i] - p->x[i], s->high[i] = p->high[i] - p->x[i];
        total -= p->x[i];
    }
    if (!factorised(p, p->scaled, p->work)) return -1;
    pull(s, p->e.slope, 1, p->g);
    over_sum(s, p->g, total);
    long name = violated(s, &slack);
    if (name >= 0 && !into_bounds(s, name, slack)) return -1;
    clear(p->e.dz, s->mp);
    combine(s->x, s->rows, s->n, s->mp, p->e.dz);
    return longest_change(&p->e, down);
}

/* one more step by the matrix and the active set of the last, and multipliers */
INLINE void polished(struct space *p, double *y) {
    struct quadratic *s = &p->s;
    long last;
    pull(s, p->e.slope, 1, p->g);
    for (long k = 0; k < s->n; k++) s->d[k] = dot(s->j + k * s->np, p->g, s->np);
    dual_room(s, &last); /* U r = d: the active set's multipliers */
    clear(s->step, s->np);
    combine(s->d + s->count, s->j + s->count * s->np, s->n - s->count, s->np, s->step);
    clear(p->e.dz, s->mp);
    combine(s->step, s->rows, s->n, s->mp, p->e.dz);
    for (long j = 0; j < s->m; j++) y[j] = p->e.slope[j] - p->e.curvature[j] * p->e.dz[j];
    for (long k = 1; k < s->count; k++)
        if (s->active[k] >= 2 * s->n) y[s->active[k] - 2 * s->n] -= s->r[k];
    for (long i = 0; i < s->n; i++)
        s->x[i] = smaller(larger(p->x[i] - s->step[i], p->low[i]), p->high[i]);
}

KERNEL int newton(struct space *p, double *y) { /* KL */
    struct quadratic *s = &p->s;
    double value = INFINITY, down;
    for (long i = 0; i < s->n; i++) p->x[i] = 1. / s->n;
    clear(p->e.z, s->mp);
    combine(p->x, s->rows, s->n, s->mp, p->e.z);
    if (!around_target(&p->e)) return 0;
    for (int steps = 0; steps < NEWTON_STEPS; steps++) {
        double longest = stepped(p, &down);
        if (longest < 0) return 0;
        double gain = dot(p->g, s->x, s->np);
        double length = shortened(&p->e, down, gain, &value, !steps || longest < CLOSE);
        if (!(length > 0)) return 0;
        add(p->x, length, s->x, s->np);
        if (steps && longest < CLOSE) {
            polished(p, y);
            return 1;
        }
        for (long j = 0; j < s->m; j++) p->e.curvature[j] = 1 / p->e.z[j];
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
    if (t->way == KL) p.s.z = p.e.z;
    int fit = t->way == KL || factorised(&p, p.columns, p.prepared);
    for (long row = 0; row < t->rows; row++) {
        double *x = t->weights + row * t->n, *y = t->multipliers + row * t->m;
        memcpy(p.e.w, t->targets + row * t->m, t->m * sizeof *p.e.w);
        if (fit && solved(&p, t, y)) memcpy(x, p.s.x, t->n * sizeof *x);
        else
            for (long j = 0; j < t->m; j++) y[j] = NAN;
    }
    free(block);
    return 0;
}
