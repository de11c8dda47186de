"`python -m alphaq.lab`: the runners of the laboratory, each with what it does."
import ast
from pathlib import Path

def runners():
    "Name and first line of the docstring of every module here that has a `main`."
    for path in sorted(Path(__file__).parent.glob('[a-z]*.py')):
        module = ast.parse(path.read_text(encoding='utf-8'))
        if any(isinstance(node, ast.FunctionDef) and node.name == 'main' for node in module.body):
            yield path.stem, ast.get_docstring(module).split('\n')[0]

if __name__ == '__main__':
    for name, what in runners(): print(f'python -m alphaq.lab.{name:<12} {what}')
