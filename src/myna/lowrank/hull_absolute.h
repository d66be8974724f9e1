/* Least absolute deviations over a convex hull, by the simplex method.
 *
 *     minimise  sum_j |(x V R)_j - w_j|   over   x >= 0,  sum x = 1
 *
 * At a corner k vertices have weight, and k - 1 entries are hit exactly, (x V R)_j = w_j: with
 * the sum that makes k equations x B = (1 w_hit) with B = [1 | V R], its rows the vertices and its
 * columns the entries. An edge either brings in a vertex or leaves an entry, and is followed past
 * every entry whose sign change leaves it downhill (Barrodale and Roberts, SIAM J. Numer. Anal. 10,
 * 1973) to where an entry is hit or a vertex loses its weight. Since B has no more rows than the
 * sketch, and one, it is inverted afresh at each corner: no rounding is carried along.
 */
#define FLAT 1e-11  /* a slope this small counts as zero */
#define STILL 1e-10 /* relative: slower entries and weights do not move */

struct absolute {
    long n, np, m, mp, vp;            /* n: with the one */
    const double *points, *across;    /* [V 1] (vertex, np), and its transpose (n, vp) */
    const double *rows, *columns;     /* R (n - 1, mp), and R' (m, np) */
    const double *w;                  /* targets (mp) */
    double *inverse;                  /* of B (n, np) */
    double *x, *y, *d, *g, *c;        /* (np): weights, multipliers, edge, R y with -nu, point */
    double *cost;                     /* (vp): how the value changes as a vertex comes in */
    double *z, *sign, *rate, *when;   /* (mp): c R, slopes of |z - w| (0: hit), d R, when they change */
    long *corner, *hit, *moved, k;    /* (n + 1) each: vertices with weight, entries from place 1 on */
};

/* the matrix B of k rows replaced by its inverse (Gauss and Jordan); 0 where it has none */
INLINE int inverted(double *b, long k, long np, long *moved) {
    for (long p = 0; p < k; p++) {
        long best = p;
        for (long i = p + 1; i < k; i++)
            if (fabs(b[i * np + p]) > fabs(b[best * np + p])) best = i;
        double *row = b + p * np, *other = b + best * np, pivot = other[p];
        if (!(fabs(pivot) > 0)) return 0;
        moved[p] = best;
        for (long i = 0; i < np; i += LANES) {
            vec up = *(vec *)(row + i), down = *(vec *)(other + i);
            *(vec *)(other + i) = up, *(vec *)(row + i) = down / pivot;
        }
        row[p] = 1 / pivot;
        for (long i = 0; i < k; i++) {
            double *rest = b + i * np, share = rest[p];
            if (i == p) continue;
            rest[p] = 0;
            add(rest, -share, row, np);
        }
    }
    for (long p = k - 1; p >= 0; p--)
        for (long i = 0; i < k && moved[p] != p; i++) {
            double kept = b[i * np + p];
            b[i * np + p] = b[i * np + moved[p]], b[i * np + moved[p]] = kept;
        }
    return 1;
}

/* the point, its multipliers and costs at the corner; 0 where it is none */
INLINE int at_corner(struct absolute *a) {
    long n = a->n, np = a->np, k = a->k;
    if (k > n) return 0;
    clear(a->inverse, k * np), clear(a->d, np);
    for (long s = 0; s < k; s++) {
        a->inverse[s * np] = 1;
        for (long e = 1; e < k; e++)
            a->inverse[s * np + e] =
                dot(a->points + a->corner[s] * np, a->columns + a->hit[e] * np, np);
    }
    if (!inverted(a->inverse, k, np, a->moved)) return 0;
    clear(a->x, np), clear(a->c, np), clear(a->z, a->mp), clear(a->g, np), clear(a->cost, a->vp);
    memcpy(a->x, a->inverse, np * sizeof *a->x);
    for (long e = 1; e < k; e++) add(a->x, a->w[a->hit[e]], a->inverse + e * np, np);
    for (long s = 0; s < k; s++) add(a->c, a->x[s], a->points + a->corner[s] * np, np);
    combine(a->c, a->rows, n - 1, a->mp, a->z);
    /* B (-nu, y) = - V R sign, so that no vertex with weight has a cost */
    combine(a->sign, a->columns, a->m, np, a->g);
    for (long s = 0; s < k; s++) a->d[s] = -dot(a->points + a->corner[s] * np, a->g, np);
    for (long e = 0; e < k; e++) {
        a->y[e] = dot(a->inverse + e * np, a->d, np);
        if (e) add(a->g, a->y[e], a->columns + a->hit[e] * np, np);
    }
    a->g[n - 1] = a->y[0];
    combine(a->g, a->across, n, a->vp, a->cost);
    return 1;
}

/* d and its slope along the steepest edge, which brings in a vertex or leaves an entry, or -1 */
INLINE double steepest(struct absolute *a, long *vertex, long *left) {
    long np = a->np, i = least_of(a->cost, a->vp);
    double most = -a->cost[i], slope = a->cost[i];
    *vertex = i, *left = 0;
    for (long e = 1; e < a->k; e++) {
        double *edge = a->inverse + e * np, over = fabs(a->y[e]) - 1;
        if (!(over > FLAT)) continue;
        double score = over / sqrt(dot(edge, edge, np));
        if (score > most) most = score, slope = -over, *vertex = -1, *left = e;
    }
    if (!(slope < -FLAT)) return 0;
    clear(a->d, np), clear(a->c, np);
    if (*left) {
        double side = a->y[*left] > 0 ? 1 : -1;
        a->sign[a->hit[*left]] = side;
        add(a->d, side, a->inverse + *left * np, np);
    } else {
        const double *point = a->points + i * np;
        memcpy(a->c, point, np * sizeof *a->c);
        add(a->d, -1, a->inverse, np);
        for (long e = 1; e < a->k; e++)
            add(a->d, -dot(point, a->columns + a->hit[e] * np, np), a->inverse + e * np, np);
    }
    for (long s = 0; s < a->k; s++) add(a->c, a->d[s], a->points + a->corner[s] * np, np);
    return slope;
}

/* how fast entries move along the edge, and how far it is to where they change sign */
INLINE void set_out(struct absolute *a) {
    clear(a->rate, a->mp);
    combine(a->c, a->rows, a->n - 1, a->mp, a->rate);
    vec never = (vec){0} + INFINITY, none = {0};
    vec still = none - STILL * sqrt(dot(a->rate, a->rate, a->mp));
    for (long j = 0; j < a->mp; j += LANES) {
        vec rate = *(vec *)(a->rate + j), gap = *(const vec *)(a->w + j) - *(vec *)(a->z + j);
        vec when = gap / rate;
        when = chosen(when > none, when, none);
        *(vec *)(a->when + j) = chosen(rate * *(vec *)(a->sign + j) < still, when, never);
    }
}

/* how far until a vertex has no weight, and which */
INLINE double weight_left(const struct absolute *a, long *place) {
    double room = INFINITY, still = -STILL * sqrt(dot(a->d, a->d, a->np));
    for (long s = 0; s < a->k; s++) {
        double here = larger(a->x[s], 0) / -a->d[s];
        if (a->d[s] < still && here < room) room = here, *place = s;
    }
    return room;
}

/* along an edge to the corner where it stops falling; 0 where there is none */
INLINE int follow(struct absolute *a, double slope, long vertex, long left) {
    long place = -1, entry = -1;
    set_out(a);
    double room = weight_left(a, &place);
    for (;;) {
        long j = least_of(a->when, a->mp);
        if (!(a->when[j] < room)) break;
        slope += 2 * fabs(a->rate[j]);
        if (slope >= 0) {
            room = a->when[j], entry = j;
            break;
        }
        a->sign[j] = -a->sign[j], a->when[j] = INFINITY;
    }
    if (!(room < INFINITY)) return 0;
    long vertices = a->k, entries = a->k;
    if (vertex >= 0) a->corner[vertices++] = vertex;
    if (entry >= 0) a->hit[entries++] = entry, a->sign[entry] = 0;
    else a->corner[place] = a->corner[--vertices];
    if (left) a->hit[left] = a->hit[--entries];
    a->k = vertices;
    return 1;
}

/* from one vertex to the answer: weights x of `corner`, and multipliers y (m) */
KERNEL int descend(struct absolute *a, long vertex, double *y) {
    long left;
    a->k = 1, a->corner[0] = vertex;
    clear(a->z, a->mp);
    combine(a->points + vertex * a->np, a->rows, a->n - 1, a->mp, a->z);
    for (long j = 0; j < a->m; j++) a->sign[j] = a->z[j] > a->w[j] ? 1 : -1;
    for (long steps = 50 * (a->n + 2); steps; steps--) {
        if (!at_corner(a)) return 0;
        double slope = steepest(a, &vertex, &left);
        if (!(slope < 0)) {
            memcpy(y, a->sign, a->m * sizeof *y);
            for (long e = 1; e < a->k; e++) y[a->hit[e]] = a->y[e];
            return 1;
        }
        if (!follow(a, slope, vertex, left)) return 0;
    }
    return 0;
}
