/* Newton's method for KL: its model at z > 0, and steps that are halved until the value falls.
 *
 *     sum_j z_j log(z_j / w_j) - z_j,   slopes log(z / w),   curvatures 1 / z
 */
#define NEWTON_STEPS 40
#define KEEP 0.9     /* how much of the way to z = 0 a step may go */
#define CLOSE 1e-3   /* relative: after steps this short the matrix hardly changes */
#define LEAST 1e-200 /* a smaller target may ask for z = 0, which no number of steps reaches */

struct newton { /* padded, (mp) each */
    long m;
    double *w, *log_w, *z, *slope, *curvature, *dz, *next, *next_slope;
};

/* the value at z > 0, and slopes there */
KERNEL double entropy(const struct newton *e, const double *z, double *slope) {
    double sum = 0;
    for (long j = 0; j < e->m; j++) {
        slope[j] = log(z[j]) - e->log_w[j];
        sum += z[j] * slope[j] - z[j];
    }
    return sum;
}

/* the first model, around the target, where KL is sum (z - w)^2 / 2 w; 0 where it has none */
KERNEL int around_target(struct newton *e) {
    for (long j = 0; j < e->m; j++) {
        if (!(e->w[j] > LEAST) || !(e->z[j] > 0)) return 0;
        e->log_w[j] = log(e->w[j]);
        e->curvature[j] = 1 / e->w[j], e->slope[j] = e->z[j] / e->w[j] - 1;
    }
    return 1;
}

/* rows of `columns` (m, np) times the curvatures */
INLINE void curved(const struct newton *e, const double *columns, long np, double *scaled) {
    for (long j = 0; j < e->m; j++)
        for (long i = 0; i < np; i += LANES)
            *(vec *)(scaled + j * np + i) = e->curvature[j] * *(const vec *)(columns + j * np + i);
}

/* how long the step's changes of z are, relative to z */
INLINE double longest_change(const struct newton *e, double *down) {
    double longest = 0, least = 0;
    for (long j = 0; j < e->m; j++) {
        double change = e->dz[j] / e->z[j];
        longest = larger(longest, fabs(change)), least = smaller(least, change);
    }
    *down = -least;
    return longest;
}

/* take the step, halved until the value falls (`any`: or not); its length, 0 where it never does */
KERNEL double shortened(struct newton *e, double down, double gain, double *value, int any) {
    double length = down > KEEP ? KEEP / down : 1;
    for (int tries = 0; tries < 30; tries++, length /= 2) {
        for (long j = 0; j < e->m; j++) e->next[j] = e->z[j] + length * e->dz[j];
        double here = entropy(e, e->next, e->next_slope);
        if (!any && !(here <= *value + 1e-4 * length * gain)) continue;
        *value = here;
        memcpy(e->slope, e->next_slope, e->m * sizeof *e->slope);
        memcpy(e->z, e->next, e->m * sizeof *e->z);
        return length;
    }
    return 0;
}
