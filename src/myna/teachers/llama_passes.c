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
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define PLAIN static __attribute__((noinline, optimize("no-tree-vectorize")))

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

PLAIN void take(const float *restrict qkv, const float *restrict norm,
                const float *restrict cosine, const float *restrict sine, float *restrict q,
                float *restrict k, float *restrict v, long time, long width, long g, long heads,
                long group, long size, long stride, float scale) {
    long half = size / 2;
    for (long t = 0; t < time; t++) {
        const float *row = qkv + t * width, *c = cosine + t * half, *s = sine + t * half;
        const float *kr = row + (heads * group + g) * size;
        const float *vr = row + (heads * group + heads + g) * size;
        float r = norm[t];
        for (long i = 0; i < half; i++) {
            k[t * size + i] = (kr[i] * c[i] - kr[half + i] * s[i]) * r;
            k[t * size + half + i] = (kr[half + i] * c[i] + kr[i] * s[i]) * r;
        }
        for (long i = 0; i < size; i++) v[t * size + i] = vr[i] * r;
        r *= scale;
        for (long h = 0; h < group; h++) {
            const float *qr = row + (g * group + h) * size;
            float *qt = q + t * group + h;
            for (long i = 0; i < half; i++) {
                qt[i * stride] = (qr[i] * c[i] - qr[half + i] * s[i]) * r;
                qt[(half + i) * stride] = (qr[half + i] * c[i] + qr[i] * s[i]) * r;
            }
        }
    }
}

PLAIN void give(const float *restrict o, float *restrict out, long time, long group, long size,
                long wide, long stride) {
    for (long t = 0; t < time; t++)
        for (long h = 0; h < group; h++)
            for (long d = 0; d < size; d++)
                out[t * wide + h * size + d] = o[d * stride + t * group + h];
}

int myna_attend(const float *qkv, const float *norm, const float *cosine, const float *sine,
                const float *keys, const float *values, float *out, long futures, long time,
                long past, long heads, long group, long size) {
    long lanes = (group * time + LANES - 1) / LANES, count = past + time;
    long width = heads * (group + 2) * size, wide = heads * group * size;
    float *room = malloc(4 * (size * lanes * LANES * 2 + 2 * count * size + count * LANES) + 64);
    if (!room) return 1;
    float *q = room, *o = q + size * lanes * LANES, *k = o + size * lanes * LANES;
    float *v = k + count * size, *p = v + count * size;
    float scale = 1.4426950408889634f / sqrtf((float)size);
    memset(q, 0, 4 * size * lanes * LANES);
    for (long g = 0; g < heads; g++) {
        memcpy(k, keys + g * past * size, 4 * past * size);
        memcpy(v, values + g * past * size, 4 * past * size);
        for (long f = 0; f < futures; f++) {
            take(qkv + f * time * width, norm + f * time, cosine, sine, q, k + past * size,
                 v + past * size, time, width, g, heads, group, size, lanes * LANES, scale);
            for (long j = 0; j < lanes; j++) {
                const vec *qj = (const vec *)(q + j * LANES);
                long last = (j * LANES + LANES - 1) / group; /* the last place among these lanes */
                long seen = past + (last < time ? last + 1 : time);
                vec most = all(-1e30f), sum = all(0);
                for (long d = 0; d < size; d += 8) {
                    vec q0 = qj[d * lanes], q1 = qj[(d + 1) * lanes], q2 = qj[(d + 2) * lanes],
                        q3 = qj[(d + 3) * lanes], q4 = qj[(d + 4) * lanes], q5 = qj[(d + 5) * lanes],
                        q6 = qj[(d + 6) * lanes], q7 = qj[(d + 7) * lanes];
                    for (long i = 0; i < seen; i++) {
                        const float *w = k + i * size + d;
                        vec a = (q0 * w[0] + q1 * w[1]) + (q2 * w[2] + q3 * w[3]);
                        vec b = (q4 * w[4] + q5 * w[5]) + (q6 * w[6] + q7 * w[7]);
                        a += b;
                        if (d) a += ((vec *)p)[i];
                        ((vec *)p)[i] = a;
                    }
                }
                for (long i = past + j * LANES / group; i < seen; i++) { /* what a lane may not see */
                    long hidden = (i - past) * group - j * LANES;
                    for (long l = 0; l < hidden && l < LANES; l++) p[i * LANES + l] = -1e30f;
                }
                for (long i = 0; i < seen; i++) most = larger(most, ((vec *)p)[i]);
                for (long i = 0; i < seen; i++) {
                    vec e = exp2_vec(((vec *)p)[i] - most);
                    ((vec *)p)[i] = e;
                    sum += e;
                }
                sum = 1.f / sum;
                for (long d = 0; d < size; d += 8) {
                    vec o0 = all(0), o1 = o0, o2 = o0, o3 = o0, o4 = o0, o5 = o0, o6 = o0, o7 = o0;
                    for (long i = 0; i < seen; i++) {
                        const float *w = v + i * size + d;
                        vec e = ((vec *)p)[i];
                        o0 += e * w[0]; o1 += e * w[1]; o2 += e * w[2]; o3 += e * w[3];
                        o4 += e * w[4]; o5 += e * w[5]; o6 += e * w[6]; o7 += e * w[7];
                    }
                    vec *oj = (vec *)(o + j * LANES);
                    oj[d * lanes] = o0 * sum; oj[(d + 1) * lanes] = o1 * sum;
                    oj[(d + 2) * lanes] = o2 * sum; oj[(d + 3) * lanes] = o3 * sum;
                    oj[(d + 4) * lanes] = o4 * sum; oj[(d + 5) * lanes] = o5 * sum;
                    oj[(d + 6) * lanes] = o6 * sum; oj[(d + 7) * lanes] = o7 * sum;
                }
            }
            give(o, out + f * time * wide + g * group * size, time, group, size, wide,
                 lanes * LANES);
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
