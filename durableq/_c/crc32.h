/* CRC-32 as zlib computes it (polynomial 0xEDB88320, reflected), at memory speed.
 *
 * A megabyte is summed twice on its way through the queue; at the speed of a table that would cost more than writing and
 * reading it. On x86-64 with carry-less multiplication 64 or 128 bytes are folded at a time, after Gopal et al., "Fast CRC
 * Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009); elsewhere, and for short data, by tables of
 * eight bytes ("slicing by 8", Kounavis and Berry, 2005). tests/test_compiled.py holds it to zlib.crc32.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t crc_table[8][256];

static void crc32_prepare(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[0][n] = c;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t n = 0; n < 256; n++)
            crc_table[k][n] = crc_table[0][crc_table[k - 1][n] & 0xFF] ^ (crc_table[k - 1][n] >> 8);
}

static uint32_t crc32_by_table(uint32_t crc, const uint8_t *p, size_t n)
{
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        v ^= crc;
        crc = crc_table[7][v & 0xFF] ^ crc_table[6][v >> 8 & 0xFF] ^ crc_table[5][v >> 16 & 0xFF] ^
              crc_table[4][v >> 24 & 0xFF] ^ crc_table[3][v >> 32 & 0xFF] ^ crc_table[2][v >> 40 & 0xFF] ^
              crc_table[1][v >> 48 & 0xFF] ^ crc_table[0][v >> 56];
    }
    for (; n; p++, n--)
        crc = crc_table[0][(crc ^ *p) & 0xFF] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* x^n mod P for the distances that are folded over, bit-reflected; the last pair is P and its reciprocal. */
static const uint64_t FOLD_128[2] = {0x1e88ef372, 0x14a7fe880};
static const uint64_t FOLD_64[2] = {0x154442bd4, 0x1c6e41596};
static const uint64_t FOLD_16[2] = {0x1751997d0, 0x0ccaa009e};
static const uint64_t FOLD_4[2] = {0x163cd6124, 0};
static const uint64_t BARRETT[2] = {0x1db710641, 0x1f7011641};

#define FOLD(x, k, next)                                                                                                  \
    _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next)

#define NARROW __attribute__((target("pclmul,sse4.1")))

/* The sum of what was folded into `a` and of `n` bytes that follow, a multiple of 16. */
NARROW static uint32_t crc32_finish(__m128i a, const __m128i *in, size_t n)
{
    const __m128i low = _mm_setr_epi32(~0, 0, ~0, 0);
    __m128i b, k = _mm_loadu_si128((const __m128i *)FOLD_16);
    for (; n >= 16; in++, n -= 16)
        a = FOLD(a, k, _mm_loadu_si128(in));
    a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, k, 0x10)); /* 128 bits to 96 */
    k = _mm_loadu_si128((const __m128i *)FOLD_4);
    a = _mm_xor_si128(_mm_srli_si128(a, 4), _mm_clmulepi64_si128(_mm_and_si128(a, low), k, 0x00)); /* 96 to 64 */
    k = _mm_loadu_si128((const __m128i *)BARRETT);
    b = _mm_clmulepi64_si128(_mm_and_si128(a, low), k, 0x10);
    b = _mm_clmulepi64_si128(_mm_and_si128(b, low), k, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(a, b), 1);
}

/* `n` is a multiple of 16 and at least 64. */
NARROW static uint32_t crc32_by_folding(uint32_t crc, const uint8_t *p, size_t n)
{
    const __m128i *in = (const __m128i *)p;
    __m128i k = _mm_loadu_si128((const __m128i *)FOLD_64);
    __m128i a = _mm_xor_si128(_mm_loadu_si128(in), _mm_cvtsi32_si128((int)crc));
    __m128i b = _mm_loadu_si128(in + 1), c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
    for (in += 4, n -= 64; n >= 64; in += 4, n -= 64) {
        a = FOLD(a, k, _mm_loadu_si128(in));
        b = FOLD(b, k, _mm_loadu_si128(in + 1));
        c = FOLD(c, k, _mm_loadu_si128(in + 2));
        d = FOLD(d, k, _mm_loadu_si128(in + 3));
    }
    k = _mm_loadu_si128((const __m128i *)FOLD_16);
    a = FOLD(a, k, b);
    a = FOLD(a, k, c);
    a = FOLD(a, k, d);
    return crc32_finish(a, in, n);
}

#if __GNUC__ >= 9 || defined(__clang__)
#define WIDE 256 /* bytes from which on it is worth it */
#define FOLD_WIDE(x, k, next)                                                                                             \
    _mm256_xor_si256(_mm256_xor_si256(_mm256_clmulepi64_epi128(x, k, 0x00), _mm256_clmulepi64_epi128(x, k, 0x11)), next)

/* The same with registers of twice the width; `n` is a multiple of 16 and at least 128. */
__attribute__((target("pclmul,sse4.1,avx2,vpclmulqdq"))) static uint32_t crc32_by_wide_folding(uint32_t crc, const uint8_t *p,
                                                                                               size_t n)
{
    const __m256i *in = (const __m256i *)p;
    const __m256i k = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)FOLD_128));
    __m256i wide[4];
    for (int i = 0; i < 4; i++)
        wide[i] = _mm256_loadu_si256(in + i);
    wide[0] = _mm256_xor_si256(wide[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)crc)));
    for (in += 4, n -= 128; n >= 128; in += 4, n -= 128)
        for (int i = 0; i < 4; i++)
            wide[i] = FOLD_WIDE(wide[i], k, _mm256_loadu_si256(in + i));
    const __m128i near = _mm_loadu_si128((const __m128i *)FOLD_16);
    __m128i a = _mm256_castsi256_si128(wide[0]);
    a = FOLD(a, near, _mm256_extracti128_si256(wide[0], 1));
    for (int i = 1; i < 4; i++) {
        a = FOLD(a, near, _mm256_castsi256_si128(wide[i]));
        a = FOLD(a, near, _mm256_extracti128_si256(wide[i], 1));
    }
    return crc32_finish(a, (const __m128i *)in, n);
}
#endif

static uint32_t crc32_of(const uint8_t *p, size_t n, uint32_t start)
{
    uint32_t crc = ~start;
    if (n >= 64 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
        size_t whole = n & ~(size_t)15;
#ifdef WIDE
        if (n >= WIDE && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq"))
            crc = crc32_by_wide_folding(crc, p, whole);
        else
#endif
            crc = crc32_by_folding(crc, p, whole);
        p += whole;
        n -= whole;
    }
    return ~crc32_by_table(crc, p, n);
}
#else
static uint32_t crc32_of(const uint8_t *p, size_t n, uint32_t start)
{
    return ~crc32_by_table(~start, p, n);
}
#endif
