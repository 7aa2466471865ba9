#!/usr/bin/env python3
"""Reader of packed models, written from docs/format.md alone to test that page: read_packed.py PACKED SOURCE
It wants the f32 that ggml dequantizes to in sampled rows of matrices, the same bytes in all other tensors."""
import functools, io, math, pathlib, random, struct, sys

SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
         11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 24: (1, 1), 30: (1, 2)}  # n, bytes

def check(holds, message):
    if not holds:
        sys.exit(f"read_packed: {message}")

def f32(number):
    return struct.unpack("<f", struct.pack("<f", number))[0]

def read_gguf(path):  # metadata, and type, dimensions and bytes of each tensor
    def take(layout):
        return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))
    def value(kind):
        if kind == 9:
            return [value(element) for element, count in [take("IQ")] for _ in range(count)]
        return file.read(*take("Q")).decode() if kind == 8 else take("BbHhIif?--Qqd"[kind])[0]
    file = io.BytesIO(pathlib.Path(path).read_bytes())
    check(take("4sI") in ((b"GGUF", 2), (b"GGUF", 3)), f"{path} is not GGUF, version 2 or 3")
    count, entries = take("QQ")
    meta = {value(8): value(*take("I")) for _ in range(entries)}
    listing = [(value(8), take(f"{take('I')[0]}Q"), *take("IQ")) for _ in range(count)]
    data = file.getbuffer()[file.tell() + -file.tell() % meta.get("general.alignment", 32):]
    return meta, {name: (kind, dims, data[offset:][:math.prod(dims) // SIZES[kind][0] * SIZES[kind][1]])
                  for name, dims, kind, offset in listing}

def sample(tensors, line):  # name, size, row, its weights; takes the matrix' tensors out of the others
    name, pairs = line.split(" ")[0], dict(pair.split("=") for pair in line.split(" ")[1:])
    rows, cols, planes, group = (int(pairs[key]) for key in ("rows", "cols", "planes", "group"))
    kind, _, center = pairs["kind"].partition(":")
    n = dict(hlq16=planes + 1, hlq8=planes + 1, uniform=2, uniformk=2, centered=1, centeredk=1).get(kind)
    check(n and bool(center) == (n == 1), f"{name}: unknown kind {pairs['kind']}")
    i8, span = kind in ("hlq8", "uniformk", "centeredk"), 256 if kind[-1] == "k" else cols
    tiles, blocks, groups, spans = -(-rows // 32), -(-cols // 8), -(-cols // group), -(-cols // span)
    def take(part, number, *dims):
        found = tensors.pop(f"{name}.{part}", (None, None))
        check(found[:2] == (number, dims), f"{name}.{part}: {found[:2]} instead of {(number, dims)}")
        return found[2].cast("b") if number == 24 else struct.unpack(f"<{math.prod(dims)}e", found[2])
    hlq, ends = "hlq" in kind, -(-cols // 32)
    bits = [take(f"p{p}", 24, blocks * 32, tiles) for p in range(planes) if hlq]
    fields = [(w, take(f"c{w}", 24, ends * 128 * w, tiles)) for w in (8, 4, 2, 1) if planes & w and not hlq]
    params = take(f"s{planes}", 24 if i8 else 1, 32, n, groups, tiles)
    scales = take(f"r{planes}", 1, 32, n, *[spans] * (kind != "hlq8"), tiles) if i8 else [1] * 32 * n * tiles
    def code(r, c):
        found = shift = 0
        for w, field in fields:
            unit, i = divmod(c, 32 // w)
            byte = field[(r // 32 * ends * w + unit) * 128 + 4 * (r % 32) + i % 4]
            found, shift = found | (byte >> w * (i // 4) & (1 << w) - 1) << shift, shift + w
        return found
    def weight(r, c):
        b = [p[(r // 32 * blocks + c // 8) * 32 + 2 * (r % 16) + r % 32 // 16] >> c % 8 & 1 for p in bits]
        s = [params[((r // 32 * groups + c // group) * n + k) * 32 + r % 32] *
             scales[((r // 32 * spans + c // span) * n + k) * 32 + r % 32] for k in range(n)]
        if hlq:
            return functools.reduce(lambda sum_, p: f32(sum_ + s[p] * b[p]), range(planes), s[planes])
        return f32(f32(s[0] * (code(r, c) - int(center or 0))) + sum(s[1:]))
    for r in sorted({0, *random.Random(name).sample(range(rows), 6), rows - 1}) if rows > 32 else range(rows):
        yield name, (cols, rows), r, [weight(r, c) for c in range(cols)]

def dequantize(kind, data, i):  # weight i of a tensor of the source
    if kind < 2:
        return struct.unpack_from("<" + "fe"[kind], data, i * SIZES[kind][1])[0]
    end = (i // 32 + 1) * SIZES[kind][1]
    d, m, q = *struct.unpack_from("<ee", data, end - SIZES[kind][1]), data[end - 16 + i % 16]
    q = struct.unpack_from("b", data, end - 32 + i % 32)[0] if kind == 8 else q >> i % 32 // 16 * 4 & 15
    return {2: d * (q - 8), 3: f32(d * q + m), 8: d * q}.get(kind, f"of type {kind}, which is unknown here")

def main(packed, source):
    (meta, tensors), (_, sources), done, rows, weights = read_gguf(packed), read_gguf(source), set(), 0, 0
    for key, wanted in ("version", 2), ("features", []), ("layout", "p32-1 6eaf8389dbdf4525 c32-1 5620798490ee3a25"):
        check(meta.get("lutite." + key, []) == wanted, f"lutite.{key} is {meta.get('lutite.' + key)}")
    for name, dims, r, ours in (row for line in meta["lutite.tensors"] for row in sample(tensors, line)):
        kind, size, data = sources[name + ".weight"]
        theirs = [dequantize(kind, data, r * dims[0] + c) for c in range(dims[0])]
        wrong = [f"column {c}: {a}, source {b}" for c, (a, b) in enumerate(zip(ours, theirs)) if a != b]
        check(size == dims and not wrong, f"{name} {dims}, row {r}, {len(wrong)} differ: {[*wrong, size][0]}")
        done, rows, weights = done | {name + ".weight"}, rows + 1, weights + len(ours)
    for name in tensors.keys() | sources.keys() - done:
        check(tensors.get(name) == sources.get(name), f"{name} differs, or is in one of the files only")
    print(f"{len(done)} matrices, {rows} rows, {weights} weights, {len(tensors)} copied tensors: equal")

if __name__ == "__main__":
    main(*sys.argv[1:])
