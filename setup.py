"Everything about the package is said once, in settings.ini; this hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
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
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['alphaq=alphaq._modidx:d'],
                  'torch.backends': ['alphaq=alphaq.hook:install']},  # torch calls it when imported: folders open in programs that never import us
    classifiers=['Development Status :: 3 - Alpha', 'Programming Language :: Python :: 3', 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    zip_safe=False,
)
