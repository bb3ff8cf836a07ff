// Products by Intel's matrix tiles (AMX), where the CPU has them: eight registers of 16 rows of 64 bytes in each thread.
//
// oneDNN computes in the same threads and remembers what it has configured: whoever takes the tiles gives them back as
// they were. Written in assembly: GCC's intrinsics do not say which memory they read, and stores before them get lost.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace amx {

// Whether the CPU has tiles for bf16, and the kernel lets this process use them.
static inline bool allowed() {
#if defined(__linux__)
    unsigned a, b, c, d;
    const unsigned wanted = (1u << 22) | (1u << 24);  // AMX-BF16, AMX-TILE
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & wanted) != wanted) return false;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return false;
#endif
}

static bool used = allowed();

struct alignas(64) Configuration {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
};

static inline void load(const Configuration & from) { __asm__ volatile("ldtilecfg %0" ::"m"(from)); }

// Tiles 0, 1: sums [16, 16] fp32. 2: [16 rows, 16 pairs], 3, 4: [16 pairs, 16 columns]. 5, 6, 7: the same of 8 pairs.
class Tiles {
  public:
    Tiles() {
        if (!used) return;
        __asm__ volatile("sttilecfg %0" : "=m"(before_));
        Configuration mine;
        for (int tile = 0; tile < 8; tile++) {
            mine.bytes[tile] = tile == 5 ? 32 : 64;
            mine.rows[tile] = tile > 5 ? 8 : 16;
        }
        load(mine);
    }
    ~Tiles() {
        if (!used) return;
        if (before_.palette)
            load(before_);
        else
            __asm__ volatile("tilerelease");
    }
    Tiles(const Tiles &) = delete;

  private:
    Configuration before_;
};

template <int TILE> static inline void fetch(const void * from, long stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE> static inline void put(void * to, long stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE> static inline void clear() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(TILE)); }

// Adds the product of the tile LEFT with the one after it to tile 0, and with the next to tile 1 where it is WIDE.
template <int LEFT, bool WIDE>
static inline void add(const uint16_t * a, long lda, const uint32_t * b, long ldb) {
    fetch<LEFT>(a, 2 * lda);
    fetch<LEFT + 1>(b, 4 * ldb);
    __asm__ volatile("tdpbf16ps %%tmm%c1, %%tmm%c0, %%tmm0" ::"i"(LEFT), "i"(LEFT + 1));
    if (!WIDE) return;
    fetch<LEFT + 2>(b + 16, 4 * ldb);
    __asm__ volatile("tdpbf16ps %%tmm%c1, %%tmm%c0, %%tmm1" ::"i"(LEFT), "i"(LEFT + 2));
}

// c [16, 32 or 16] fp32 = a [16, 2 pairs] bf16 times b [pairs, as many columns] of two bf16; pairs a multiple of 8.
template <bool WIDE>
static inline void block(const uint16_t * a, long lda, const uint32_t * b, long ldb, float * c, long ldc, long pairs) {
    clear<0>();
    clear<1>();
    long k = 0;
    for (; k + 16 <= pairs; k += 16) add<2, WIDE>(a + 2 * k, lda, b + k * ldb, ldb);
    if (k < pairs) add<5, WIDE>(a + 2 * k, lda, b + k * ldb, ldb);
    put<0>(c, 4 * ldc);
    if (WIDE) put<1>(c + 16, 4 * ldc);
}

// c [rows, columns], 16 rows at once, the last of which may have been computed before; rows at least 16, `columns` a
// multiple of it.
static inline void product(const uint16_t * a, long lda, const uint32_t * b, long ldb, float * c, long rows, long columns, long pairs) {
    for (long next = 0; next < rows; next += 16) {
        const long row = next + 16 <= rows ? next : rows - 16;
        long at = 0;
        for (; at + 32 <= columns; at += 32) block<true>(a + row * lda, lda, b + at, ldb, c + row * columns + at, columns, pairs);
        if (at < columns) block<false>(a + row * lda, lda, b + at, ldb, c + row * columns + at, columns, pairs);
    }
}

}  // namespace amx
