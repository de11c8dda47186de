"The book builds without a warning, shows what it should, and asks the network for nothing."
import json, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from alphaq.lab.book import split_directives
import browser
from conftest import CHAPTERS, ROOT

HTML = ROOT/'_build/html'

@pytest.fixture(scope='module')
def build():
    "The finished build, in which every page was read anew."
    shutil.rmtree(HTML, ignore_errors=True)  # what an earlier build left proves nothing
    command = [Path(sys.executable).with_name('jupyter-book'), 'build', '.', '--all', '-W', '--keep-going', '-q']
    offline = {'HTTPS_PROXY': 'http://127.0.0.1:9', 'HTTP_PROXY': 'http://127.0.0.1:9'}  # nobody listens there
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | offline)

@pytest.fixture(scope='module')
def pages(build):
    "Name -> text of every page."
    if build.returncode: pytest.skip('the book did not build, which is a failure of its own')
    return {p.relative_to(HTML).with_suffix('').as_posix(): p.read_text() for p in HTML.rglob('*.html') if '_static' not in p.parts}

def test_the_book_builds_without_a_warning(build):
    said = re.sub(r'\x1b\[[\d;]*m', '', build.stderr)
    if build.returncode: pytest.fail('make book\n' + '\n'.join(l for l in said.splitlines() if 'IPKernelApp' not in l)[-8000:], pytrace=False)

def test_a_browser_reads_every_page(pages):
    if not (program := browser.found()): pytest.skip('no Chromium here (apt install chromium): no page was opened')
    wrong, seen, formulas = browser.faults(HTML, program)
    assert not wrong, '\n'.join([f'{len(wrong)} faults; again with: python tests/browser.py', *wrong])
    assert seen >= len(CHAPTERS) and formulas > 500

def cells(path):
    "`(directives, body)` of each code cell of a chapter."
    return [split_directives(''.join(c['source'])) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']

class Page(HTMLParser):
    "What a page loads, and its text as a reader sees it, highlighting taken away."
    def __init__(self, html):
        super().__init__()
        self.loads, self.text = [], ''
        self.feed(html)
    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag in ('script', 'img', 'iframe', 'source', 'video', 'audio'): self.loads.append(a.get('src'))
        if tag == 'link' and a.get('rel') not in ('canonical', 'next', 'prev', 'index', 'search'): self.loads.append(a.get('href'))
    def handle_data(self, data): self.text += data

def squeezed(text): return re.sub(r'\s+', '', text)

def test_every_chapter_has_its_place(pages):
    toc = yaml.safe_load((ROOT/'_toc.yml').read_text())
    listed = [c['file'] for part in toc['parts'] for c in part['chapters']]
    found = {f'nbs/{p.stem}' for p in (ROOT/'nbs').iterdir() if p.suffix in ('.ipynb', '.md') and not p.name.startswith(('.', '_'))}
    missing = set(listed) - {'results/README'} ^ found - {toc['root']}
    assert len(listed) == len(set(listed)) and not missing, f'_toc.yml: {missing}'
    assert {*listed, toc['root']} <= pages.keys()

def test_nothing_comes_from_elsewhere(pages):
    remote = {(name, url) for name, html in pages.items() for url in Page(html).loads if url and re.match(r'(\w+:)?//', url)}
    assert not remote, f'loaded from elsewhere: {remote}'
    missing = {(name, url) for name, html in pages.items() for url in Page(html).loads
               if url and not url.startswith(('data:', '#')) and not (HTML/name).parent.joinpath(url.split('?')[0].split('#')[0]).exists()}
    assert not missing, f'named but not there: {missing}'

def test_mathematics_is_served_by_the_book(pages):
    with_math = [name for name, html in pages.items() if 'class="math' in html]
    assert len(with_math) > 5 and all('_static/mathjax/tex-svg-full.js' in pages[name] for name in with_math)

@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_a_page_shows_what_its_cells_say(pages, path):
    html = pages[f'nbs/{path.stem}']
    text = squeezed(Page(html).text)
    figures = 0
    for directives, body in cells(path):
        shown = squeezed(body)
        gone = not shown or 'hide' in directives or 'default_exp' in directives or 'nbdev_export' + '(' in body
        unseen = gone or directives.get('echo') == 'false' or body.lstrip().startswith('show_doc(')
        assert (shown in text) == (not unseen) or (unseen and len(shown) < 25), f'{path.name}, {"unseen" if unseen else "seen"}: {body[:80]}'
        if 'label' in directives and not gone:
            figures += 1
            name = directives['label']
            drawn = re.search(rf'<figure[^>]*id="{name}".*?</figure>', html, re.S)
            assert drawn, f'{path.name}: no figure {name}; does its cell end in plt.show()?'
            assert '<img' in drawn[0] and re.search(r'caption-number">Fig\. \d+', drawn[0]), f'{path.name}: figure {name} has no number'
            assert directives.get('fig-cap') and squeezed(Page(drawn[0]).text).rstrip('#'), f'{path.name}: figure {name} has no caption'
    outputs = len(re.findall(r'<img[^>]*_images/', html))
    assert outputs == figures, f'{path.name}: {outputs} pictures, {figures} of them figures; give each a label and a caption'
    assert not re.search(r'<pre><span></span><span class="c1">#\s*\|', html), f'{path.name}: a directive shows'
    assert not re.search(r'<p>\| .*?\|', html), f'{path.name}: a table shows as text'

def test_what_is_not_to_run_did_not(pages):
    "Chapter 90 prints a page of its own in which cells leave marks; here the outputs of the real book are asked."
    for path in CHAPTERS:
        for directives, body in cells(path):
            if directives.get('eval') == 'false' or {'slow', 'gpu'} & directives.keys():
                block = pages[f'nbs/{path.stem}'].split('tag_skip-execution')[1:]
                assert block, f'{path.name}: a cell that must not run has no such tag'
                assert all('cell_output' not in b.split('<div class="cell ')[0] for b in block), f'{path.name}: a cell ran that must not'
