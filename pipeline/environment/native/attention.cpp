// Attention of conversations laid end to end in one row, forwards and backwards: a token sees its own segment up to
// itself and, where the segment has a stem, the whole stem; with a window, of these the last `window`. bf16 in and out,
// sums in fp32, each in one order whatever the number of threads.
//
// `segments` holds for each its first token, its tokens, its stem's first token, its stem's tokens; `families` the number
// of each family's first segment, and at last that of all segments. A family's segments lie side by side.

#include "bf16.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr long BLOCK = 64;  // queries at once

// Heads of tokens somewhere in memory: numbers from a token to the next, and from a head to the next.
template <typename T> struct Heads {
    T * first;
    long by_token, by_head;

    T * at(long token, long head) const { return first + token * by_token + head * by_head; }
};

struct Row {
    Heads<const bf16> queries, keys, values;
    long tokens, heads, key_heads, width;
    float scale;
    long window;

    long groups() const { return heads / key_heads; }
};

// A block of queries and what it sees: columns are the stem's tokens, then the segment's up to the block's end.
struct Block {
    long start, stem, stems, first, rows, columns, padded;

    Block(const int64_t * segment, long first)
        : start(segment[0]), stem(segment[2]), stems(segment[3]), first(first), rows(std::min(BLOCK, (long) segment[1] - first)),
          columns(stems + first + rows), padded((columns + 15) / 16 * 16) {}

    long token(long column) const { return column < stems ? stem + column : start + column - stems; }
};

template <typename T> T * room(std::vector<T> & held, long wanted) {
    if ((long) held.size() < wanted) held.resize(wanted);
    return held.data();
}

// One head of the block's columns, row after row, filled up with zeros.
void gather(const Heads<const bf16> & heads, long head, const Block & block, long width, bf16 * to) {
    for (long column = 0; column < block.columns; column++, to += width) memcpy(to, heads.at(block.token(column), head), 2 * width);
    memset(to, 0, 2 * width * (block.padded - block.columns));
}

// Lanes of the 16 numbers from `at` that lie in from…to.
__mmask16 lanes(long at, long from, long to) {
    const long low = std::clamp(from - at, 0L, 16L), high = std::clamp(to - at, 0L, 16L);
    return (__mmask16) (((1u << high) - 1) & ~((1u << low) - 1));
}

// Scores into shares, e^(scale x score - largest) of those in from…to and 0 elsewhere; gives their sum and the largest.
float softmax(const float * scores, long from, long to, long padded, float scale, bf16 * shares, float & largest) {
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (long at = 0; at < padded; at += 16) most = _mm512_mask_max_ps(most, lanes(at, from, to), most, _mm512_loadu_ps(scores + at));
    largest = _mm512_reduce_max_ps(most) * scale;
    const __m512 factor = _mm512_set1_ps(scale), top = _mm512_set1_ps(largest);
    __m512 sum = _mm512_setzero_ps();
    for (long at = 0; at < padded; at += 16) {
        const __m512 share = _mm512_maskz_mov_ps(lanes(at, from, to), exponential(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), factor, top)));
        sum = _mm512_add_ps(sum, share);
        store(shares + at, share);
    }
    return _mm512_reduce_add_ps(sum);
}

Row row_of(const bf16 * queries, const bf16 * keys, const bf16 * values, const int64_t * strides, long tokens, long heads,
           long key_heads, long width, float scale, long window) {
    return {{queries, strides[0], strides[1]}, {keys, strides[2], strides[3]}, {values, strides[4], strides[5]},
            tokens, heads, key_heads, width, scale, window > 0 ? window : tokens};
}

}  // namespace

// out [tokens, heads x width]; logs [heads, tokens] fp32 gets the logarithm of each softmax's divisor. `strides` are those
// of queries, keys and values, from token to token and from head to head; a window of 0 is none.
extern "C" void dm_attention(const bf16 * queries, const bf16 * keys, const bf16 * values, const int64_t * strides, bf16 * out,
                             float * logs, long tokens, long heads, long key_heads, long width, float scale, long window,
                             const int64_t * segments, long count) {
    const Row row = row_of(queries, keys, values, strides, tokens, heads, key_heads, width, scale, window);
    struct Task { long segment, first, head; };
    std::vector<Task> tasks;
    for (long s = 0; s < count; s++)
        for (long first = 0; first < segments[4 * s + 1]; first += BLOCK)
            for (long head = 0; head < key_heads; head++) tasks.push_back({s, first, head});
#pragma omp parallel for schedule(dynamic)
    for (size_t t = 0; t < tasks.size(); t++) {
        static thread_local std::vector<bf16> keys_, values_, shares_;
        static thread_local std::vector<uint32_t> turned_, paired_;
        static thread_local std::vector<float> scores_, sums_;
        const amx::Tiles tiles;
        const Block block(segments + 4 * tasks[t].segment, tasks[t].first);
        bf16 * seen = room(keys_, block.padded * width), * worth = room(values_, block.padded * width);
        gather(row.keys, tasks[t].head, block, width, seen);
        gather(row.values, tasks[t].head, block, width, worth);
        uint32_t * turned = room(turned_, width / 2 * block.padded), * paired = room(paired_, block.padded / 2 * width);
        transpose((const uint32_t *) seen, width / 2, block.padded, width / 2, turned, block.padded);
        pair_rows(worth, block.padded, width, paired);
        float * scores = room(scores_, block.rows * block.padded), * sums = room(sums_, block.rows * width);
        bf16 * shares = room(shares_, block.rows * block.padded);
        for (long head = tasks[t].head * row.groups(); head < (tasks[t].head + 1) * row.groups(); head++) {
            const long token = block.start + block.first;
            product(row.queries.at(token, head), row.queries.by_token, turned, block.padded, scores, block.rows, block.padded, width / 2);
            float divisors[BLOCK];
            for (long r = 0; r < block.rows; r++) {
                float largest;
                const long end = block.stems + block.first + r + 1;
                divisors[r] = softmax(scores + r * block.padded, end - row.window, end, block.padded, scale, shares + r * block.padded, largest);
                logs[head * tokens + token + r] = largest + std::log(divisors[r]);
            }
            product(shares, block.padded, paired, width, sums, block.rows, width, block.padded / 2);
            for (long r = 0; r < block.rows; r++) {
                const __m512 factor = _mm512_set1_ps(1.0f / divisors[r]);
                bf16 * to = out + ((token + r) * heads + head) * width;
                for (long at = 0; at < width; at += 16) store(to + at, _mm512_mul_ps(_mm512_loadu_ps(sums + r * width + at), factor));
            }
        }
    }
}

namespace {

// What one head's gradients come from and go to.
struct Slopes {
    const bf16 * out, * slope;  // [tokens, heads x width]: what came out, and its gradient
    const float * logs;
    Heads<bf16> queries;
    float * keys, * values;  // [family's tokens, width], added to
    long family;             // its first token
};

struct Scratch {
    std::vector<bf16> keys, values, queries, grads, shares, changes;
    std::vector<uint32_t> turned_queries, turned_grads, paired_queries, paired_grads, paired_keys, turned_keys, paired_changes;
    std::vector<float> scores, worths, sums;
};

void add_rows(const float * sums, const Block & block, long width, long family, float * to) {
    for (long column = 0; column < block.columns; column++)
        for (long at = 0; at < width; at += 16) {
            float * into = to + (block.token(column) - family) * width + at;
            _mm512_storeu_ps(into, _mm512_add_ps(_mm512_loadu_ps(into), _mm512_loadu_ps(sums + column * width + at)));
        }
}

void backward(const Row & row, const Block & block, long head, const Slopes & to, Scratch & held) {
    const long width = row.width, across = (block.rows + 15) / 16 * 16, token = block.start + block.first;
    const long stride = row.heads * width, padded = block.padded;
    bf16 * keys = room(held.keys, padded * width), * values = room(held.values, padded * width);
    gather(row.keys, head / row.groups(), block, width, keys);
    gather(row.values, head / row.groups(), block, width, values);
    bf16 * queries = room(held.queries, across * width), * grads = room(held.grads, across * width);
    memset(queries + block.rows * width, 0, 2 * width * (across - block.rows));
    memset(grads + block.rows * width, 0, 2 * width * (across - block.rows));
    // What each query's shares have in common: the log of their divisor, and the gradient's product with what came out.
    float logs[BLOCK], common[BLOCK];
    std::fill(logs + block.rows, logs + across, INFINITY);  // beyond the block's rows there are no shares
    std::fill(common + block.rows, common + across, 0.0f);
    for (long r = 0; r < block.rows; r++) {
        memcpy(queries + r * width, row.queries.at(token + r, head), 2 * width);
        memcpy(grads + r * width, to.slope + (token + r) * stride + head * width, 2 * width);
        __m512 sum = _mm512_setzero_ps();
        for (long at = 0; at < width; at += 16)
            sum = _mm512_fmadd_ps(load(to.out + (token + r) * stride + head * width + at), load(grads + r * width + at), sum);
        logs[r] = to.logs[token + r];
        common[r] = _mm512_reduce_add_ps(sum);
    }
    // Shares, and the gradients of their scores: a row for each column, a column for each query.
    uint32_t * turned_queries = room(held.turned_queries, width / 2 * across), * turned_grads = room(held.turned_grads, width / 2 * across);
    transpose((const uint32_t *) queries, width / 2, across, width / 2, turned_queries, across);
    transpose((const uint32_t *) grads, width / 2, across, width / 2, turned_grads, across);
    float * scores = room(held.scores, std::max(padded, width) * across), * worths = room(held.worths, padded * across);
    product(keys, width, turned_queries, across, scores, block.columns, across, width / 2);
    product(values, width, turned_grads, across, worths, block.columns, across, width / 2);
    bf16 * shares = room(held.shares, padded * across), * changes = room(held.changes, padded * across);
    const __m512 scale = _mm512_set1_ps(row.scale);
    for (long column = 0; column < block.columns; column++) {
        const long first = column - block.stems - block.first;  // the first query that sees it
        for (long at = 0; at < across; at += 16) {
            const long place = column * across + at;
            const __m512 share = _mm512_maskz_mov_ps(lanes(at, first, first + row.window),
                exponential(_mm512_fmsub_ps(_mm512_loadu_ps(scores + place), scale, _mm512_loadu_ps(logs + at))));
            const __m512 change = _mm512_sub_ps(_mm512_loadu_ps(worths + place), _mm512_loadu_ps(common + at));
            store(shares + place, share);
            store(changes + place, _mm512_mul_ps(_mm512_mul_ps(share, change), scale));
        }
    }
    memset(changes + block.columns * across, 0, 2 * across * (padded - block.columns));
    uint32_t * paired_queries = room(held.paired_queries, across / 2 * width), * paired_grads = room(held.paired_grads, across / 2 * width);
    pair_rows(queries, across, width, paired_queries);
    pair_rows(grads, across, width, paired_grads);
    float * sums = room(held.sums, std::max(padded * width, width * across));
    product(shares, across, paired_grads, width, sums, block.columns, width, across / 2);
    add_rows(sums, block, width, to.family, to.values);
    product(changes, across, paired_queries, width, sums, block.columns, width, across / 2);
    add_rows(sums, block, width, to.family, to.keys);
    // The queries' gradients come out turned: [width, columns] x [columns, queries].
    const long halves = (padded / 2 + 15) / 16 * 16;
    uint32_t * paired_keys = room(held.paired_keys, halves * width), * turned_keys = room(held.turned_keys, width * halves);
    pair_rows(keys, padded, width, paired_keys);
    memset(paired_keys + padded / 2 * width, 0, 4 * width * (halves - padded / 2));
    transpose(paired_keys, width, halves, width, turned_keys, halves);
    uint32_t * paired_changes = room(held.paired_changes, padded / 2 * across);
    pair_rows(changes, padded, across, paired_changes);
    product((const bf16 *) turned_keys, 2 * halves, paired_changes, across, sums, width, across, padded / 2);
    transpose((const uint32_t *) sums, across, width, across, (uint32_t *) scores, width);
    for (long r = 0; r < block.rows; r++)
        for (long at = 0; at < width; at += 16) store(to.queries.at(token + r, head) + at, _mm512_loadu_ps(scores + r * width + at));
}

}  // namespace

// Gradients of dm_attention's queries, keys and values, which lie as `grad_strides` says, for the gradient `slope` of
// what came `out`. `sums` is room for [heads, tokens, 2, width] fp32.
extern "C" void dm_attention_backward(const bf16 * queries, const bf16 * keys, const bf16 * values, const int64_t * strides,
                                      const bf16 * out, const bf16 * slope, const float * logs, bf16 * grad_queries,
                                      bf16 * grad_keys, bf16 * grad_values, const int64_t * grad_strides, float * sums,
                                      long tokens, long heads, long key_heads, long width, float scale, long window,
                                      const int64_t * segments, const int64_t * families, long count) {
    const Row row = row_of(queries, keys, values, strides, tokens, heads, key_heads, width, scale, window);
    const Heads<bf16> by_key[] = {{grad_keys, grad_strides[2], grad_strides[3]}, {grad_values, grad_strides[4], grad_strides[5]}};
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (long family = 0; family < count; family++)
        for (long head = 0; head < heads; head++) {
            static thread_local Scratch held;
            const amx::Tiles tiles;
            const long start = segments[4 * families[family]];
            const int64_t * last = segments + 4 * (families[family + 1] - 1);
            const long length = last[0] + last[1] - start;
            float * both = sums + (head * tokens + start) * 2 * width;
            memset(both, 0, 4 * 2 * length * width);
            const Slopes to{out, slope, logs + head * tokens, {grad_queries, grad_strides[0], grad_strides[1]}, both, both + length * width, start};
            for (long s = families[family]; s < families[family + 1]; s++)
                for (long first = 0; first < segments[4 * s + 1]; first += BLOCK) backward(row, Block(segments + 4 * s, first), head, to, held);
        }
    for (long family = 0; family < count; family++) {
        const long start = segments[4 * families[family]];
        const int64_t * last = segments + 4 * (families[family + 1] - 1);
        const long length = last[0] + last[1] - start;
#pragma omp parallel for schedule(static)
        for (long token = 0; token < length; token++)
            for (long head = 0; head < key_heads; head++)
                for (long which = 0; which < 2; which++)
                    for (long at = 0; at < width; at += 16) {
                        __m512 sum = _mm512_setzero_ps();
                        for (long one = head * row.groups(); one < (head + 1) * row.groups(); one++)
                            sum = _mm512_add_ps(sum, _mm512_loadu_ps(sums + (one * tokens + start) * 2 * width + (which * length + token) * width + at));
                        store(by_key[which].at(start + token, head) + at, sum);
                    }
    }
}
