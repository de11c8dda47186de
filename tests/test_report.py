"""The report of a network that was really trained has a known structure, and one that can be made here has the same.

`tests/golden/report.json` is what `python tests/test_report.py REPORT.html …` prints of reports of SmolLM2, cut into four experts a block, at 2.5 and 3 bits:
headings, captions, headers of columns and rows, what figures say to those who do not see them, without numbers and names.
"""
import json, re, sys
from html.parser import HTMLParser
from pathlib import Path
from difflib import unified_diff

import browser
import pytest

GOLDEN = Path(__file__).parent/'golden/report.json'
SIZES = ('2.5', '3')
TEXTS = ('pydoc', 'arithmetic')
LEAVES = dict(h1='title', h2='heading', figcaption='figure', title='seen', desc='said', caption='table', p='text', li='item', pre='command', summary='more')


class Outline(HTMLParser):
    "What a page consists of, in order: `(kind, text)`."
    def __init__(self, page):
        super().__init__()
        self.found, self.path = [], []
        self.feed(page)
    def handle_starttag(self, tag, attrs):
        if tag in ('meta', 'link', 'br', 'path', 'use', 'image'): return
        self.path.append((tag, dict(attrs)))
        if kind := self.kind(): self.found.append([kind, ''])
    def handle_startendtag(self, tag, attrs): pass
    def handle_endtag(self, tag):
        while self.path and self.path.pop()[0] != tag: pass
    def kind(self):
        tag, attrs = self.path[-1]
        if tag == 'th': return {'col': 'column', 'row': 'row'}[attrs['scope']]
        return None if 'head' in [t for t, _ in self.path] else LEAVES.get(tag)
    def handle_data(self, data):
        "Whatever lies in a leaf or below."
        inside = [i for i, (t, _) in enumerate(self.path) if t in LEAVES or t == 'th']
        if inside and self.found and 'style' not in [t for t, _ in self.path] and 'head' not in [t for t, _ in self.path]: self.found[-1][1] += data


def plain(text):
    "A text without numbers and without what depends on the model."
    text = re.sub(r'\b(better|worse|not shown)\b', 'VERDICT', text)
    text = re.sub(r'[+-]?\d[\d.,]*(e[+-]?\d+)?%?', '#', text)
    text = re.sub(r'# bits?\b', '# bits', text)
    text = re.sub(r'(# at # bits(, )?)+', 'COUNTS', text)
    return re.sub(r'\s+', ' ', text).strip()


def structure(page, names=()):
    "The outline of a report; rows that only count are one row."
    found = []
    for kind, text in Outline(page).found:
        if kind == 'command': text = ' '.join(w for w in text.split() if w in ('alphaq', 'verify', 'report') or w[:2] == '--')
        for name in sorted(names, key=len, reverse=True): text = text.replace(name, 'NAME')
        line = f'{kind}: {plain(text)}'
        if kind in ('row', 'seen', 'said') and found and found[-1] == line: continue
        found.append(line)
    return found


def test_a_page_is_taken_apart():
    page = '<html><head><title>t</title><style>p{}</style></head><body><h1>M, 2.50 bits</h1><figure><svg><title>a</title><desc>1.5 and 2</desc><text>9</text></svg><figcaption>a</figcaption></figure>' \
        '<table><caption><span>Bytes of M</span></caption><thead><tr><th scope="col">x</th></tr></thead><tbody><tr><th scope="row">1</th><td>5</td></tr><tr><th scope="row">22</th></tr></tbody></table></body></html>'
    assert structure(page, ['M']) == ['title: NAME, # bits', 'seen: a', 'said: # and #', 'figure: a', 'table: Bytes of NAME', 'column: x', 'row: #']


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Reports of `pocket` at both sizes, made as those of SmolLM2 were."
    from typer.testing import CliRunner
    from alphaq.cli import app
    home = tmp_path_factory.mktemp('report')
    def run(*words):
        done = CliRunner().invoke(app, [str(w) for w in words], env={'ALPHAQ_QUIET': '1'})
        assert done.exit_code == 0, done.output
    run('score', 'pocket', '-o', home/'s.csv')
    for bits in SIZES:
        run('quantize', 'pocket', '--bits', bits, '-o', home/bits)
        more = [word for text in TEXTS for word in ('--text', text)]
        run('report', home/bits, '--scores', home/'s.csv', '--against', 'pocket', *more, '--tokens', 512, '--window', 128, '--figures', home/f'figures-{bits}', '-o', home/f'{bits}.html')
    return home


@pytest.mark.parametrize('bits', SIZES)
def test_the_report_of_a_trained_network(pages, bits):
    golden = json.loads(GOLDEN.read_text())[bits]
    page = (pages/f'{bits}.html').read_text()
    made = structure(page, ['pocket'])
    assert made == golden, '\n'.join(unified_diff(golden, made, 'SmolLM2', 'pocket', lineterm='', n=1))
    titles = [line.removeprefix('figure: ') for line in made if line.startswith('figure: ')]
    assert len(titles) == 8 == len([*(pages/f'figures-{bits}').glob('*.svg')]) and all(p.read_text() in page for p in (pages/f'figures-{bits}').glob('*.svg'))


@pytest.mark.parametrize('bits', SIZES)
def test_a_browser_has_nothing_to_complain_of(pages, bits):
    "Nothing on the console, nothing asked for, every figure with a text, no sideways scrolling on a telephone, in either light."
    if not browser.found(): pytest.skip('no Chromium here: the reports were not opened')
    with browser.Chromium(browser.found()) as chromium:
        tab = browser.Tab(chromium)
        tab.ask('Network.enable')
        for scheme in ('light', 'dark'):
            tab.ask('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])
            said = browser.looked_at(tab, pages/f'{bits}.html')
            asked = [e['params']['request']['url'] for e in chromium.events[tab.session] if e['method'] == 'Network.requestWillBeSent']
            assert [*browser.of_page(said)] == [] and {u for u in asked if not u.startswith('data:')} == {(pages/f'{bits}.html').as_uri()}
            ink, paper = (tab.run(f'getComputedStyle(document.body).{k}') for k in ('color', 'backgroundColor'))
            assert (sum(map(int, re.findall(r'\d+', ink)[:3])) > sum(map(int, re.findall(r'\d+', paper)[:3]))) == (scheme == 'dark')


if __name__ == '__main__':  # names to leave out, joined by commas; then a page for each size
    pages_ = [Path(p).read_text() for p in sys.argv[2:]]
    print(json.dumps({bits: structure(page, sys.argv[1].split(',')) for bits, page in zip(SIZES, pages_)}, indent=1, ensure_ascii=False))
