/* Vectors and matrices padded with zeros to whole machine vectors, and products of them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define KERNEL static __attribute__((noinline))
#define LANES 8

/* what is shorter on a machine than this the compiler splits */
typedef double vec __attribute__((vector_size(LANES * sizeof(double)), may_alias));
typedef int64_t mask __attribute__((vector_size(LANES * sizeof(double)), may_alias));

/* fmin and fmax are calls where NaN counts */
INLINE double smaller(double a, double b) { return a < b ? a : b; }
INLINE double larger(double a, double b) { return a > b ? a : b; }

INLINE long padded(long count) { return (count + LANES - 1) / LANES * LANES; }

/* how lanes are halved: each meets the one `4`, `2`, `1` away */
#define FOUR_ON(a) __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3)
#define TWO_ON(a) __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5)
#define ONE_ON(a) __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6)

INLINE double across(vec a) {
    a += FOUR_ON(a), a += TWO_ON(a), a += ONE_ON(a);
    return a[0];
}

INLINE double dot(const double *a, const double *b, long size) { /* size: padded */
    vec sum = {0}, more = {0};
    long i = 0;
    for (; i + LANES < size; i += 2 * LANES) {
        sum += *(const vec *)(a + i) * *(const vec *)(b + i);
        more += *(const vec *)(a + i + LANES) * *(const vec *)(b + i + LANES);
    }
    if (i < size) sum += *(const vec *)(a + i) * *(const vec *)(b + i);
    return across(sum + more);
}

INLINE void add(double *y, double a, const double *x, long size) { /* y += a x */
    for (long i = 0; i < size; i += LANES) *(vec *)(y + i) += a * *(const vec *)(x + i);
}

INLINE void clear(double *y, long size) {
    for (long i = 0; i < size; i += LANES) *(vec *)(y + i) = (vec){0};
}

/* y (size) += sum over i < count of x_i rows_i */
INLINE void combine(const double *x, const double *rows, long count, long size, double *y) {
    long j = 0;
    for (; j + 4 * LANES <= size; j += 4 * LANES) {
        vec a = *(vec *)(y + j), b = *(vec *)(y + j + LANES);
        vec c = *(vec *)(y + j + 2 * LANES), d = *(vec *)(y + j + 3 * LANES);
        for (long i = 0; i < count; i++) {
            const vec *row = (const vec *)(rows + i * size + j);
            a += x[i] * row[0], b += x[i] * row[1], c += x[i] * row[2], d += x[i] * row[3];
        }
        *(vec *)(y + j) = a, *(vec *)(y + j + LANES) = b;
        *(vec *)(y + j + 2 * LANES) = c, *(vec *)(y + j + 3 * LANES) = d;
    }
    for (; j < size; j += LANES) {
        vec a = *(vec *)(y + j);
        for (long i = 0; i < count; i++) a += x[i] * *(const vec *)(rows + i * size + j);
        *(vec *)(y + j) = a;
    }
}

INLINE vec chosen(mask where, vec a, vec b) { return (vec)((where & (mask)a) | (~where & (mask)b)); }

INLINE void keep_less(vec *least, mask *at, vec other, mask there) {
    mask less = other < *least;
    *least = chosen(less, other, *least);
    *at = (mask)chosen(less, (vec)there, (vec)*at);
}

/* where the least of `size` (padded) numbers is */
INLINE long least_of(const double *a, long size) {
    vec least = *(const vec *)a;
    mask at = {0, 1, 2, 3, 4, 5, 6, 7}, here = at;
    for (long i = LANES; i < size; i += LANES) {
        here += LANES;
        keep_less(&least, &at, *(const vec *)(a + i), here);
    }
    keep_less(&least, &at, FOUR_ON(least), FOUR_ON(at));
    keep_less(&least, &at, TWO_ON(least), TWO_ON(at));
    keep_less(&least, &at, ONE_ON(least), ONE_ON(at));
    return at[0];
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

/* the next room for `count` numbers of a block, or NULL where there is no block yet */
static double *taken(double *block, long *used, long count) {
    long here = *used;
    *used += padded(count);
    return block ? block + here : NULL;
}
