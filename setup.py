"Everything about the package is said once, in settings.ini; this hands it to setuptools."
import sys
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

here = Path(__file__).parent
sys.path.insert(0, str(here))
from alphaq.core import AlphaqError
from alphaq.native import build, compilers

class WithLibrary(build_py):
    "The CPU kernel compiled into a wheel, where a compiler is at hand; elsewhere it is compiled at first use."
    def run(self):
        super().run()
        if self.editable_mode: return
        try: build(folder=Path(self.build_lib).resolve()/'alphaq')
        except AlphaqError as e: print(f'alphaq: a wheel without the CPU kernel: {e}')

class ForPlatform(bdist_wheel):
    "A library inside binds a wheel to a platform, and to no version of Python."
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = not compilers()
    def get_tag(self):
        tag = super().get_tag()
        return tag if self.root_is_pure else ('py3', 'none', tag[2])

ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}
extras['all'] = sorted({name for names in extras.values() for name in names})

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['alphaq', 'alphaq.*']), package_data={'alphaq': ['py.typed', '*.cpp', 'models/**/*', 'tasks_yaml/*', 'schemas/*']},
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['alphaq=alphaq._modidx:d']},
    classifiers=['Development Status :: 3 - Alpha', 'Programming Language :: Python :: 3', 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    cmdclass=dict(build_py=WithLibrary, bdist_wheel=ForPlatform), zip_safe=False,
)
