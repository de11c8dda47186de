"A number imports only lower numbers, the product imports nothing of the laboratory, and importing the package costs next to nothing."
import ast, builtins, dis, re, subprocess, sys, time, types

import pytest
import yaml

from conftest import ROOT

ORIGIN = re.compile(r'File to edit: (?:\.\./)+nbs/(\d\d)_(\w+)\.ipynb')
EXPORTED = {'.'.join(p.relative_to(ROOT/'alphaq').with_suffix('').parts): (int(m[1]), p)
            for p in (ROOT/'alphaq').rglob('*.py') if (m := ORIGIN.search(p.read_text()))}
MODULES = sorted(EXPORTED, key=lambda name: EXPORTED[name][0])

def imported(path, package='alphaq', known=EXPORTED):
    "Our modules that a file imports anywhere, inside functions too, by their names below `alphaq`."
    def ours(parts, names):
        "A module, or modules out of a package."
        if parts[:1] != ['alphaq']: return
        inside = '.'.join(parts[1:])
        if inside in ('', 'lab'): yield from (f'{inside}.{n}'.strip('.') for n in names if f'{inside}.{n}'.strip('.') in known)
        else: yield inside
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [a.name for a in node.names]
            assert '*' not in names, f'{path.name}:{node.lineno}: star import; name what you need'
            above = package.split('.')
            if node.level: above = above[:len(above) - node.level + 1]
            yield from ours([*(above if node.level else ()), *(node.module or '').split('.')] if node.module else above, names)
        elif isinstance(node, ast.Import):
            for a in node.names: yield from ours(a.name.split('.'), ())

def broken(name, others, number):
    "Which of a module's imports break the law, one line each."
    for other in others:
        if other not in number: yield f'{name} imports alphaq.{other}, which no chapter exports'
        elif number[other] >= number[name]: yield f'chapter {number[name]} ({name}) imports chapter {number[other]} ({other}); move what it needs to a lower number'
        elif other.startswith('lab.') and not name.startswith('lab.'): yield f'{name} imports alphaq.{other}; the product imports nothing of the laboratory'

@pytest.mark.parametrize('name', MODULES)
def test_imports_point_down(name):
    package = '.'.join(['alphaq', *name.split('.')[:-1]])
    wrong = [*broken(name, imported(EXPORTED[name][1], package), {n: number for n, (number, _) in EXPORTED.items()})]
    assert not wrong, '\n'.join(wrong)

def test_the_law_can_fail(tmp_path):
    "The reader of imports sees each way to import, and each way to break the law is told."
    known = {'core', 'grid', 'plot', 'esd', 'hill', 'lab.toys', 'lab.demo'}
    code = 'import alphaq.core\ndef f():\n    from alphaq.grid import quantize\n    from alphaq import plot\nfrom ..esd import a\nfrom .. import hill\nfrom .toys import b\nfrom . import demo\n'
    (tmp_path/'x.py').write_text(code)
    assert sorted(imported(tmp_path/'x.py', 'alphaq.lab', known)) == sorted(known)
    number = {'a': 1, 'b': 2, 'lab.c': 0}
    assert not [*broken('b', ['a'], number)] and not [*broken('lab.c', [], number)]
    assert [w.split('; ')[-1] for w in broken('a', ['b', 'lab.c', 'd'], number)] == [
        'move what it needs to a lower number', 'the product imports nothing of the laboratory', 'a imports alphaq.d, which no chapter exports']

def descents(files):
    "Pages of a table of contents whose number is not above that of the page before."
    numbers = [(f, int(m[1])) for f in files if (m := re.match(r'nbs/(\d\d)_', f))]
    return [f'{b}: stands behind {a}; order _toc.yml by number' for (a, n), (b, m) in zip(numbers, numbers[1:]) if m <= n]

def test_numbers_are_the_order_of_the_book():
    toc = yaml.safe_load((ROOT/'_toc.yml').read_text())
    assert not descents([c['file'] for part in toc['parts'] for c in part['chapters']])
    assert descents(['nbs/02_a', 'results/README', 'nbs/01_b']) == ['nbs/01_b: stands behind nbs/02_a; order _toc.yml by number']

DOORS = ('cli', 'pipeline')  # their functions are called after what they do, like the rooms they lead to

def twice(defined):
    "Public functions, classes and constants that two modules define."
    found = {}
    for module, text in defined.items():
        for node in ast.parse(text).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
            if isinstance(node, ast.Assign): names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            for name in names: found.setdefault(name, []).append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1 and name != 'main' and not name.startswith('_')}

def test_a_name_is_defined_once():
    again = twice({name: path.read_text() for name, (_, path) in EXPORTED.items() if name not in DOORS})
    assert not again, '\n'.join(f'{name} is defined in {" and ".join(modules)}; give one of them another name' for name, modules in again.items())
    assert twice({'a': 'def f(): pass\ndef _g(): pass\nX = 1', 'b': 'class f: pass\ndef _g(): pass\nX = 2'}) == {'f': ['a', 'b'], 'X': ['a', 'b']}

def seconds(code):
    "Least wall time of three fresh interpreters."
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
        return time.perf_counter() - start
    return min(once() for _ in range(3))

def test_import_is_cheap():
    cost = seconds('import alphaq') - seconds('pass')
    assert cost < .3, f'import alphaq costs {cost:.2f} s'

def test_import_is_light():
    code = "import alphaq, sys; assert {'scores', 'grid', 'cli', 'lab'} <= {*dir(alphaq)} and alphaq.__doc__; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'numpy', 'scipy'}))"
    loaded = subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert loaded == '[]', f'import alphaq loads {loaded}'

def test_nothing_but_figures_needs_matplotlib():
    "What a bare installation lacks, only the chapter on figures imports; whoever draws asks for it inside a function."
    names = [f'alphaq.{n}' for n in MODULES if '.' not in n and n != 'plot']
    code = f"import sys, importlib\nsys.modules['matplotlib'] = None\nfor n in {names}: importlib.import_module(n)"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]

def test_modules_can_be_named():
    import alphaq
    assert alphaq.core.AlphaqError and alphaq.__version__
    with pytest.raises(AttributeError, match='no attribute'): alphaq.nothing

def unknown(path):
    "Names that functions read and nothing in their module defines: its tests have imported more."
    def inside(code):
        yield code
        for c in code.co_consts:
            if isinstance(c, types.CodeType): yield from inside(c)
    module = compile(path.read_text(), path, 'exec')
    steps = [i for code in inside(module) for i in dis.get_instructions(code)]
    made = {i.argval for i in steps if i.opname in ('STORE_NAME', 'STORE_GLOBAL')}
    read = {i.argval for i in steps if i.opname == 'LOAD_GLOBAL'}
    return read - made - {*dir(builtins), '__file__', '__name__'}

@pytest.mark.parametrize('name', MODULES)
def test_names_are_defined(name): assert not unknown(EXPORTED[name][1])

def test_unknown_names_are_seen(tmp_path):
    (tmp_path/'x.py').write_text('import os\nfrom math import pi as p\nclass A:\n    def f(self): return [q for q in os.environ if p and torch]\n')
    assert unknown(tmp_path/'x.py') == {'torch'}
