"""Makes `quantised/`: small checkpoints as quantisation tools write them, and the weights that they stand for.

    PYTHONPATH=AUTOAWQ:GPTQMODEL python make_quantised.py

Needs torch, transformers, safetensors, compressed-tensors (0.20), and the unpacked source distributions of autoawq 0.2.9
and gptqmodel 7.7.0 on the path, whose packing and decoding run on a CPU. `expected.safetensors` is what those libraries
decode, with scales widened to fp32 first, so that nothing is rounded twice. What no library makes is made here by the
formula of its documentation. The output does not depend on the machine.
"""

import importlib
import json
import os
import sys
import types

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "quantised")
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"


def matrix(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def save(name, quantization, tensors, expected, modelopt=None):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    config = {"model_type": "llama"} | ({"quantization_config": quantization} if quantization else {})
    for file, content in [("config.json", config), ("hf_quant_config.json", modelopt)]:
        if content:
            with open(os.path.join(folder, file), "w") as out:
                json.dump(content, out, indent=2)
                out.write("\n")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    tensors["model.norm.weight"] = torch.arange(4, dtype=torch.float32)
    save_file(tensors, os.path.join(folder, "model.safetensors"))
    expected = {name: tensor.to(torch.float32).contiguous() for name, tensor in expected.items()}
    save_file(expected, os.path.join(folder, "expected.safetensors"))


def ranges(weight, bits, group_size, symmetric, dtype=torch.float16):
    """Scales and zero points `[N, groups]`; codes run from 0 to 2^bits - 1."""
    groups = weight.reshape(weight.shape[0], -1, group_size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        scales = (2 * high / (2**bits - 1)).to(dtype)
        return scales, torch.full_like(scales, 2 ** (bits - 1))
    scales = ((high - low) / (2**bits - 1)).to(dtype)
    # Zero points at both ends, too.
    zeros = (-low / scales).round().clamp(1, 2**bits - 1)
    zeros[0, 0], zeros[1, 0] = 1, 2**bits - 1
    return scales, zeros.to(dtype)


def gptq(name, bits, group_size, symmetric, version, act_order=False):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    rows, columns = 32, 64
    size = columns if group_size == -1 else group_size
    weight = matrix(rows, columns, bits + size)
    scales, zeros = ranges(weight, bits, size, symmetric)
    g_idx = torch.arange(columns, dtype=torch.int32) // size
    if act_order:
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(1))
        g_idx = g_idx[order]
    linear = torch.nn.Linear(columns, rows, bias=True)
    linear.weight.data, linear.bias.data = weight, torch.zeros(rows)
    module = TorchLinear(
        bits=bits, group_size=group_size, sym=symmetric, desc_act=act_order, in_features=columns,
        out_features=rows, bias=True, pack_dtype=torch.int32,
    )
    module.pack_original(linear, scales.float(), zeros.float(), g_idx)
    stored_scales = module.scales
    module.post_init()
    module.scales = module.scales.float()
    expected = module.dequantize_weight().T
    module.scales = stored_scales
    if version == "gptq":
        module = convert_gptq_v2_to_v1_format_module(module, types.SimpleNamespace(bits=bits, runtime_bits=bits, pack_dtype=torch.int32)) or module
    tensors = {f"{UP}.{part}": getattr(module, part) for part in ["qweight", "qzeros", "scales", "g_idx", "bias"]}
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric,
              "desc_act": act_order, "checkpoint_format": version}
    save(name, config, tensors, {f"{UP}.weight": expected})


def awq(name):
    for package in ["awq", "awq.utils"]:
        found = importlib.machinery.PathFinder.find_spec("awq", sys.path)
        module = types.ModuleType(package)
        module.__path__ = [os.path.join(found.submodule_search_locations[0], *package.split(".")[1:])]
        sys.modules[package] = module
    packing = importlib.import_module("awq.utils.packing_utils")

    rows, columns, group_size = 32, 64, 32
    weight = matrix(rows, columns, 7)
    scales, zeros = ranges(weight, 4, group_size, False)
    wide = [table.float().repeat_interleave(group_size, 1) for table in (scales, zeros)]
    codes = (weight / wide[0] + wide[1]).round().clamp(0, 15).to(torch.int32)

    def pack(table):  # [_, N] -> [_, N / 8]
        packed = torch.zeros(table.shape[0], table.shape[1] // 8, dtype=torch.int32)
        for place, column in enumerate(packing.AWQ_ORDER):
            packed |= table[:, column::8] << (4 * place)
        return packed

    tensors = {
        f"{UP}.qweight": pack(codes.T),
        f"{UP}.qzeros": pack(zeros.T.to(torch.int32)),
        f"{UP}.scales": scales.T,
    }
    expected = packing.dequantize_gemm(
        tensors[f"{UP}.qweight"], tensors[f"{UP}.qzeros"], scales.T.float(), 4, group_size
    ).T
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
    save(name, config, tensors, {f"{UP}.weight": expected})


def compressed(name, storage, activations=None, dtype=torch.bfloat16, index=False, extra=(), **arguments):
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=storage)
    compressor = BaseCompressor.get_value_from_registry(storage)
    tensors, expected = {}, {}
    for module, (rows, columns) in {UP: (24, 64), DOWN: (13, 32)}.items():
        weight = matrix(rows, columns, rows)
        if args.strategy == "block":
            height, width = args.block_structure
            padded = torch.zeros(-(-rows // height) * height, -(-columns // width) * width)
            padded[:rows, :columns] = weight
            blocks = padded.reshape(padded.shape[0] // height, height, -1, width)
            scales, zeros = (blocks.abs().amax((1, 3)) / 448).to(dtype), None
        elif args.type == "float":
            largest = weight.abs().amax(1, keepdim=True) if args.strategy == "channel" else weight.abs().amax().reshape(1)
            scales, zeros = (largest / 448).to(dtype), None
        else:
            size = args.group_size if args.strategy == "group" else columns
            scales, zeros = ranges(weight, args.num_bits, size, args.symmetric, dtype)
            zeros = (zeros.float() - 2 ** (args.num_bits - 1)).to(torch.int8)
        if args.symmetric:
            zeros = None
        state = {"weight": weight, "weight_scale": scales.float()}
        if zeros is not None:
            state["weight_zero_point"] = zeros
        state = compressor.compress(state, scheme)
        expected[f"{module}.weight"] = compressor.decompress(state, scheme)["weight"]
        state["weight_scale"] = scales
        tensors |= {f"{module}.{part}": tensor for part, tensor in state.items()}
        for part in extra:
            tensors[f"{module}.{part}"] = torch.ones(1)
    if index:
        # Columns of a group are scattered: the library dropped this, checkpoints that have it remain.
        for module in (UP, DOWN):
            scales, shape = tensors[f"{module}.weight_scale"], tensors[f"{module}.weight_shape"]
            columns = int(shape[1])
            order = torch.randperm(columns, generator=torch.Generator().manual_seed(2))
            g_idx = (torch.arange(columns) // args.group_size)[order].to(torch.int32)
            plain = scales.float().repeat_interleave(args.group_size, 1)
            codes = (expected[f"{module}.weight"] / plain).round()
            expected[f"{module}.weight"] = codes * scales.float()[:, g_idx.long()]
            tensors[f"{module}.weight_g_idx"] = g_idx
    group = {"targets": ["Linear"], "weights": args.model_dump(mode="json"), "input_activations": activations}
    config = {"quant_method": "compressed-tensors", "format": storage, "config_groups": {"group_0": group},
              "ignore": ["lm_head"], "quantization_status": "compressed"}
    save(name, config, tensors, expected)


def e4m3(weight, scales):
    return (weight / scales).to(torch.float8_e4m3fn)


def fp8_block(name):
    weight, block = matrix(32, 64, 3), [16, 32]
    scales = weight.reshape(2, 16, 2, 32).abs().amax((1, 3)) / 448
    values = e4m3(weight, scales.repeat_interleave(16, 0).repeat_interleave(32, 1))
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": block}
    expected = Fp8Dequantize(None)._dequantize_one(values, scales, torch.float32)
    save(name, config, {f"{UP}.weight": values, f"{UP}.weight_scale_inv": scales}, {f"{UP}.weight": expected})


def modelopt(name):
    tensors, expected = {}, {}
    for module, shape in {UP: (24, 64), "model.layers.0.self_attn.k_proj": (8, 32)}.items():
        weight = matrix(*shape, 5)
        scale = weight.abs().amax() / 448
        values = e4m3(weight, scale)
        tensors |= {f"{module}.weight": values, f"{module}.weight_scale": scale, f"{module}.input_scale": torch.tensor(0.02)}
        expected[f"{module}.weight"] = values.float() * scale
    tensors["model.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(1.5)
    tensors["model.layers.0.self_attn.v_proj.v_scale"] = torch.tensor(0.5)
    tensors["lm_head.weight"] = matrix(8, 16, 6).to(torch.bfloat16)
    config = {"producer": {"name": "modelopt", "version": "0.33.0"},
              "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    save(name, None, tensors, expected, config)


def main():
    gptq("gptq_int4", 4, 32, True, "gptq")
    gptq("gptq_int4_asymmetric", 4, 16, False, "gptq_v2")
    gptq("gptq_int4_asymmetric_v1", 4, 32, False, "gptq")
    gptq("gptq_int4_act_order", 4, 32, False, "gptq", act_order=True)
    gptq("gptq_int8_whole_rows", 8, -1, False, "gptq_v2")
    gptq("gptq_int8", 8, 32, True, "gptq")
    awq("awq_int4")
    group = {"strategy": "group", "group_size": 16}
    int4, int8 = {"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "int"}
    fp8 = {"num_bits": 8, "type": "float"}
    fp8_activations = fp8 | {"dynamic": True, "strategy": "token"}
    compressed("compressed_int4", "pack-quantized", **int4, **group, actorder="weight")
    compressed("compressed_int4_asymmetric", "pack-quantized", **int4, **group, symmetric=False)
    compressed("compressed_int4_act_order", "pack-quantized", **int4, **group, index=True)
    compressed("compressed_int8", "pack-quantized", dtype=torch.float16, **int8, strategy="channel")
    compressed("compressed_int8_bytes", "int-quantized", **int8, strategy="channel", symmetric=False)
    compressed("compressed_fp8", "float-quantized", dtype=torch.float32, activations=fp8 | {"strategy": "tensor"},
               extra=["input_scale"], **fp8, strategy="tensor")
    compressed("compressed_fp8_channel", "float-quantized", activations=fp8_activations, **fp8, strategy="channel")
    compressed("compressed_fp8_block", "float-quantized", activations=fp8_activations, dtype=torch.float32, **fp8,
               strategy="block", block_structure=[8, 16])
    fp8_block("fp8_block")
    modelopt("modelopt_fp8")


if __name__ == "__main__":
    main()
