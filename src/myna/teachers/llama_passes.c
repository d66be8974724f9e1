/* What a Llama does besides matrix products, fused: each pass reads and writes its rows once.
 *
 * Rows are tokens of futures after one history. RMSNorm is a factor a row, its gains are in the
 * matrices that follow, so every pass takes the factor (`norm`) along and no normalised row is
 * ever written. Eight float lanes a vector; lanes of `myna_attend` are (place, query head).
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec all(float x) { return (vec){x, x, x, x, x, x, x, x}; }
static inline vec larger(vec a, vec b) {
    vec c;
    for (int i = 0; i < LANES; i++) c[i] = a[i] > b[i] ? a[i] : b[i];
    return c;
}

/* 2^x for -126 <= x <= 126, relative error 3e-7 */
static inline vec exp2_vec(vec x) {
    x = larger(x, all(-126.f));
    ivec n = __builtin_convertvector(x - 0.5f, ivec); /* towards zero; x <= 0 */
    vec f = x - __builtin_convertvector(n, vec);
    vec p = all(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.f;
    return p * (vec)((n + 127) << 23);
}

static inline float total(vec a) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += a[i];
    return s;
}

/* rows <-> columns of 8 x 8 numbers */
static inline void turn(vec a[8]) {
    vec b[8], c[8];
    for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            c[i + j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            c[i + j + 2] =
                __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        a[i] = __builtin_shufflevector(c[i], c[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        a[i + 4] = __builtin_shufflevector(c[i], c[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* rotary positions: pairs (i, half + i) turned by angles, times r; half in fours */
static inline void rotate(const float *restrict x, const float *restrict cosine,
                          const float *restrict sine, float *restrict out, long half, float r) {
    for (long i = 0; i < half; i += 4) {
        four a = *(const four *)(x + i) * r, b = *(const four *)(x + half + i) * r;
        four c = *(const four *)(cosine + i), s = *(const four *)(sine + i);
        *(four *)(out + i) = a * c - b * s;
        *(four *)(out + half + i) = b * c + a * s;
    }
}

/* Softmax attention of the places of each future to the past and to each other.
 * Scores of 8 lanes at a time over all keys, lane = place * group + query head, so that a
 * key is one broadcast for all of them and softmax never crosses lanes.
 */
int myna_attend(const float *qkv, const float *norm, const float *cosine, const float *sine,
                const float *keys, const float *values, float *out, long futures, long time,
                long past, long heads, long group, long size) {
    long lanes = (group * time + LANES - 1) / LANES, count = past + time, half = size / 2;
    long width = heads * (group + 2) * size, wide = heads * group * size;
    float *room = malloc(4 * (lanes * LANES * size + 2 * count * size + count * LANES));
    if (!room) return 1;
    float *q = room, *k = q + lanes * LANES * size, *v = k + count * size, *p = v + count * size;
    vec *score = (vec *)p;
    float scale = 1.4426950408889634f / sqrtf((float)size); /* powers of two from here on */
    memset(q, 0, 4 * lanes * LANES * size);
    for (long g = 0; g < heads; g++) {
        memcpy(k, keys + g * past * size, 4 * past * size);
        memcpy(v, values + g * past * size, 4 * past * size);
        for (long f = 0; f < futures; f++) {
            for (long t = 0; t < time; t++) {
                const float *row = qkv + (f * time + t) * width, *c = cosine + t * half;
                const float *s = sine + t * half, *own = row + (heads * group + heads + g) * size;
                float r = norm[f * time + t];
                rotate(row + (heads * group + g) * size, c, s, k + (past + t) * size, half, r);
                for (long d = 0; d < size; d += LANES)
                    *(vec *)(v + (past + t) * size + d) = *(const vec *)(own + d) * r;
                for (long h = 0; h < group; h++)
                    rotate(row + (g * group + h) * size, c, s, q + (t * group + h) * size, half,
                           r * scale);
            }
            for (long j = 0; j < lanes; j++) {
                long last = (j * LANES + LANES - 1) / group; /* the last place among these lanes */
                long seen = past + (last < time ? last + 1 : time);
                vec most = all(-1e30f), sum = all(0);
                for (long d = 0; d < size; d += 8) {
                    vec x[8];
                    for (int l = 0; l < 8; l++) x[l] = *(vec *)(q + (j * LANES + l) * size + d);
                    turn(x);
                    for (long i = 0; i < seen; i++) {
                        const float *w = k + i * size + d;
                        vec a = (x[0] * w[0] + x[1] * w[1]) + (x[2] * w[2] + x[3] * w[3]);
                        vec b = (x[4] * w[4] + x[5] * w[5]) + (x[6] * w[6] + x[7] * w[7]);
                        a += b;
                        if (d) a += score[i];
                        score[i] = a;
                    }
                }
                for (long i = past + j * LANES / group; i < seen; i++) { /* unseen by a lane */
                    long hidden = (i - past) * group - j * LANES;
                    for (long l = 0; l < hidden && l < LANES; l++) p[i * LANES + l] = -1e30f;
                }
                for (long i = 0; i < seen; i++) most = larger(most, score[i]);
                for (long i = 0; i < seen; i++) {
                    vec e = exp2_vec(score[i] - most);
                    score[i] = e;
                    sum += e;
                }
                sum = 1.f / sum;
                for (long d = 0; d < size; d += 8) {
                    vec o0 = all(0), o1 = o0, o2 = o0, o3 = o0, o4 = o0, o5 = o0, o6 = o0, o7 = o0;
                    for (long i = 0; i < seen; i++) {
                        const float *w = v + i * size + d;
                        vec e = score[i];
                        o0 += e * w[0], o1 += e * w[1], o2 += e * w[2], o3 += e * w[3];
                        o4 += e * w[4], o5 += e * w[5], o6 += e * w[6], o7 += e * w[7];
                    }
                    vec y[8] = {o0 * sum, o1 * sum, o2 * sum, o3 * sum,
                                o4 * sum, o5 * sum, o6 * sum, o7 * sum};
                    turn(y);
                    for (int l = 0; l < LANES && j * LANES + l < group * time; l++) {
                        long t = (j * LANES + l) / group, h = (j * LANES + l) % group;
                        *(vec *)(out + (f * time + t) * wide + (g * group + h) * size + d) = y[l];
                    }
                }
            }
        }
    }
    free(room);
    return 0;
}

void myna_norms(const float *x, float *norm, long rows, long width, float eps) {
    for (long i = 0; i < rows; i++) {
        float s = 0;
        for (long d = 0; d < width; d++) s += x[i * width + d] * x[i * width + d];
        norm[i] = 1.f / sqrtf(s / width + eps);
    }
}

/* silu(gate) * up, of (rows, 2 width) rows [gate | up] times norm */
void myna_gate(const float *both, const float *norm, float *out, long rows, long width) {
    for (long i = 0; i < rows; i++) {
        const float *g = both + i * 2 * width, *u = g + width;
        float r = norm[i];
        long d = 0;
        for (; d + LANES <= width; d += LANES) {
            vec a = *(const vec *)(g + d) * r, b = *(const vec *)(u + d) * r;
            vec size = larger(a, -a);
            vec e = exp2_vec(size * -1.4426950408889634f); /* e^-|a| */
            ivec below = a < 0.f;
            vec top = (vec)(((ivec)e & below) | ((ivec)all(1.f) & ~below));
            vec sigmoid = top / (1.f + e);
            *(vec *)(out + i * width + d) = a * sigmoid * b;
        }
        for (; d < width; d++) {
            float a = g[d] * r;
            out[i * width + d] = a / (1.f + expf(-a)) * u[d] * r;
        }
    }
}

/* log-softmax of each row times norm, at one token a row */
void myna_read(const float *logits, const float *norm, const int64_t *tokens, float *out,
               long rows, long width) {
    for (long i = 0; i < rows; i++) {
        const float *z = logits + i * width;
        float r = norm[i], most = -1e30f, sum = 0;
        long d = 0;
        vec m = all(-1e30f), s = all(0);
        for (; d + LANES <= width; d += LANES) m = larger(m, *(const vec *)(z + d));
        for (int l = 0; l < LANES; l++) most = m[l] > most ? m[l] : most;
        for (; d < width; d++) most = z[d] > most ? z[d] : most;
        float c = r * 1.4426950408889634f;
        for (d = 0; d + LANES <= width; d += LANES)
            s += exp2_vec((*(const vec *)(z + d) - most) * c);
        sum = total(s);
        for (; d < width; d++) sum += exp2f((z[d] - most) * c);
        out[i] = (z[tokens[i]] - most) * r - logf(sum);
    }
}
