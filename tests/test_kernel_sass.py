"The machine code of the kernels, compiled here without a GPU: instructions for a weight, local memory, copies of 16 bytes."
import json
from itertools import product

import pytest

from alphaq.kernel import Tile
from alphaq.lab.offline import candidates, kernel_row, no_compiler, wide_row, width_row
from alphaq.prefill import wide_tile
from conftest import ROOT

ROWS = ROOT/'results/bench/kernel-offline.jsonl'
# instructions for a weight at most, 1 to 4 bits, by inputs: hidden states, then what down reads
LIMITS = {2048: (1.35, 1.5, 1.65, 1.8), 14336: (1.35, 1.5, 1.65, 1.8), 1024: (1.35, 1.5, 1.65, 1.8),
          768: (1.6, 1.55, 1.9, 1.8), 1408: (1.6, 1.55, 2.4, 1.8)}
COMPILED = 2048, 768, 1408, 14336  # again by every test; the others by their rows
SIXTEEN = 1.5  # times that for blocks of 16 pairs
SPILLED = {8: 0, 16: .04}  # of the loop's instructions, accesses to local memory at most, by pairs of a block
SLACK = .05  # between versions of the compiler

def compiler():
    if why := no_compiler(): pytest.skip(why)

def check(row):
    limit = LIMITS[row['inputs']][row['bits'] - 1] * (SIXTEEN if row['tokens'] == 16 else 1)
    assert row['per_weight'] <= limit + SLACK, row
    assert row['local'] <= SPILLED[row['tokens']] * row['instructions'], f'{row}: numbers of the loop are kept in local memory'
    assert '128' in row['copies'], f'{row}: words are not fetched 16 bytes at a time'

@pytest.mark.parametrize('inputs', COMPILED)
def test_the_loop_stays_in_its_budget(inputs):
    compiler()
    for asked in candidates((90,), (8,)):
        if asked[1] == inputs: check(width_row(*asked))

@pytest.mark.parametrize('name, part', [('gate_up', 128), ('down', 64), ('down', 128)])
def test_a_kernel_whole_compiles(name, part):
    "All widths behind their branch, with sums as hidden states and as h have them."
    compiler()
    assert kernel_row(name, (128, 128), part, 2, Tile(64, 8), 90)['local'] == 0

def test_the_rule_can_fail():
    "64 rows of slices of 128 words at three bits do not fit into registers."
    compiler()
    row = width_row(3, 2048, 128, Tile(64, 8), 90)
    with pytest.raises(AssertionError, match='local memory'): check(row)

def test_rows_stay_in_their_budget():
    if not ROWS.exists(): pytest.skip('no rows: python -m alphaq.lab.offline')
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()[1:]]
    rows = [r for r in rows if r['kind'] == 'width' and r['inputs'] in LIMITS]
    for row in rows: check(row)
    found = {tuple(r[key] for key in ('tokens', 'capability', 'inputs', 'bits')) for r in rows}
    assert found == {*product((8, 16), (90, 80), LIMITS, (1, 2, 3, 4))}

SMALLEST = 101_376  # bytes of shared memory that a program may have on capability 8.6, 8.9 and 12.0

def test_every_kernel_fits_the_smallest_multiprocessor():
    if not ROWS.exists(): pytest.skip('no rows: python -m alphaq.lab.offline')
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()[1:]]
    assert {'gate_up', 'down', 'wide_gate_up', 'wide_down'} <= {r['kind'] for r in rows}
    for row in rows:
        assert row['shared'] <= SMALLEST, row
        if row['kind'] in ('gate_up', 'down') and row['tokens'] == 8: assert row['inside'] == 0, row

def test_another_stage_is_another_turn_in_shared_memory():
    "Two stages hold one turn, three hold two, more than the smallest have."
    compiler()
    two, three = (width_row(3, 2048, 128, Tile(32, 8, stages=stages), 90)['shared'] for stages in (2, 3))
    assert three == 2 * two > SMALLEST

WIDE = 8       # lane-instructions for a weight while an A100's tensor cores multiply it by 64 tokens (chapter 37)
MISSED = {(3, 4): 8.6}  # by bits and words of a slice: what is reached where the budget is not

def check_wide(row):
    assert row.get('inside', row['local']) == 0, f'{row}: numbers of a loop are kept in local memory'
    if row['tokens'] == 64: assert row['per_weight'] <= MISSED.get((row['bits'], row['slice']), WIDE), row

def test_a_weight_for_many_tokens_stays_in_its_budget():
    compiler()
    for bits, inputs in ((2, 2048), (3, 768), (1, 1408)): check_wide(wide_row(bits, inputs, wide_tile(64), 90))

def test_kernels_for_many_tokens_whole():
    "Shared memory is that of the hungriest width, so that a multiprocessor holds more than one program; no loop has local memory."
    compiler()
    row = kernel_row('wide_down', (128, 2048), None, 2, wide_tile(64), 90)
    assert row['inside'] == 0 and row['shared'] < 2**16, row

def test_the_rule_for_many_tokens_can_fail():
    "A tile of 64 tokens in two warps needs more registers than there are."
    compiler()
    with pytest.raises(AssertionError, match='local memory'): check_wide(wide_row(3, 2048, Tile(64, 64, 2, 2), 90))

def test_rows_for_many_tokens_stay_in_their_budget():
    if not ROWS.exists(): pytest.skip('no rows: python -m alphaq.lab.offline --wide')
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()[1:]]
    for row in rows:
        if row['kind'] == 'wide': check_wide(row)
        if row['kind'].startswith('wide_'): assert row['inside'] == 0 and row['shared'] < 2**16, row
    found = {tuple(row[key] for key in ('tokens', 'capability', 'bits')) for row in rows if row['kind'] == 'wide'}
    assert found == {*product((64, 32), (90, 80), (1, 2, 3, 4))}
