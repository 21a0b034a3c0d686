#!/usr/bin/env python3
"""Rewrite a GGUF file with every matrix in float16, so that a peer runs the precision that Roundhouse is compared in.

    pip install gguf==0.19.0
    python scripts/gguf_to_f16.py INPUT.gguf OUTPUT.gguf

Quantised matrices are de-quantised first; vectors (norms, biases) become float32, as llama.cpp wants them. All metadata
is kept but the file type, which becomes "mostly F16".
"""

import argparse
import os
from pathlib import Path

import gguf
import numpy as np


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for key, field in reader.fields.items():
        # The header's own fields and the architecture are written by the writer.
        if key.startswith("GGUF.") or key == gguf.Keys.General.ARCHITECTURE:
            continue
        value_type = field.types[0]
        element_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        value = int(gguf.LlamaFileType.MOSTLY_F16) if key == gguf.Keys.General.FILE_TYPE else field.contents()
        writer.add_key_value(key, value, value_type, sub_type=element_type)


def float_tensor(tensor: gguf.ReaderTensor) -> np.ndarray:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if values.ndim < 2:
        return values.astype(np.float32)
    if (largest := np.abs(values).max()) > np.finfo(np.float16).max:
        raise SystemExit(f"{tensor.name}: {largest} does not fit in float16")
    return values.astype(np.float16)


def convert(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    partial = target.with_name(target.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    copy_metadata(reader, writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, float_tensor(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, target)
    print(f"{target}: {len(reader.tensors)} tensors, {target.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    convert(arguments.input, arguments.output)


if __name__ == "__main__":
    main()
