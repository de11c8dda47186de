"The machine code of the kernels, compiled here without a GPU: instructions for a weight, local memory, copies of 16 bytes."
import json

import pytest

from alphaq.kernel import Tile
from alphaq.lab.offline import candidates, no_compiler, width_row
from conftest import ROOT

ROWS = ROOT/'results/bench/kernel-offline.jsonl'
# instructions for a weight at most, 1 to 4 bits: rows that gate and up read, and rows that down reads
LIMITS = {2048: (1.35, 1.5, 1.65, 1.8), 768: (1.8, 1.75, 2.1, 1.85), 14336: (1.7, 1.75, 2.1, 2.1)}
SPILLED = .02  # of the loop's instructions, accesses to local memory at most
SLACK = .05  # between versions of the compiler

def compiler():
    if why := no_compiler(): pytest.skip(why)

@pytest.mark.parametrize('inputs', LIMITS)
def test_the_loop_stays_in_its_budget(inputs):
    compiler()
    for bits, K, part, tile, capability in candidates((90,), (8,)):
        if K != inputs: continue
        row = width_row(bits, K, part, tile, capability)
        assert row['per_weight'] <= LIMITS[inputs][bits - 1] + SLACK, row
        assert row['local'] <= SPILLED * row['instructions'], f'{row}: numbers of the loop are kept in local memory'
        assert '128' in row['copies'], f'{row}: words are not fetched 16 bytes at a time'

def test_the_rule_can_fail():
    "64 rows of slices of 128 words at three bits do not fit into registers."
    compiler()
    row = width_row(3, 2048, 128, Tile(64, 8), 90)
    assert row['local'] > SPILLED * row['instructions'], row

def test_rows_say_that_hardly_anything_is_spilled():
    if not ROWS.exists(): pytest.skip('no rows: python -m alphaq.lab.offline')
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()[1:]]
    used = [r for r in rows if r['kind'] == 'width' and r['tokens'] == 8]
    assert used and all(r['local'] <= SPILLED * r['instructions'] for r in used)
