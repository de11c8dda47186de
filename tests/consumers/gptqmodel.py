"GPTQModel: `python tests/consumers/gptqmodel.py`."
import json, sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import answer, asked, consult

def inside(folder):
    from gptqmodel.quantization.config import QuantizeConfig
    wanted, config = asked(folder), QuantizeConfig(**json.loads(Path(folder, 'export').read_text()))
    def width(name):
        found = config.dynamic_get(name, 'bits', config.bits)
        return None if found is False else int(found)
    answer('QuantizeConfig.dynamic_get gives each module its width', wanted, {n: width(n) for n in wanted})
    again = QuantizeConfig.from_quant_config(json.loads(json.dumps(config.to_dict())))
    answer('so it does after a save and a load', wanted, {n: None if (b := again.dynamic_get(n, 'bits', again.bits)) is False else int(b) for n in wanted})

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'gptqmodel', ['setuptools>=84.2.1 wheel', '--no-deps --no-build-isolation gptqmodel==7.7.0',
        'accelerate threadpoolctl packaging device-smi protobuf pillow requests pypcre tokenicer logbar jinja2 ninja datasets torchao defuser'],
        {'torch', 'gptqmodel', 'transformers', 'pypcre'})
