"A number imports only lower numbers, and importing the package costs next to nothing."
import ast, builtins, dis, re, subprocess, sys, time, types

import pytest

from conftest import ROOT

ORIGIN = re.compile(r'File to edit: \.\./nbs/(\d\d)_(\w+)\.ipynb')
NUMBER = {p.stem: int(m[1]) for p in (ROOT/'alphaq').glob('*.py') if (m := ORIGIN.search(p.read_text()))}

def imported(path):
    "Our modules that a file imports anywhere, inside functions too."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert all(a.name != '*' for a in node.names), f'{path.name}:{node.lineno}: star import; name what you need'
            parts = [*['alphaq'][:node.level], *(node.module or '').split('.')]  # nbdev exports `alphaq.x` as `.x`
            if parts in (['alphaq'], ['alphaq', '']): yield from (a.name for a in node.names if a.name in NUMBER)
            elif parts[0] == 'alphaq': yield parts[1]
        elif isinstance(node, ast.Import):
            for a in node.names:
                if a.name.startswith('alphaq.'): yield a.name.split('.')[1]

@pytest.mark.parametrize('name', sorted(NUMBER, key=NUMBER.get))
def test_imports_point_down(name):
    if name == 'cli': return  # the command line imports whatever it offers
    for other in imported(ROOT/f'alphaq/{name}.py'):
        assert other in NUMBER, f'{name} imports alphaq.{other}, which no chapter exports'
        assert NUMBER[other] < NUMBER[name], f'chapter {NUMBER[name]} ({name}) imports chapter {NUMBER[other]} ({other})'

def test_the_law_can_fail(tmp_path):
    "The reader of imports sees each way to import, inside functions too."
    (tmp_path/'x.py').write_text('import alphaq.core\ndef f():\n    from alphaq.grid import quantize\n    from alphaq import plot\nfrom .esd import a\nfrom . import hill\n')
    assert sorted(imported(tmp_path/'x.py')) == sorted({'core', 'grid', 'plot', 'esd', 'hill'} & {'core', 'grid', 'plot', 'esd', *NUMBER})

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
    code = "import alphaq, sys; assert {'score', 'grid', 'cli'} <= {*dir(alphaq)} and alphaq.__doc__; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'numpy', 'scipy'}))"
    loaded = subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert loaded == '[]', f'import alphaq loads {loaded}'

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

@pytest.mark.parametrize('name', sorted(NUMBER, key=NUMBER.get))
def test_names_are_defined(name): assert not unknown(ROOT/f'alphaq/{name}.py')

def test_unknown_names_are_seen(tmp_path):
    (tmp_path/'x.py').write_text('import os\nfrom math import pi as p\nclass A:\n    def f(self): return [q for q in os.environ if p and torch]\n')
    assert unknown(tmp_path/'x.py') == {'torch'}
