#!/usr/bin/env python3
"""Prints the table of `rows_equal_the_output_of_ggml` in kernels/tests/ggml.rs.

For each type: FNV-1a over what ggml's `dequantize_row_*` makes of 512 blocks of pseudo-random bytes whose scales are
finite. ggml is taken from llama-cpp-python (0.3.36 has ggml 0.25); the `gguf` package (0.19.0) has to agree.

    python3 -m pip install llama-cpp-python==0.3.36 gguf==0.19.0
    tools/make-ggml-hashes.py
"""

import ctypes
import pathlib

import gguf
import llama_cpp
import numpy as np

BLOCKS = 512

# Name, and where the f16 scales of a block are.
TYPES = [
    ("Q4_0", [0]), ("Q4_1", [0, 2]), ("Q5_0", [0]), ("Q5_1", [0, 2]), ("Q8_0", [0]),
    ("Q2_K", [80, 82]), ("Q3_K", [108]), ("Q4_K", [0, 2]), ("Q5_K", [0, 2]), ("Q6_K", [208]),
    ("TQ1_0", [52]), ("TQ2_0", [64]), ("IQ4_NL", [0]), ("IQ4_XS", [0]), ("MXFP4", []),
]


def blocks(block_bytes, scales):
    state, out = 1, bytearray()
    for _ in range(BLOCKS):
        block = bytearray()
        for _ in range(block_bytes):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            block.append(state >> 56)
        for at in scales:
            if block[at + 1] & 0x7C == 0x7C:
                block[at + 1] ^= 0x40  # infinities and NaN become finite
        out += block
    return bytes(out)


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


lib = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
for name, scales in TYPES:
    ty = gguf.GGMLQuantizationType[name]
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[ty]
    data = blocks(block_bytes, scales)
    out = np.zeros(BLOCKS * block_len, dtype=np.float32)
    spelled = name.lower() if "_K" not in name else "q" + name[1:]
    dequantize = getattr(lib, f"dequantize_row_{spelled}")
    dequantize(data, out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(out.size))
    with np.errstate(over="ignore"):
        other = gguf.quants.dequantize(np.frombuffer(data, dtype=np.uint8), ty)
    assert np.array_equal(other, out), f"{name}: the gguf package disagrees"
    at = ", ".join(map(str, scales))
    h = f"{fnv1a(out.tobytes()):016x}"
    h = "_".join(h[i : i + 4] for i in range(0, 16, 4))
    print(f"        (GgmlType::{name}, &[{at}], 0x{h}),")
