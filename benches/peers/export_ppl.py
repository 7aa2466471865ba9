#!/usr/bin/env python3
"""What `lutite export` writes, read by llama.cpp: the same weights have the same perplexity.

    cargo build --release -p lutite
    benches/peers/build.sh llama.cpp            # into target/peers
    benches/peers/export_ppl.py --model FILE --text FILE \\
        --llama-perplexity target/peers/llama.cpp/bin/llama-perplexity

The model is packed and exported; or one that is packed already, with --packed instead of --model. Lutite scores the
packed file by its plain path, llama.cpp the exported one, both with keys and values in f32, on the same chunks of the
text. More than 0.2 % between the two is a failure.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from programs import Lutite, run

ROOT = Path(__file__).resolve().parents[2]
MOST = 0.002


def main():
    args = arguments()
    lutite = Lutite(args.lutite)
    with tempfile.TemporaryDirectory() as folder:
        packed, exported = args.packed or f"{folder}/packed.gguf", f"{folder}/exported.gguf"
        if not args.packed:
            lutite.quantize(args.model, packed, ["--bits", args.bits, "--group", args.group])
        run([args.lutite, "export", packed, exported, "--type", args.type])
        same = ["-f", args.text, "-c", str(args.ctx_size), "--chunks", str(args.chunks), "-t", str(args.threads)]
        same += ["-ctk", "f32", "-ctv", "f32"]
        ours = json.loads(run([args.lutite, "perplexity", packed, *same, "--path", "plain", "--json"]))["perplexity"]
        theirs = final_estimate(run([args.llama_perplexity, "-m", exported, *same], with_errors=True))
    ratio = theirs / ours
    what = args.packed or f"bits {args.bits}, group {args.group}"
    print(f"{what}, {args.chunks} chunks of {args.ctx_size} tokens")
    print(f"Lutite, packed, plain path:     PPL {ours:.4f}")
    print(f"llama.cpp, exported as {args.type}:    PPL {theirs:.4f}")
    print(f"ratio {ratio:.5f}")
    if not abs(ratio - 1) <= MOST:
        sys.exit(f"they differ by more than {100 * MOST} %")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lutite", metavar="PATH", default=str(ROOT / "target/release/lutite"))
    parser.add_argument("--llama-perplexity", metavar="PATH", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="FILE", help="what `lutite quantize` reads")
    source.add_argument("--packed", metavar="FILE", help="what it wrote")
    parser.add_argument("--text", metavar="FILE", required=True)
    parser.add_argument("--bits", default="3", help="[default: 3]")
    parser.add_argument("--group", default="64", help="[default: 64]")
    parser.add_argument("--type", choices=["f16", "f32"], default="f16", help="[default: f16]")
    parser.add_argument("--ctx-size", type=int, default=512, help="[default: 512]")
    parser.add_argument("--chunks", type=int, default=20, help="[default: 20]")
    parser.add_argument("--threads", type=int, default=2, help="[default: 2]")
    return parser.parse_args()


def final_estimate(said):
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", said)
    if not found:
        sys.exit(f"llama-perplexity said no final estimate, but:\n{said[-3000:]}")
    return float(found[1])


if __name__ == "__main__":
    main()
