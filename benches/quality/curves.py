#!/usr/bin/env python3
"""What memory is worth: KL divergence over the bytes of weights that are in memory, of stacked files and of others.

    cargo build --release -p lutite
    lutite quantize SmolLM2.gguf -o stack.gguf --stack
    benches/quality/curves.py --model SmolLM2.gguf --text wiki.test.raw --out DIR stack=stack.gguf q3=q3.gguf ...

A stacked file is cut off at the ends of its curve's points and judged as what is left of it runs, with all that is
there; any other file is one point. The reference is the model's own weights in f32. Prints a table and writes it with
all figures and a drawing to DIR (curves.md, curves.json, curves.svg).
"""

import argparse
import json
import sys
from pathlib import Path

from table import ROOT, reference, run

sys.path.insert(0, str(ROOT / "benches"))
from svg import OURS, ROW_PX, THEIRS, Svg, axes  # noqa: E402

COLOURS = [OURS, THEIRS, "#27ae60", "#8e44ad", "#d35400", "#2c3e50", "#f1c40f", "#7f8c8d"]


def main():
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    base = reference(args, out)
    curves = {}
    for named in args.files:
        name, file = named.split("=", 1)
        kept = out / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(judge(args, name, Path(file), base, out)))
        curves[name] = json.loads(kept.read_text())
        print(*(row(name, p) for p in curves[name]), sep="\n", file=sys.stderr, flush=True)
    (out / "curves.json").write_text(json.dumps(curves, indent=1))
    table = "\n".join([
        "| file | blocks | weights in memory, MB | of the file, MB | bits per weight | mean KL | same top token, % | PPL ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(row(name, p) for name, points in curves.items() for p in points),
    ])
    (out / "curves.md").write_text(table + "\n")
    (out / "curves.svg").write_text(drawing(curves))
    print(table)


def judge(args, name, file, base, out):
    """Points of a file, by ascending bytes."""
    about = inspect(args, file)
    ends = [(p["blocks"], p["file_bytes"]) for p in about["stack"]["curve"]] if "stack" in about else [(None, None)]
    points = []
    for blocks, end in ends:
        part = file
        if end is not None:
            part = out / f"{name}.part.gguf"
            with open(file, "rb") as whole, open(part, "wb") as cut:
                cut.write(whole.read(end))
        about = inspect(args, part)
        matrices = [c for c in about["classes"] if not c["class"].startswith("norms")]
        size = sum(c["bytes"] for c in matrices)
        points.append({
            "blocks": blocks,
            "bytes": size,
            "file": part.stat().st_size,
            "bits": 8 * size / sum(c["weights"] for c in matrices),
            "kl": json.loads(run([args.lutite, "kl", part, "--base", base, "--json"])),
        })
        if part != file:
            part.unlink()
    return points


def inspect(args, file):
    return json.loads(run([args.lutite, "inspect", file, "--json"]))


def row(name, p):
    kl = p["kl"]
    blocks = "" if p["blocks"] is None else p["blocks"]
    return (
        f"| {name} | {blocks} | {p['bytes'] / 1e6:.1f} | {p['file'] / 1e6:.1f} | {p['bits']:.3f} "
        f"| {kl['mean_kl']:.4f} ± {kl['mean_kl_error']:.4f} | {100 * kl['top1_agreement']:.1f} | {kl['perplexity_ratio']:.3f} |"
    )


def drawing(curves):
    """KL on a logarithmic axis over bits per weight in memory."""
    files = {name: [(p["bits"], max(p["kl"]["mean_kl"], 1e-4)) for p in points] for name, points in curves.items()}
    points = [p for of_file in files.values() for p in of_file]
    size, left, top = 480, 60, 40
    svg = Svg(left + size + 200, top + size + 40)
    svg.text(left, 20, "mean KL over bits per weight in memory, embedding and head included")
    x, y = axes(svg, left, top, size, [p[0] for p in points], [p[1] for p in points], 1)
    for i, (name, of_file) in enumerate(files.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [(x(bits), y(kl)) for bits, kl in of_file]
        for (x1, y1), (x2, y2) in zip(places, places[1:]):
            svg.line(x1, y1, x2, y2, colour)
        for place in places:
            svg.dot(*place, colour)
        svg.text(left + size + 20, top + ROW_PX * (i + 0.5), name, colour=colour)
    return str(svg)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lutite", metavar="PATH", default=str(ROOT / "target/release/lutite"))
    parser.add_argument("--model", metavar="FILE", required=True, help="the GGUF file that the others were made from")
    parser.add_argument("--text", metavar="FILE", required=True, help="text to judge by")
    parser.add_argument("--chunks", metavar="N", type=int, default=16, help="chunks of 512 tokens to judge by")
    parser.add_argument("--out", metavar="DIR", required=True, help="what is there already is not computed again")
    parser.add_argument("files", metavar="NAME=FILE", nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    main()
