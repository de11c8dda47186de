"The browser's eye on the book sees what is wrong: a folder of two pages, one of them with every fault."
import pytest

import browser

SOUND = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>a</title><h1 id="top">A</h1>
<a href="b.html#there">b</a> <a href="#top">up</a> <a href="https://example.org/gone">elsewhere</a><img alt="A point." src="dot.svg"></html>"""
FAULTY = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>b</title><p id="there">B</p>
<a href="c.html">file</a> <a href="a.html#nowhere">anchor</a> <a href="#gone">own</a><img alt="../dot.svg" src="dot.svg"><img alt="Gone." src="gone.png">
<span class="math">x^2</span><div style="width: 500px">wide</div><script>console.error('said'); nothing.there</script></html>"""
DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="4"/></svg>'

def test_every_fault_is_seen(tmp_path):
    if not (program := browser.found()): pytest.skip('no Chromium here (apt install chromium)')
    for name, text in (('a.html', SOUND), ('b.html', FAULTY), ('dot.svg', DOT)): (tmp_path/name).write_text(text)
    pages, _ = browser.visited(tmp_path, program, words=())
    told = {path.name: [*browser.of_page(said)] for path, said in pages.items()}
    assert told['a.html'] == []
    wanted = ('console: said', 'ReferenceError', 'gone.png', 'no mathematics: x^2', 'image gone.png', 'dot.svg has no text', 'scrolls sideways at 390 px, to 5')
    assert all(any(w in line for line in told['b.html']) for w in wanted), told['b.html']
    assert [(path.name, link) for path, link in browser.broken(pages)] == [('b.html', 'c.html'), ('b.html', 'a.html#nowhere'), ('b.html', '#gone')]
