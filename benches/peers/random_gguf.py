"""GGUF files of random weights in the shapes of real models, and how many bytes of a file one token reads.

Speed does not depend on the weights' values, as long as they are finite and not all alike: blocks get random codes and
one fixed, small scale. A few random rows are written again and again; every row lies in memory of its own, so that no
cache gains by it. Block layouts are those of ggml-common.h (llama.cpp; IQ2_* of ik_llama.cpp).
"""

import os
import random
import struct
from dataclasses import dataclass

ALIGNMENT = 32
# Rows made anew for each matrix; its other rows repeat them.
RANDOM_ROWS = 16
SCALE = 0.002


@dataclass(frozen=True)
class BlockType:
    """How ggml stores a row of weights."""

    id: int
    weights: int  # of a block
    bytes: int  # of a block
    scales: tuple = ()  # offsets of the f16 scales in a block
    row_head: str = ""  # struct format of the scale before a row's blocks
    tail: int = 0  # bytes behind a tensor's last row, f32 scale first

    def row_bytes(self, cols):
        return struct.calcsize("<" + self.row_head) + cols // self.weights * self.bytes

    def random_row(self, cols, generator):
        row = bytearray(struct.pack("<" + self.row_head, *([SCALE] if self.row_head else [])))
        for _ in range(cols // self.weights):
            block = bytearray(generator.randbytes(self.bytes))
            for at in self.scales:
                struct.pack_into("<e", block, at, SCALE)
            row += block
        return bytes(row)


TYPES = {
    "Q4_0": BlockType(2, 32, 18, scales=(0,)),
    "Q2_K": BlockType(10, 256, 84, scales=(80, 82)),
    "Q3_K": BlockType(11, 256, 110, scales=(108,)),
    "TQ2_0": BlockType(35, 256, 66, scales=(64,)),
    "IQ2_BN": BlockType(135, 64, 16, row_head="f"),
    "IQ2_K": BlockType(137, 256, 76, scales=(0,)),
    "IQ2_KS": BlockType(145, 256, 70, row_head="e"),
    # bitnet.cpp: one scale for a whole tensor.
    "I2_S": BlockType(36, 4, 1, tail=32),
}
F32 = 0


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model; `lutite bench --synthetic` has the same ones."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int

    def matrices(self):
        """(name, rows, columns) of every matrix, the table of token vectors aside."""
        kv = self.dim // self.heads * self.kv_heads
        parts = [("attn_q", self.dim, self.dim), ("attn_k", kv, self.dim), ("attn_v", kv, self.dim)]
        parts += [("attn_output", self.dim, self.dim), ("ffn_gate", self.ffn, self.dim)]
        parts += [("ffn_up", self.ffn, self.dim), ("ffn_down", self.dim, self.ffn)]
        layers = [(f"blk.{i}.{name}.weight", r, c) for i in range(self.layers) for name, r, c in parts]
        return layers + [("output.weight", self.vocab, self.dim)]


SHAPES = {"llama2-7b": Shape(4096, 32, 32, 32, 11008, 32000, 4096)}

# Codes of GGUF's metadata types, and the struct formats of those with a fixed size.
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def write(path, shape, type_name):
    """Writes a model whose matrices, output layer included, are all of one type. The table of token vectors, of which a
    token reads one row, is Q4_0. There is no vocabulary, only its size."""
    kind = TYPES[type_name]
    generator = random.Random(0)
    # (name, dimensions with the columns first, type, bytes, rows to repeat)
    tensors = [("token_embd.weight", (shape.dim, shape.vocab), TYPES["Q4_0"])]
    tensors += [(name, (cols, rows), kind) for name, rows, cols in shape.matrices()]
    norms = [f"blk.{i}.{part}_norm.weight" for i in range(shape.layers) for part in ("attn", "ffn")]
    tensors += [(name, (shape.dim,), None) for name in [*norms, "output_norm.weight"]]

    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0))
    entries = 0

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def entry(key, code, value):
        nonlocal entries
        head.extend(text(key) + struct.pack("<I", code))
        head.extend(text(value) if code == STRING else struct.pack("<" + FIXED[code], value))
        entries += 1

    entry("general.architecture", STRING, "llama")
    entry("general.name", STRING, f"random {type_name}")
    for key, value in (
        ("embedding_length", shape.dim),
        ("block_count", shape.layers),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("feed_forward_length", shape.ffn),
        ("vocab_size", shape.vocab),
        ("context_length", shape.context),
        ("rope.dimension_count", shape.dim // shape.heads),
    ):
        entry("llama." + key, UINT32, value)
    entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5)
    entry("tokenizer.ggml.model", STRING, "no_vocab")
    struct.pack_into("<Q", head, 16, entries)

    offset = 0
    for name, dims, of in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", of.id if of else F32, offset)
        offset += padded(tensor_bytes(dims, of))
    head.extend(bytes(padded(len(head)) - len(head)))

    with open(path, "wb") as out:
        out.write(head)
        for _, dims, of in tensors:
            if of is None:
                data = struct.pack("<f", 1.0) * dims[0]
                out.write(data)
            else:
                rows = b"".join(of.random_row(dims[0], generator) for _ in range(min(RANDOM_ROWS, dims[1])))
                full, rest = divmod(dims[1], RANDOM_ROWS)
                for _ in range(full):
                    out.write(rows)
                out.write(rows[: rest * of.row_bytes(dims[0])])
                if of.tail:
                    out.write(struct.pack("<f", SCALE).ljust(of.tail, b"\0"))
            size = tensor_bytes(dims, of)
            out.write(bytes(padded(size) - size))


def tensor_bytes(dims, of):
    return 4 * dims[0] if of is None else of.row_bytes(dims[0]) * dims[1] + of.tail


def padded(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def weight_bytes_per_token(path):
    """Bytes of all tensors of a file, less the table of token vectors if the output layer is one of its own. Sizes are
    the distances of the tensors' offsets, so that no type has to be known."""
    with open(path, "rb") as file:

        def take(form):
            data = file.read(struct.calcsize("<" + form))
            return struct.unpack("<" + form, data)[0]

        def text():
            return file.read(take("Q")).decode("utf-8", "replace")

        def value(code):
            if code == STRING:
                return text()
            if code == ARRAY:
                item, count = take("I"), take("Q")
                for _ in range(count):
                    value(item)
                return None
            return take(FIXED[code])

        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        try:
            take("I")
            count, entries = take("Q"), take("Q")
            metadata = {}
            for _ in range(entries):
                key = text()
                metadata[key] = value(take("I"))
            offsets = {}
            for _ in range(count):
                name = text()
                for _ in range(take("I")):
                    take("Q")
                take("I")
                offsets[name] = take("Q")
        except (struct.error, KeyError) as error:
            raise ValueError(f"{path}: the head of the file is cut short or damaged") from error
        alignment = metadata.get("general.alignment", ALIGNMENT)
        begin = -(-file.tell() // alignment) * alignment
    ends = sorted([*offsets.values(), os.path.getsize(path) - begin])
    sizes = {name: ends[ends.index(at) + 1] - at for name, at in offsets.items()}
    table = sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0
    return sum(sizes.values()) - table
