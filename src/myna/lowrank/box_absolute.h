/* Least absolute deviations over a box, one sum and floors, by the simplex method.
 *
 *     minimise  sum_j |(x R)_j - w_j|   over   sum x = 1,  low <= x <= high,  x R >= floor
 *
 * At a corner n of these hold as equalities: the sum, bounds, floors, and entries that are hit
 * exactly, (x R)_j = w_j. The columns of the inverse C of their normals are the edges. An edge is
 * followed past every entry whose sign change leaves it downhill (Barrodale and Roberts, SIAM J.
 * Numer. Anal. 10, 1973). The start, the nearest point in L2, is no corner: fixed coordinates stand
 * in. While some do, their edges are followed together, by steepest descent, and each step replaces
 * one. Names are those of quadratic.h, and 2 n + m + j for an entry hit.
 */
#define FREE (-2L)       /* a coordinate that stands in */
#define SUM (-1L)
#define FLAT 1e-11       /* a multiplier this far outside its limits counts as within */
#define STILL 1e-10      /* relative: slower entries do not move */

struct absolute {
    double *edges;                    /* C, (n, np) */
    double *low, *high, *y;           /* (np), of each equality: limits of its multiplier, that, */
    double *length, *score;           /*   its edge's squared length, and less how it falls, squared; room */
    double *g, *d, *hit;              /* (np): R sign, the edge followed, a normal times C */
    double *w, *z, *sign, *rate;      /* (mp): targets, x R, slopes of |z - w| (0: in the corner), d R */
    double *when, *bottom;            /* (mp): at what length an entry changes sign, meets its floor */
    long *corner;                     /* (n) */
};

/* the equality in place k, and what its multiplier may be: slopes below and above it */
INLINE void hold(const struct quadratic *s, struct absolute *a, long k, long name) {
    long n = s->n, j = name - 2 * n;
    double low = 0, high = 0;
    if (name == SUM) low = -INFINITY, high = INFINITY;
    else if (j >= s->m) low = -1, high = 1;
    else if (j >= 0) low = -INFINITY, high = s->floor[j] >= a->w[j] ? 1 : -1;
    else if (name >= n) high = INFINITY;
    else if (name >= 0) low = -INFINITY;
    a->corner[k] = name, a->low[k] = low, a->high[k] = high;
}

INLINE long farthest_inside(const struct quadratic *s) {
    long found = -1;
    double most = 0;
    for (long i = 0; i < s->n; i++) {
        double room = smaller(s->x[i] - s->low[i], s->high[i] - s->x[i]);
        if (room > most) most = room, found = i;
    }
    return found;
}

/* the corner of the bounds that the quadratic program ended at; 0 where none is left open */
INLINE int at_bounds(struct quadratic *s, struct absolute *a) {
    long n = s->n, np = s->np, pivot = farthest_inside(s);
    if (pivot < 0) return 0;
    memset(a->edges, 0, n * np * sizeof *a->edges);
    for (long i = 0; i < n; i++) {
        a->edges[i * np + i] = 1;
        if (i != pivot) a->edges[pivot * np + i] = -1;
        hold(s, a, i, i == pivot ? SUM : FREE);
    }
    for (long k = 1; k < s->count; k++) {
        long name = s->active[k];
        if (name < 2 * n && name % n != pivot) hold(s, a, name % n, name);
    }
    double rest = 1;
    for (long i = 0; i < n; i++) rest -= i == pivot ? 0 : s->x[i];
    s->x[pivot] = rest;
    clear(a->z, s->mp);
    clear(a->g, np);
    combine(s->x, s->rows, n, s->mp, a->z);
    for (long j = 0; j < s->m; j++) a->sign[j] = a->z[j] > a->w[j] ? 1 : -1;
    combine(a->sign, s->columns, s->m, np, a->g);
    return 1;
}

/* multipliers, and the edge that falls steepest, or -1 at the optimum */
INLINE long falling(const struct quadratic *s, struct absolute *a) {
    for (long k = 0; k < s->np; k += LANES) {
        vec y = {0}, length = {0}, none = {0};
        for (long i = 0; i < s->n; i++) {
            vec edge = *(const vec *)(a->edges + i * s->np + k);
            y -= a->g[i] * edge, length += edge * edge;
        }
        vec under = *(const vec *)(a->low + k) - y, over = y - *(const vec *)(a->high + k);
        vec outside = chosen(under > over, under, over);
        *(vec *)(a->y + k) = y, *(vec *)(a->length + k) = length;
        *(vec *)(a->score + k) = chosen(outside > none + FLAT, -(outside * outside) / length, none);
    }
    long found = least_of(a->score, s->np);
    return a->score[found] < 0 ? found : -1;
}

/* the edge to follow, or all those of stand-ins at once; its slope */
INLINE double edge_from(const struct quadratic *s, struct absolute *a, long k) {
    double slope = 0, under = a->low[k] - a->y[k], over = a->y[k] - a->high[k];
    if (a->corner[k] != FREE) {
        double way = over > under ? 1 : -1, side = over > under ? a->high[k] : a->low[k];
        long j = (a->corner[k] - 2 * s->n) % s->m;
        if (a->corner[k] >= 2 * s->n) { /* no longer held: it has a slope */
            a->sign[j] = side;
            add(a->g, side, s->columns + j * s->np, s->np);
        }
        for (long i = 0; i < s->n; i++) a->d[i] = way * a->edges[i * s->np + k];
        return -larger(under, over);
    }
    for (long l = 0; l < s->n; l++) {
        a->hit[l] = a->corner[l] == FREE ? a->y[l] / a->length[l] : 0;
        slope -= a->hit[l] * a->y[l];
    }
    for (long i = 0; i < s->n; i++) a->d[i] = dot(a->hit, a->edges + i * s->np, s->np);
    return slope;
}

/* how fast each entry moves along it, and how far it is to what matters */
INLINE void set_out(const struct quadratic *s, struct absolute *a) {
    clear(a->rate, s->mp);
    combine(a->d, s->rows, s->n, s->mp, a->rate);
    vec never = (vec){0} + INFINITY, none = {0};
    vec still = none - STILL * sqrt(dot(a->rate, a->rate, s->mp));
    for (long i = 0; i < s->mp; i += LANES) {
        vec rate = *(vec *)(a->rate + i), z = *(vec *)(a->z + i), inverse = 1 / rate;
        vec when = (*(vec *)(a->w + i) - z) * inverse, bottom = (*(vec *)(s->floor + i) - z) * inverse;
        when = chosen(when > none, when, none), bottom = chosen(bottom > none, bottom, none);
        *(vec *)(a->when + i) = chosen(rate * *(vec *)(a->sign + i) < still, when, never);
        *(vec *)(a->bottom + i) = chosen(rate < still, bottom, never);
    }
}

/* how far until a bound or a floor, and which */
INLINE double room_along(const struct quadratic *s, const struct absolute *a, long *name) {
    vec none = {0}, never = none + INFINITY, still = none + STILL * sqrt(dot(a->d, a->d, s->np));
    for (long i = 0; i < s->np; i += LANES) {
        vec d = *(vec *)(a->d + i), x = *(vec *)(s->x + i), fast = chosen(d > none, d, -d);
        vec gap = chosen(d > none, *(vec *)(s->high + i) - x, x - *(vec *)(s->low + i));
        *(vec *)(a->score + i) = chosen(fast > still, chosen(gap > none, gap, none) / fast, never);
    }
    long i = least_of(a->score, s->np), j = least_of(a->bottom, s->mp);
    if (a->bottom[j] <= a->score[i]) {
        *name = 2 * s->n + j;
        return a->bottom[j];
    }
    *name = a->d[i] > 0 ? s->n + i : i;
    return a->score[i];
}

/* of all stand-ins the one whose place is best taken by what was hit */
INLINE long stand_in(const struct quadratic *s, const struct absolute *a) {
    long found = -1;
    double most = -1;
    for (long k = 0; k < s->n; k++)
        if (a->corner[k] == FREE && a->hit[k] * a->hit[k] > most * a->length[k])
            most = a->hit[k] * a->hit[k] / a->length[k], found = k;
    return found;
}

/* `name` takes the place of equality k: a column of the inverse is scaled, the others are cleared */
INLINE void exchange(const struct quadratic *s, struct absolute *a, long k, long name) {
    long n = s->n, np = s->np, j = (name - 2 * n) % s->m;
    clear(a->hit, np);
    if (name < 2 * n) memcpy(a->hit, a->edges + name % n * np, np * sizeof *a->hit);
    else {
        combine(s->columns + j * np, a->edges, n, np, a->hit);
        add(a->g, -a->sign[j], s->columns + j * np, np);
        a->sign[j] = 0;
    }
    if (a->corner[k] == FREE) k = stand_in(s, a);
    double scale = 1 / a->hit[k];
    for (long i = 0; i < n; i++) {
        double edge = a->edges[i * np + k] * scale;
        add(a->edges + i * np, -edge, a->hit, np);
        a->edges[i * np + k] = edge;
    }
    hold(s, a, k, name);
}

/* along edge k to where it stops falling; 0 where it never does */
INLINE int follow(struct quadratic *s, struct absolute *a, long k) {
    long name;
    double slope = edge_from(s, a, k);
    set_out(s, a);
    double room = room_along(s, a, &name);
    for (;;) {
        long j = least_of(a->when, s->mp);
        if (!(a->when[j] < room)) break;
        slope += 2 * fabs(a->rate[j]);
        if (slope >= 0) {
            room = a->when[j], name = 2 * s->n + s->m + j;
            break;
        }
        add(a->g, -2 * a->sign[j], s->columns + j * s->np, s->np);
        a->sign[j] = -a->sign[j], a->when[j] = INFINITY;
    }
    if (!(room < INFINITY)) return 0;
    add(s->x, room, a->d, s->np);
    add(a->z, room, a->rate, s->mp);
    exchange(s, a, k, name);
    return 1;
}

/* from the solution of the quadratic program to the answer, with multipliers y (m) */
KERNEL int descend(struct quadratic *s, struct absolute *a, double *y) {
    if (!at_bounds(s, a)) return 0;
    long k = falling(s, a);
    for (long left = 30 * (s->n + 2); k >= 0; k = falling(s, a))
        if (!left-- || !follow(s, a, k)) return 0;
    memcpy(y, a->sign, s->m * sizeof *y);
    for (k = 0; k < s->n; k++)
        if (a->corner[k] >= 2 * s->n) y[(a->corner[k] - 2 * s->n) % s->m] = a->y[k];
    return 1;
}
