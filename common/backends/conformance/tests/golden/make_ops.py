"""Writes ops.json: inputs and outputs of ops as PyTorch and Transformers compute them.

    pip install torch transformers
    python make_ops.py
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_half
from transformers.models.llama.modeling_llama import repeat_kv

generator = torch.Generator().manual_seed(1)
cases = {}


def random(*shape):
    return torch.randn(*shape, generator=generator)


def case(name, inputs, output):
    def entry(tensor):
        kind = "float" if tensor.is_floating_point() else "int"
        values = tensor.flatten().tolist()
        # Nine digits tell any two fp32 numbers apart.
        values = [float(f"{value:.9g}") for value in values] if kind == "float" else values
        return {"shape": list(tensor.shape), kind: values}

    cases[name] = {"inputs": [entry(tensor) for tensor in inputs], "output": entry(output)}


x = random(2, 3, 6)
case("silu", [x], F.silu(x))
spread = torch.linspace(-6, 6, 25)
case("gelu", [spread], F.gelu(spread))
case("gelu_tanh", [spread], F.gelu(spread, approximate="tanh"))
case("soft_cap", [x * 4], 3 * torch.tanh(x * 4 / 3))
case("softmax_axis_1", [x], F.softmax(x, dim=1))

weight, bias = random(6), random(6)
case("rms_norm", [x, weight], F.rms_norm(x, (6,), weight, 1e-3))
case("rms_norm_unit_offset", [x, weight], F.rms_norm(x, (6,), 1 + weight, 1e-3))
case("layer_norm", [x, weight, bias], F.layer_norm(x, (6,), weight, bias, 1e-3))

matrix, row = random(4, 6), random(4)
case("linear", [x, matrix, row], F.linear(x, matrix, row))
a, b = random(2, 3, 4), random(2, 4, 5)
case("matmul", [a, b], a @ b)
case("matmul_transposed", [a, b.transpose(1, 2).contiguous()], a @ b)
ids = torch.tensor([[3, 0, 4], [1, 1, 2]])
table = random(5, 2)
case("embedding", [ids, table], F.embedding(ids, table))
left, right = random(2, 1, 3), random(4, 1)
case("add", [left, right], left + right)
case("mul", [right, left], right * left)

y = random(2, 2, 6)
case("cat_axis_1", [x, y], torch.cat([x, y], dim=1))
case("slice_axis_1", [x], x[:, 1:3])
case("transpose_2_0_1", [x], x.permute(2, 0, 1).contiguous())
case("gather_axis_1", [x, torch.tensor([[2, 0], [1, 1]])], x[:, torch.tensor([[2, 0], [1, 1]])])

# Rotary embedding, angles per position 1, 0.3, 0.09 and positions that are not 0, 1, ….
heads = random(2, 2, 3, 6)
positions = torch.tensor([[0, 1, 2], [7, 8, 40]])
inv_freq = torch.tensor([1.0, 0.3, 0.09])
angles = positions[:, :, None].float() * inv_freq
emb = torch.cat([angles, angles], dim=-1)
case("rotary_embedding", [heads, positions], rotate_half(heads, heads, emb.cos(), emb.sin())[0])
narrow = emb[:, :, [0, 1, 3, 4]]
partial = torch.cat([rotate_half(heads[..., :4], heads[..., :4], narrow.cos(), narrow.sin())[0], heads[..., 4:]], -1)
case("rotary_embedding_partial", [heads, positions], partial)
case(
    "rotary_embedding_interleaved",
    [heads, positions],
    rotate_interleaved(heads, heads, emb.cos(), emb.sin())[0],
)


def attention(q, k, v, allowed=None, bias=None, scale=None, cap=None):
    k, v = (repeat_kv(t, q.shape[1] // t.shape[1]) for t in (k, v))
    scores = q @ k.transpose(2, 3) * (scale or 1 / math.sqrt(q.shape[3]))
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return F.softmax(scores, dim=-1) @ v


q, k, v = random(2, 4, 3, 6), random(2, 2, 5, 6), random(2, 2, 5, 4)
place = torch.arange(3)[:, None] + 2
key = torch.arange(5)[None]
causal = key <= place
case("attention", [q, k, v], attention(q, k, v, causal))
case("attention_not_causal", [q, k, v], F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
case("attention_window", [q, k, v], attention(q, k, v, causal & (place - key < 2)))
case("attention_soft_cap", [q, k, v], attention(q, k, v, causal, scale=2.0, cap=1.5))
bias = random(2, 1, 3, 5)
case("attention_float_mask", [q, k, v, bias], attention(q, k, v, causal, bias))
allowed = random(1, 4, 3, 5) > -0.5
allowed[..., 0] = True
case("attention_bool_mask", [q, k, v, allowed], attention(q, k, v, causal & allowed))
# Lengths 5 and 4: the second sequence's queries are at 1, 2, 3 and its last key does not exist.
lengths = torch.tensor([5, 4])
place = torch.arange(3)[None, None, :, None] + lengths[:, None, None, None] - 3
case("attention_kv_lengths", [q, k, v, lengths], attention(q, k, v, key <= place))

with open(Path(__file__).parent / "ops.json", "w") as file:
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in cases.items())
    file.write("{\n" + rows + "\n}\n")
