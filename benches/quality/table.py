#!/usr/bin/env python3
"""Quality of low bits beside the methods of others: KL divergence and perplexity over bytes.

    cargo build --release -p lutite && cargo build --release -p lutite-quant --example baseline
    benches/quality/table.py --model SmolLM2.gguf --calib calibration.txt --text wiki.test.raw --out DIR \\
        [--llama-quantize PATH]

All methods get the same calibration text, but for `self`, where the model writes it. But for the last rows they pack the
matrices of all layers, and embedding and head stay as they are in the model; `size` shares out bits among all matrices, and
llama.cpp's types are what its own program makes of the same file. The reference is the model's own weights in f32. The
text to judge by is not the one to calibrate with. Prints a table and writes it with all figures and two drawings to
DIR (table.md, results.json, kl.svg, perplexity.svg).
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))
from svg import OURS, ROW_PX, THEIRS, Svg, axes  # noqa: E402

# Method, planes, group. Ours (cd, self) has int8 parameters, the others f16.
CASES = [
    ("rtn", 2, 64),
    ("gptq", 2, 64),
    ("elutq", 2, 64),
    ("cd", 2, 64),
    ("cd", 2, 32),
    ("self", 2, 32),
    ("rtn", 3, 64),
    ("gptq", 3, 64),
    ("elutq", 3, 64),
    ("cd", 3, 64),
]
# Bits per weight of all matrices, embedding and head included.
SIZES = [2.75, 3.25, 3.75]
TYPES = ["Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_0", "Q4_K_M"]


def main():
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    base = reference(args, out)
    results = []
    for name, command, bits in cases(args):
        if not re.search(args.only, name):
            continue
        kept = out / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(measure(args, name, command, bits, base, out)))
        results.append(json.loads(kept.read_text()))
        print(row(results[-1]), file=sys.stderr, flush=True)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    table = "\n".join([
        "| method | bits per weight | file, MB | error of outputs | mean KL | same top token, % | PPL ratio | s | peak, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(row, results),
    ])
    (out / "table.md").write_text(table + "\n")
    (out / "kl.svg").write_text(drawing(results, "mean KL", lambda kl: kl["mean_kl"]))
    (out / "perplexity.svg").write_text(drawing(results, "PPL ratio", lambda kl: kl["perplexity_ratio"]))
    print(table)


def reference(args, out):
    """What the model itself says of the text, in f32; computed once."""
    base = out / "base.kld"
    if not base.exists():
        text = ["-f", args.text, "-c", "512", "--chunks", args.chunks, "--save-base", f"{base}.part"]
        plain = ["--path", "plain", "-ctk", "f32", "-ctv", "f32"]
        run([args.lutite, "perplexity", args.model, *text, *plain])
        os.rename(f"{base}.part", base)
    return base


def cases(args):
    """Name, command that packs to OUT, and bits per weight of layers or of all."""
    for method, planes, group in CASES:
        name = f"{method}-q{planes}-g{group}"
        parameters = (planes + 1) * (8 if method in ("cd", "self") else 16)
        if method in ("rtn", "gptq"):
            # A uniform grid needs its step and its zero only.
            parameters = 2 * 16
        if method == "self":
            command = ours(args, "--bits", planes, "--head-bits", "exact", "--group", group, "--calib-tokens", args.tokens)
        else:
            command = [args.baseline, method, args.model, "OUT", planes, group, args.calib, args.tokens]
        yield name, command, planes + parameters / group
    for bits in SIZES:
        calib = ["--calib", args.calib, "--calib-tokens", args.tokens]
        yield f"size-{bits}", ours(args, "--target-bpw", bits, "--keep", *calib), bits
    if args.llama_quantize:
        for ty in TYPES:
            yield ty, [args.llama_quantize, "--allow-requantize", args.model, "OUT", ty], None


def ours(args, *flags):
    return [args.lutite, "quantize", args.model, "-o", "OUT", *flags, "--no-measure"]


def measure(args, name, command, bits, base, out):
    packed = out / f"{name}.gguf"
    command = [str(packed if c == "OUT" else c) for c in command]
    start = time.time()
    with open(out / f"{name}.err", "w") as errors, open(out / f"{name}.log", "w") as log:
        child = subprocess.Popen(command, stdout=errors, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)}: failed, see {out}/{name}.log")
    seconds = time.time() - start
    # What the baseline program prints: a matrix and its error.
    errors = (line.split() for line in (out / f"{name}.err").read_text().splitlines())
    errors = [float(line[1]) for line in errors if len(line) == 2 and line[0].startswith("blk.")]
    kl = json.loads(run([args.lutite, "kl", packed, "--base", base, "--json"]))
    size = packed.stat().st_size
    packed.unlink()
    return {
        "name": name,
        "bits": bits,
        "bytes": size,
        "error": math.exp(sum(map(math.log, errors)) / len(errors)) if errors else None,
        "seconds": seconds,
        "peak": usage.ru_maxrss * 1024,
        "kl": kl,
    }


def row(r):
    kl = r["kl"]
    bits = "" if r["bits"] is None else f"{r['bits']:.3f}"
    error = "" if r["error"] is None else f"{r['error']:.4f}"
    return (
        f"| {r['name']} | {bits} | {r['bytes'] / 1e6:.1f} | {error} "
        f"| {kl['mean_kl']:.3f} ± {kl['mean_kl_error']:.3f} | {100 * kl['top1_agreement']:.1f} "
        f"| {kl['perplexity_ratio']:.2f} | {r['seconds']:.0f} | {r['peak'] / 1e6:.0f} |"
    )


def drawing(results, what, of):
    """A figure over bytes of the whole file, on a logarithmic axis. Ours is red; names stand beside, by descending value."""
    points = [(r["name"], r["bytes"] / 1e6, of(r["kl"])) for r in results]
    points.sort(key=lambda p: -p[2])
    size, left, top = 420, 60, 40
    svg = Svg(left + size + 260, max(top + size + 40, top + ROW_PX * (len(points) + 1)))
    if not points:
        return str(svg)
    svg.text(left, 20, f"{what} over MB of the file; red is Lutite")
    x, y = axes(svg, left, top, size, [p[1] for p in points], [p[2] for p in points], 10)
    for i, (name, megabytes, value) in enumerate(points):
        colour = OURS if re.match("cd|self|size", name) else THEIRS
        svg.dot(x(megabytes), y(value), colour)
        svg.text(x(megabytes) + 6, y(value) + 4, f"{i + 1}", colour=colour)
        words = f"{i + 1}  {name}: {value:.3f}, {megabytes:.1f} MB"
        svg.text(left + size + 30, top + ROW_PX * (i + 0.5), words, colour=colour)
    return str(svg)


def run(command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
    return done.stdout


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lutite", metavar="PATH", default=str(ROOT / "target/release/lutite"))
    parser.add_argument("--baseline", metavar="PATH", default=str(ROOT / "target/release/examples/baseline"))
    parser.add_argument("--llama-quantize", metavar="PATH", help="llama.cpp's, for its types (benches/peers/build.sh)")
    parser.add_argument("--model", metavar="FILE", required=True, help="a GGUF file that is not packed")
    parser.add_argument("--calib", metavar="FILE", required=True, help="text to calibrate with")
    parser.add_argument("--text", metavar="FILE", required=True, help="text to judge by")
    parser.add_argument("--tokens", metavar="N", type=int, default=16384, help="tokens to calibrate with")
    parser.add_argument("--chunks", metavar="N", type=int, default=16, help="chunks of 512 tokens to judge by")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose name matches, e.g. cd-q2")
    parser.add_argument("--out", metavar="DIR", required=True, help="what is there already is not computed again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
