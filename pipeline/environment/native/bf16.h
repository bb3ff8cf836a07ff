// bf16 numbers in AVX-512: loads, stores, exp, and a small matrix product on packed pairs.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "amx.h"

using bf16 = uint16_t;

static inline __m512 load(const bf16 * from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) from)), 16));
}

static inline __m512 load(const bf16 * from, __mmask16 some) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from)), 16));
}

static inline void store(bf16 * to, __m512 values) {
    _mm256_storeu_si256((__m256i *) to, (__m256i) _mm512_cvtneps_pbh(values));
}

// e^x to about one unit in the last place of fp32: 2^n times a polynomial on [-ln2/2, ln2/2]. -inf gives 0.
static inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.98756915e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.39819995e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.33345191e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.16657959e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.66666655e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// A tile of the product below: ROWS rows, VECTORS x 16 columns.
template <int ROWS, int VECTORS>
static inline void tile(const bf16 * a, long lda, const uint32_t * b, long ldb, float * c, long ldc, long pairs) {
    __m512 sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < VECTORS; v++) sums[row][v] = _mm512_setzero_ps();
    for (long k = 0; k < pairs; k++) {
        __m512bh right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = (__m512bh) _mm512_loadu_si512(b + k * ldb + 16 * v);
        for (int row = 0; row < ROWS; row++) {
            int32_t pair;
            memcpy(&pair, a + row * lda + 2 * k, 4);
            const __m512bh left = (__m512bh) _mm512_set1_epi32(pair);
            for (int v = 0; v < VECTORS; v++) sums[row][v] = _mm512_dpbf16_ps(sums[row][v], left, right[v]);
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(c + row * ldc + 16 * v, sums[row][v]);
}

template <int VECTORS>
static inline void panel(const bf16 * a, long lda, const uint32_t * b, long ldb, float * c, long ldc, long rows, long pairs) {
    for (; rows >= 6; rows -= 6, a += 6 * lda, c += 6 * ldc) tile<6, VECTORS>(a, lda, b, ldb, c, ldc, pairs);
    switch (rows) {
        case 5: tile<5, VECTORS>(a, lda, b, ldb, c, ldc, pairs); break;
        case 4: tile<4, VECTORS>(a, lda, b, ldb, c, ldc, pairs); break;
        case 3: tile<3, VECTORS>(a, lda, b, ldb, c, ldc, pairs); break;
        case 2: tile<2, VECTORS>(a, lda, b, ldb, c, ldc, pairs); break;
        case 1: tile<1, VECTORS>(a, lda, b, ldb, c, ldc, pairs); break;
    }
}

// c [rows, columns] fp32 = a [rows, 2 pairs] bf16 times b, which holds for each pair of its rows the two numbers of every
// column side by side: [pairs, columns] of two bf16. `columns` is a multiple of 16, `pairs` of 8. Where
// there are matrix tiles, the caller holds an amx::Tiles.
static inline void product(const bf16 * a, long lda, const uint32_t * b, long ldb, float * c, long rows, long columns, long pairs) {
    if (amx::used && rows >= 16) return amx::product(a, lda, b, ldb, c, rows, columns, pairs);
    long at = 0;
    for (; at + 64 <= columns; at += 64) panel<4>(a, lda, b + at, ldb, c + at, columns, rows, pairs);
    switch ((columns - at) / 16) {
        case 3: panel<3>(a, lda, b + at, ldb, c + at, columns, rows, pairs); break;
        case 2: panel<2>(a, lda, b + at, ldb, c + at, columns, rows, pairs); break;
        case 1: panel<1>(a, lda, b + at, ldb, c + at, columns, rows, pairs); break;
    }
}

// Rows 2i and 2i+1 of x [rows, width] side by side: [rows / 2, width] of two bf16.
static inline void pair_rows(const bf16 * x, long rows, long width, uint32_t * to) {
    for (long row = 0; row < rows; row += 2, x += 2 * width, to += width)
        for (long at = 0; at < width; at += 16) {
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (x + at)));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (x + width + at)));
            _mm512_storeu_si512(to + at, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

// x [rows, columns] of 32 bits, both multiples of 16 in the room that they have, transposed: [columns, rows].
static inline void transpose(const uint32_t * x, long ldx, long rows, long columns, uint32_t * to, long ldt) {
    for (long r = 0; r < rows; r += 16)
        for (long c = 0; c < columns; c += 16) {
            __m512i a[16], b[16];
            for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(x + (r + i) * ldx + c);
            for (int i = 0; i < 16; i += 2) {
                b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
                b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
            }
            for (int i = 0; i < 16; i += 4) {
                a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
                a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
                a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
                a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
            }
            for (int i = 0; i < 16; i += 8)
                for (int j = 0; j < 4; j++) {
                    b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0x88);
                    b[i + 4 + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0xdd);
                }
            for (int j = 0; j < 8; j++) {
                a[j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0x88);
                a[8 + j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0xdd);
            }
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (c + i) * ldt + r, a[i]);
        }
}
