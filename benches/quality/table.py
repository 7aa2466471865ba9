#!/usr/bin/env python3
"""Quality of low bits beside the methods of others: KL divergence, perplexity and errors of outputs at equal bits.

    cargo build --release -p lutite && cargo build --release -p lutite-quant --example baseline
    benches/quality/table.py --model SmolLM2.gguf --calib calibration.txt --text wiki.test.raw --out DIR

All methods get the same calibration text and pack the matrices of all layers; embedding and head stay as they are in the
model. The reference is the model's own weights in f32. The text to judge by is not the one to calibrate with. Prints a table
and writes it with all figures to DIR (table.md, results.json).
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

# Method, planes, group. Ours (cd; cd0 without moved targets) has int8 parameters, the others f16.
CASES = [
    ("rtn", 2, 64),
    ("gptq", 2, 64),
    ("elutq", 2, 64),
    ("cd0", 2, 64),
    ("cd0", 2, 32),
    ("cd", 2, 64),
    ("cd", 2, 32),
    ("gptq", 3, 64),
    ("elutq", 3, 64),
    ("cd", 3, 64),
    ("cd", 3, 32),
]


def main():
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    base = out / "base.kld"
    if not base.exists():
        text = ["-f", args.text, "-c", "512", "--chunks", str(args.chunks), "--save-base", f"{base}.part"]
        plain = ["--path", "plain", "-ctk", "f32", "-ctv", "f32"]
        run([args.lutite, "perplexity", args.model, *text, *plain])
        os.rename(f"{base}.part", base)
    results = []
    for method, planes, group in CASES:
        name = f"{method}-q{planes}-g{group}"
        if not re.search(args.only, name):
            continue
        kept = out / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(measure(args, name, method, planes, group, base, out)))
        results.append(json.loads(kept.read_text()))
        print(row(results[-1]), file=sys.stderr, flush=True)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    table = "\n".join([
        "| method | bits per weight | file, MB | error of outputs | mean KL | same top token, % | PPL ratio | s | peak, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(row, results),
    ])
    (out / "table.md").write_text(table + "\n")
    print(table)


def measure(args, name, method, planes, group, base, out):
    packed = out / f"{name}.gguf"
    command = [args.baseline, method, args.model, packed, planes, group, args.calib, args.tokens]
    start = time.time()
    with open(out / f"{name}.err", "w") as errors:
        child = subprocess.Popen([str(c) for c in command], stdout=errors, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{name}: the baseline program failed")
    seconds = time.time() - start
    errors = [float(line.split()[1]) for line in (out / f"{name}.err").read_text().splitlines()]
    kl = json.loads(run([args.lutite, "kl", packed, "--base", base, "--json"]))
    bits = {"cd": 8, "cd0": 8, "elutq": 16}
    # A uniform grid needs its step and its zero only.
    parameters = (planes + 1) * bits[method] if method in bits else 2 * 16
    size = packed.stat().st_size
    packed.unlink()
    return {
        "name": name,
        "bits": planes + parameters / group,
        "bytes": size,
        "error": math.exp(sum(map(math.log, errors)) / len(errors)),
        "seconds": seconds,
        "peak": usage.ru_maxrss * 1024,
        "kl": kl,
    }


def row(r):
    kl = r["kl"]
    return (
        f"| {r['name']} | {r['bits']:.3f} | {r['bytes'] / 1e6:.1f} | {r['error']:.4f} "
        f"| {kl['mean_kl']:.3f} ± {kl['mean_kl_error']:.3f} | {100 * kl['top1_agreement']:.1f} "
        f"| {kl['perplexity_ratio']:.2f} | {r['seconds']:.0f} | {r['peak'] / 1e6:.0f} |"
    )


def run(command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
    return done.stdout


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lutite", metavar="PATH", default=str(ROOT / "target/release/lutite"))
    parser.add_argument("--baseline", metavar="PATH", default=str(ROOT / "target/release/examples/baseline"))
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
