"""Every page of the built book in headless Chromium: `python tests/browser.py [_build/html]`.

Chromium is spoken to in its own protocol over two pipes: no driver, no port, no network.
"""
import fcntl, itertools, json, os, shutil, subprocess, sys, tempfile, threading, time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

PHONE = 390  # width of a narrow screen, CSS pixels
WORDS = {'FARMS': '13_farms', 'GPTQ': '17_gptq', 'knapsack': '16_mckp'}  # what a reader looks for, and the page about it
PATIENCE = 60  # seconds that a page may take on a busy machine

def found():
    "The program, `None` where there is none."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)

class Chromium:
    "A headless browser; `with` ends it."
    def __init__(self, program):
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()
        low = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]  # above the 3 and 4 that the child will have
        options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars', '--no-first-run', '--disable-extensions',
                   '--disable-background-networking', '--proxy-server=127.0.0.1:9', f'--user-data-dir={self.home.name}', '--remote-debugging-pipe']
        redirected = f'exec "$0" "$@" 3<&{low[0]} 4>&{low[1]} {low[0]}<&- {low[1]}>&-'
        self.process = subprocess.Popen(['bash', '-c', redirected, program, *options, 'about:blank'], pass_fds=low, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs_in, theirs_out, *low): os.close(fd)
        self.numbers, self.answers, self.events, self.lock = itertools.count(1), {}, {}, threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
    def __enter__(self): return self
    def __exit__(self, *_):
        self.process.terminate()
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: self.process.kill()
        os.close(self.to)
        self.home.cleanup()
    def _listen(self):
        with os.fdopen(self.back, 'rb') as stream:
            rest = b''
            while part := stream.read1(2**20):
                *whole, rest = (rest + part).split(b'\0')
                for message in map(json.loads, whole):
                    if 'id' in message: self.answers.pop(message['id']).set_result(message)
                    else: self.events.setdefault(message.get('sessionId'), []).append(message)
        for waiting in [*self.answers.values()]: waiting.set_exception(RuntimeError('the browser has ended'))
    def ask(self, method, session=None, **params):
        "One command and its answer."
        answer = Future()
        with self.lock:
            number = next(self.numbers)
            self.answers[number] = answer
            command = dict(id=number, method=method, params=params) | (dict(sessionId=session) if session else {})
            os.write(self.to, json.dumps(command).encode() + b'\0')
        said = answer.result(PATIENCE)
        if 'error' in said: raise RuntimeError(f'{method}: {said["error"]["message"]}')
        return said['result']

class Tab:
    "One page at a time, as wide as a telephone."
    def __init__(self, browser):
        self.browser = browser
        target = browser.ask('Target.createTarget', url='about:blank')['targetId']
        self.session = browser.ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log'): self.ask(f'{domain}.enable')
        self.ask('Emulation.setDeviceMetricsOverride', width=PHONE, height=844, deviceScaleFactor=1, mobile=False)
    def ask(self, method, **params): return self.browser.ask(method, self.session, **params)
    def run(self, script):
        "The value of an expression, a promise waited for."
        got = self.ask('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True, timeout=1000 * PATIENCE)
        if 'exceptionDetails' in got: raise RuntimeError(got['exceptionDetails'].get('exception', {}).get('description', 'a script failed'))
        return got['result'].get('value')
    def open(self, url):
        "Load a page and wait until it stands."
        seen = self.browser.events[self.session] = []
        self.ask('Page.navigate', url=url)
        end = time.monotonic() + PATIENCE
        while not any(e['method'] == 'Page.loadEventFired' for e in seen):
            if time.monotonic() > end: raise TimeoutError(f'{url} did not load')
            time.sleep(.01)
        return seen

READ = """(async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await new Promise(done => setTimeout(done, 20));
  const all = (query) => [...document.querySelectorAll(query)];
  const name = (e) => (e.id ? '#' + e.id : e.tagName.toLowerCase() + (e.className && e.className.baseVal === undefined ? '.' + String(e.className).trim().split(/\\s+/).join('.') : ''));
  const wide = document.documentElement.scrollWidth > window.innerWidth;
  const clipped = (e) => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) if (getComputedStyle(p).overflowX !== 'visible') return true; return false; };
  return {
    ids: all('[id]').map(e => e.id).concat(all('a[name]').map(e => e.name)),
    links: all('a[href], area[href]').map(e => e.getAttribute('href')),
    images: all('img').filter(e => { const r = e.getBoundingClientRect(); return e.complete && !e.naturalWidth; }).map(e => e.getAttribute('src')),
    silent: all('img, svg[role=img], object').filter(e => !((e.getAttribute('alt') || '').replace(/^\\S*\\.\\w{3,4}$/, '') || e.getAttribute('aria-label') || e.getAttribute('aria-hidden') || e.closest('[aria-hidden=true], mjx-container, button, a[aria-label]') || e.querySelector('title'))).map(e => e.getAttribute('src') || name(e)),
    raw: all('.math').filter(e => !e.querySelector('mjx-container')).map(e => e.textContent.trim().slice(0, 60)),
    bad: all('[data-mml-node=merror], mjx-merror').map(e => e.textContent.trim().slice(0, 60) || e.getAttribute('data-mjx-error')),
    formulas: all('mjx-container').length,
    width: document.documentElement.scrollWidth,
    over: !wide ? [] : all('body *').filter(e => e.getBoundingClientRect().right > window.innerWidth + 1 && !clipped(e)).slice(0, 3).map(name),
  };
})()"""

def complaints(events):
    "What went to the console as an error, and what was asked for and did not come."
    for e in events:
        said = e.get('params', {})
        if e['method'] == 'Runtime.exceptionThrown': yield said['exceptionDetails'].get('exception', {}).get('description') or said['exceptionDetails']['text']
        if e['method'] == 'Runtime.consoleAPICalled' and said['type'] in ('error', 'assert'): yield ' '.join(str(a.get('value', a.get('description'))) for a in said['args'])
        if e['method'] == 'Log.entryAdded' and said['entry']['level'] == 'error': yield f'{said["entry"]["text"]} {said["entry"].get("url", "")}'

def looked_at(tab, path):
    "What a page says of itself."
    seen = tab.open(path.as_uri())
    said = tab.run(READ)
    return said | dict(complaints=[*dict.fromkeys(complaints(seen))])

def broken(pages):
    "Links of pages that lead to nothing: `(page, link)`."
    known = {path.as_uri(): said['ids'] for path, said in pages.items()}
    for path, said in pages.items():
        for link in dict.fromkeys(said['links']):
            if link.startswith(('http:', 'https:', 'mailto:', 'javascript:', 'data:')): continue
            address, anchor = urldefrag(urljoin(path.as_uri(), link))
            file = Path(unquote(address.removeprefix('file://').partition('?')[0]))
            if not file.is_file(): yield path, link
            elif anchor and address in known and unquote(anchor) not in known[address]: yield path, link

def visited(html, program, words=WORDS, workers=2):
    "What every page of a folder says of itself, and what its search finds."
    paths = [p for p in sorted(html.rglob('*.html')) if p.relative_to(html).parts[0] not in ('_static', '_sources', '_images')
             and 'http-equiv="Refresh"' not in p.read_text()[:200]]  # the front page leads on
    with Chromium(program) as browser, ThreadPoolExecutor(workers) as pool:
        tabs = threading.local()
        def tab():
            if not hasattr(tabs, 'own'): tabs.own = Tab(browser)
            return tabs.own
        pages = dict(zip(paths, pool.map(lambda path: looked_at(tab(), path), paths)))
        return pages, dict(zip(words, pool.map(lambda word: searched(tab(), html, word), words)))

def faults(html, program):
    "Everything that is wrong with a built book, one line each, and how many pages and formulas were seen."
    html = Path(html).resolve()
    pages, searches = visited(html, program)
    wrong = [f'{path.relative_to(html)}: {line}' for path, said in pages.items() for line in of_page(said)]
    wrong += [f'{path.relative_to(html)}: the link {link} leads to nothing' for path, link in broken(pages)]
    wrong += [f'the search for {word} does not find {WORDS[word]}, but {hits[:3]}' for word, hits in searches.items() if not any(WORDS[word] in h for h in hits)]
    return wrong, len(pages), sum(said['formulas'] for said in pages.values())

def of_page(said):
    "What is wrong on a page, one line each."
    yield from (f'console: {line[:200]}' for line in said['complaints'])
    yield from (f'no mathematics: {text}' for text in said['raw'])
    yield from (f'wrong mathematics: {text}' for text in said['bad'])
    yield from (f'the image {source} is not there' for source in said['images'])
    yield from (f'{source} has no text for those who do not see it' for source in said['silent'])
    if said['width'] > PHONE: yield f'scrolls sideways at {PHONE} px, to {said["width"]}: {", ".join(said["over"])}'

def searched(tab, html, word):
    "Addresses that the book's search gives for a word, once the page about it is among them or long enough was waited."
    tab.open(f'{(html/"search.html").as_uri()}?q={word}')
    end = time.monotonic() + PATIENCE / 2
    while time.monotonic() < end:
        hits = tab.run('[...document.querySelectorAll("#search-results li a")].map(a => a.getAttribute("href"))')
        if any(WORDS[word] in h for h in hits): break
        time.sleep(.1)
    return hits

if __name__ == '__main__':
    began = time.monotonic()
    wrong, pages, formulas = faults(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]/'_build/html', found())
    print('\n'.join(wrong))
    print(f'{pages} pages, {formulas} formulas, {len(wrong)} faults, {time.monotonic() - began:.0f} s')
    sys.exit(bool(wrong))
