// Runs the kernel on cases from a file, so that a sanitizer can watch it in a process of its own.
// Every buffer has exactly the size that the format says, each in an allocation of its own.
//
// A case is eight int64 (bits, rows, cols, group, tokens, mode, threads, set), then words, scale,
// zero and x; answers are float32 [tokens, rows], and [rows, cols] weights.

#include "../alphaq/cpu.cpp"

#include <cstdio>
#include <memory>

template <class T>
std::unique_ptr<T[]> read_some(FILE* from, int64_t n) {
    std::unique_ptr<T[]> data(new T[n]);
    if (fread(data.get(), sizeof(T), n, from) != (size_t)n) exit(3);
    return data;
}

int main(int, char** names) {
    FILE* in = fopen(names[1], "rb");
    FILE* out = fopen(names[2], "wb");
    int64_t c[8];
    while (fread(c, sizeof *c, 8, in) == 8) {
        const auto [bits, rows, cols, group, tokens, mode, threads, set] = c;
        const Layout at((int)bits, cols);
        const int64_t grid = rows * (cols / group);
        const auto words = read_some<uint16_t>(in, rows * at.padded * bits / 16);
        const auto scale = read_some<uint16_t>(in, grid);
        const auto zero = read_some<uint8_t>(in, grid);
        const auto x = read_some<float>(in, tokens * cols);
        const Matrix m{words.get(), scale.get(), zero.get(), bits};
        std::unique_ptr<float[]> y(new float[tokens * rows]), w(new float[rows * cols]);
        std::unique_ptr<uint16_t[]> half(new uint16_t[rows * cols]);
        if (alphaq_linear(&m, rows, cols, group, x.get(), tokens, y.get(), (int)mode, (int)threads,
                          (int)set)) return 4;
        if (alphaq_dequantize(&m, rows, cols, group, 0, rows, w.get(), 0, (int)threads, (int)set))
            return 5;
        if (alphaq_dequantize(&m, rows, cols, group, 0, rows, half.get(), 1, (int)threads, (int)set))
            return 6;
        fwrite(y.get(), sizeof(float), tokens * rows, out);
        fwrite(w.get(), sizeof(float), rows * cols, out);
        for (int64_t i = 0; i < rows * cols; i++) {
            const uint32_t wide = (uint32_t)half[i] << 16;
            memcpy(&w[i], &wide, sizeof wide);
        }
        fwrite(w.get(), sizeof(float), rows * cols, out);
    }
    return fclose(out);
}
