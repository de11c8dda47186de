"The CPU kernel: random cases, under sanitizers, with planted faults, and tables that do not fit."
import random, shutil, subprocess, sys
from collections import Counter

import numpy as np
import pytest
import torch

from alphaq import cpu
from alphaq.core import AlphaqError
from alphaq.cpu import SETS
from alphaq.native import compilers
from alphaq.pack import pack_codes, word_count
from conftest import ROOT

CXX = (compilers() or [None])[0]
needs_compiler = pytest.mark.skipif(CXX is None, reason='no C++ compiler')
COLS = (2048, 1408, 2880, 576, 768, 512, 1024, 150, 37, 20, 960, 96, 256, 48)
GROUPS = (16, 32, 48, 64, 96, 128, 256)

def one(bits, shape, group, rng):
    "Random words, scales, zero points, and the weights they stand for in float64."
    gen = torch.Generator().manual_seed(rng.randrange(2**31))
    groups = shape[1] // group
    codes = torch.randint(2**bits, shape, generator=gen)
    scale = ((torch.rand(shape[0], groups, generator=gen) + .5) * .02).half()
    zero = torch.randint(16 * (2**bits - 1) + 1, (shape[0], groups), generator=gen).to(torch.uint8)
    weights = scale.double()[..., None] * (codes.double().unflatten(1, (groups, -1)) - zero.double()[..., None] / 16)
    return (pack_codes(codes, bits), scale, zero), weights.flatten(1)

def shapes(count, rng, rows=140):
    "Random shapes: columns of real models and odd ones, every group that divides them."
    for _ in range(count):
        cols = rng.choice(COLS)
        yield (rng.randint(1, rows), cols), rng.choice([g for g in GROUPS if cols % g == 0] + [cols])

def inputs(tokens, cols, group, rng):
    "Activations that are int8 codes times a step, and others times a 300th of it, already; in some, one is 300 times the others."
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    x[:, rng.randrange(cols)] *= rng.choice((1, 300))
    codes, step = cpu.quantize_activations(x, group)
    codes, rest = codes.clamp(-126, 126), codes.flip(0, 2)
    codes[..., 0], rest[..., 0], rest[..., 1] = cpu.INT8, 0, cpu.INT8  # so that quantizing again gives the same codes
    return ((codes + rest / 300.) * step[..., None]).flatten(1)

def relative(found, truth): return ((found.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()

def sets(library): return [n for i, n in enumerate(cpu.SETS) if library.alphaq_has_set(i)]

def layer_truth(x, weights, index, w):
    "The layer in float64, slot by slot."
    gate, up, down = weights
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, row in enumerate(index.tolist()):
        for e, v in zip(row, w[t].tolist()):
            if e == len(gate): continue
            h = torch.nn.functional.silu(gate[e] @ x[t].double()) * (up[e] @ x[t].double())
            out[t] += v * (down[e] @ h)
    return out

def arena(count, shape, group, rng):
    "Random matrices of mixed widths, one after the other, and their weights."
    widths = [rng.randint(1, 4) for _ in range(count)]
    return widths, *zip(*(one(b, shape, group, rng) for b in widths))

def layer(rng):
    "A random layer: sides, arenas, inputs and slots; nobody, everybody and no expert at all are visited."
    ((inner, hidden), group) = next(shapes(1, rng, 96))
    other = rng.choice([g for g in GROUPS if inner % g == 0] + [inner])
    experts, tokens = rng.randint(1, 5), rng.choice((1, 1, 2, 5, 9, 30))
    grids = ((inner, hidden), group), ((inner, hidden), group), ((hidden, inner), other)
    index = torch.tensor([[rng.choice((0, rng.randrange(experts + 1))) for _ in 'ab'] for _ in range(tokens)])
    gen = torch.Generator().manual_seed(rng.randrange(2**31))
    x, w = torch.randn(tokens, hidden, generator=gen), torch.rand(tokens, 2, generator=gen)
    return (experts, hidden, inner, group, other, tokens), grids, [arena(experts, s, g, rng) for s, g in grids], (x, index, w)

def table(widths, made, shape, group):
    "An arena as the kernel reads it."
    words, scale, zero = zip(*made)
    return cpu.arena_table(torch.cat(words), torch.stack(scale), torch.stack(zero), widths, shape, group)

@needs_compiler
def test_three_hundred_layers():
    "Experts with mixed widths, by every instruction set."
    rng = random.Random(0)
    for n in range(300):
        _, grids, arenas, (x, index, w) = layer(rng)
        tables = cpu.expert_tables(*(table(widths, made, *grid) for (widths, made, _), grid in zip(arenas, grids)))
        truth = layer_truth(x, [weights for *_, weights in arenas], index, w)
        for name in sets(cpu.kernel()):
            assert relative(cpu.experts(x, tables, index, w, 'exact', instructions=name), truth) < 1e-5, (n, name, grids)
            alone, four = (cpu.experts(x, tables, index, w, 'fast', threads, name) for threads in (1, 4))
            assert torch.equal(alone, four), (n, name, grids)
            assert relative(alone, truth) < .08, (n, name, grids)

def build_cases(folder, *flags, compiler=CXX):
    "`cpu_cases.cpp` as a program, or None where this machine cannot build it so."
    done = subprocess.run([*compiler, '-std=c++17', '-pthread', *flags, '-o', folder/'cases', ROOT/'tests/cpu_cases.cpp'], capture_output=True)
    return None if done.returncode else folder/'cases'

def run_cases(program, cases, kind='products', under=()):
    "What the program answers."
    into, out = program.with_name('in'), program.with_name('out')
    with open(into, 'wb') as f:
        for numbers, tensors, *inputs in cases:
            f.write(np.array(numbers, np.int64).tobytes())
            for t in (*tensors, *inputs): f.write(t.contiguous().numpy().tobytes())
    ran = subprocess.run([*under, program, into, out, kind], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return np.fromfile(out, np.float32)

def cases_of(numbers, seed=1):
    "Cases from `(bits, shape, group, tokens, mode, threads, set)`, and what is meant by each: product and weights."
    rng = random.Random(seed)
    for bits, shape, group, tokens, mode, threads, number in numbers:
        tensors, W = one(bits, shape, group, rng)
        x = inputs(tokens, shape[1], group, rng)
        meant = x.double() @ W.T
        if mode: meant = torch.where(cpu.rough_tokens(x, group)[:, None], cpu.int8_product(x, W, group, 2)[0], cpu.int8_product(x, W, group)[0])
        yield ((bits, *shape, group, tokens, mode, threads, number), tensors, x), meant, W, x[0].double() @ W.bfloat16().double().T

def random_numbers(count, sets, seed=1):
    "Numbers of random cases: every width, mode and instruction set in turn."
    rng = random.Random(seed)
    for n, (shape, group) in enumerate(shapes(count, rng, 70)):
        yield 1 + n % 4, shape, group, rng.choice((1, 2, 4, 7, 11, 23)), n // 4 % 2, rng.choice((1, 3)), sets[n // 8 % len(sets)]

def disagree(program, made, **how):
    "How many cases differ from what is meant."
    answers, count, at = run_cases(program, [case for case, *_ in made], **how), 0, 0
    for _, meant, W, of_half in made:
        sizes = meant.numel(), W.numel(), W.numel(), len(W)
        y, w, half, one = torch.from_numpy(answers[at:at + sum(sizes)].copy()).split(sizes)
        at += sum(sizes)
        count += not (relative(y.view_as(meant), meant) < 1e-5 and relative(w.view_as(W), W) < 1e-6
                      and torch.equal(half, w.bfloat16().float()) and relative(one, of_half) < 1e-5)
    assert at == len(answers)
    return count

def layer_cases(count, sets, seed=2):
    "Layers as cases, in every mode and instruction set in turn, and what is meant by each."
    rng = random.Random(seed)
    for n in range(count):
        numbers, _, arenas, inputs = layer(rng)
        tensors = [t for widths, made, _ in arenas for b, matrix in zip(widths, made) for t in (torch.tensor([b]), *matrix)]
        mode = n % 2
        yield ((*numbers, mode, rng.choice((1, 3)), sets[n // 2 % len(sets)]), tensors, *inputs), mode, layer_truth(
            inputs[0], [weights for *_, weights in arenas], *inputs[1:])

def layers_disagree(program, made, **how):
    "How many layers differ from what is meant."
    parts = torch.from_numpy(run_cases(program, [case for case, *_ in made], 'layers', **how)).split([truth.numel() for *_, truth in made])
    return sum(not relative(y.view_as(truth), truth) < (.08 if mode else 1e-5) for y, (_, mode, truth) in zip(parts, made))

def text_cases(count, sets, seed=3):
    "Texts that one token asks, in either type and every instruction set in turn, and what is meant: asked of all, under a mask, and a norm."
    rng = random.Random(seed)
    for n in range(count):
        gen = torch.Generator().manual_seed(rng.randrange(2**31))
        shared, group, tokens, dim, wide = (rng.choice(some) for some in ((1, 2, 3), (1, 2, 5), (1, 7, 32, 33, 100), (8, 64, 72), (8, 128, 24)))
        texts, half = rng.choice((1, 3)), n % 2
        q = torch.randn(texts, shared * group, dim, generator=gen) * rng.choice((1, 1, 30))
        K, V = (torch.randn(texts, shared, tokens, d, generator=gen).to(torch.bfloat16 if half else torch.float32) for d in (dim, wide))
        mask = torch.rand(texts, tokens, generator=gen) < .6
        mask[1:, rng.randrange(tokens)] = True  # of the first text, maybe nothing
        s = torch.einsum('bsgd,bstd->bsgt', q.double().unflatten(1, (shared, group)), K.double()) / 4
        asked = [torch.einsum('bsgt,bstd->bsgd', s.masked_fill(~m[:, None, None], -torch.inf).softmax(-1).nan_to_num(), V.double())
                 for m in (torch.ones_like(mask), mask)]
        x, W = K.double(), K[0, 0, 0].double()
        norm = W * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)).to(K.dtype).double()
        raw = [t.view(torch.int16) if half else t for t in (K, V)]
        yield (((texts, shared * group, shared, tokens, dim, wide, half, rng.choice((1, 3)), sets[n // 2 % len(sets)]), [q, *raw], mask.to(torch.uint8)),
               [*asked, norm], half)

def texts_disagree(program, made, **how):
    "How many texts differ from what is meant."
    sizes = [t.numel() for _, truths, _ in made for t in truths]
    parts = iter(torch.from_numpy(run_cases(program, [case for case, *_ in made], 'texts', **how)).split(sizes))
    def differs(y, t, half): # a rounding of bfloat16 may fall otherwise where a sum did
        return (y != t.bfloat16().float()).float().mean() > .02 if half else not relative(y, t) < 1e-5
    return sum(any([differs(y.view_as(t), t, half and i == 2) for i, (t, y) in enumerate(zip(truths, parts))]) for _, truths, half in made)

WATCHED = '-O1', '-g', '-DALPHAQ_EMULATE', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'

@needs_compiler
def test_under_sanitizers(tmp_path):
    "Addresses and undefined behaviour are watched; buffers have exactly their size. VNNI's walk runs with the instruction emulated."
    there = (0, 1, 2, 3) if cpu.kernel().alphaq_best_set() else (0,)
    program = build_cases(tmp_path, *WATCHED)
    if program is None: pytest.skip('this compiler has no sanitizers')
    assert disagree(program, [*cases_of(random_numbers(120, there))]) == 0
    assert layers_disagree(program, [*layer_cases(60, there)]) == 0
    assert texts_disagree(program, [*text_cases(80, there)]) == 0

ARM = 'aarch64-linux-gnu-g++', 'qemu-aarch64'  # packages g++-aarch64-linux-gnu and qemu-user

@pytest.mark.skipif(not all(map(shutil.which, ARM)), reason='no compiler and emulator for ARM')
def test_on_arm(tmp_path):
    "The same cases by the vectors of ARM, and by its oracle, emulated."
    there = SETS.index('scalar'), SETS.index('neon')
    program, under = build_cases(tmp_path, '-O2', '-static', compiler=ARM[:1]), (ARM[1], '-cpu', 'max')
    assert disagree(program, [*cases_of(random_numbers(96, there))], under=under) == 0
    assert layers_disagree(program, [*layer_cases(32, there)], under=under) == 0
    assert texts_disagree(program, [*text_cases(40, there)], under=under) == 0

FAULTS = {
    'half': ('_mm256_set1_epi32(0x7fff), odd', '_mm256_setzero_si256(), odd'),
    'lookup': ('_mm256_permute2x128_si256(a, b, 0x31)', 'b'),
    'shift': ('field(w[0], B * p,', 'field(w[0], B * p + (p == 1),'),
    'place': ('place_of(B, p)));', 'place_of(B, p) << (p == 1)));'),
    'step': ('1 << place_of(bits, p)', '1 << place_of(bits, 0)'),
    'mask': ('0x0e07', '0x0e03'),
    'plane': ('field(w[1], 5, 0x0400)', 'field(w[0], 5, 0x0400)'),
    'zero': ('(float)m.zero[from + i];', '(float)m.zero[from];'),
    'taken': ('mine.taken.data() + r * groups, of_groups', 'mine.taken.data(), of_groups'),
    'eights': ('x.sum[row * x.eights + g] = 0', 'x.sum[row * x.eights + g] = 9'),
    'group': ('b * (block / group) + f * V / group', 'b * (block / group)'),
    'tile': ('m.words + tile * at.tile_words, rows, at, way', 'm.words, rows, at, way'),
    'token': ('load(x[t] + 32', 'load(x[t & 2] + 32'),
    'steps': ('load_floats(steps[t] + 8 * all)', 'load_floats(steps[0] + 8 * all)'),
    'beside': ('scales_of_rows(of_group + r * groups,', 'scales_of_rows(of_group,'),
    'block': ('scale + way.low[b]', 'scale + way.low[0]'),
    'lanes': ('lanes + j * LANES', 'lanes'),
    'left': ('x.x[token * x.cols + i] - step', 'x.x[token * x.cols + i] + step'),
    'rest': ('y[r] += rest[r]', 'y[r] += rest[0]'),
    'turn': ('_mm256_permute2x128_si256(b[i], b[i + 4], 0x31)', 'b[i + 4]'),
    'quad': ('four_bytes(x[t] + 4 * q)', 'four_bytes(x[t & 2] + 4 * q)'),
    'run': ('added(sums[i / V][i % V], widened', 'added(no_bytes(), widened'),
    'column': ('zero[r] = (float)m.zero[from + r * groups + g]', 'zero[r] = (float)m.zero[from + r * groups]'),
    'once': ('last ? x.sum[row', 'true ? x.sum[row'),
    'gap': ('slice == 128 ? std::min(stop, (input / slice + 1) * slice)', 'slice < 0 ? 0'),
    'short': ('std::memcpy(panel + at.place(k) + 4 * (first + r)', 'std::memcpy(panel + at.place(k) + 4 * first'),
    'part': ('mine.who.push_back(tokens[i] + part * x.tokens)', 'mine.who.push_back(tokens[i])'),
    'sixteen': ('load_floats(x + i + 8 * j), sum[j]', 'load_floats(x + i), sum[j]'),
    'kept': ('all *= kept', 'all *= 1'),
    'largest': ('largest = std::max(largest, v)', 'largest = v'),
    'filled': ('std::fill(shares + count, shares + eights, 0.f)', 'std::fill(shares, shares, 0.f)'),
    'unasked': ('a.mask[text * a.count + next]', 'a.mask[next]'),
    'head': ('shared_head * a.v_steps[1]', 'shared_head * a.k_steps[1]'),
    'asker': ('a.q + (first_head + h) * a.dim', 'a.q + first_head * a.dim'),
    'mean': ('UNROLL for (int j = 0; j < 8; j++) {\n        const float v', 'UNROLL for (int j = 0; j < 7; j++) {\n        const float v'),
    'rounding': ('from_bfloat16(to_bfloat16(from_bfloat16(x16[i]) * by))', '(from_bfloat16(x16[i]) * by)'),
    'oracle': ('words[step] >> 15 << 1', 'words[step] >> 14 << 1'),
}

@needs_compiler
@pytest.mark.parametrize('fault', FAULTS)
def test_faults_are_seen(fault, tmp_path, monkeypatch):
    "A wrong shift, mask, plane, zero point or group in the source changes what the cases say."
    if cpu.kernel().alphaq_best_set() == 0 and fault != 'oracle': pytest.skip('the faults are in the kernel for AVX2')
    text = (ROOT/'alphaq/cpu.cpp').read_text()
    old, new = FAULTS[fault]
    if old not in text: pytest.fail(f'{fault}: the source no longer says {old!r}')
    (tmp_path/'alphaq').mkdir(); (tmp_path/'tests').mkdir()
    (tmp_path/'alphaq/cpu.cpp').write_text(text.replace(old, new))
    shutil.copy(ROOT/'tests/cpu_cases.cpp', tmp_path/'tests')
    monkeypatch.setattr('test_cpu.ROOT', tmp_path)
    number = 0 if fault == 'oracle' else 1
    made = [*cases_of((bits, (70, cols), group, tokens, 1, 1, number) for bits in (1, 2, 3, 4)
                      for cols, tokens, group in ((768, 1, 128), (1024, 1, 128), (1408, 1, 128), (1024, 2, 128), (1408, 4, 128),
                                                  (1024, 11, 256), (1408, 11, 128)))]
    program = build_cases(tmp_path, '-O1', '-DALPHAQ_FEW')
    assert disagree(program, made) + texts_disagree(program, [*text_cases(24, (number,))])

@needs_compiler
def test_threads_that_come_late(tmp_path):
    "Our own team, two and three threads in turn, where the third looks late: each round is worked on once, and ends."
    made = tmp_path/'late.so'
    subprocess.run([*CXX, '-std=c++17', '-O1', '-pthread', '-shared', '-fPIC', '-DALPHAQ_FEW', '-DALPHAQ_HESITATE', '-o', made, ROOT/'alphaq/cpu.cpp'], check=True)
    code = ('import sys, torch; from pathlib import Path; from alphaq import cpu; from alphaq.lab.bounds import one_matrix\n'
            'library = cpu.open_library(Path(sys.argv[1])); library.alphaq_borrow_team(None)\n'
            't, x, y = one_matrix(1024, 2048, 2), torch.randn(1, 2048), torch.empty(1, 1024)\n'
            'found = set()\n'
            'for i in range(300):\n'
            '    library.alphaq_linear(t.entries.data_ptr(), 1024, 2048, 128, x.data_ptr(), 1, y.data_ptr(), 1, 2 + i % 2, library.alphaq_best_set())\n'
            '    found.add(y.numpy().tobytes())\n'
            'print(len(found))')
    done = subprocess.run([sys.executable, '-c', code, made], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == '1', done.stderr[-2000:]

def test_ten_thousand_tables():
    "Whatever the sizes, types, widths and groups: refused in one line, or every address lies inside its tensor."
    rng = random.Random(3)
    outcome = Counter()
    for _ in range(10_000):
        shape, widths = (rng.randint(0, 20), rng.choice((0, 1, 20, 48, 64, 128, 128))), [rng.choice((0, 5, *(1, 2, 3, 4) * 5)) for _ in range(rng.randint(0, 3))]
        group = rng.choice((0, 5, 16, 16, 16, 64, 128))
        right = [sum(word_count(shape, b) if b in (1, 2, 3, 4) else 7 for b in widths)]
        right += [len(widths) * shape[0] * (shape[1] // group if group else 1)] * 2
        tensors = [torch.zeros(max(0, n + rng.choice((0,) * 9 + (1, -1, 64))), dtype=rng.choice((d,) * 9 + (torch.int32,)))
                   for n, d in zip(right, (torch.int16, torch.float16, torch.uint8))]
        if rng.random() < .05: tensors[0] = tensors[0].repeat_interleave(2)[::2]
        try: t = cpu.arena_table(*tensors, widths, shape, group)
        except AlphaqError as e:
            assert '\n' not in str(e)
            outcome['refused'] += 1
            continue
        outcome['taken'] += 1
        sizes = [2 * torch.tensor([word_count(shape, b) for b in widths])] + [torch.tensor(shape[0] * (shape[1] // group) * n) for n in (2, 1)]
        for column, (tensor, size) in enumerate(zip(tensors, sizes)):
            first = t.entries[:, column]
            assert (first >= tensor.data_ptr()).all() and (first + size <= tensor.data_ptr() + tensor.nbytes).all()
    assert min(outcome['refused'], outcome['taken']) > 300, outcome
