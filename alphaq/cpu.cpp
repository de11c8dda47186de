// Products with matrices packed in format v1 (chapter 07), on a CPU: codes are taken out of the
// words where they lie, multiplied and summed in registers, and never written to memory as weights.
//
// The file is read once for what every instruction set shares (part 1), then includes itself once
// for each instruction set (part 2), then chooses among them at run time (part 3). The interface
// is plain C. Chapter 47 derives what is done here and tests it.

#ifndef ALPHAQ_SET

// ------------------------------------------------------------------------ part 1: shared by all

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define APART __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL_TWICE _Pragma("GCC unroll 2")
#define UNROLL_NOT _Pragma("GCC unroll 1")

namespace {

// What Python hands over: one matrix of an arena, or the only matrix of a linear layer.
struct Matrix {
    const uint16_t* words;
    const uint16_t* scale;  // float16 [rows, groups]
    const uint8_t* zero;    // [rows, groups], sixteenths of a code
    int64_t bits;           // 1 .. 4
};

struct Shape {
    int64_t rows, cols, group;
    int64_t groups() const { return cols / group; }
};

enum Mode { EXACT = 0, FAST = 1 };                       // float32 or int8 activations
enum Status { OK = 0, NO_MEMORY = 1, BAD_ARGUMENT = 2 };

constexpr int TILE = 64;         // rows of a tile
constexpr int VECTOR_WORDS = 16; // words in a vector of 32 bytes
constexpr int SAFE_RUN = 128;    // codes a 16-bit sum can take in: 128 / 16 * 2 * 15 * 127 < 2^15
constexpr float ROUGH = .008f;   // share of an activation that int8 may take away
constexpr int AHEAD = 8192;      // bytes that are asked for before they are needed, to lie in
                                 // the second cache: the first has few places for what is to come
constexpr int SUMS_AT_ONCE = 8;  // vectors of integer sums that stay in registers
constexpr int64_t ENOUGH = 1 << 19;  // weights worth one more thread: some ten microseconds
constexpr int64_t MANY = 10;         // tokens from which on codes are laid out for them
constexpr int64_t PANEL = 1024;      // inputs that are laid out at once, or a block
constexpr int64_t MOST = 1 << 23;    // numbers between gate and down at once: 32 MiB,
constexpr int64_t AT_LEAST = 64;     // or so many slots for each expert
constexpr int64_t TOKENS = 512;      // that a task of a linear layer takes
constexpr int64_t KEYS = 32;         // of a text that attention takes at once

constexpr int fields_of(int bits) { return bits == 3 ? 16 : 16 / bits; }
constexpr int words_of(int bits) { return bits == 3 ? 3 : 1; }
constexpr int pairs_of(int bits) { return fields_of(bits) / 2; }

// A vector of words holds two fields in each word that can be multiplied side by side, one in the
// low byte and one in the high byte. Pair p of a block position is these two fields.
constexpr int low_field(int bits, int p) {
    if (bits != 3) return p;
    return p < 6 ? 5 * (p / 2) + p % 2 : p == 6 ? 2 : 12;
}
constexpr int high_field(int bits, int p) {
    if (bits != 3) return p + pairs_of(bits);
    return p < 6 ? 5 * (p / 2) + p % 2 + 3 : p == 6 ? 7 : 15;
}
// At three bits the code in the high byte stands one bit higher, which saves a shift.
constexpr float high_weight(int bits) { return bits == 3 ? .5f : 1.f; }

// Where a sum holds one pair only, codes are multiplied where they stand in their byte, as long as
// a lane's 8 sums of two products fit 16 bits: 8 * 2 * 127 * 16 < 2^15. One shift then serves
// several pairs, and the steps of the activations make up for the place.
constexpr int shift_of(int bits, int p) {
    return bits == 1 ? (p < 5 ? 0 : 5) : bits == 2 ? (p < 2 ? 0 : 4) : bits * p;
}
constexpr int place_of(int bits, int p) { return bits == 3 ? 0 : bits * p - shift_of(bits, p); }

// Fields that a 16-bit sum can hold. At three bits neighbouring pairs share no group.
constexpr int longest_run(int bits, int unit) {
    return bits == 3 ? 1 : SAFE_RUN / unit < pairs_of(bits) ? SAFE_RUN / unit : pairs_of(bits);
}

// Where the words of a matrix lie (format v1).
struct Layout {
    int64_t padded, slice, blocks, tile_words;  // tile_words: of 64 rows

    Layout(int bits, int64_t cols) {
        const int64_t fields = fields_of(bits);
        padded = (cols + fields - 1) / fields * fields;
        const int64_t slices = padded / fields;
        slice = std::min<int64_t>(slices & -slices, 128);
        blocks = slices / slice;
        tile_words = TILE * padded * bits / 16;
    }
    int64_t block() const { return padded / blocks; }  // inputs of a block

    // In a panel, 64 rows of an input lie side by side. A field of 128 places would be 8 KiB, so
    // that what is written together would fall into the same few lines of a cache: one line more.
    int64_t field_bytes() const { return TILE * slice + (slice == 128 ? 64 : 0); }
    int64_t block_bytes() const { return block() / slice * field_bytes(); }
    int64_t place(int64_t input) const {
        return input / slice * field_bytes() + input % slice * TILE;
    }
    // Up to where inputs follow each other without a gap.
    int64_t end_of(int64_t input, int64_t stop) const {
        return slice == 128 ? std::min(stop, (input / slice + 1) * slice) : stop;
    }
};

// Memory that nobody fills before it is used: pages that are not used are never there.
template <class T> struct Room {
    std::unique_ptr<T[]> held;
    void resize(int64_t n) { held.reset(new T[n]); }
    T* data() const { return held.get(); }
    bool empty() const { return !held; }
    T& operator[](int64_t i) const { return held[i]; }
};

// How the direct kernel walks along a row. Sums of products stay integers for `unit` inputs of a
// field. With groups of 128 the walk is regular: as many fields join a sum as 16 bits can hold,
// and which groups a sum's halves belong to is known when the kernel is compiled. Where a slice is
// shorter than a vector of words, the vector holds two or four rows side by side; if a whole block
// is of one group, all its fields join one sum.
struct Walk {
    int64_t unit = 0;  // 0: the direct kernel cannot do this shape
    bool regular = false;
    int run = 1;                        // fields in a sum
    int together = 1;                   // rows in a vector of words
    int64_t sums = 0;                   // integer sums of a row
    std::vector<uint16_t> low, high;    // the group of each sum's low and high half

    Walk() = default;
    Walk(int bits, const Shape& shape) {
        const Layout at(bits, shape.cols);
        if (at.slice == 4 || at.slice == 8) side_by_side(bits, shape, at);
        int64_t common = at.slice;
        while (shape.group % common) common /= 2;
        if (common < VECTOR_WORDS) return;
        unit = common;
        regular = shape.group == SAFE_RUN;
        if (regular) run = longest_run(bits, (int)unit);
        fill(bits, shape, at);
    }

  private:
    void side_by_side(int bits, const Shape& shape, const Layout& at) {
        const int64_t block = fields_of(bits) * at.slice;
        if (shape.group % block) return;
        unit = at.slice;
        run = pairs_of(bits);
        together = (int)(VECTOR_WORDS / unit);
        fill(bits, shape, at);
    }

    void fill(int bits, const Shape& shape, const Layout& at) {
        const int64_t last = shape.groups() - 1;
        const int64_t block = fields_of(bits) * at.slice;
        for (int64_t b = 0; b < at.blocks; b++)
            for (int64_t u = 0; u < at.slice; u += unit)
                for (int p = 0; p < pairs_of(bits); p += run) {
                    const int64_t start = b * block + u;
                    low.push_back(std::min(
                        (start + low_field(bits, p) * at.slice) / shape.group, last));
                    high.push_back(std::min(
                        (start + high_field(bits, p) * at.slice) / shape.group, last));
                }
        sums = (int64_t)low.size();
    }
};

// Tokens that meet matrices of one shape. In fast mode a group of activations is int8 times a step;
// of a token that eight bits do not bear, what they leave is so once more. Row t of what is
// quantized is token t, row `tokens + t` what is left of it.
struct Activations {
    const float* x;                 // [tokens, cols]
    int64_t tokens, cols, group, groups;
    int64_t eights;                 // groups, up to a multiple of eight; sums beyond the last are zero
    Room<int8_t> codes;             // [2 tokens, cols]
    Room<float> step;               // [2 tokens, groups]
    Room<float> sum;                // [2 tokens, eights] of activations as int8, sixteenths
    Room<float> plain_sum;          // [tokens, eights] of activations as they are, sixteenths
    std::vector<uint8_t> rough;     // [tokens] that eight bits do not bear
    Walk walk[5];                   // by width
    Room<int8_t> ordered[5];        // [2 tokens, padded], in the order of the walk
    Room<float> steps[5];           // [2 tokens, sums, 8]

    Activations(const float* x, int64_t tokens, int64_t cols, int64_t group, Mode mode)
        : x(x), tokens(tokens), cols(cols), group(group), groups(cols / group),
          eights((groups + 7) / 8 * 8) {
        if (mode == FAST) {
            codes.resize(2 * tokens * cols);
            step.resize(2 * tokens * groups);
            sum.resize(2 * tokens * eights);
        }
        rough.assign(tokens, 0);
        plain_sum.resize(tokens * eights);
    }

    // Make room for the order of a width; filled token by token with `order`.
    void expect(int bits) {
        walk[bits] = Walk(bits, Shape{1, cols, group});
        if (!walk[bits].unit) return;
        ordered[bits].resize(2 * tokens * Layout(bits, cols).padded);
        steps[bits].resize(2 * tokens * walk[bits].sums * 8);
    }

    void order(int bits, int64_t token) {
        if (ordered[bits].empty()) return;
        order_row(bits, token);
        if (rough[token]) order_row(bits, tokens + token);
    }

  private:
    void order_row(int bits, int64_t row) {
        order_codes(bits, row);
        order_steps(bits, row);
    }

    void order_codes(int bits, int64_t row) {
        const Layout at(bits, cols);
        const int8_t* from = codes.data() + row * cols;
        int8_t* to = ordered[bits].data() + row * at.padded;
        const int64_t block = fields_of(bits) * at.slice, unit = walk[bits].unit;
        for (int64_t start = 0; start < at.padded; start += block)
            for (int64_t u = start; u < start + at.slice; u += unit)
                for (int p = 0; p < pairs_of(bits); p++, to += 2 * unit)
                    order_pair(from, u + low_field(bits, p) * at.slice,
                               u + high_field(bits, p) * at.slice, unit, to);
    }

    // Four of the low field, four of the high, and so on.
    void order_pair(const int8_t* from, int64_t low, int64_t high, int64_t unit, int8_t* to) {
        if (high + unit <= cols) {
            for (int64_t i = 0; i < unit; i += 4, to += 8) {
                std::memcpy(to, from + low + i, 4);
                std::memcpy(to + 4, from + high + i, 4);
            }
            return;
        }
        for (int64_t i = 0; i < unit; i++) {  // where zero codes were appended
            to[i / 4 * 8 + i % 4] = low + i < cols ? from[low + i] : 0;
            to[i / 4 * 8 + 4 + i % 4] = high + i < cols ? from[high + i] : 0;
        }
    }

    void order_steps(int bits, int64_t row) {
        const Walk& way = walk[bits];
        const float* from = step.data() + row * groups;
        float* to = steps[bits].data() + row * way.sums * 8;
        for (int64_t s = 0; s < way.sums; s++, to += 8) {
            const int p = way.run == 1 ? (int)(s % pairs_of(bits)) : 0;
            const float place = 1.f / (float)(1 << place_of(bits, p));
            const float low = from[way.low[s]] * place;
            const float high = from[way.high[s]] * place * high_weight(bits);
            const float eight[8] = {low, high, low, high, low, high, low, high};
            std::memcpy(to, eight, sizeof eight);
        }
    }
};

// What one token of each text asks of the keys and values before it. Neighbouring heads share
// those of one head among fewer.
struct Attention {
    const float* q;        // [texts, heads, dim]
    const void *k, *v;     // float32 or bfloat16
    const uint8_t* mask;   // [texts, count], 0: not asked; null: all are
    float* out;            // [texts, heads, dim_v]
    int64_t texts, heads, shared, count, dim, dim_v;  // shared: heads of keys and values
    int64_t k_steps[3], v_steps[3];  // numbers from a text, a shared head and a token to the next
    int half;              // keys and values are bfloat16
    float scale;           // of the products with keys
};

// What a thread needs for itself.
struct Scratch {
    std::vector<float> scale;     // [64, groups]
    std::vector<float> taken;     // [64, groups] scale times zero point, and eight zeros
    std::vector<uint8_t> codes;   // rows that were taken apart
    std::vector<float> gate, up;  // [slots, 64]
    std::vector<float> left;      // of a token that was quantized
    std::vector<uint8_t> panel;   // codes of a tile, [inputs / 4, 64, 4]; see Layout::place
    std::vector<float> columns;   // scales of a tile, then its zero points, [groups, 64]
    std::vector<int64_t> who;     // rows of activations
    std::vector<float*> to;       // and where their products belong
    // tokens multiplied by words, by words twice, and by codes taken apart
    std::vector<int64_t> direct, twice, apart;
    std::vector<float> wide;      // rows of bfloat16 as floats
    std::vector<float> shares;    // [heads, KEYS], what attention gives to keys
    std::vector<float> most, all; // [heads], the largest product so far, and the sum of shares
};

Scratch& scratch() {
    thread_local Scratch mine;
    return mine;
}

// One instruction set.
struct Kernels {
    bool direct;  // has a kernel that multiplies words as they lie
    void (*quantize)(Activations&, int64_t token, Mode);
    // products of a tile's rows with some tokens, y is [count, 64]
    void (*tile)(const Matrix&, const Shape&, int64_t tile, const Activations&,
                 const int64_t* tokens, int64_t count, Mode, float* y);
    // the same for many tokens in fast mode
    void (*panels)(const Matrix&, const Shape&, int64_t tile, const Activations&,
                   const int64_t* tokens, int64_t count, float* y);
    void (*gated)(float* gate, const float* up, int64_t n);  // gate = SiLU(gate) * up
    void (*dequantize)(const Matrix&, const Shape&, int64_t row, float* out);
    void (*dequantize16)(const Matrix&, const Shape&, int64_t row, uint16_t* out);  // bfloat16
    float (*dot16)(const uint16_t* w, const float* x, int64_t n);  // bfloat16
    void (*attend)(const Attention&, int64_t text, int64_t shared_head);
    void (*norm)(const void* x, const void* w, int64_t n, float epsilon, int half, void* y);
    uint64_t (*read)(const char* bytes, int64_t n);                // a stream, for comparison
};

float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    float value;
    if (rest >= 0x7c00) {  // infinity, NaN
        const uint32_t bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    if (rest < 0x400) return (sign ? -1.f : 1.f) * (float)rest * 0x1p-24f;
    const uint32_t bits = sign | ((rest << 13) + (112u << 23));
    std::memcpy(&value, &bits, 4);
    return value;
}

// To the nearest bfloat16, ties to the even one. What is no number stays none: its low bits are
// zero where it came from bfloat16 or was made here.
INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float from_bfloat16(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// e^v for v <= 0, in operations that a compiler puts side by side: 2^n times 2^f, f at most a half,
// and that a sum of powers, whose factors are those of exp2f in Moshier's Cephes. A number for
// NaN, too.
INLINE float power(float v) {
    constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: what is added to it loses its fraction
    const float bounded = std::max(-126.f, v * 1.44269504f);  // a number where v is none
    const float whole = (bounded + ROUND) - ROUND, f = bounded - whole;
    float sum = 1.535336188e-4f;
    sum = sum * f + 1.339887440e-3f;
    sum = sum * f + 9.618437357e-3f;
    sum = sum * f + 5.550332471e-2f;
    sum = sum * f + 2.402264791e-1f;
    sum = sum * f + 6.931472028e-1f;
    sum = sum * f + 1.f;
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return sum * scale;
}

// ---- threads

// Tasks 0 .. count - 1, each taken by one thread. A task writes only what is its own, so that
// results do not depend on who did it.
struct Work {
    void (*task)(void*, int64_t);
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    void drain() {
        try {
            // neighbours lie side by side in memory, which reads ahead; enough runs to share them out
            const int64_t some = std::max<int64_t>(1, std::min<int64_t>(8, count / 16));
            for (int64_t i; (i = next.fetch_add(some, std::memory_order_relaxed)) < count;)
                for (int64_t j = i; j < std::min(count, i + some); j++) task(context, j);
        } catch (const std::bad_alloc&) { failed = true; }
    }
};

void drain_work(void* work) { static_cast<Work*>(work)->drain(); }

// A team of threads that somebody else keeps: OpenMP's, so that torch's threads are ours and do
// not compete with them.
using Team = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<Team> borrowed{nullptr};

// Our own, where there is none to borrow: threads that wait a while and then sleep.
class Pool {
    std::mutex lock;
    std::condition_variable wake;
    std::atomic<uint64_t> round{0};
    std::atomic<int> left{0};
    int wanted = 0;        // this and `work` belong to a round, and change under the lock with it
    Work* work = nullptr;
    int workers = 0;

    void wait_for(uint64_t seen) {
        for (int i = 0; i < 20000; i++) {
            if (round.load(std::memory_order_acquire) != seen) return;
#if defined(__x86_64__)
            _mm_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
        std::unique_lock<std::mutex> held(lock);
        wake.wait(held, [&] { return round.load() != seen; });
    }

    void live(int me, uint64_t seen) {
        for (;;) {
            wait_for(seen);
#ifdef ALPHAQ_HESITATE  // so that a test sees rounds which begin before a thread has looked
            std::this_thread::sleep_for(std::chrono::milliseconds(3 * me));
#endif
            Work* todo;
            {   // a round that begins in between must not be taken for two
                std::lock_guard<std::mutex> held(lock);
                seen = round.load();
                todo = me < wanted ? work : nullptr;
            }
            if (!todo) continue;
            todo->drain();
            left.fetch_sub(1, std::memory_order_release);
        }
    }

  public:
    std::mutex busy;  // one call at a time; another one works alone

    void run(Work& todo, int threads) {
        {
            std::lock_guard<std::mutex> held(lock);
            for (; workers < threads - 1; workers++)
                std::thread(&Pool::live, this, workers, round.load()).detach();
            work = &todo;
            wanted = threads - 1;
            left = threads - 1;
            round.fetch_add(1, std::memory_order_release);
        }
        wake.notify_all();
        todo.drain();
        while (left.load(std::memory_order_acquire)) std::this_thread::yield();
    }
};

Pool* pool = new Pool;  // never destroyed: its threads outlive static destructors

// A forked process has none of the threads.
void forget_pool() { pool = new Pool; }

// How many threads so many weights are worth: waking one takes longer than a small matrix.
int worth(int64_t weights, int threads) {
    return (int)std::min<int64_t>(threads, 1 + weights / ENOUGH);
}

template <class F>
Status parallel(int64_t count, int threads, F& each) {
    Work work;
    work.task = [](void* context, int64_t i) { (*static_cast<F*>(context))(i); };
    work.context = &each;
    work.count = count;
    threads = (int)std::min<int64_t>(threads, count);
    if (threads <= 1) work.drain();
    else if (Team team = borrowed.load()) team(drain_work, &work, (unsigned)threads, 0);
    else if (pool->busy.try_lock()) {
        pool->run(work, threads);
        pool->busy.unlock();
    } else work.drain();
    return work.failed ? NO_MEMORY : OK;
}

}  // namespace

// ------------------------------------------------------------------- part 2, for each set in turn

#define ALPHAQ_SET scalar
#define ALPHAQ_REGISTERS 0
#define ALPHAQ_VECTORS 0
#define ALPHAQ_TARGET
#include "cpu.cpp"

#if defined(__x86_64__)
#define ALPHAQ_SET avx2
#define ALPHAQ_REGISTERS 16
#define ALPHAQ_VECTORS 1
#define ALPHAQ_TARGET __attribute__((target("avx2,fma,f16c")))
#define ALPHAQ_DOT(sum, q, x) add_products(sum, q, x)
#include "cpu.cpp"

#ifndef ALPHAQ_FEW  // what compiles the file over and over leaves these out
#define ALPHAQ_SET avxvnni
#define ALPHAQ_REGISTERS 16
#define ALPHAQ_VECTORS 2
#ifdef ALPHAQ_EMULATE  // the same walk without the instruction, so that any machine can test it
#define ALPHAQ_TARGET __attribute__((target("avx2,fma,f16c")))
#define ALPHAQ_DOT(sum, q, x) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(q, x), _mm256_set1_epi16(1)))
#else
#define ALPHAQ_TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#define ALPHAQ_DOT(sum, q, x) _mm256_dpbusd_avx_epi32(sum, q, x)
#endif
#include "cpu.cpp"

#define ALPHAQ_SET avx512vnni
#define ALPHAQ_REGISTERS 32
#define ALPHAQ_VECTORS 2
#ifdef ALPHAQ_EMULATE
#define ALPHAQ_TARGET __attribute__((target("avx2,fma,f16c")))
#define ALPHAQ_DOT(sum, q, x) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(q, x), _mm256_set1_epi16(1)))
#else
#define ALPHAQ_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni")))
#define ALPHAQ_DOT(sum, q, x) _mm256_dpbusd_epi32(sum, q, x)
#endif
#include "cpu.cpp"
#endif
#elif defined(__aarch64__)
#define ALPHAQ_SET neon
#define ALPHAQ_REGISTERS 16
#define ALPHAQ_VECTORS 2
#if defined(__clang__)
#define ALPHAQ_TARGET __attribute__((target("dotprod")))
#else
#define ALPHAQ_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define ALPHAQ_DOT(sum, q, x) add_products(sum, q, x)
#include "cpu.cpp"
#endif

// ------------------------------------------------------------------------- part 3: the interface

namespace {

#if defined(__x86_64__) && defined(ALPHAQ_FEW)
const Kernels* const SETS[] = {&scalar::kernels, &avx2::kernels, nullptr, nullptr, nullptr};
#elif defined(__x86_64__)
const Kernels* const SETS[] = {&scalar::kernels, &avx2::kernels, &avxvnni::kernels,
                               &avx512vnni::kernels, nullptr};
#elif defined(__aarch64__)
const Kernels* const SETS[] = {&scalar::kernels, nullptr, nullptr, nullptr, &neon::kernels};
#else
const Kernels* const SETS[] = {&scalar::kernels, nullptr, nullptr, nullptr, nullptr};
#endif
constexpr int SET_COUNT = sizeof SETS / sizeof *SETS;

bool ask_for(int set) {
#if defined(__x86_64__)
#ifdef ALPHAQ_EMULATE
    if (set >= 2) return ask_for(1);
#endif
    __builtin_cpu_init();
    if (set == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                         && __builtin_cpu_supports("f16c");
    if (set == 3) return ask_for(1) && __builtin_cpu_supports("avx512vl")
                         && __builtin_cpu_supports("avx512vnni");
    if (set == 2) {  // no name for it in older compilers: leaf 7, subleaf 1, eax bit 4
        unsigned a = 7, b = 0, c = 1, d = 0;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return ask_for(1) && (a >> 4 & 1);
    }
#elif defined(__aarch64__) && defined(__linux__)
    if (set == 4) return getauxval(AT_HWCAP) >> 20 & 1;  // products of four bytes
#elif defined(__aarch64__)
    if (set == 4) return true;  // every processor of Apple's has them
#endif
    return set == 0;
}

// Asked once: in a virtual machine `cpuid` takes as long as a small matrix.
const bool RUNS[] = {ask_for(0), ask_for(1), ask_for(2), ask_for(3), ask_for(4)};

const Kernels* kernels_of(int set) {
    return set >= 0 && set < SET_COUNT && RUNS[set] ? SETS[set] : nullptr;
}

// Whether so many tokens meet a matrix as a panel of codes.
bool in_panels(const Kernels& set, const Shape& shape, int64_t tokens, Mode mode) {
    return mode == FAST && set.direct && shape.group % 4 == 0 && tokens >= MANY;
}

bool sound(const Matrix& m) { return m.words && m.scale && m.zero && m.bits >= 1 && m.bits <= 4; }
bool sound(const Shape& s) {
    return s.rows > 0 && s.cols > 0 && s.group > 0 && s.cols % s.group == 0
           && s.cols / s.group <= 65535;
}
int64_t tiles(int64_t rows) { return (rows + TILE - 1) / TILE; }
int64_t tile_rows(int64_t rows, int64_t tile) {
    return std::min<int64_t>(TILE, rows - tile * TILE);
}

// ---- weights that lie in a file

// Where pages of a file are not in memory, a product waits for one after the other. Which matrices
// a call will read is known before it multiplies; asked for whole, they come at the disk's speed.
// Asking has a price, so it is done while something is read from the disk: a page that was waited
// for, or blocks that were read, begin it, and a number of calls without end it.
enum Ask { WHILE_READING = 0, NEVER = 1, ALWAYS = 2 };
constexpr int CALLS_AFTER = 1024;       // a few tokens of a large model
constexpr int64_t PIECE = 128 << 10;    // bytes that a system reads ahead at once, at least

std::atomic<int> asking{WHILE_READING}, calls_left{0};
std::atomic<long> waits{-1}, blocks_read{-1};

#if defined(__unix__) || defined(__APPLE__)
bool reading() {
    if (asking != WHILE_READING) return asking == ALWAYS;
    rusage now;
    if (getrusage(RUSAGE_SELF, &now)) return false;
    const bool waited = waits.exchange(now.ru_majflt) != now.ru_majflt;
    const bool read = blocks_read.exchange(now.ru_inblock) != now.ru_inblock;
    if (waited || read) calls_left = CALLS_AFTER;
    else if (calls_left > 0) calls_left--;
    return calls_left > 0;
}

void ask_for(const void* from, int64_t bytes) {
    static const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t end = (uintptr_t)from + bytes;
    for (uintptr_t at = (uintptr_t)from / page * page; at < end; at += PIECE)
        madvise((void*)at, std::min<uintptr_t>(PIECE, end - at), MADV_WILLNEED);
}

#else
bool reading() { return false; }
void ask_for(const void*, int64_t) {}
#endif

void ask_for(const Matrix& m, const Shape& shape) {
    const int64_t cells = shape.rows * shape.groups();
    ask_for(m.words, shape.rows * Layout((int)m.bits, shape.cols).padded * m.bits / 8);
    ask_for(m.scale, 2 * cells);
    ask_for(m.zero, cells);
}

// So many things in as few parts of one size as hold `most` each.
struct Parts {
    int64_t parts, some;
    Parts(int64_t count, int64_t most)
        : parts((count + most - 1) / most), some((count + parts - 1) / parts) {}
};

// Products of a tile's rows with some tokens, y is [count, 64].
void multiply(const Kernels& set, const Matrix& m, const Shape& shape, int64_t tile,
              const Activations& x, const int64_t* tokens, int64_t count, Mode mode, float* y) {
    if (in_panels(set, shape, count, mode)) set.panels(m, shape, tile, x, tokens, count, y);
    else set.tile(m, shape, tile, x, tokens, count, mode, y);
}

// A call to the experts of a layer.
struct Layer {
    const Kernels& set;
    const Matrix* gate;
    const Matrix* up;
    const Matrix* down;
    Shape into, out_of;  // of gate and up, of down
    const float* weights;
    float* out;
    int64_t slots_per_token;
    Mode mode;
    int threads;
    std::vector<int64_t> visited;  // experts that have tokens
    std::vector<int64_t> begin;    // of each visited expert's places, and the end
    std::vector<int64_t> slot;     // place to slot, sorted by expert
    std::vector<int64_t> token;    // place to token
    Room<float> hidden;            // [places, inner]

    Status sort(const int64_t* index, int64_t slots, int64_t experts);
    Status prepare(Activations& x, bool down_side);
    Status gate_and_up(const Activations& x);
    Status down_and_sum(const Activations& h);
    int64_t count(int64_t v) const { return begin[v + 1] - begin[v]; }
};

// Slots in the order of their experts. An index equal to the number of experts is no slot.
Status Layer::sort(const int64_t* index, int64_t slots, int64_t experts) {
    std::vector<int64_t> at(experts + 1, 0);
    for (int64_t s = 0; s < slots; s++) {
        if (index[s] < 0 || index[s] > experts) return BAD_ARGUMENT;
        if (index[s] < experts) at[index[s] + 1]++;
    }
    begin.push_back(0);
    for (int64_t e = 0; e < experts; e++) {
        if (at[e + 1]) {
            visited.push_back(e);
            begin.push_back(begin.back() + at[e + 1]);
        }
        at[e + 1] += at[e];
    }
    slot.resize(begin.back());
    token.resize(begin.back());
    for (int64_t s = 0; s < slots; s++) {
        if (index[s] == experts) continue;
        const int64_t place = at[index[s]]++;
        slot[place] = s;
        token[place] = s / slots_per_token;
    }
    return OK;
}

// Quantize activations, and put them in the order of every width that will meet them.
Status Layer::prepare(Activations& x, bool down_side) {
    bool width[5] = {};
    std::vector<uint8_t> wanted(x.tokens * 5, 0);  // [rows of x, width]
    if (mode == FAST && set.direct) for (size_t v = 0; v < visited.size(); v++) {
        const int64_t e = visited[v];
        if (in_panels(set, down_side ? out_of : into, count(v), mode)) continue;
        for (int64_t place = begin[v]; place < begin[v + 1]; place++) {
            if (down_side) wanted[place * 5 + down[e].bits] = width[down[e].bits] = true;
            else for (const Matrix* m : {gate + e, up + e})
                wanted[token[place] * 5 + m->bits] = width[m->bits] = true;
        }
    }
    for (int bits = 1; bits <= 4; bits++) if (width[bits]) x.expect(bits);
    auto each = [&](int64_t t) {
        set.quantize(x, t, mode);
        for (int bits = 1; bits <= 4; bits++) if (wanted[t * 5 + bits]) x.order(bits, t);
    };
    return parallel(x.tokens, worth(16 * x.tokens * x.cols, threads), each);
}

Status Layer::gate_and_up(const Activations& x) {
    const int64_t inner = into.rows, each_expert = tiles(inner);
    auto each = [&](int64_t task) {
        const int64_t v = task / each_expert, tile = task % each_expert, n = count(v);
        Scratch& mine = scratch();
        mine.gate.resize(n * TILE);
        mine.up.resize(n * TILE);
        const int64_t* who = token.data() + begin[v];
        multiply(set, gate[visited[v]], into, tile, x, who, n, mode, mine.gate.data());
        multiply(set, up[visited[v]], into, tile, x, who, n, mode, mine.up.data());
        set.gated(mine.gate.data(), mine.up.data(), n * TILE);
        for (int64_t i = 0; i < n; i++)
            std::memcpy(hidden.data() + (begin[v] + i) * inner + tile * TILE,
                        mine.gate.data() + i * TILE, sizeof(float) * tile_rows(inner, tile));
    };
    return parallel((int64_t)visited.size() * each_expert,
                    worth(2 * (int64_t)token.size() * inner * into.cols, threads), each);
}

// A task owns 64 outputs of every token, and adds experts in their order.
Status Layer::down_and_sum(const Activations& h) {
    const int64_t outputs = out_of.rows;
    auto each = [&](int64_t tile) {
        Scratch& mine = scratch();
        std::vector<int64_t> places;
        for (size_t v = 0; v < visited.size(); v++) {
            const int64_t n = count(v);
            mine.gate.resize(n * TILE);
            places.clear();
            for (int64_t place = begin[v]; place < begin[v + 1]; place++) places.push_back(place);
            multiply(set, down[visited[v]], out_of, tile, h, places.data(), n, mode,
                     mine.gate.data());
            for (int64_t i = 0; i < n; i++) {
                const int64_t place = begin[v] + i;
                float* to = out + token[place] * outputs + tile * TILE;
                for (int64_t r = 0; r < tile_rows(outputs, tile); r++)
                    to[r] += weights[slot[place]] * mine.gate[i * TILE + r];
            }
        }
    };
    return parallel(tiles(outputs),
                    worth((int64_t)token.size() * outputs * out_of.cols, threads), each);
}

Status run_linear(const Matrix& m, const Shape& shape, const float* x, int64_t tokens, float* y,
                  Mode mode, int threads, const Kernels& set) {
    if (reading()) ask_for(m, shape);
    Activations input(x, tokens, shape.cols, shape.group, mode);
    if (mode == FAST && set.direct && !in_panels(set, shape, tokens, mode))
        input.expect((int)m.bits);
    auto ready = [&](int64_t t) {
        set.quantize(input, t, mode);
        input.order((int)m.bits, t);
    };
    const int readers = worth(16 * tokens * shape.cols, threads);
    if (Status failed = parallel(tokens, readers, ready)) return failed;
    std::vector<int64_t> who(tokens);
    for (int64_t t = 0; t < tokens; t++) who[t] = t;
    const Parts of(tokens, TOKENS);
    auto each = [&](int64_t task) {
        const int64_t tile = task / of.parts, first = task % of.parts * of.some;
        const int64_t some = std::min(of.some, tokens - first);
        Scratch& mine = scratch();
        mine.gate.resize(some * TILE);
        multiply(set, m, shape, tile, input, who.data() + first, some, mode, mine.gate.data());
        for (int64_t t = 0; t < some; t++)
            std::memcpy(y + (first + t) * shape.rows + tile * TILE, mine.gate.data() + t * TILE,
                        sizeof(float) * tile_rows(shape.rows, tile));
    };
    return parallel(tiles(shape.rows) * of.parts, worth(tokens * shape.rows * shape.cols, threads),
                    each);
}

Status run_experts(Layer& layer, const float* x, int64_t tokens, const int64_t* index,
                   int64_t experts) {
    std::fill(layer.out, layer.out + tokens * layer.out_of.rows, 0.f);
    const int64_t slots = tokens * layer.slots_per_token;
    if (Status failed = layer.sort(index, slots, experts)) return failed;
    if (layer.slot.empty()) return OK;
    if (reading()) for (int64_t e : layer.visited) {
        ask_for(layer.gate[e], layer.into);
        ask_for(layer.up[e], layer.into);
        ask_for(layer.down[e], layer.out_of);
    }
    Activations input(x, tokens, layer.into.cols, layer.into.group, layer.mode);
    if (Status failed = layer.prepare(input, false)) return failed;
    layer.hidden.resize(layer.slot.size() * layer.into.rows);
    if (Status failed = layer.gate_and_up(input)) return failed;
    Activations inner(layer.hidden.data(), (int64_t)layer.slot.size(), layer.out_of.cols,
                      layer.out_of.group, layer.mode);
    if (Status failed = layer.prepare(inner, true)) return failed;
    return layer.down_and_sum(inner);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Threads of an OpenMP that is loaded already (the address of GOMP_parallel); null: our own.
EXPORT void alphaq_borrow_team(void* team) { borrowed = reinterpret_cast<Team>(team); }

// When pages of matrices that will be read are asked for: an `Ask`.
EXPORT void alphaq_read_ahead(int how) { asking = how; }

// The best instruction set of this machine.
EXPORT int alphaq_best_set() {
    for (int set : {4, 3, 2, 1}) if (kernels_of(set)) return set;
    return 0;
}

EXPORT int alphaq_has_set(int set) { return kernels_of(set) != nullptr; }

// y[tokens, rows] = x[tokens, cols] W^T
EXPORT int alphaq_linear(const Matrix* m, int64_t rows, int64_t cols, int64_t group,
                         const float* x, int64_t tokens, float* y, int mode, int threads,
                         int set) {
    const Kernels* kernels = kernels_of(set);
    const Shape shape{rows, cols, group};
    if (!kernels || !sound(*m) || !sound(shape) || tokens < 1) return BAD_ARGUMENT;
    try { return run_linear(*m, shape, x, tokens, y, (Mode)mode, threads, *kernels); }
    catch (const std::bad_alloc&) { return NO_MEMORY; }
}

// out[tokens, hidden] = sum over slots of weight * down(silu(gate x) * up x); matrices are
// [3, experts]: gate, up, down.
EXPORT int alphaq_experts(const Matrix* matrices, int64_t experts, int64_t hidden, int64_t inner,
                          int64_t group_hidden, int64_t group_inner, const float* x,
                          int64_t tokens, const int64_t* index, const float* weights,
                          int64_t slots_per_token, float* out, int mode, int threads, int set) {
    const Kernels* kernels = kernels_of(set);
    const Shape into{inner, hidden, group_hidden}, out_of{hidden, inner, group_inner};
    if (!kernels || !sound(into) || !sound(out_of) || tokens < 1 || slots_per_token < 1
        || experts < 1) return BAD_ARGUMENT;
    for (int64_t i = 0; i < 3 * experts; i++) if (!sound(matrices[i])) return BAD_ARGUMENT;
    // as many tokens at once as memory is granted for; slots that are none need none
    const int64_t slots = tokens * slots_per_token - std::count(
        index, index + tokens * slots_per_token, experts);
    const int64_t most = std::max(MOST / inner, AT_LEAST * experts);
    const int64_t some = Parts(tokens, std::max<int64_t>(
        1, slots > most ? tokens * most / slots : tokens)).some;
    try {
        for (int64_t t = 0; t < tokens; t += some) {
            Layer layer{*kernels, matrices, matrices + experts, matrices + 2 * experts, into,
                        out_of, weights + t * slots_per_token, out + t * hidden, slots_per_token,
                        (Mode)mode, threads, {}, {}, {}, {}, {}};
            if (Status failed = run_experts(layer, x + t * hidden, std::min(some, tokens - t),
                                            index + t * slots_per_token, experts)) return failed;
        }
        return OK;
    } catch (const std::bad_alloc&) { return NO_MEMORY; }
}

// Rows first .. first + count - 1 as weights, float32 or, where `half` is 1, bfloat16.
EXPORT int alphaq_dequantize(const Matrix* m, int64_t rows, int64_t cols, int64_t group,
                             int64_t first, int64_t count, void* out, int half, int threads,
                             int set) {
    const Kernels* kernels = kernels_of(set);
    const Shape shape{rows, cols, group};
    if (!kernels || !sound(*m) || !sound(shape) || first < 0 || count < 1
        || first + count > rows) return BAD_ARGUMENT;
    if (first == 0 && reading()) ask_for(*m, shape);
    constexpr int64_t SOME = 16;  // rows that a thread takes at a time
    auto each = [&](int64_t part) {
        for (int64_t i = part * SOME; i < std::min(count, (part + 1) * SOME); i++)
            if (half) kernels->dequantize16(*m, shape, first + i, (uint16_t*)out + i * cols);
            else kernels->dequantize(*m, shape, first + i, (float*)out + i * cols);
    };
    return parallel((count + SOME - 1) / SOME, threads, each);
}

// y[rows] = W x with W in bfloat16, by the same threads.
EXPORT int alphaq_linear16(const uint16_t* w, int64_t rows, int64_t cols, const float* x,
                           float* y, int threads, int set) {
    const Kernels* kernels = kernels_of(set);
    if (!kernels || rows < 1 || cols < 1) return BAD_ARGUMENT;
    auto each = [&](int64_t tile) {
        for (int64_t r = tile * TILE; r < std::min(rows, (tile + 1) * TILE); r++)
            y[r] = kernels->dot16(w + r * cols, x, cols);
    };
    return parallel(tiles(rows), worth(rows * cols, threads), each);
}

// out[texts, heads, dim_v] = softmax(scale q k^T) v, for one token of each text; `sizes` are texts,
// heads, heads of keys and values, tokens, dim, dim_v, then the steps of k and v.
EXPORT int alphaq_attend(const float* q, const void* k, const void* v, const uint8_t* mask,
                         const int64_t* sizes, int half, float scale, float* out, int threads,
                         int set) {
    const Kernels* kernels = kernels_of(set);
    const Attention a{q, k, v, mask, out, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                      sizes[5], {sizes[6], sizes[7], sizes[8]}, {sizes[9], sizes[10], sizes[11]},
                      half, scale};
    for (int i = 0; i < 6; i++) if (sizes[i] < 1) return BAD_ARGUMENT;
    if (!kernels || a.heads % a.shared || a.dim % 8 || a.dim_v % 8) return BAD_ARGUMENT;
    auto each = [&](int64_t i) { kernels->attend(a, i / a.shared, i % a.shared); };
    const int64_t numbers = a.texts * a.shared * a.count * (a.dim + a.dim_v);
    return parallel(a.texts * a.shared, worth(numbers, threads), each);
}

// Rows of x, each divided by the root of its mean square, times w: float32 or bfloat16.
EXPORT int alphaq_norm(const void* x, const void* w, int64_t rows, int64_t cols, float epsilon,
                       int half, void* y, int threads, int set) {
    const Kernels* kernels = kernels_of(set);
    if (!kernels || rows < 1 || cols < 1) return BAD_ARGUMENT;
    const int64_t bytes = (half ? 2 : 4) * cols;
    auto each = [&](int64_t row) {
        kernels->norm((const char*)x + row * bytes, w, cols, epsilon, half,
                      (char*)y + row * bytes);
    };
    return parallel(rows, worth(4 * rows * cols, threads), each);
}

// For comparison: read `bytes` bytes once; the result only keeps the compiler from leaving out.
EXPORT uint64_t alphaq_read(const char* from, int64_t bytes, int threads, int set) {
    const Kernels* kernels = kernels_of(set);
    if (!kernels) return 0;
    constexpr int64_t PART = 1 << 20;
    std::atomic<uint64_t> all{0};
    auto each = [&](int64_t i) {
        all ^= kernels->read(from + i * PART, std::min(PART, bytes - i * PART));
    };
    parallel((bytes + PART - 1) / PART, threads, each);
    return all;
}

#if defined(__unix__) || defined(__APPLE__)
namespace { const int at_fork = pthread_atfork(nullptr, nullptr, forget_pool); }
#endif

#else  // ALPHAQ_SET

// --------------------------------------------------------------- part 2: one instruction set

namespace {
namespace ALPHAQ_SET {

#if ALPHAQ_VECTORS

// ---- 32 bytes and eight floats, as this instruction set has them

#if defined(__x86_64__)

using Bytes = __m256i;
using Floats = __m256;

ALPHAQ_TARGET INLINE Bytes no_bytes() { return _mm256_setzero_si256(); }
ALPHAQ_TARGET INLINE Bytes load(const void* from) { return _mm256_loadu_si256((const Bytes*)from); }
ALPHAQ_TARGET INLINE Bytes either(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
ALPHAQ_TARGET INLINE Bytes differing(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
ALPHAQ_TARGET INLINE uint64_t digest(Bytes v) {
    return (uint64_t)_mm256_extract_epi64(v, 0) ^ (uint64_t)_mm256_extract_epi64(v, 2);
}

// The low bytes of four words, then their high bytes, and so on.
ALPHAQ_TARGET INLINE Bytes split(Bytes words) {
    return _mm256_shuffle_epi8(words, _mm256_setr_epi8(
        0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,
        0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
}

// What the codes of a group stand for as bfloat16, by low and by high bytes.
struct Lookup { Bytes low, high; };
ALPHAQ_TARGET INLINE Bytes halved_bits(float scale, float zero, Floats code) {
    const Bytes bits = _mm256_castps_si256(_mm256_mul_ps(
        _mm256_set1_ps(scale), _mm256_sub_ps(code, _mm256_set1_ps(zero))));
    const Bytes odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const Bytes up = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd);
    return _mm256_srli_epi32(_mm256_add_epi32(bits, up), 16);
}
ALPHAQ_TARGET INLINE Lookup lookup_of(float scale, float zero) {
    const Bytes words = _mm256_permute4x64_epi64(_mm256_packus_epi32(
        halved_bits(scale, zero, _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)),
        halved_bits(scale, zero, _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15))), 0xd8);
    const Bytes both = _mm256_permute4x64_epi64(_mm256_packus_epi16(
        _mm256_and_si256(words, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(words, 8)), 0xd8);
    return {_mm256_permute2x128_si256(both, both, 0x00),
            _mm256_permute2x128_si256(both, both, 0x11)};
}
ALPHAQ_TARGET INLINE void look_up(const Lookup& by, const uint8_t* codes, uint16_t* out) {
    const Bytes q = load(codes);
    const Bytes low = _mm256_shuffle_epi8(by.low, q), high = _mm256_shuffle_epi8(by.high, q);
    const Bytes a = _mm256_unpacklo_epi8(low, high), b = _mm256_unpackhi_epi8(low, high);
    _mm256_storeu_si256((Bytes*)out, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((Bytes*)(out + 16), _mm256_permute2x128_si256(a, b, 0x31));
}

// The sixteen low bytes of a vector in this order, then the sixteen high ones.
ALPHAQ_TARGET INLINE Bytes gathered(Bytes v) {
    return _mm256_permute4x64_epi64(_mm256_shuffle_epi32(v, 0xd8), 0xd8);
}

// The first sixteen bytes of one vector, and the last of another.
ALPHAQ_TARGET INLINE void store_halves(Bytes first, Bytes last, uint8_t* low, uint8_t* high) {
    _mm_storeu_si128((__m128i*)low, _mm256_castsi256_si128(first));
    _mm_storeu_si128((__m128i*)high, _mm256_extracti128_si256(last, 1));
}

// Shift words by a constant, left where `by` is negative, and mask.
ALPHAQ_TARGET INLINE Bytes field(Bytes words, int by, int mask) {
    const Bytes moved = by > 0 ? _mm256_srli_epi16(words, by)
                      : by < 0 ? _mm256_slli_epi16(words, -by) : words;
    return _mm256_and_si256(moved, _mm256_set1_epi16((short)mask));
}

ALPHAQ_TARGET INLINE Bytes added(Bytes a, Bytes b) { return _mm256_add_epi32(a, b); }

ALPHAQ_TARGET INLINE void store_bytes(void* to, Bytes v) { _mm256_storeu_si256((Bytes*)to, v); }
ALPHAQ_TARGET INLINE Bytes four_bytes(const int8_t* from) {
    int four;
    std::memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

// Eight vectors of eight times four bytes: number j of vector i to number i of vector j.
ALPHAQ_TARGET INLINE void transpose(Bytes* v) {
    Bytes a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) for (int j = 0; j < 2; j++) {
        b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
        b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

// Sums of products of unsigned codes and signed activations. Without an instruction that adds
// four of them to 32 bits, pairs are added to 16 bits and widened once a run is complete.
#if ALPHAQ_VECTORS == 1
ALPHAQ_TARGET INLINE Bytes add_products(Bytes sum, Bytes q, Bytes x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(q, x));
}
ALPHAQ_TARGET INLINE Bytes widened(Bytes sum) {
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}
#else
ALPHAQ_TARGET INLINE Bytes widened(Bytes sum) { return sum; }
#endif
ALPHAQ_TARGET INLINE Floats wide_floats(Bytes sum) { return _mm256_cvtepi32_ps(sum); }

ALPHAQ_TARGET INLINE Floats no_floats() { return _mm256_setzero_ps(); }
ALPHAQ_TARGET INLINE Floats all_same(float v) { return _mm256_set1_ps(v); }
ALPHAQ_TARGET INLINE Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
ALPHAQ_TARGET INLINE void store(float* to, Floats v) { _mm256_storeu_ps(to, v); }
ALPHAQ_TARGET INLINE Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
ALPHAQ_TARGET INLINE Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
ALPHAQ_TARGET INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
ALPHAQ_TARGET INLINE Floats less(Floats c, Floats a, Floats b) { return _mm256_fnmadd_ps(a, b, c); }

ALPHAQ_TARGET INLINE Floats eight_codes(const uint8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
ALPHAQ_TARGET INLINE Floats eight_halves(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
ALPHAQ_TARGET INLINE Floats eight_bfloats(const uint16_t* from) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// The scales of a sum's low and high half, in turn.
ALPHAQ_TARGET INLINE Floats two_scales(const float* low, const float* high) {
    return _mm256_blend_ps(_mm256_broadcast_ss(low), _mm256_broadcast_ss(high), 0xaa);
}

// The scales of two or four rows, `step` apart, each as often as a row has lanes.
ALPHAQ_TARGET INLINE __m128 pair_of_scales(const float* from, int64_t step) {
    return _mm_shuffle_ps(_mm_load_ss(from), _mm_load_ss(from + step), 0);
}
ALPHAQ_TARGET INLINE Floats scales_of_rows(const float* from, int64_t step, int rows) {
    return rows == 2 ? _mm256_set_m128(_mm_broadcast_ss(from + step), _mm_broadcast_ss(from))
                     : _mm256_set_m128(pair_of_scales(from + 2 * step, step),
                                       pair_of_scales(from, step));
}

// The same 16 or 8 bytes for each of two or four rows.
ALPHAQ_TARGET INLINE Bytes load_for_rows(const int8_t* from, int rows) {
    int64_t eight;
    std::memcpy(&eight, from, 8);
    return rows == 2 ? _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)from))
                     : _mm256_set1_epi64x(eight);
}

ALPHAQ_TARGET INLINE float total(Floats v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// The totals of eight vectors, added in pairs.
ALPHAQ_TARGET INLINE Floats eight_totals(const Floats* v) {
    const Floats a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Floats b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

#else  // two vectors of 16 bytes each

struct Bytes { uint8x16_t a, b; };
struct Floats { float32x4_t a, b; };

ALPHAQ_TARGET INLINE Bytes no_bytes() { return {vdupq_n_u8(0), vdupq_n_u8(0)}; }
ALPHAQ_TARGET INLINE Bytes load(const void* from) {
    return {vld1q_u8((const uint8_t*)from), vld1q_u8((const uint8_t*)from + 16)};
}
ALPHAQ_TARGET INLINE Bytes either(Bytes a, Bytes b) {
    return {vorrq_u8(a.a, b.a), vorrq_u8(a.b, b.b)};
}
ALPHAQ_TARGET INLINE Bytes differing(Bytes a, Bytes b) {
    return {veorq_u8(a.a, b.a), veorq_u8(a.b, b.b)};
}
ALPHAQ_TARGET INLINE uint64_t digest(Bytes v) {
    return vgetq_lane_u64(vreinterpretq_u64_u8(veorq_u8(v.a, v.b)), 0);
}

// The low bytes of four words, then their high bytes, and so on.
ALPHAQ_TARGET INLINE Bytes split(Bytes words) {
    alignas(16) static const uint8_t order[16] = {0, 2, 4, 6, 1, 3, 5, 7,
                                                  8, 10, 12, 14, 9, 11, 13, 15};
    const uint8x16_t to = vld1q_u8(order);
    return {vqtbl1q_u8(words.a, to), vqtbl1q_u8(words.b, to)};
}

// What the codes of a group stand for as bfloat16, by low and by high bytes.
struct Lookup { uint8x16_t low, high; };
ALPHAQ_TARGET INLINE Lookup lookup_of(float scale, float zero) {
    uint8_t low[16], high[16];
    for (int c = 0; c < 16; c++) {
        const uint16_t weight = to_bfloat16(scale * ((float)c - zero));
        low[c] = (uint8_t)weight;
        high[c] = (uint8_t)(weight >> 8);
    }
    return {vld1q_u8(low), vld1q_u8(high)};
}
ALPHAQ_TARGET INLINE void look_up(const Lookup& by, const uint8_t* codes, uint16_t* out) {
    const Bytes q = load(codes);
    vst2q_u8((uint8_t*)out, uint8x16x2_t{{vqtbl1q_u8(by.low, q.a), vqtbl1q_u8(by.high, q.a)}});
    vst2q_u8((uint8_t*)(out + 16),
             uint8x16x2_t{{vqtbl1q_u8(by.low, q.b), vqtbl1q_u8(by.high, q.b)}});
}

// The sixteen low bytes of a vector in this order, then the sixteen high ones.
ALPHAQ_TARGET INLINE Bytes gathered(Bytes v) {
    const uint32x4_t a = vreinterpretq_u32_u8(v.a), b = vreinterpretq_u32_u8(v.b);
    return {vreinterpretq_u8_u32(vuzp1q_u32(a, b)), vreinterpretq_u8_u32(vuzp2q_u32(a, b))};
}

// The first sixteen bytes of one vector, and the last of another.
ALPHAQ_TARGET INLINE void store_halves(Bytes first, Bytes last, uint8_t* low, uint8_t* high) {
    vst1q_u8(low, first.a);
    vst1q_u8(high, last.b);
}

// Shift words by a constant, left where `by` is negative, and mask.
ALPHAQ_TARGET INLINE uint8x16_t half_field(uint8x16_t words, int by, int mask) {
    const uint16x8_t moved = vshlq_u16(vreinterpretq_u16_u8(words), vdupq_n_s16((int16_t)-by));
    return vreinterpretq_u8_u16(vandq_u16(moved, vdupq_n_u16((uint16_t)mask)));
}
ALPHAQ_TARGET INLINE Bytes field(Bytes words, int by, int mask) {
    return {half_field(words.a, by, mask), half_field(words.b, by, mask)};
}

ALPHAQ_TARGET INLINE uint8x16_t half_added(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_s32(vaddq_s32(vreinterpretq_s32_u8(a), vreinterpretq_s32_u8(b)));
}
ALPHAQ_TARGET INLINE Bytes added(Bytes a, Bytes b) {
    return {half_added(a.a, b.a), half_added(a.b, b.b)};
}

ALPHAQ_TARGET INLINE void store_bytes(void* to, Bytes v) {
    vst1q_u8((uint8_t*)to, v.a);
    vst1q_u8((uint8_t*)to + 16, v.b);
}
ALPHAQ_TARGET INLINE Bytes four_bytes(const int8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    const uint8x16_t v = vreinterpretq_u8_u32(vdupq_n_u32(four));
    return {v, v};
}

// Four vectors of four times four bytes: number j of vector i to number i of vector j.
ALPHAQ_TARGET INLINE void transpose_four(uint8x16_t& a, uint8x16_t& b, uint8x16_t& c,
                                         uint8x16_t& d) {
    const uint32x4x2_t ab = vtrnq_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
    const uint32x4x2_t cd = vtrnq_u32(vreinterpretq_u32_u8(c), vreinterpretq_u32_u8(d));
    uint8x16_t* const to[4] = {&a, &b, &c, &d};
    for (int i = 0; i < 2; i++) {
        *to[i] = vreinterpretq_u8_u32(vcombine_u32(vget_low_u32(ab.val[i]),
                                                   vget_low_u32(cd.val[i])));
        *to[i + 2] = vreinterpretq_u8_u32(vcombine_u32(vget_high_u32(ab.val[i]),
                                                       vget_high_u32(cd.val[i])));
    }
}
// Eight vectors of eight.
ALPHAQ_TARGET INLINE void transpose(Bytes* v) {
    for (int i = 0; i < 8; i += 4) {
        transpose_four(v[i].a, v[i + 1].a, v[i + 2].a, v[i + 3].a);
        transpose_four(v[i].b, v[i + 1].b, v[i + 2].b, v[i + 3].b);
    }
    for (int i = 0; i < 4; i++) std::swap(v[i].b, v[i + 4].a);
}

// Codes are below 128, so that they may count as signed.
ALPHAQ_TARGET INLINE uint8x16_t half_products(uint8x16_t sum, uint8x16_t q, uint8x16_t x) {
    return vreinterpretq_u8_s32(vdotq_s32(vreinterpretq_s32_u8(sum), vreinterpretq_s8_u8(q),
                                          vreinterpretq_s8_u8(x)));
}
ALPHAQ_TARGET INLINE Bytes add_products(Bytes sum, Bytes q, Bytes x) {
    return {half_products(sum.a, q.a, x.a), half_products(sum.b, q.b, x.b)};
}
ALPHAQ_TARGET INLINE Bytes widened(Bytes sum) { return sum; }
ALPHAQ_TARGET INLINE Floats wide_floats(Bytes sum) {
    return {vcvtq_f32_s32(vreinterpretq_s32_u8(sum.a)), vcvtq_f32_s32(vreinterpretq_s32_u8(sum.b))};
}

ALPHAQ_TARGET INLINE Floats all_same(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
ALPHAQ_TARGET INLINE Floats no_floats() { return all_same(0); }
ALPHAQ_TARGET INLINE Floats load_floats(const float* from) {
    return {vld1q_f32(from), vld1q_f32(from + 4)};
}
ALPHAQ_TARGET INLINE void store(float* to, Floats v) {
    vst1q_f32(to, v.a);
    vst1q_f32(to + 4, v.b);
}
ALPHAQ_TARGET INLINE Floats plus(Floats a, Floats b) {
    return {vaddq_f32(a.a, b.a), vaddq_f32(a.b, b.b)};
}
ALPHAQ_TARGET INLINE Floats times(Floats a, Floats b) {
    return {vmulq_f32(a.a, b.a), vmulq_f32(a.b, b.b)};
}
ALPHAQ_TARGET INLINE Floats fused(Floats a, Floats b, Floats c) {
    return {vfmaq_f32(c.a, a.a, b.a), vfmaq_f32(c.b, a.b, b.b)};
}
ALPHAQ_TARGET INLINE Floats less(Floats c, Floats a, Floats b) {
    return {vfmsq_f32(c.a, a.a, b.a), vfmsq_f32(c.b, a.b, b.b)};
}

ALPHAQ_TARGET INLINE Floats eight_codes(const uint8_t* from) {
    const uint16x8_t wide = vmovl_u8(vld1_u8(from));
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))),
            vcvtq_f32_u32(vmovl_u16(vget_high_u16(wide)))};
}
ALPHAQ_TARGET INLINE Floats eight_halves(const uint16_t* from) {
    const float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(from));
    return {vcvt_f32_f16(vget_low_f16(v)), vcvt_f32_f16(vget_high_f16(v))};
}
ALPHAQ_TARGET INLINE Floats eight_bfloats(const uint16_t* from) {
    const uint16x8_t v = vld1q_u16(from);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(v), 16))};
}

// The scales of a sum's low and high half, in turn.
ALPHAQ_TARGET INLINE Floats two_scales(const float* low, const float* high) {
    const float32x4_t both = vzip1q_f32(vdupq_n_f32(*low), vdupq_n_f32(*high));
    return {both, both};
}

// The scales of two or four rows, `step` apart, each as often as a row has lanes.
ALPHAQ_TARGET INLINE float32x4_t pair_of_scales(const float* from, int64_t step) {
    return vcombine_f32(vdup_n_f32(from[0]), vdup_n_f32(from[step]));
}
ALPHAQ_TARGET INLINE Floats scales_of_rows(const float* from, int64_t step, int rows) {
    if (rows == 2) return {vdupq_n_f32(from[0]), vdupq_n_f32(from[step])};
    return {pair_of_scales(from, step), pair_of_scales(from + 2 * step, step)};
}

// The same 16 or 8 bytes for each of two or four rows.
ALPHAQ_TARGET INLINE Bytes load_for_rows(const int8_t* from, int rows) {
    const uint8_t* bytes = (const uint8_t*)from;
    const uint8x8_t eight = vld1_u8(bytes);
    const uint8x16_t v = rows == 2 ? vld1q_u8(bytes) : vcombine_u8(eight, eight);
    return {v, v};
}

ALPHAQ_TARGET INLINE float total(Floats v) { return vaddvq_f32(vaddq_f32(v.a, v.b)); }

// The totals of eight vectors, added in pairs.
ALPHAQ_TARGET INLINE float32x4_t four_totals(const Floats* v) {
    float32x4_t sum[4];
    for (int i = 0; i < 4; i++) sum[i] = vaddq_f32(v[i].a, v[i].b);
    return vpaddq_f32(vpaddq_f32(sum[0], sum[1]), vpaddq_f32(sum[2], sum[3]));
}
ALPHAQ_TARGET INLINE Floats eight_totals(const Floats* v) {
    return {four_totals(v), four_totals(v + 4)};
}

#endif

// ---- products in these terms

ALPHAQ_TARGET INLINE Floats to_floats(Bytes sum) { return wide_floats(widened(sum)); }

// The words of 16 places, `step` words apart at three bits.
template <int B>
ALPHAQ_TARGET INLINE void load_words(const uint16_t* from, int64_t step, Bytes* words) {
    if (B == 3) for (int w = 0; w < 3; w++) words[w] = load(from + w * step);
    else words[0] = split(load(from));
}

// Pair p of 16 places as 32 bytes: four low codes, four high ones, and so on.
template <int B>
ALPHAQ_TARGET INLINE Bytes codes_of(const Bytes* w, int p) {
    if (B != 3) return field(w[0], B * p, 0x101 * ((1 << B) - 1));
    if (p < 6) return split(field(w[p / 2], p % 2 * 3, 0x0e07));
    if (p == 6) return split(either(field(w[0], 6, 0x0007), field(w[1], -3, 0x0e00)));
    const Bytes last = either(either(field(w[0], 6, 0x0200), field(w[1], 5, 0x0400)),
                              field(w[2], 4, 0x0800));
    return split(either(field(w[2], 6, 0x0007), last));
}

// Pair p of 16 places, each code where `place_of` says.
template <int B>
ALPHAQ_TARGET INLINE Bytes placed_codes(const Bytes* w, int p) {
    if (B == 3) return codes_of<B>(w, p);
    return field(w[0], shift_of(B, p), 0x101 * (((1 << B) - 1) << place_of(B, p)));
}

// What `unit` = 16 V places of a row give to S sums of R pairs each, from pair FIRST on, for T
// tokens: products, four to a lane. Codes are taken out of a vector of words once for all tokens.
template <int B, int R, int V, int T, int FIRST, int S>
ALPHAQ_TARGET INLINE void multiply_places(const uint16_t* from, int64_t plane,
                                          const int8_t* const* x, Bytes (*sums)[T]) {
    // a product added to 32 bits waits for the one before; few sums leave registers for two of each
    constexpr int PARTS = ALPHAQ_VECTORS == 2 && S * T <= 4 && V > 1 ? 2 : 1;
    constexpr int LINE = V > 1 ? 2 : 1;  // vectors in a cache line
    Bytes parts[PARTS][S][T];
    for (int i = 0; i < PARTS * S * T; i++) parts[i / (S * T)][i / T % S][i % T] = no_bytes();
    UNROLL_NOT for (int line = 0; line < V; line += LINE) {
        if (FIRST == 0) for (int w = 0; w < words_of(B); w++) {
            const uint16_t* const words = from + line * VECTOR_WORDS + w * plane;
            __builtin_prefetch((const char*)words + AHEAD, 0, 2);
        }
        UNROLL_TWICE for (int half = 0; half < LINE; half++) {
            const int v = line + half;
            Bytes w[words_of(B)];
            load_words<B>(from + v * VECTOR_WORDS, plane, w);
            for (int p = FIRST; p < FIRST + S * R; p++) {
                const Bytes codes = R == 1 ? placed_codes<B>(w, p) : codes_of<B>(w, p);
                for (int t = 0; t < T; t++) {
                    Bytes& sum = parts[half % PARTS][(p - FIRST) / R][t];
                    sum = ALPHAQ_DOT(sum, codes, load(x[t] + 32 * (p * V + v)));
                }
            }
        }
    }
    for (int i = 0; i < S * T; i++) {
        const Bytes& first = parts[0][i / T][i % T];
        sums[i / T][i % T] = PARTS == 2 ? added(first, parts[PARTS - 1][i / T][i % T]) : first;
    }
}

// All sums, as many at once as registers hold.
template <int B, int R, int V, int T, int FIRST = 0>
ALPHAQ_TARGET INLINE void multiply_pairs(const uint16_t* from, int64_t plane,
                                         const int8_t* const* x, Bytes (*sums)[T]) {
    constexpr int S = std::min(pairs_of(B) / R, SUMS_AT_ONCE / T);
    multiply_places<B, R, V, T, FIRST, S>(from, plane, x, sums);
    if constexpr (FIRST + S * R < pairs_of(B))
        multiply_pairs<B, R, V, T, FIRST + S * R>(from, plane, x, sums + S);
}

// In a regular walk: the group of field f in block b.
template <int B, int V>
INLINE int64_t group_of(int64_t b, int f) {
    constexpr int block = fields_of(B) * V, group = SAFE_RUN / VECTOR_WORDS;
    return block < group ? (b * block + f * V) / group : b * (block / group) + f * V / group;
}

// The words of a tile's rows as they lie, block by block, for T tokens; sum[t * TILE + r] collects
// row r in eight lanes.
template <int B, int R, int V, bool REGULAR, int T>
ALPHAQ_TARGET void multiply_words(const uint16_t* words, int64_t rows, const Layout& at,
                                  const Walk& way, const int8_t* const* x,
                                  const float* const* steps, const float* scale, int64_t groups,
                                  Floats* sum) {
    constexpr int SUMS = pairs_of(B) / R;
    const int64_t slice = REGULAR ? V * VECTOR_WORDS : at.slice, blocks = at.blocks;
    const int64_t units = slice / (V * VECTOR_WORDS);
    const int64_t plane = rows * slice;  // words between the words of a place
    for (int64_t b = 0; b < blocks; b++) {
        for (int64_t r = 0; r < rows; r++) {
            const uint16_t* from = words + (b * words_of(B) * rows + r) * slice;
            const float* of_row = scale + r * groups;
            const int8_t* xs[T];
            Floats even[T], odd[T];
            for (int t = 0; t < T; t++) {
                xs[t] = x[t] + b * fields_of(B) * slice;
                even[t] = sum[t * TILE + r];
                odd[t] = no_floats();
            }
            for (int64_t u = 0; u < units; u++, from += V * VECTOR_WORDS) {
                Bytes sums[SUMS][T];
                multiply_pairs<B, R, V, T>(from, plane, xs, sums);
                for (int t = 0; t < T; t++) xs[t] += 32 * pairs_of(B) * V;
                UNROLL for (int s = 0; s < SUMS; s++) {
                    const int64_t all = (b * units + u) * SUMS + s;
                    const Floats both = REGULAR
                        ? two_scales(of_row + group_of<B, V>(b, low_field(B, s * R)),
                                     of_row + group_of<B, V>(b, high_field(B, s * R)))
                        : two_scales(of_row + way.low[all], of_row + way.high[all]);
                    for (int t = 0; t < T; t++) {
                        const Floats factor = times(both, load_floats(steps[t] + 8 * all));
                        Floats& to = s % 2 ? odd[t] : even[t];
                        to = fused(to_floats(sums[s][t]), factor, to);
                    }
                }
            }
            for (int t = 0; t < T; t++) sum[t * TILE + r] = plus(even[t], odd[t]);
        }
    }
}

// Rows of which a vector of words holds several. A block is of one group, and all its pairs join
// one sum; each row has its lanes of it.
template <int B, int TOGETHER>
ALPHAQ_TARGET void multiply_short(const uint16_t* words, int64_t rows, const Layout& at,
                                  const Walk& way, const int8_t* const* x,
                                  const float* const* steps, const float* scale, int64_t groups,
                                  Floats* sum) {
    constexpr int64_t SLICE = VECTOR_WORDS / TOGETHER, LANES = 8 / TOGETHER;
    const int64_t plane = rows * SLICE;
    for (int64_t b = 0; b < at.blocks; b++) {
        const int8_t* codes = x[0] + b * fields_of(B) * SLICE;
        const uint16_t* from = words + b * words_of(B) * plane;
        Bytes tokens[pairs_of(B)];
        for (int p = 0; p < pairs_of(B); p++)
            tokens[p] = load_for_rows(codes + 2 * SLICE * p, TOGETHER);
        const Floats step = load_floats(steps[0] + 8 * b);
        const float* of_group = scale + way.low[b];
        for (int64_t r = 0; r < rows; r += TOGETHER) {
            Bytes w[words_of(B)], all = no_bytes();
            load_words<B>(from + r * SLICE, plane, w);
            for (int p = 0; p < pairs_of(B); p++)
                all = ALPHAQ_DOT(all, codes_of<B>(w, p), tokens[p]);
            const Floats both = scales_of_rows(of_group + r * groups, groups, TOGETHER);
            sum[r] = fused(to_floats(all), times(both, step), sum[r]);
        }
    }
    for (int64_t r = 0; r < rows; r += TOGETHER) {
        float lanes[8], apart[TOGETHER][8] = {};
        store(lanes, sum[r]);
        for (int j = 0; j < TOGETHER; j++)
            std::memcpy(apart[j], lanes + j * LANES, sizeof(float) * LANES);
        for (int j = 0; j < TOGETHER; j++) sum[r + j] = load_floats(apart[j]);
    }
}

using Multiply = void (*)(const uint16_t*, int64_t, const Layout&, const Walk&,
                          const int8_t* const*, const float* const*, const float*, int64_t,
                          Floats*);

template <int T, int B, int V>
Multiply multiply_by(bool regular) {
    return regular ? multiply_words<B, longest_run(B, V * VECTOR_WORDS), V, true, T>
                   : multiply_words<B, 1, V, false, 1>;
}

template <int T, int B>
Multiply multiply_of(const Walk& way) {
    if (way.together == 2) return multiply_short<B, 2>;
    if (way.together == 4) return multiply_short<B, 4>;
    switch (way.unit / VECTOR_WORDS) {
        case 1: return multiply_by<T, B, 1>(way.regular);
        case 2: return multiply_by<T, B, 2>(way.regular);
        case 4: return multiply_by<T, B, 4>(way.regular);
        default: return multiply_by<T, B, 8>(way.regular);
    }
}

template <int T>
Multiply multiply_for(int bits, const Walk& way) {
    return bits == 1 ? multiply_of<T, 1>(way) : bits == 2 ? multiply_of<T, 2>(way)
         : bits == 3 ? multiply_of<T, 3>(way) : multiply_of<T, 4>(way);
}

// A row's products less what its zero points take away, still in eight parts. Of `taken` is read on
// into the next row, up to a multiple of eight: the sums are zero there, and scales are finite.
ALPHAQ_TARGET INLINE Floats without_zeros(Floats all, const float* taken, const float* sum,
                                          int64_t groups) {
    for (int64_t g = 0; g < groups; g += 8)
        all = less(all, load_floats(taken + g), load_floats(sum + g));
    return all;
}

// What the zero points of a row take away from the product with one token.
ALPHAQ_TARGET float zero_part(const float* taken, const float* sum, int64_t groups) {
    return -total(without_zeros(no_floats(), taken, sum, groups));
}

// Rows of a tile times T rows of quantized activations, and where the products belong.
template <int T>
ALPHAQ_TARGET void tile_direct(const Matrix& m, const Shape& shape, int64_t tile,
                               const Activations& x, const int64_t* who, const Scratch& mine,
                               float* const* y) {
    const int bits = (int)m.bits;
    const Layout at(bits, shape.cols);
    const Walk& way = x.walk[bits];
    const int64_t rows = std::min<int64_t>(TILE, shape.rows - tile * TILE), groups = x.groups;
    const int8_t* codes[T];
    const float* steps[T];
    Floats sums[T * TILE];
    for (int t = 0; t < T; t++) {
        codes[t] = x.ordered[bits].data() + who[t] * at.padded;
        steps[t] = x.steps[bits].data() + who[t] * way.sums * 8;
        for (int64_t r = 0; r < rows; r++) sums[t * TILE + r] = no_floats();
    }
    multiply_for<T>(bits, way)(m.words + tile * at.tile_words, rows, at, way, codes, steps,
                               mine.scale.data(), groups, sums);
    for (int t = 0; t < T; t++) {
        Floats* sum = sums + t * TILE;
        const float* of_groups = x.sum.data() + who[t] * x.eights;
        for (int64_t r = 0; r < rows; r++)
            sum[r] = without_zeros(sum[r], mine.taken.data() + r * groups, of_groups, groups);
        int64_t r = 0;
        for (; r + 8 <= rows; r += 8) store(y[t] + r, eight_totals(sum + r));
        for (; r < rows; r++) y[t][r] = total(sum[r]);
    }
}

// Codes of the rows that one vector of words covers: one row, or several where slices are short.
template <int B>
ALPHAQ_TARGET INLINE void store_codes(Bytes codes, int p, int64_t slice, int64_t stride,
                                      int64_t rows, uint8_t* to) {
    const Bytes apart = gathered(codes);
    const Bytes moved = B == 3 ? field(apart, 1, 0x7f7f) : apart;  // high ones stand a bit higher
    uint8_t* low = to + low_field(B, p) * slice;
    uint8_t* high = to + high_field(B, p) * slice;
    if (slice >= VECTOR_WORDS) return store_halves(apart, moved, low, high);
    uint8_t lows[VECTOR_WORDS], highs[VECTOR_WORDS];
    store_halves(apart, moved, lows, highs);
    for (int64_t r = 0; r < rows; r++) {
        std::memcpy(low + r * stride, lows + r * slice, slice);
        std::memcpy(high + r * stride, highs + r * slice, slice);
    }
}

// Words of 16 places that may end before a vector does.
template <int B>
ALPHAQ_TARGET INLINE void load_some(const uint16_t* from, int64_t step, int64_t count, Bytes* w) {
    if (count == VECTOR_WORDS) return load_words<B>(from, step, w);
    uint16_t some[3 * VECTOR_WORDS] = {};
    for (int i = 0; i < words_of(B); i++)
        std::memcpy(some + i * VECTOR_WORDS, from + i * step, 2 * count);
    load_words<B>(some, VECTOR_WORDS, w);
}

template <int B>
ALPHAQ_TARGET void take_apart(const uint16_t* words, int64_t rows, int64_t first, int64_t count,
                              const Layout& at, uint8_t* codes) {
    const int64_t plane = rows * at.slice;
    const int64_t places = std::min<int64_t>(count * at.slice, VECTOR_WORDS);
    for (int64_t b = 0; b < at.blocks; b++) {
        const uint16_t* from = words + (b * words_of(B) * rows + first) * at.slice;
        uint8_t* to = codes + b * fields_of(B) * at.slice;
        for (int64_t v = 0; v < at.slice; v += VECTOR_WORDS) {
            Bytes w[3];
            load_some<B>(from + v, plane, places, w);
            for (int p = 0; p < pairs_of(B); p++)
                store_codes<B>(codes_of<B>(w, p), p, at.slice, at.padded, count, to + v);
        }
    }
}

// One group of a row whose codes were taken apart; `rest` is what fills no vector.
ALPHAQ_TARGET INLINE Floats multiply_group(const uint8_t* q, const int8_t* x, int64_t n,
                                           float& rest) {
    Floats all = no_floats();
    int64_t i = 0;
    while (i + 32 <= n) {
        Bytes sum = no_bytes();
        for (const int64_t end = std::min(n - 31, i + SAFE_RUN); i < end; i += 32)
            sum = ALPHAQ_DOT(sum, load(q + i), load(x + i));
        all = plus(all, to_floats(sum));
    }
    int left = 0;
    for (; i < n; i++) left += q[i] * x[i];
    rest = (float)left;
    return all;
}

ALPHAQ_TARGET INLINE Floats multiply_group(const uint8_t* q, const float* x, int64_t n,
                                           float& rest) {
    Floats even = no_floats(), odd = even;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        even = fused(eight_codes(q + i), load_floats(x + i), even);
        odd = fused(eight_codes(q + i + 8), load_floats(x + i + 8), odd);
    }
    rest = 0;
    for (; i < n; i++) rest += (float)q[i] * x[i];
    return plus(even, odd);
}

// One row whose codes were taken apart, with one token.
template <class X>
ALPHAQ_TARGET float multiply_row(const uint8_t* q, const X* x, const float* step,
                                 const float* scale, int64_t groups, int64_t group) {
    Floats sum = no_floats();
    float left = 0;
    for (int64_t g = 0; g < groups; g++) {
        float rest;
        const Floats inner = multiply_group(q + g * group, x + g * group, group, rest);
        const float factor = scale[g] * (step ? step[g] : 1.f);
        sum = fused(inner, all_same(factor), sum);
        left += factor * rest;
    }
    return total(sum) + left;
}

ALPHAQ_TARGET void halves_to_floats(const uint16_t* from, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(to + i, eight_halves(from + i));
    for (; i < n; i++) to[i] = half_to_float(from[i]);
}

ALPHAQ_TARGET float dot16(const uint16_t* w, const float* x, int64_t n) {
    Floats sum[4] = {no_floats(), no_floats(), no_floats(), no_floats()};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        UNROLL for (int j = 0; j < 4; j++)
            sum[j] = fused(eight_bfloats(w + i + 8 * j), load_floats(x + i + 8 * j), sum[j]);
    float rest = 0;
    for (; i < n; i++) rest += from_bfloat16(w[i]) * x[i];
    return rest + total(plus(plus(sum[0], sum[1]), plus(sum[2], sum[3])));
}

ALPHAQ_TARGET void widen(const uint16_t* from, int64_t n, float* to) {
    UNROLL for (int64_t i = 0; i < n; i += 8) store(to + i, eight_bfloats(from + i));
}

// Products of a vector with rows, eight rows at a time, where the last row fills up; n is a
// multiple of 8.
ALPHAQ_TARGET void dots(const float* x, const float* const* rows, int64_t count, int64_t n,
                        float* to) {
    for (int64_t k = 0; k < count; k += 8) {
        const float* some[8];
        Floats sums[8];
        for (int j = 0; j < 8; j++) {
            some[j] = rows[std::min(k + j, count - 1)];
            sums[j] = no_floats();
        }
        UNROLL_TWICE for (int64_t i = 0; i < n; i += 8) {
            const Floats v = load_floats(x + i);
            UNROLL for (int j = 0; j < 8; j++) sums[j] = fused(v, load_floats(some[j] + i), sums[j]);
        }
        store(to + k, eight_totals(sums));
    }
}

// V vectors of y from `at` on, times `kept`, and shares of rows added to them.
template <int V>
ALPHAQ_TARGET INLINE void add_some_rows(const float* shares, const float* const* rows,
                                        int64_t count, int64_t at, float kept, float* y) {
    Floats sums[V];
    UNROLL for (int i = 0; i < V; i++)
        sums[i] = times(load_floats(y + at + 8 * i), all_same(kept));
    for (int64_t k = 0; k < count; k++) {
        const Floats share = all_same(shares[k]);
        UNROLL for (int i = 0; i < V; i++)
            sums[i] = fused(share, load_floats(rows[k] + at + 8 * i), sums[i]);
    }
    UNROLL for (int i = 0; i < V; i++) store(y + at + 8 * i, sums[i]);
}
ALPHAQ_TARGET void add_rows(const float* shares, const float* const* rows, int64_t count,
                            int64_t n, float kept, float* y) {
    int64_t at = 0;
    for (; at + 64 <= n; at += 64) add_some_rows<8>(shares, rows, count, at, kept, y);
    for (; at < n; at += 8) add_some_rows<1>(shares, rows, count, at, kept, y);
}

ALPHAQ_TARGET uint64_t read(const char* bytes, int64_t n) {
    Bytes all[4] = {no_bytes(), no_bytes(), no_bytes(), no_bytes()};
    for (int64_t i = 0; i + 128 <= n; i += 128)
        UNROLL for (int j = 0; j < 4; j++) all[j] = differing(all[j], load(bytes + i + 32 * j));
    return digest(differing(differing(all[0], all[1]), differing(all[2], all[3])));
}

// ---- many tokens: a tile's codes lie as bytes, four inputs of 64 rows side by side

constexpr int LANES = 8;  // rows in a vector of the panel
// vectors of codes and tokens whose sums stay in registers
constexpr int HIGH = ALPHAQ_REGISTERS >= 32 ? 4 : 2, BROAD = ALPHAQ_REGISTERS >= 32 ? 6 : 4;
constexpr int64_t QUAD = 4 * TILE;  // bytes of four inputs

// One block of a tile: eight rows of words at a time, turned so that rows lie side by side.
template <int B>
ALPHAQ_TARGET void lay_block(const uint16_t* words, int64_t rows, const Layout& at,
                             uint8_t* panel) {
    const int64_t plane = rows * at.slice;
    for (int64_t v = 0; v < at.slice; v += VECTOR_WORDS)
        for (int64_t first = 0; first < rows; first += LANES) {
            Bytes w[LANES * words_of(B)], codes[LANES];
            for (int r = 0; r < LANES; r++) {  // a tile may end before eight rows do
                const uint16_t* row = words + std::min(first + r, rows - 1) * at.slice + v;
                load_words<B>(row, plane, w + r * words_of(B));
                if (v % (2 * VECTOR_WORDS) == 0)  // a cache line of the next block
                    for (int i = 0; i < words_of(B); i++)
                        __builtin_prefetch(row + (words_of(B) + i) * plane, 0, 2);
            }
            if constexpr (B != 3) transpose(w);
            uint8_t* to = panel + v * TILE + 4 * first;
            for (int p = 0; p < pairs_of(B); p++) {
                for (int r = 0; r < LANES; r++) codes[r] = codes_of<B>(w + r * words_of(B), p);
                if constexpr (B == 3) transpose(codes);
                uint8_t* low = to + low_field(B, p) * at.field_bytes();
                uint8_t* high = to + high_field(B, p) * at.field_bytes();
                for (int i = 0; i < LANES; i += 2, low += QUAD, high += QUAD) {
                    store_bytes(low, codes[i]);
                    store_bytes(high, B == 3 ? field(codes[i + 1], 1, 0x7f7f) : codes[i + 1]);
                }
            }
        }
}

// The same where a vector holds several rows.
template <int B>
ALPHAQ_TARGET void lay_short(const uint16_t* words, int64_t rows, const Layout& at,
                             uint8_t* panel) {
    Layout one = at;  // block
    one.padded = at.block();
    one.blocks = 1;
    uint8_t codes[VECTOR_WORDS * fields_of(B)];
    const int64_t together = VECTOR_WORDS / at.slice;
    for (int64_t first = 0; first < rows; first += together) {
        const int64_t some = std::min(together, rows - first);
        take_apart<B>(words, rows, first, some, one, codes);
        for (int64_t r = 0; r < some; r++)
            for (int64_t k = 0; k < one.padded; k += 4)
                std::memcpy(panel + at.place(k) + 4 * (first + r), codes + r * one.padded + k, 4);
    }
}

// Products of `quads` times four inputs with 8 V rows and T tokens, added to nothing. A function of
// its own: what else a caller does with so many sums would push them out of the registers.
template <int V, int T>
ALPHAQ_TARGET APART void add_quads(const uint8_t* panel, int64_t quads, const int8_t* const* x,
                                   Bytes (*sums)[V]) {
    Bytes mine[T][V];
    for (auto& of_token : mine) for (Bytes& sum : of_token) sum = no_bytes();
    for (int64_t q = 0; q < quads; q++, panel += QUAD)
        UNROLL for (int t = 0; t < T; t++) {
            const Bytes four = four_bytes(x[t] + 4 * q);
            UNROLL for (int v = 0; v < V; v++)
                mine[t][v] = ALPHAQ_DOT(mine[t][v], load(panel + 4 * LANES * v), four);
        }
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int v = 0; v < V; v++) sums[t][v] = mine[t][v];
}

// The same of any length, in sums of 32 bits. Where two products are added to 16 bits, these hold
// eight of them, as in a run of the direct kernel.
template <int V, int T>
ALPHAQ_TARGET void add_group(const uint8_t* panel, int64_t quads, const int8_t* const* from,
                             Bytes (*sums)[V]) {
    constexpr int64_t RUN = 8;
    if (ALPHAQ_VECTORS == 2) return add_quads<V, T>(panel, quads, from, sums);
    for (int i = 0; i < V * T; i++) sums[i / V][i % V] = no_bytes();
    for (int64_t q = 0; q < quads; q += RUN) {
        const int8_t* x[T];
        for (int t = 0; t < T; t++) x[t] = from[t] + 4 * q;
        Bytes some[T][V];
        add_quads<V, T>(panel + q * QUAD, std::min(RUN, quads - q), x, some);
        for (int i = 0; i < V * T; i++)
            sums[i / V][i % V] = added(sums[i / V][i % V], widened(some[i / V][i % V]));
    }
}

// What `quads` times four inputs of one group give to 8 V rows and T tokens.
template <int V, int T>
ALPHAQ_TARGET void multiply_panel(const uint8_t* panel, int64_t quads, const int8_t* const* x,
                                  const float* step, const float* sum, const float* scale,
                                  const float* zero, float* const* y, int64_t first) {
    Bytes all[T][V];
    add_group<V, T>(panel, quads, x, all);
    for (int t = 0; t < T; t++)
        UNROLL for (int v = 0; v < V; v++) {
            const Floats inner = times(wide_floats(all[t][v]), all_same(step[t]));
            const Floats centred = less(inner, load_floats(zero + LANES * v), all_same(sum[t]));
            float* to = y[t] + first + LANES * v;
            store(to, fused(centred, load_floats(scale + LANES * v), load_floats(to)));
        }
}

using MultiplyPanel = void (*)(const uint8_t*, int64_t, const int8_t* const*, const float*,
                               const float*, const float*, const float*, float* const*, int64_t);
constexpr MultiplyPanel multiply_panels[] = {
    multiply_panel<HIGH, 1>, multiply_panel<HIGH, 2>, multiply_panel<HIGH, 3>,
    multiply_panel<HIGH, 4>, multiply_panel<HIGH, std::min(5, BROAD)>,
    multiply_panel<HIGH, BROAD>};

using LayBlock = void (*)(const uint16_t*, int64_t, const Layout&, uint8_t*);
template <int B> LayBlock lay(const Layout& at) {
    return at.slice < VECTOR_WORDS ? lay_short<B> : lay_block<B>;
}
LayBlock lay_for(int64_t bits, const Layout& at) {
    return bits == 1 ? lay<1>(at) : bits == 2 ? lay<2>(at) : bits == 3 ? lay<3>(at) : lay<4>(at);
}

// Columns of a grid as rows: scales, then zero points. Rows that are not there count nothing.
void turn_grid(const Matrix& m, const Shape& shape, int64_t tile, int64_t rows, Scratch& mine) {
    const int64_t groups = shape.groups(), from = tile * TILE * groups;
    mine.scale.resize(rows * groups);
    halves_to_floats(m.scale + from, rows * groups, mine.scale.data());
    mine.columns.resize(2 * groups * TILE);
    for (int64_t g = 0; g < groups; g++) {
        float* scale = mine.columns.data() + g * TILE;
        float* zero = scale + groups * TILE;
        for (int64_t r = 0; r < rows; r++) {
            scale[r] = mine.scale[r * groups + g];
            zero[r] = (float)m.zero[from + r * groups + g];
        }
        std::fill(scale + rows, scale + TILE, 0.f);
        std::fill(zero + rows, zero + TILE, 0.f);
    }
}

// Inputs `start` to `end` of one group, which the panel begins with, for all rows and tokens.
void multiply_span(const uint8_t* panel, int64_t start, int64_t end, int64_t rows,
                   const Activations& x, const Scratch& mine) {
    const int64_t group = start / x.group, count = (int64_t)mine.who.size();
    const bool last = end % x.group == 0;  // zero points take away once
    const float* scale = mine.columns.data() + group * TILE;
    const float* zero = scale + x.groups * TILE;
    for (int64_t i = 0, left = (count + BROAD - 1) / BROAD; left > 0; left--) {
        const int some = (int)((count - i + left - 1) / left);
        const int8_t* codes[BROAD];
        float step[BROAD], sum[BROAD];
        for (int t = 0; t < some; t++) {
            const int64_t row = mine.who[i + t];
            codes[t] = x.codes.data() + row * x.cols + start;
            step[t] = x.step[row * x.groups + group];
            sum[t] = last ? x.sum[row * x.eights + group] : 0.f;
        }
        for (int64_t r = 0; r < rows; r += LANES * HIGH)
            multiply_panels[some - 1](panel + 4 * r, (end - start) / 4, codes, step, sum,
                                      scale + r, zero + r, mine.to.data() + i, r);
        i += some;
    }
}

void panels(const Matrix& m, const Shape& shape, int64_t tile, const Activations& x,
            const int64_t* tokens, int64_t count, float* y) {
    Scratch& mine = scratch();
    const Layout at((int)m.bits, shape.cols);
    const int64_t rows = std::min<int64_t>(TILE, shape.rows - tile * TILE);
    turn_grid(m, shape, tile, rows, mine);
    mine.who.clear();
    mine.to.clear();
    for (int64_t i = 0; i < count; i++) for (int part = 0; part <= x.rough[tokens[i]]; part++) {
        mine.who.push_back(tokens[i] + part * x.tokens);
        mine.to.push_back(y + i * TILE);
    }
    std::fill(y, y + count * TILE, 0.f);
    const int64_t some = std::max<int64_t>(1, PANEL / at.block());
    mine.panel.resize(some * at.block_bytes());
    for (int64_t b = 0; b < at.blocks; b += some) {
        for (int64_t i = b; i < std::min(at.blocks, b + some); i++)
            lay_for(m.bits, at)(m.words + tile * at.tile_words + i * at.block() * m.bits / 16 * rows,
                                rows, at, mine.panel.data() + (i - b) * at.block_bytes());
        const int64_t begin = b * at.block(), stop = std::min(x.cols, begin + some * at.block());
        for (int64_t k = begin, end; k < stop; k = end) {
            end = at.end_of(k, std::min(stop, (k / x.group + 1) * x.group));
            multiply_span(mine.panel.data() + at.place(k - begin), k, end, rows, x, mine);
        }
    }
}

#else  // the oracle: no vectors, one code at a time

template <int B>
unsigned code_at(const uint16_t* words, int64_t step, int field) {
    if (B != 3) return words[0] >> B * field & ((1u << B) - 1);
    if (field < 15) return words[field / 5 * step] >> 3 * (field % 5) & 7u;
    return words[0] >> 15 | words[step] >> 15 << 1 | words[2 * step] >> 15 << 2;
}

template <int B>
void take_apart(const uint16_t* words, int64_t rows, int64_t first, int64_t count,
                const Layout& at, uint8_t* codes) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t b = 0; b < at.blocks; b++)
            for (int field = 0; field < fields_of(B); field++)
                for (int64_t i = 0; i < at.slice; i++) {
                    const uint16_t* word =
                        words + (b * words_of(B) * rows + first + r) * at.slice + i;
                    codes[r * at.padded + (b * fields_of(B) + field) * at.slice + i] =
                        (uint8_t)code_at<B>(word, rows * at.slice, field);
                }
}

template <class X>
float multiply_row(const uint8_t* q, const X* x, const float* step, const float* scale,
                   int64_t groups, int64_t group) {
    float y = 0;
    for (int64_t g = 0; g < groups; g++) {
        decltype(X() * 1) sum = 0;
        for (int64_t i = g * group; i < (g + 1) * group; i++) sum += q[i] * x[i];
        y += scale[g] * (step ? step[g] : 1.f) * (float)sum;
    }
    return y;
}

float zero_part(const float* taken, const float* sum, int64_t groups) {
    float all = 0;
    for (int64_t g = 0; g < groups; g++) all += taken[g] * sum[g];
    return all;
}

void halves_to_floats(const uint16_t* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i++) to[i] = half_to_float(from[i]);
}

float dot16(const uint16_t* w, const float* x, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += from_bfloat16(w[i]) * x[i];
    return sum;
}

void widen(const uint16_t* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i++) to[i] = from_bfloat16(from[i]);
}

void dots(const float* x, const float* const* rows, int64_t count, int64_t n, float* to) {
    for (int64_t k = 0; k < (count + 7) / 8 * 8; k++) {
        to[k] = 0;
        for (int64_t i = 0; i < n; i++) to[k] += x[i] * rows[std::min(k, count - 1)][i];
    }
}

void add_rows(const float* shares, const float* const* rows, int64_t count, int64_t n,
              float kept, float* y) {
    for (int64_t i = 0; i < n; i++) y[i] *= kept;
    for (int64_t k = 0; k < count; k++)
        for (int64_t i = 0; i < n; i++) y[i] += shares[k] * rows[k][i];
}

uint64_t read(const char* bytes, int64_t n) {
    uint64_t all = 0;
    for (int64_t i = 0; i + 8 <= n; i += 8) {
        uint64_t word;
        std::memcpy(&word, bytes + i, 8);
        all ^= word;
    }
    return all;
}

template <int T>
void tile_direct(const Matrix&, const Shape&, int64_t, const Activations&, const int64_t*,
                 const Scratch&, float* const*) {}
void panels(const Matrix&, const Shape&, int64_t, const Activations&, const int64_t*, int64_t,
            float*) {}

#endif

// ---- the same for every set, compiled for each

using TakeApart = void (*)(const uint16_t*, int64_t, int64_t, int64_t, const Layout&, uint8_t*);

TakeApart take_apart_for(int64_t bits) {
    return bits == 1 ? take_apart<1> : bits == 2 ? take_apart<2>
         : bits == 3 ? take_apart<3> : take_apart<4>;
}

// SiLU(gate) * up.
ALPHAQ_TARGET void gated(float* gate, const float* up, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float v = std::max(gate[i], -87.f);  // below, SiLU is nothing; NaN stays
        gate[i] = v / (1.f + power(-v)) * up[i];
    }
}

// ---- attention of one token, and norms

// Rows of keys or values, `step` numbers apart, as floats: as they lie, or made wide in `room`.
ALPHAQ_TARGET void rows_of(const void* from, const int64_t* at, int64_t count, int64_t step,
                           int64_t n, int half, float* room, const float** rows) {
    for (int64_t k = 0; k < count; k++, room += n) {
        rows[k] = half ? room : (const float*)from + at[k] * step;
        if (half) widen((const uint16_t*)from + at[k] * step, n, room);
    }
}

// Products with keys to shares relative to the largest so far, which may be a new one; returns what
// older shares are worth then. Products come in eights, as `dots` fills them up.
ALPHAQ_TARGET float share(float* shares, int64_t count, float scale, float& most, float& all) {
    const int64_t eights = (count + 7) / 8 * 8;
    float eight[8], largest = most;
    for (float& v : eight) v = most;
    for (int64_t k = 0; k < eights; k += 8)
        UNROLL for (int j = 0; j < 8; j++) eight[j] = std::max(eight[j], shares[k + j] * scale);
    for (float v : eight) largest = std::max(largest, v);
    if (largest == -INFINITY) {  // nobody asks any of these, unless it is no number
        for (int64_t k = 0; k < count; k++) shares[k] = std::isnan(shares[k]) ? shares[k] : 0.f;
        for (int64_t k = 0; k < count; k++) all += shares[k];
        return 1;
    }
    for (int64_t k = 0; k < eights; k++) {
        const float below = shares[k] * scale - largest;
        shares[k] = power(below) + 0.f * std::max(below, -87.f);  // NaN stays
    }
    std::fill(shares + count, shares + eights, 0.f);
    for (float& v : eight) v = 0;
    for (int64_t k = 0; k < eights; k += 8)
        UNROLL for (int j = 0; j < 8; j++) eight[j] += shares[k + j];
    const float kept = std::isinf(most) ? 0.f : power(most - largest);
    most = largest;
    all *= kept;
    for (float v : eight) all += v;
    return kept;
}

// What the heads that share keys and values make of them, some keys at a time: shares are kept
// relative to the largest product so far, and the sum of values with them.
ALPHAQ_TARGET void attend(const Attention& a, int64_t text, int64_t shared_head) {
    Scratch& mine = scratch();
    const int64_t group = a.heads / a.shared, first_head = text * a.heads + shared_head * group;
    const char* k = (const char*)a.k, *v = (const char*)a.v;
    const int64_t size = a.half ? 2 : 4;
    k += size * (text * a.k_steps[0] + shared_head * a.k_steps[1]);
    v += size * (text * a.v_steps[0] + shared_head * a.v_steps[1]);
    mine.wide.resize(KEYS * std::max(a.dim, a.dim_v) + 16);
    float* const room = (float*)(((uintptr_t)mine.wide.data() + 63) / 64 * 64);  // begins a line
    mine.shares.resize(group * KEYS);
    mine.most.assign(group, -INFINITY);
    mine.all.assign(group, 0.f);
    float* out = a.out + first_head * a.dim_v;
    std::fill(out, out + group * a.dim_v, 0.f);
    for (int64_t next = 0; next < a.count;) {
        int64_t at[KEYS], n = 0;
        for (; next < a.count && n < KEYS; next++)
            if (!a.mask || a.mask[text * a.count + next]) at[n++] = next;
        if (!n) break;
        const float* rows[KEYS];
        rows_of(k, at, n, a.k_steps[2], a.dim, a.half, room, rows);
        for (int64_t h = 0; h < group; h++)
            dots(a.q + (first_head + h) * a.dim, rows, n, a.dim, mine.shares.data() + h * KEYS);
        rows_of(v, at, n, a.v_steps[2], a.dim_v, a.half, room, rows);
        for (int64_t h = 0; h < group; h++) {
            float* shares = mine.shares.data() + h * KEYS;
            const float kept = share(shares, n, a.scale, mine.most[h], mine.all[h]);
            add_rows(shares, rows, n, a.dim_v, kept, out + h * a.dim_v);
        }
    }
    for (int64_t h = 0; h < group; h++)
        for (int64_t i = 0; i < a.dim_v; i++)
            out[h * a.dim_v + i] /= mine.all[h] > 0 ? mine.all[h] : 1;
}

// w x / sqrt(mean of x^2 + epsilon), rounded where transformers rounds it: before and after w.
ALPHAQ_TARGET void norm(const void* x, const void* w, int64_t n, float epsilon, int half,
                        void* y) {
    const uint16_t *x16 = (const uint16_t*)x, *w16 = (const uint16_t*)w;
    float all[8] = {};
    for (int64_t i = 0; i + 8 <= n; i += 8) UNROLL for (int j = 0; j < 8; j++) {
        const float v = half ? from_bfloat16(x16[i + j]) : ((const float*)x)[i + j];
        all[j] += v * v;
    }
    for (int64_t i = n - n % 8; i < n; i++) {
        const float v = half ? from_bfloat16(x16[i]) : ((const float*)x)[i];
        all[0] += v * v;
    }
    for (int j = 1; j < 8; j++) all[0] += all[j];
    const float by = 1.f / std::sqrt(all[0] / (float)n + epsilon);
    if (half) for (int64_t i = 0; i < n; i++)
        ((uint16_t*)y)[i] = to_bfloat16(
            from_bfloat16(to_bfloat16(from_bfloat16(x16[i]) * by)) * from_bfloat16(w16[i]));
    else for (int64_t i = 0; i < n; i++)
        ((float*)y)[i] = ((const float*)x)[i] * by * ((const float*)w)[i];
}

// Activations of a group as int8 times a step. What is not finite makes the whole group NaN.
ALPHAQ_TARGET void quantize_group(const float* x, int64_t n, int8_t* codes, float* step,
                                  float* sum) {
    // the bits of positive floats are in the order of their values
    uint32_t bits = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t size;
        std::memcpy(&size, x + i, 4);
        bits = std::max(bits, size & 0x7fffffffu);
    }
    float most;
    std::memcpy(&most, &bits, 4);
    *step = bits >= 0x7f800000u ? NAN : most < 256 * FLT_MIN ? 0.f : most / 127.f;
    const float inverse = *step > 0 ? 127.f / most : 0.f;
    int total = 0;
    for (int64_t i = 0; i < n; i++) {
        const int code = inverse > 0 ? (int)std::nearbyint(x[i] * inverse) : 0;
        codes[i] = (int8_t)code;
        total += code;
    }
    *sum = *step * (float)total * .0625f;
}

// Whether eight bits take more than a share ROUGH of a token's activations away. The step of a
// group is that of its largest value; where one is far above the others, they are lost.
ALPHAQ_TARGET bool is_rough(const float* x, int64_t cols, const float* step, int64_t groups) {
    float lost = 0;  // twelve times the mean square of what rounding adds, over groups
    for (int64_t g = 0; g < groups; g++) lost += step[g] * step[g];
    float all[8] = {};
    for (int64_t i = 0; i + 8 <= cols; i += 8)
        UNROLL for (int j = 0; j < 8; j++) all[j] += x[i + j] * x[i + j];
    for (int64_t i = cols - cols % 8; i < cols; i++) all[0] += x[i] * x[i];
    for (int j = 1; j < 8; j++) all[0] += all[j];
    return lost * (float)(cols / groups) > 12 * ROUGH * ROUGH * all[0];
}

// Numbers as a row of the activations.
ALPHAQ_TARGET void quantize_row(Activations& x, const float* from, int64_t row) {
    for (int64_t g = 0; g < x.groups; g++)
        quantize_group(from + g * x.group, x.group, x.codes.data() + row * x.cols + g * x.group,
                       &x.step[row * x.groups + g], &x.sum[row * x.eights + g]);
    for (int64_t g = x.groups; g < x.eights; g++) x.sum[row * x.eights + g] = 0;
}

// What a token's codes leave of it.
ALPHAQ_TARGET void left_of(const Activations& x, int64_t token, float* left) {
    for (int64_t g = 0; g < x.groups; g++) {
        const float step = x.step[token * x.groups + g];
        for (int64_t i = g * x.group; i < (g + 1) * x.group; i++)
            left[i] = x.x[token * x.cols + i] - step * (float)x.codes[token * x.cols + i];
    }
}

ALPHAQ_TARGET void quantize(Activations& x, int64_t token, Mode mode) {
    const float* from = x.x + token * x.cols;
    if (mode == FAST) {
        quantize_row(x, from, token);
        x.rough[token] = is_rough(from, x.cols, &x.step[token * x.groups], x.groups);
        if (!x.rough[token]) return;
        Scratch& mine = scratch();
        mine.left.resize(x.cols);
        left_of(x, token, mine.left.data());
        quantize_row(x, mine.left.data(), x.tokens + token);
    }
    for (int64_t g = 0; g < x.eights; g++) {
        double sum = 0;
        for (int64_t i = g * x.group; i < std::min(x.cols, (g + 1) * x.group); i++) sum += from[i];
        x.plain_sum[token * x.eights + g] = (float)sum * .0625f;
    }
}

ALPHAQ_TARGET void tile_apart(const Matrix& m, const Shape& shape, int64_t tile,
                              const Activations& x, const int64_t* tokens,
                              const std::vector<int64_t>& places, Mode mode, Scratch& mine,
                              float* y) {
    if (places.empty()) return;
    const Layout at((int)m.bits, shape.cols);
    const int64_t rows = std::min<int64_t>(TILE, shape.rows - tile * TILE), groups = x.groups;
    const int64_t together = std::max<int64_t>(1, VECTOR_WORDS / at.slice);
    mine.codes.resize(together * at.padded);
    for (int64_t first = 0; first < rows; first += together) {
        const int64_t some = std::min(together, rows - first);
        take_apart_for(m.bits)(m.words + tile * at.tile_words, rows, first, some, at,
                               mine.codes.data());
        for (int64_t r = first; r < first + some; r++)
            for (const int64_t i : places) {
                const int64_t t = tokens[i];
                const uint8_t* q = mine.codes.data() + (r - first) * at.padded;
                const float* scale = mine.scale.data() + r * groups;
                const bool whole = mode == FAST && !x.rough[t];
                const float* sum = (whole ? x.sum : x.plain_sum).data() + t * x.eights;
                const float inner = whole
                    ? multiply_row(q, x.codes.data() + t * x.cols, x.step.data() + t * groups,
                                   scale, groups, x.group)
                    : multiply_row(q, x.x + t * x.cols, (const float*)nullptr, scale, groups,
                                   x.group);
                y[i * TILE + r] = inner - zero_part(mine.taken.data() + r * groups, sum, groups);
            }
    }
}

// A token in two parts.
void tile_twice(const Matrix& m, const Shape& shape, int64_t tile, const Activations& x,
                int64_t token, const Scratch& mine, float* y) {
    float rest[TILE];
    const int64_t who[2] = {token, x.tokens + token};
    float* const to[2] = {y, rest};
    if (x.walk[m.bits].regular) tile_direct<2>(m, shape, tile, x, who, mine, to);
    else for (int t = 0; t < 2; t++) tile_direct<1>(m, shape, tile, x, who + t, mine, to + t);
    for (int64_t r = 0; r < std::min<int64_t>(TILE, shape.rows - tile * TILE); r++) y[r] += rest[r];
}

// Scales and zero points of a matrix's next tile: streams too short for a processor to foresee. What
// lies behind the last tile is asked for in vain.
void ask_for_grid(const Matrix& m, int64_t from, int64_t cells) {
    const char *scale = (const char*)(m.scale + from), *zero = (const char*)(m.zero + from);
    for (int64_t i = 0; i < 2 * cells; i += 64) __builtin_prefetch(scale + i, 0, 2);
    for (int64_t i = 0; i < cells; i += 64) __builtin_prefetch(zero + i, 0, 2);
}

// Cells of a grid as numbers: scales, and what zero points take away of a sum of activations.
ALPHAQ_TARGET void take_grid(const Matrix& m, int64_t from, int64_t cells, Scratch& mine) {
    ask_for_grid(m, from + cells, cells);
    mine.scale.resize(cells);
    mine.taken.resize(cells + 8);
    float *scale = mine.scale.data(), *taken = mine.taken.data();
    halves_to_floats(m.scale + from, cells, scale);
    for (int64_t i = 0; i < cells; i++) taken[i] = scale[i] * (float)m.zero[from + i];
    std::fill(taken + cells, taken + cells + 8, 0.f);
}

void tile(const Matrix& m, const Shape& shape, int64_t tile, const Activations& x,
          const int64_t* tokens, int64_t count, Mode mode, float* y) {
    Scratch& mine = scratch();
    take_grid(m, tile * TILE * x.groups,
              std::min<int64_t>(TILE, shape.rows - tile * TILE) * x.groups, mine);
    const Walk& way = x.walk[m.bits];
    const bool direct = !x.ordered[m.bits].empty()
                        && std::min<int64_t>(TILE, shape.rows - tile * TILE) % way.together == 0;
    mine.direct.clear();
    mine.twice.clear();
    mine.apart.clear();
    for (int64_t i = 0; i < count; i++)
        (!direct ? mine.apart : x.rough[tokens[i]] ? mine.twice : mine.direct).push_back(i);
    tile_apart(m, shape, tile, x, tokens, mine.apart, mode, mine, y);
    for (int64_t i : mine.twice) tile_twice(m, shape, tile, x, tokens[i], mine, y + i * TILE);
    const int64_t n = (int64_t)mine.direct.size();
    for (int64_t i = 0; i < n;) {
        const int64_t* at = mine.direct.data() + i;
        const bool two = i + 2 <= n;
        const int64_t who[2] = {tokens[at[0]], tokens[at[two]]};
        float* const to[2] = {y + at[0] * TILE, y + at[two] * TILE};
        i += two && way.regular ? 2 : 1;
        if (two && way.regular) tile_direct<2>(m, shape, tile, x, who, mine, to);
        else tile_direct<1>(m, shape, tile, x, who, mine, to);
    }
}

const uint8_t* codes_of_row(const Matrix& m, const Shape& shape, int64_t row) {
    const Layout at((int)m.bits, shape.cols);
    const int64_t tile = row / TILE, rows = std::min<int64_t>(TILE, shape.rows - tile * TILE);
    Scratch& mine = scratch();
    mine.codes.resize(at.padded);
    take_apart_for(m.bits)(m.words + tile * at.tile_words, rows, row % TILE, 1, at,
                           mine.codes.data());
    return mine.codes.data();
}

struct Grid { float scale, zero; };
Grid grid_of(const Matrix& m, int64_t group) {
    return {half_to_float(m.scale[group]), (float)m.zero[group] * .0625f};
}

// One row as weights: scale times the difference of code and zero point, rounded once.
ALPHAQ_TARGET void dequantize(const Matrix& m, const Shape& shape, int64_t row, float* out) {
    const uint8_t* codes = codes_of_row(m, shape, row);
    for (int64_t g = 0; g < shape.groups(); g++) {
        const auto [scale, zero] = grid_of(m, row * shape.groups() + g);
        for (int64_t i = g * shape.group; i < (g + 1) * shape.group; i++)
            out[i] = scale * ((float)codes[i] - zero);
    }
}

// The same as bfloat16, rounded once more. A group has sixteen of them at most: they are looked up.
ALPHAQ_TARGET void dequantize16(const Matrix& m, const Shape& shape, int64_t row, uint16_t* out) {
    const uint8_t* codes = codes_of_row(m, shape, row);
    for (int64_t g = 0; g < shape.groups(); g++) {
        const auto [scale, zero] = grid_of(m, row * shape.groups() + g);
        int64_t i = g * shape.group;
        const int64_t end = i + shape.group;
#if ALPHAQ_VECTORS
        const Lookup by = lookup_of(scale, zero);
        for (; i + 32 <= end; i += 32) look_up(by, codes + i, out + i);
#endif
        for (; i < end; i++) out[i] = to_bfloat16(scale * ((float)codes[i] - zero));
    }
}

const Kernels kernels = {ALPHAQ_VECTORS != 0, quantize, tile, panels, gated, dequantize,
                         dequantize16, dot16, attend, norm, read};

}  // namespace ALPHAQ_SET
}  // namespace

#undef ALPHAQ_SET
#undef ALPHAQ_VECTORS
#undef ALPHAQ_REGISTERS
#undef ALPHAQ_TARGET
#undef ALPHAQ_DOT

#endif
