// Runs the kernel on cases from a file, so that a sanitizer can watch it in a process of its own.
// Every buffer has exactly the size that the format says, each in an allocation of its own.
//
// A case of products is eight int64 (bits, rows, cols, group, tokens, mode, threads, set), then
// words, scale, zero and x; answers are float32 [tokens, rows], [rows, cols] weights, the same as
// bfloat16, and [rows], the product of these with the first token. A case of layers is nine int64
// (experts, hidden, inner, group of hidden, group of inner, tokens, mode, threads, set), then gate,
// up and down of each expert, each as its bits, words, scale and zero, then x, two experts of each
// token and their weights; its answer is [tokens, hidden]. A case of texts is nine int64 (texts,
// heads, shared heads, tokens, dim, dim of values, half, threads, set), then q, keys, values, as
// float32 or bfloat16, and a mask; its answers are [texts, heads, dim of values], asked of all and
// under the mask, and the norm of the keys, weighed by the first.

#include "../alphaq/cpu.cpp"

#include <cstdio>
#include <memory>

template <class T>
std::unique_ptr<T[]> read_some(FILE* from, int64_t n) {
    std::unique_ptr<T[]> data(new T[n]);
    if (fread(data.get(), sizeof(T), n, from) != (size_t)n) exit(3);
    return data;
}

// A matrix and its memory.
struct Held {
    std::unique_ptr<uint16_t[]> words, scale;
    std::unique_ptr<uint8_t[]> zero;
    Matrix m;

    Held(FILE* in, int64_t bits, int64_t rows, int64_t cols, int64_t group)
        : words(read_some<uint16_t>(in, rows * Layout((int)bits, cols).padded * bits / 16)),
          scale(read_some<uint16_t>(in, rows * (cols / group))),
          zero(read_some<uint8_t>(in, rows * (cols / group))),
          m{words.get(), scale.get(), zero.get(), bits} {}
};

int products(FILE* in, FILE* out) {
    int64_t c[8];
    while (fread(c, sizeof *c, 8, in) == 8) {
        const auto [bits, rows, cols, group, tokens, mode, threads, set] = c;
        const Held held(in, bits, rows, cols, group);
        const auto x = read_some<float>(in, tokens * cols);
        std::unique_ptr<float[]> y(new float[tokens * rows]), w(new float[rows * cols]);
        std::unique_ptr<uint16_t[]> half(new uint16_t[rows * cols]);
        if (alphaq_linear(&held.m, rows, cols, group, x.get(), tokens, y.get(), (int)mode,
                          (int)threads, (int)set)) return 4;
        fwrite(y.get(), sizeof(float), tokens * rows, out);
        for (int kind = 0; kind < 2; kind++) {
            void* const to = kind ? (void*)half.get() : w.get();
            if (alphaq_dequantize(&held.m, rows, cols, group, 0, rows, to, kind, (int)threads,
                                  (int)set)) return 5 + kind;
            if (kind) for (int64_t i = 0; i < rows * cols; i++) {
                const uint32_t wide = (uint32_t)half[i] << 16;
                memcpy(&w[i], &wide, sizeof wide);
            }
            fwrite(w.get(), sizeof(float), rows * cols, out);
        }
        y.reset(new float[rows]);
        if (alphaq_linear16(half.get(), rows, cols, x.get(), y.get(), (int)threads, (int)set))
            return 7;
        fwrite(y.get(), sizeof(float), rows, out);
    }
    return 0;
}

int layers(FILE* in, FILE* out) {
    int64_t c[9];
    while (fread(c, sizeof *c, 9, in) == 9) {
        const auto [experts, hidden, inner, of_hidden, of_inner, tokens, mode, threads, set] = c;
        std::vector<Held> held;
        std::unique_ptr<Matrix[]> matrices(new Matrix[3 * experts]);
        for (int64_t i = 0; i < 3 * experts; i++) {
            const bool down = i >= 2 * experts;
            const int64_t bits = read_some<int64_t>(in, 1)[0];
            held.emplace_back(in, bits, down ? hidden : inner, down ? inner : hidden,
                              down ? of_inner : of_hidden);
            matrices[i] = held.back().m;
        }
        const auto x = read_some<float>(in, tokens * hidden);
        const auto index = read_some<int64_t>(in, 2 * tokens);
        const auto weights = read_some<float>(in, 2 * tokens);
        std::unique_ptr<float[]> y(new float[tokens * hidden]);
        if (alphaq_experts(matrices.get(), experts, hidden, inner, of_hidden, of_inner, x.get(),
                           tokens, index.get(), weights.get(), 2, y.get(), (int)mode, (int)threads,
                           (int)set)) return 8;
        fwrite(y.get(), sizeof(float), tokens * hidden, out);
    }
    return 0;
}

int texts(FILE* in, FILE* out) {
    int64_t c[9];
    while (fread(c, sizeof *c, 9, in) == 9) {
        const auto [texts, heads, shared, count, dim, dim_v, half, threads, set] = c;
        const int64_t size = half ? 2 : 4, rows = texts * shared * count;
        const auto q = read_some<float>(in, texts * heads * dim);
        const auto k = read_some<char>(in, size * rows * dim);
        const auto v = read_some<char>(in, size * rows * dim_v);
        const auto mask = read_some<uint8_t>(in, texts * count);
        const int64_t sizes[12] = {texts, heads, shared, count, dim, dim_v,
                                   shared * count * dim, count * dim, dim,
                                   shared * count * dim_v, count * dim_v, dim_v};
        std::unique_ptr<float[]> y(new float[texts * heads * dim_v]);
        for (const uint8_t* m : {(const uint8_t*)nullptr, (const uint8_t*)mask.get()}) {
            if (alphaq_attend(q.get(), k.get(), v.get(), m, sizes, (int)half, .25f, y.get(),
                              (int)threads, (int)set)) return 10;
            fwrite(y.get(), sizeof(float), texts * heads * dim_v, out);
        }
        std::unique_ptr<char[]> scaled(new char[size * rows * dim]);
        if (alphaq_norm(k.get(), k.get(), rows, dim, 1e-5f, (int)half, scaled.get(), (int)threads,
                        (int)set)) return 11;
        for (int64_t i = 0; i < rows * dim; i++) {
            float wide = ((float*)scaled.get())[half ? 0 : i];
            if (half) wide = from_bfloat16(((uint16_t*)scaled.get())[i]);
            fwrite(&wide, sizeof wide, 1, out);
        }
    }
    return 0;
}

int main(int, char** names) {
    FILE* in = fopen(names[1], "rb");
    FILE* out = fopen(names[2], "wb");
    const int failed = names[3][0] == 'l' ? layers(in, out)
                     : names[3][0] == 't' ? texts(in, out) : products(in, out);
    return fclose(out) ? 9 : failed;
}
