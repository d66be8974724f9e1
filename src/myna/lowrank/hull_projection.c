/* Proposals for projections onto the convex hull of sketches: weights and multipliers, row by row.
 *
 *     minimise  sum_j phi_j(z_j)   over   z = x V R,  x >= 0,  sum x = 1
 *
 * L2 is one program as below, KL takes Newton steps (entropy.h) that are such programs, and L1 is a
 * linear program that starts at the heaviest vertex of L2 (hull_absolute.h). A quadratic model with
 * H = R D R' = L L' is |c L - b|^2 / 2 at c = x V, so that it asks for the point nearest to zero
 * in the hull of the q_i = v_i L - b (Wolfe, Mathematical Programming 11, 1976). With d > 0,
 *
 *     minimise  |sum_i x_i (q_i, d) - (0, 1/d)|^2 / 2   over   x >= 0
 *
 * has the same x but for its sum, since for each sum the best directions are these. The dual has few
 * coordinates: with a_i = (v_i, 1) and J = [L' -b; 0 d], so that J a_i = (q_i, d), it is
 *
 *     minimise  |u|^2 / 2 + u_last / d   over   <J a_i, u> >= 0,
 *
 * which quadratic.h solves in J' u, with multipliers x. Floors are left out: where one is missed,
 * who calls this solves the row again. A row that fails gets NaN.
 */
#include <stdlib.h>

#include "vectors.h"

#include "entropy.h"
#include "quadratic.h"

#include "hull_absolute.h"

enum way { KL, L1, L2 };

struct task {
    int64_t n, m, vertices, rows, way;
    const double *sketch, *points, *targets; /* (n, m), (vertex, n), (rows, m) */
    double *weights, *multipliers;           /* (rows, vertex), (rows, m) */
};

struct space { /* padded: np, mp; lp for the coordinates with the sum, vp for vertices */
    struct quadratic s; /* in n + 1 coordinates, with one inequality a vertex */
    struct newton e;
    struct absolute a;
    long n, np, m, mp, vertices, lp, vp;
    double *rows, *columns, *scaled; /* R (n, mp), R' and D R' (m, np) */
    double *lifted;                  /* R' with a zero (m, lp) */
    double *points, *across;         /* [V 1] (vertex, lp), and its transpose (n + 1, vp) */
    double *h, *inverse, *work;      /* (n, np) H, then its factor, L^-1; (n + 1, lp) J in use */
    double *f, *c, *b, *aim;         /* (np): R aim, c, L^-1 f; (mp): D z - phi', what f is made of */
    double *x, *zeros;               /* (vp): weights, and none */
    long *before;                    /* (n + 1): vertices that had weight */
};

#define EACH(kind) for (unsigned i = 0; i < sizeof kind / sizeof *kind; i++)

/* rooms in one block; the numbers needed where `block` is NULL */
static long laid_out(struct space *p, double *block, const struct task *t) {
    long n = t->n, np = padded(n), lp = padded(n + 1), vp = padded(t->vertices), used = 0;
    struct { double **at; long count; } tables[] = {
        {&p->rows, n * padded(t->m)}, {&p->columns, t->m * np}, {&p->scaled, t->m * np},
        {&p->lifted, t->m * lp}, {&p->points, t->vertices * lp}, {&p->across, (n + 1) * vp},
        {&p->h, n * np}, {&p->inverse, n * np}, {&p->work, (n + 1) * lp},
        {&p->s.u, (n + 1) * lp}, {&p->a.inverse, (n + 1) * lp},
    };
    double **shorts[] = {&p->f, &p->c, &p->b, &p->s.low, &p->s.high, &p->s.x, &p->s.d, &p->s.r,
                         &p->s.step, &p->s.multiplier, &p->a.x, &p->a.y, &p->a.d, &p->a.g, &p->a.c};
    double **longs[] = {&p->e.w, &p->e.log_w, &p->e.z, &p->e.slope, &p->e.curvature, &p->e.dz,
                        &p->e.next, &p->e.next_slope, &p->aim, &p->a.z, &p->a.sign, &p->a.rate,
                        &p->a.when};
    double **wides[] = {&p->x, &p->zeros, &p->s.moved, &p->a.cost};
    long **names[] = {&p->before, &p->s.active, &p->a.corner, &p->a.hit, &p->a.moved};
    EACH(tables) *tables[i].at = taken(block, &used, tables[i].count);
    EACH(shorts) *shorts[i] = taken(block, &used, n + 1);
    EACH(longs) *longs[i] = taken(block, &used, t->m);
    EACH(wides) *wides[i] = taken(block, &used, t->vertices);
    EACH(names) *names[i] = (long *)taken(block, &used, n + 2);
    return used;
}

static void prepare(struct space *p, const struct task *t) {
    struct quadratic *s = &p->s;
    struct absolute *a = &p->a;
    long n = p->n = t->n, m = p->m = p->e.m = t->m, vertices = p->vertices = t->vertices;
    p->np = padded(n), p->mp = padded(m), p->lp = padded(n + 1), p->vp = padded(vertices);
    for (long i = 0; i < n; i++)
        for (long j = 0; j < m; j++)
            p->rows[i * p->mp + j] = p->columns[j * p->np + i] = p->lifted[j * p->lp + i] =
                t->sketch[i * m + j];
    for (long v = 0; v < vertices; v++)
        for (long i = 0; i <= n; i++)
            p->points[v * p->lp + i] = p->across[i * p->vp + v] = i < n ? t->points[v * n + i] : 1;
    s->equalities = 0, s->n = n + 1, s->np = p->lp, s->m = vertices, s->mp = p->vp;
    s->rows = p->across, s->columns = p->points, s->j = p->work;
    s->floor = s->z = p->zeros;
    for (long i = 0; i <= n; i++) s->low[i] = -INFINITY, s->high[i] = INFINITY;
    a->n = n + 1, a->np = p->lp, a->m = m, a->mp = p->mp, a->vp = p->vp;
    a->points = p->points, a->across = p->across, a->rows = p->rows, a->columns = p->lifted;
    a->w = p->e.w;
}

/* L' and L^-1 of the matrix of the moment; 0 where it is not definite */
KERNEL int factorised(struct space *p, const double *left) {
    long np = p->np;
    squared(left, p->columns, p->n, np, p->m, p->h);
    if (!whitened(p->h, p->n, np, p->inverse)) return 0;
    for (long k = 0; k < p->n; k++) {
        for (long i = 0; i < k; i++) p->h[k * np + i] = 0;
        p->h[k * np + k] = 1 / p->inverse[k * np + k];
    }
    return 1;
}

/* J = [L' -b; 0 d], and the minimum without any vertex; d is as large as the q_i, and so leaves
 * all numbers near one, whatever the scale of targets */
INLINE void begun(struct space *p) {
    struct quadratic *s = &p->s;
    long n = p->n, np = p->np, lp = p->lp;
    double square = 0;
    for (long k = 0; k < n; k++) p->f[k] = dot(p->rows + k * p->mp, p->aim, p->mp);
    for (long k = 0; k < n; k++) {
        p->b[k] = dot(p->inverse + k * np, p->f, np);
        square += dot(p->h + k * np, p->h + k * np, np) / n + p->b[k] * p->b[k];
    }
    clear(p->work, (n + 1) * lp), clear(s->x, lp);
    for (long k = 0; k < n; k++) {
        memcpy(p->work + k * lp, p->h + k * np, n * sizeof *p->work);
        p->work[k * lp + n] = -p->b[k];
    }
    p->work[n * lp + n] = sqrt(square), s->x[n] = -1;
}

/* weights where the model of the last matrix and of `aim` is least; their sketch in e.next */
KERNEL int nearest(struct space *p) {
    struct quadratic *s = &p->s;
    long before = s->count;
    double slack, sum = 0;
    begun(p);
    memcpy(p->before, s->active, before * sizeof *p->before);
    s->count = 0;
    for (long k = 0; k < before; k++) { /* those of the last step are likely to be those of this */
        double room = dot(p->points + (p->before[k] - 2 * s->n) * p->lp, s->x, p->lp);
        if (room < -SLACK && !satisfy(s, p->before[k], room)) return 0;
    }
    long name = violated(s, &slack);
    if (name >= 0 && !into_bounds(s, name, slack)) return 0;
    for (long k = 0; k < s->count; k++) sum += s->multiplier[k];
    clear(p->c, p->np);
    for (long k = 0; k < s->count; k++) {
        s->multiplier[k] /= sum;
        for (long i = 0; i < p->n; i++)
            p->c[i] += s->multiplier[k] * p->points[(s->active[k] - 2 * s->n) * p->lp + i];
    }
    clear(p->e.next, p->mp);
    combine(p->c, p->rows, p->n, p->mp, p->e.next);
    return 1;
}

/* weights, by `length` towards those of the last program */
INLINE void move(struct space *p, double length) {
    struct quadratic *s = &p->s;
    for (long v = 0; v < p->vertices; v++) p->x[v] *= 1 - length;
    for (long k = 0; k < s->count; k++) p->x[s->active[k] - 2 * s->n] += length * s->multiplier[k];
}

KERNEL int newton(struct space *p, double *y) { /* KL */
    struct newton *e = &p->e;
    double value = INFINITY, down;
    for (long v = 0; v < p->vertices; v++) p->x[v] = 1. / p->vertices;
    clear(p->c, p->np), clear(e->z, p->mp);
    for (long v = 0; v < p->vertices; v++)
        for (long i = 0; i < p->n; i++) p->c[i] += p->x[v] * p->points[v * p->lp + i];
    combine(p->c, p->rows, p->n, p->mp, e->z);
    if (!around_target(e)) return 0;
    for (int steps = 0, last = 0; steps < NEWTON_STEPS; steps++) {
        if (!last) curved(e, p->columns, p->np, p->scaled);
        if (!last && !factorised(p, p->scaled)) return 0;
        for (long j = 0; j < p->m; j++) p->aim[j] = e->curvature[j] * e->z[j] - e->slope[j];
        if (!nearest(p)) return 0;
        for (long j = 0; j < p->m; j++) e->dz[j] = e->next[j] - e->z[j];
        if (last) { /* by the matrix of the last step */
            move(p, 1);
            for (long j = 0; j < p->m; j++) y[j] = e->slope[j] + e->curvature[j] * e->dz[j];
            return 1;
        }
        double longest = longest_change(e, &down), gain = dot(e->slope, e->dz, p->mp);
        last = steps && longest < CLOSE;
        double length = shortened(e, down, gain, &value, !steps || last);
        if (!(length > 0)) return 0;
        move(p, length);
        for (long j = 0; j < p->m && !last; j++) e->curvature[j] = 1 / e->z[j];
    }
    return 0;
}

KERNEL int least_squares(struct space *p, double *y) { /* L2 */
    memcpy(p->aim, p->e.w, p->mp * sizeof *p->aim);
    if (!nearest(p)) return 0;
    move(p, 1);
    for (long j = 0; j < p->m; j++) y[j] = p->e.next[j] - p->e.w[j];
    return 1;
}

KERNEL int least_absolute(struct space *p, double *y) { /* L1, from L2's answer */
    const struct absolute *a = &p->a;
    long heaviest = 0;
    double sum = 0;
    for (long v = 1; v < p->vertices; v++)
        if (p->x[v] > p->x[heaviest]) heaviest = v;
    if (!descend(&p->a, heaviest, y)) return 0;
    clear(p->x, p->vp);
    for (long k = 0; k < a->k; k++) sum += larger(a->x[k], 0);
    for (long k = 0; k < a->k; k++) p->x[a->corner[k]] = larger(a->x[k], 0) / sum;
    return 1;
}

static int solved(struct space *p, const struct task *t, double *y) {
    p->s.count = 0;
    clear(p->x, p->vp);
    if (t->way == KL) return newton(p, y);
    return least_squares(p, y) && (t->way == L2 || least_absolute(p, y));
}

/* 0, or 1 where there is no memory */
int64_t myna_hull(const struct task *t) {
    struct space p;
    long size = laid_out(&p, NULL, t) * sizeof(double);
    double *block = aligned_alloc(sizeof(vec), size);
    if (!block) return 1;
    memset(block, 0, size);
    laid_out(&p, block, t);
    prepare(&p, t);
    int fit = t->way == KL || factorised(&p, p.columns);
    for (long row = 0; row < t->rows; row++) {
        double *x = t->weights + row * t->vertices, *y = t->multipliers + row * t->m;
        memcpy(p.e.w, t->targets + row * t->m, t->m * sizeof *p.e.w);
        if (fit && solved(&p, t, y)) memcpy(x, p.x, t->vertices * sizeof *x);
        else
            for (long j = 0; j < t->m; j++) y[j] = NAN;
    }
    free(block);
    return 0;
}
