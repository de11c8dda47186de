"MLX-LM on a CPU: a small Qwen3-MoE is quantized by the block, saved, and loaded again: `python tests/consumers/mlx_lm.py`."
import json, re, sys, tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import EXPERTS, GROUP, HIDDEN, INNER, LAYERS, answer, asked, consult

def inside(folder):
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen3_moe
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model
    config = dict(model_type='qwen3_moe', hidden_size=HIDDEN, num_hidden_layers=LAYERS, intermediate_size=INNER, num_attention_heads=4, num_experts=EXPERTS,
                  num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=INNER, rms_norm_eps=1e-5, vocab_size=256,
                  num_key_value_heads=4, head_dim=32, rope_theta=10000., tie_word_embeddings=False, max_position_embeddings=64, norm_topk_prob=True)
    block = json.loads(Path(folder, 'export').read_text())
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(config))
    model, config = quantize_model(model, config, block['group_size'], block['bits'], quant_predicate=lambda path, module: block.get(path, '.self_attn.' in path))
    def widths(model): return {n: getattr(m, 'bits', None) for n, m in model.named_modules()}
    def stacked(name): return re.sub(r'experts\.\d+\.', 'switch_mlp.', name)
    wanted = {stacked(n): b for n, b in asked(folder).items() if '.shared_expert.' not in n}  # this family has none
    answer('quantize_model gives each module its width', wanted, widths(model))
    answer('config.json holds our block', {n: v for n, v in block.items() if isinstance(v, dict)}, config['quantization'])
    with tempfile.TemporaryDirectory() as out:
        save_model(Path(out), model)
        save_config(config, Path(out)/'config.json')
        loaded, _ = load_model(Path(out))
        tokens = mx.array([[1, 2, 3]])
        same = bool(mx.allclose(loaded(tokens), model(tokens)))
        answer('load_model finds the same widths, the logits are the same', wanted | {'same': True}, widths(loaded) | {'same': same})

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'mlx', ['mlx[cpu]==0.32.4 mlx-lm==0.32.2'], {'mlx', 'mlx-lm', 'mlx-cpu'})
