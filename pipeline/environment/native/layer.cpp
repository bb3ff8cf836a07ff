// What a decoder layer does between its matrix products, and the loss, each in one pass: bf16 in and out, sums in fp32.
// Widths are multiples of 16. Strides count numbers.

#include "bf16.h"

#include <algorithm>
#include <cmath>

// sum = x + add where `add` is given, else x; out = sum / rms(sum) x weight; scales [tokens] fp32 gets 1 / rms(sum).
extern "C" void dm_norm(const bf16 * x, const bf16 * add, long add_stride, bf16 * sum, const bf16 * weight, bf16 * out,
                        float * scales, long tokens, long width, float epsilon) {
#pragma omp parallel for schedule(static)
    for (long token = 0; token < tokens; token++) {
        const bf16 * row = x + token * width;
        if (add) {
            bf16 * to = sum + token * width;
            for (long at = 0; at < width; at += 16)
                store(to + at, _mm512_add_ps(load(row + at), load(add + token * add_stride + at)));
            row = to;
        }
        __m512 squares = _mm512_setzero_ps();
        for (long at = 0; at < width; at += 16) {
            const __m512 value = load(row + at);
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        const float scale = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / (float) width + epsilon);
        scales[token] = scale;
        const __m512 factor = _mm512_set1_ps(scale);
        for (long at = 0; at < width; at += 16)
            store(out + token * width + at, _mm512_mul_ps(_mm512_mul_ps(load(row + at), factor), load(weight + at)));
    }
}

// The gradient of dm_norm's sum, plus `rest`, which reaches the sum by another way.
extern "C" void dm_norm_backward(const bf16 * slope, const bf16 * sum, const bf16 * weight, const float * scales,
                                 const bf16 * rest, long rest_stride, bf16 * grad, long grad_stride, long tokens, long width) {
#pragma omp parallel for schedule(static)
    for (long token = 0; token < tokens; token++) {
        const bf16 * row = sum + token * width, * out = slope + token * width;
        __m512 dots = _mm512_setzero_ps();
        for (long at = 0; at < width; at += 16)
            dots = _mm512_fmadd_ps(_mm512_mul_ps(load(out + at), load(weight + at)), load(row + at), dots);
        const float scale = scales[token];
        const __m512 factor = _mm512_set1_ps(scale);
        const __m512 pull = _mm512_set1_ps(-_mm512_reduce_add_ps(dots) / (float) width * scale * scale * scale);
        for (long at = 0; at < width; at += 16) {
            __m512 value = load(rest + token * rest_stride + at);
            value = _mm512_fmadd_ps(_mm512_mul_ps(load(out + at), load(weight + at)), factor, value);
            store(grad + token * grad_stride + at, _mm512_fmadd_ps(load(row + at), pull, value));
        }
    }
}

// Rotary position embedding of the first `heads` heads in every row, in place; with `back` its transpose.
extern "C" void dm_rotate(bf16 * rows, long stride, const bf16 * cosines, const bf16 * sines, long tokens, long heads,
                          long width, long back) {
    const long half = width / 2;
#pragma omp parallel for schedule(static)
    for (long token = 0; token < tokens; token++) {
        const bf16 * c = cosines + token * width, * s = sines + token * width;
        for (long head = 0; head < heads; head++)
            for (long at = 0; at < half; at += 16) {
                bf16 * one = rows + token * stride + head * width + at, * other = one + half;
                const __m512 a = load(one), b = load(other);
                if (back) {
                    store(one, _mm512_fmadd_ps(b, load(s + half + at), _mm512_mul_ps(a, load(c + at))));
                    store(other, _mm512_fnmadd_ps(a, load(s + at), _mm512_mul_ps(b, load(c + half + at))));
                } else {
                    store(one, _mm512_fnmadd_ps(b, load(s + at), _mm512_mul_ps(a, load(c + at))));
                    store(other, _mm512_fmadd_ps(a, load(s + half + at), _mm512_mul_ps(b, load(c + half + at))));
                }
            }
    }
}

// rows: gate and up side by side, `width` each; out = silu(gate) x up.
extern "C" void dm_swiglu(const bf16 * rows, long stride, bf16 * out, long tokens, long width) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static)
    for (long token = 0; token < tokens; token++)
        for (long at = 0; at < width; at += 16) {
            const __m512 gate = load(rows + token * stride + at), up = load(rows + token * stride + width + at);
            const __m512 open = _mm512_div_ps(gate, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate))));
            store(out + token * width + at, _mm512_mul_ps(open, up));
        }
}

// grad: gate's and up's gradients side by side; out = silu(gate) x up once more.
extern "C" void dm_swiglu_backward(const bf16 * rows, long stride, const bf16 * slope, bf16 * grad, long grad_stride,
                                   bf16 * out, long tokens, long width) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static)
    for (long token = 0; token < tokens; token++)
        for (long at = 0; at < width; at += 16) {
            const __m512 gate = load(rows + token * stride + at), up = load(rows + token * stride + width + at);
            const __m512 given = load(slope + token * width + at);
            const __m512 share = _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate))));
            const __m512 open = _mm512_mul_ps(gate, share);
            const __m512 steep = _mm512_fmadd_ps(_mm512_sub_ps(one, share), open, share);
            store(grad + token * grad_stride + at, _mm512_mul_ps(_mm512_mul_ps(given, up), steep));
            store(grad + token * grad_stride + width + at, _mm512_mul_ps(given, open));
            store(out + token * width + at, _mm512_mul_ps(open, up));
        }
}

// losses[row] = shares[row] x cross entropy of logits[row] and labels[row]; the logits become its gradient.
extern "C" void dm_loss(bf16 * logits, const int64_t * labels, const float * shares, float * losses, long rows, long width) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        bf16 * values = logits + row * width;
        __m512 most = load(values);
        for (long at = 16; at < width; at += 16) most = _mm512_max_ps(most, load(values + at));
        const float largest = _mm512_reduce_max_ps(most);
        const __m512 top = _mm512_set1_ps(largest);
        __m512 sum = _mm512_setzero_ps();
        for (long at = 0; at < width; at += 16) sum = _mm512_add_ps(sum, exponential(_mm512_sub_ps(load(values + at), top)));
        const float log = largest + std::log(_mm512_reduce_add_ps(sum));
        const long label = labels[row];
        uint32_t bits = (uint32_t) values[label] << 16;
        float goal;
        memcpy(&goal, &bits, 4);
        losses[row] = shares[row] * (log - goal);
        const __m512 divisor = _mm512_set1_ps(log), share = _mm512_set1_ps(shares[row]);
        for (long at = 0; at < width; at += 16)
            store(values + at, _mm512_mul_ps(exponential(_mm512_sub_ps(load(values + at), divisor)), share));
        const float slope = (std::exp(goal - log) - 1.0f) * shares[row];
        memcpy(&bits, &slope, 4);
        values[label] = (bf16) ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}
