/* A strictly convex quadratic program over a box, one sum and floors, by its dual active set.
 *
 *     minimise  x H x / 2 + g x   over   sum x = total,  low <= x <= high,  z + x R >= floor
 *
 * Goldfarb and Idnani (Mathematical Programming 27, 1983): from the minimum over the sum alone,
 * add the most violated inequality, dropping others on the way as their multipliers reach zero.
 * The rows of J are such that J H J' = 1 and, with N the active normals, N J' = (U' 0).
 * An inequality is i (low), n + i (high) or 2 n + j (floor).
 */
#define SLACK 1e-13     /* how far outside an inequality counts as rounding */
#define DEPENDENT 1e-22 /* squared, the share of a normal that the active ones do not span */
#define JITTER 1e-14    /* relative, keeps factors of singular matrices defined */

struct quadratic {
    long n, np, m, mp;
    const double *rows, *columns; /* R (n, mp) and R' (m, np) */
    const double *floor;          /* or NULL */
    double *low, *high, *z;       /* (np), (np), (mp) */
    double *j, *u;                /* (n, np), (n, np): column k of U in row k */
    double *x, *moved;            /* the answer (np), and z + x R (mp) */
    double *d, *r, *step, *multiplier; /* (np) each */
    long *active;                 /* (n), equalities first: the sum */
    long count, equalities;
};

/* rows of the inverse of the Cholesky factor of h (n, np), which is overwritten */
KERNEL int whitened(double *h, long n, long np, double *j) {
    double most = 0;
    for (long k = 0; k < n; k++) most = larger(most, h[k * np + k]);
    memset(j, 0, n * np * sizeof *j);
    for (long k = 0; k < n; k++) {
        double *row = h + k * np, pivot = row[k] + JITTER * most;
        if (!(pivot > 0)) return 0;
        double inverse = 1 / sqrt(pivot);
        for (long i = k + 1; i < n; i++) row[i] *= inverse; /* column k of the factor */
        for (long i = k + 1; i < n; i++) {
            double *other = h + i * np;
            add(other + i / LANES * LANES, -row[i], row + i / LANES * LANES, np - i / LANES * LANES);
        }
        j[k * np + k] += 1;
        for (long i = 0; i < np; i += LANES) *(vec *)(j + k * np + i) *= inverse;
        for (long i = k + 1; i < n; i++) add(j + i * np, -row[i], j + k * np, padded(k + 1));
    }
    return 1;
}

/* take the normal with d = J normal into the active set: a reflection leaves d_q alone nonzero */
INLINE void activate(struct quadratic *s, double beyond, long name, double multiplier) {
    long q = s->count, n = s->n, np = s->np;
    double *d = s->d, alpha = d[q] > 0 ? -sqrt(beyond) : sqrt(beyond);
    double scale = 1 / (beyond + fabs(alpha * d[q]));
    memcpy(s->u + q * np, d, q * sizeof *d);
    s->u[q * np + q] = alpha;
    d[q] -= alpha;
    clear(s->step, np);
    combine(d + q, s->j + q * np, n - q, np, s->step);
    for (long k = q; k < n; k++) add(s->j + k * np, -d[k] * scale, s->step, np);
    s->active[q] = name, s->multiplier[q] = multiplier, s->count++;
}

INLINE void drop(struct quadratic *s, long l) {
    long np = s->np, last = --s->count;
    for (long k = l; k < last; k++) {
        double *column = s->u + k * np;
        memcpy(column, column + np, (k + 2) * sizeof *column);
        s->active[k] = s->active[k + 1], s->multiplier[k] = s->multiplier[k + 1];
    }
    for (long k = l; k < last; k++) { /* rotate away what is below the diagonal */
        double a = s->u[k * np + k], b = s->u[k * np + k + 1], size = sqrt(a * a + b * b);
        double c = size > 0 ? a / size : 1, e = size > 0 ? b / size : 0;
        for (long i = k; i < last; i++) {
            double *column = s->u + i * np, up = column[k], down = column[k + 1];
            column[k] = c * up + e * down, column[k + 1] = c * down - e * up;
        }
        for (long i = 0; i < np; i += LANES) {
            vec *up = (vec *)(s->j + k * np + i), *down = (vec *)(s->j + (k + 1) * np + i), was = *up;
            *up = c * was + e * *down, *down = c * *down - e * was;
        }
    }
}

/* the most violated inequality, or -1 */
INLINE long violated(struct quadratic *s, double *slack) {
    long found = -1, n = s->n;
    double least = -SLACK;
    for (long i = 0; i < n; i++) {
        double below = s->x[i] - s->low[i], above = s->high[i] - s->x[i];
        if (below < least) least = below, found = i;
        if (above < least) least = above, found = n + i;
    }
    if (found < 0 && s->floor) {
        memcpy(s->moved, s->z, s->mp * sizeof *s->z);
        combine(s->x, s->rows, n, s->mp, s->moved);
        for (long k = 0; k < s->m; k++) {
            double over = s->moved[k] - s->floor[k];
            if (over < least) least = over, found = 2 * n + k;
        }
    }
    *slack = least;
    return found;
}

/* d = J normal, and the squared part of it that the active normals do not span */
INLINE double project_normal(struct quadratic *s, long name, int *spanned) {
    long n = s->n, np = s->np;
    double all = 0, beyond = 0;
    for (long k = 0; k < n; k++) {
        double d = name < n       ? s->j[k * np + name]
                   : name < 2 * n ? -s->j[k * np + name - n]
                                  : dot(s->j + k * np, s->columns + (name - 2 * n) * np, np);
        s->d[k] = d, all += d * d;
        if (k >= s->count) beyond += d * d;
    }
    *spanned = !(beyond > DEPENDENT * all);
    return beyond;
}

/* how far multipliers allow a step, r = U^-1 d; which reaches zero first */
INLINE double dual_room(struct quadratic *s, long *first) {
    double room = INFINITY;
    for (long k = s->count - 1; k >= 0; k--) {
        double r = s->d[k];
        for (long i = k + 1; i < s->count; i++) r -= s->u[i * s->np + k] * s->r[i];
        s->r[k] = r / s->u[k * s->np + k];
        if (k >= s->equalities && s->r[k] > 0 && s->multiplier[k] < room * s->r[k])
            room = s->multiplier[k] / s->r[k], *first = k;
    }
    return room;
}

/* one inequality more, satisfied; 0 where none can be */
INLINE int satisfy(struct quadratic *s, long name, double slack) {
    double own = 0;
    for (;;) {
        int spanned;
        long first = 0;
        double beyond = project_normal(s, name, &spanned), room = dual_room(s, &first);
        double full = spanned ? INFINITY : -slack / beyond, length = smaller(room, full);
        if (!(length < INFINITY)) return 0;
        for (long k = 0; k < s->count; k++) s->multiplier[k] -= length * s->r[k];
        own += length;
        if (spanned) {
            drop(s, first);
            continue;
        }
        clear(s->step, s->np);
        combine(s->d + s->count, s->j + s->count * s->np, s->n - s->count, s->np, s->step);
        add(s->x, length, s->step, s->np);
        slack += length * beyond;
        if (full <= room) {
            activate(s, beyond, name, own);
            return 1;
        }
        drop(s, first);
    }
}

/* into the inequalities, from a minimum over the equalities; 0 where that failed */
KERNEL int into_bounds(struct quadratic *s, long name, double slack) {
    for (long left = 10 * (s->n + 2); name >= 0 && left; left--) {
        if (!satisfy(s, name, slack)) return 0;
        name = violated(s, &slack);
    }
    return name < 0;
}
