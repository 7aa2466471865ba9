#!/usr/bin/env python3
"""Lutite beside its peers: the same machine, the same threads, repetitions interleaved.

    cargo build --release -p lutite
    benches/peers/build.sh                      # llama.cpp and ik_llama.cpp, into target/peers
    benches/peers/compare.py --model FILE --llama-bench target/peers/llama.cpp/bin/llama-bench \\
        --ik-bench target/peers/ik_llama.cpp/bin/llama-bench

Whichever binaries are given take part. A round is Lutite, each peer, Lutite again; every run is a program of its own
with one repetition behind its warm-up. The table has medians over all rounds, and the median of the ratio within a
round (first Lutite run / peer); beside it the same ratio of Lutite's two runs. What differs there is noise, and a ratio
nearer to 1 than the noise is no result. In parentheses stand least and greatest.

Files of random weights for the peers (2 to 4 GB) are made and removed one after another. The folder --out gets
results.json (after every case, so that an interrupted run is not lost), results.md, ratios.svg and roofline.svg.
"""

import argparse
import json
import os
import platform
import re
import sys
from contextlib import nullcontext
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from statistics import median

import plots
import random_gguf
import suite
from programs import BusyCore, Lutite, Peer, spread

ROOT = Path(__file__).resolve().parents[2]


def main():
    args = arguments()
    if args.results:
        report(json.loads(Path(args.results).read_text()), args.out)
        return
    peers = {peer.name: peer for peer in given_peers(args)}
    cases = [case for case in suite.SUITE if takes_part(case, args, peers)]
    if args.list or not cases:
        for case in suite.SUITE:
            tests = ", ".join(map(str, case.tests))
            print(f"{'runs ' if case in cases else '     '} {label(case)}: {tests} against {', '.join(case.peers)}")
        sys.exit(0 if args.list else "nothing to measure: no case has its files and a peer; see --help")
    args.out.mkdir(parents=True, exist_ok=True)
    lutite = Lutite(args.lutite)
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu(), "cpus": os.cpu_count(), "system": platform.platform()},
        "lutite": lutite.version(),
        "rounds": args.rounds,
        "rows": [],
    }
    # Neighbours in the suite share a file, so that no more than one of random weights is on the disk.
    for file, group in groupby(cases, key=lambda case: case.file):
        with peer_file(file, args) as path:
            weight_bytes = random_gguf.weight_bytes_per_token(path)
            for case in group:
                model = our_model(case, args, lutite)
                for test in case.tests:
                    results["rows"] += measure(case, test, model, path, weight_bytes, args, lutite, peers)
                    results["load_average"] = os.getloadavg()[0]
                    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report(results, args.out)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    binary = parser.add_argument_group("programs")
    binary.add_argument("--lutite", metavar="PATH", default=str(ROOT / "target/release/lutite"))
    binary.add_argument("--llama-bench", metavar="PATH", help="llama-bench of llama.cpp")
    binary.add_argument("--ik-bench", metavar="PATH", help="llama-bench of ik_llama.cpp")
    binary.add_argument("--tmac", metavar="PATH", help="llama-bench of T-MAC's llama.cpp")
    binary.add_argument("--bitnet", metavar="PATH", help="llama-bench of bitnet.cpp")
    parser.add_argument("--model", metavar="FILE", help="SmolLM2-135M-Instruct in Q4_1, GGUF, for everybody")
    parser.add_argument("--tmac-model", metavar="FILE", help="Llama-2-7B of 2 bits in T-MAC's own form")
    parser.add_argument("--threads", default="1,2", help="thread counts [default: 1,2]", type=thread_counts)
    parser.add_argument("--rounds", type=int, default=7, help="[default: 7]")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose line in --list matches")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=ROOT / "target/peers/results")
    parser.add_argument("--list", action="store_true", help="say which cases would run, and stop")
    parser.add_argument("--results", metavar="JSON", help="measure nothing; table and plots of an earlier run")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds has to be 1 or more")
    return args


def thread_counts(text):
    counts = [int(n) for n in text.split(",")]
    if min(counts) < 1:
        raise ValueError
    return counts


def given_peers(args):
    if args.llama_bench:
        yield Peer(suite.LLAMA, args.llama_bench)
    if args.ik_bench:
        yield Peer(suite.IK, args.ik_bench, depth_by="-gp")
        yield Peer(suite.REPACKED, args.ik_bench, ("-rtr", "1"), depth_by="-gp")
    if args.tmac:
        yield Peer(suite.TMAC, args.tmac)
    if args.bitnet:
        yield Peer(suite.BITNET, args.bitnet)


def label(case):
    return f"{case.name} against {case.file.removeprefix('--')}"


def takes_part(case, args, peers):
    has_file = {suite.MODEL: args.model, suite.TMAC_MODEL: args.tmac_model}.get(case.file, True)
    return bool(has_file) and any(name in peers for name in case.peers) and re.search(args.only, label(case))


class peer_file:
    """The peers' file; of random weights, made on entering and removed on leaving."""

    def __init__(self, file, args):
        self.made = None
        self.path = {suite.MODEL: args.model, suite.TMAC_MODEL: args.tmac_model}.get(file)
        if self.path is None:
            self.path = self.made = str(args.out / f"{suite.SHAPE}-{file}.gguf")
            self.type = file

    def __enter__(self):
        if self.made:
            note(f"writing {self.made}")
            random_gguf.write(self.made, random_gguf.SHAPES[suite.SHAPE], self.type)
        return self.path

    def __exit__(self, *_):
        if self.made:
            Path(self.made).unlink(missing_ok=True)


def our_model(case, args, lutite):
    """The arguments that tell `lutite bench` its model."""
    given = {suite.MODEL: args.model}
    if case.quantize:
        packed = args.out / "packed.gguf"
        note(f"packing {args.model}: {' '.join(case.quantize)}")
        lutite.quantize(args.model, str(packed), case.quantize)
        given[suite.PACKED] = str(packed)
    return [given.get(argument, argument) for argument in case.ours]


def measure(case, test, model, path, weight_bytes, args, lutite, peers):
    """All rounds of one test: a row for each number of threads."""
    taking_part = [peers[name] for name in case.peers if name in peers]
    settings = [(threads, False) for threads in args.threads]
    if case.busy:
        settings.append((max(args.threads), True))
    rows = [
        {
            "case": case.name,
            "file": os.path.basename(path),
            "test": str(test),
            "threads": threads,
            "busy": busy,
            "lutite": {"samples": [], "again": []},
            "peers": {peer.name: {"samples": []} for peer in taking_part},
        }
        for threads, busy in settings
    ]
    for i in range(args.rounds):
        for row in rows:
            ours = row["lutite"]
            with BusyCore() if row["busy"] else nullcontext():
                first = lutite.measure(model, test, row["threads"])
                for peer in taking_part:
                    speed, build = peer.measure(path, test, row["threads"])
                    theirs = row["peers"][peer.name]
                    theirs["samples"].append(speed)
                    theirs["build"] = build
                    # Keys and values have the same type and the same positions.
                    per_token = weight_bytes if test.what == "tg" else weight_bytes / test.tokens
                    theirs["bytes_per_token"] = per_token + first["kv_bytes_per_token"]
                again = lutite.measure(model, test, row["threads"])
            ours["samples"].append(first["tokens_per_second"])
            ours["again"].append(again["tokens_per_second"])
            ours["kernel"] = first["kernel"]
            ours["bytes_per_token"] = first["bytes_per_token"]
            fastest = max(run["read_bandwidth_gb_s"] for run in (first, again))
            ours["read_gb_s"] = max(fastest, ours.get("read_gb_s", 0.0))
        note(f"{label(case)}, {test}: round {i + 1} of {args.rounds}")
    return rows


def report(results, out):
    """Table and plots, from what is in results.json."""
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    (out / "results.md").write_text(text)
    (out / "ratios.svg").write_text(plots.ratios(results["rows"]))
    (out / "roofline.svg").write_text(plots.roofline(results["rows"]))
    print(text, end="")
    note(f"\nin {out}: results.json, results.md, ratios.svg, roofline.svg")


def markdown(results):
    machine = results["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs; {results['lutite']}; {results['date']}; {results['rounds']} rounds;"
        f" load average at the end {results.get('load_average', 0):.1f}.",
        "",
        "| model | test | threads | Lutite t/s | of read loop | peer, file | t/s | ratio | Lutite / itself |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in results["rows"]:
        ours = row["lutite"]
        share = median(ours["samples"]) * ours["bytes_per_token"] / 1e9 / ours["read_gb_s"]
        for name, theirs in row["peers"].items():
            cells = [row["case"], row["test"], plots.threads(row), spread(ours["samples"], ".1f")]
            cells += [f"{100 * share:.0f} %", f"{name} {theirs['build']}, {row['file']}"]
            cells += [spread(theirs["samples"], ".1f"), spread(quotients(ours["samples"], theirs["samples"]), ".2f")]
            cells += [spread(quotients(ours["samples"], ours["again"]), ".2f")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + busy_table(results["rows"])) + "\n"


def busy_table(rows):
    """What is left of a program's own speed with one thread when it has all and another program takes a core."""
    lines = []
    alone = {(row["case"], row["file"], row["test"]): row for row in rows if row["threads"] == 1 and not row["busy"]}
    for row in rows:
        base = alone.get((row["case"], row["file"], row["test"]))
        if row["busy"] and base:
            pairs = [("Lutite", base["lutite"], row["lutite"])]
            pairs += [(name, base["peers"][name], theirs) for name, theirs in row["peers"].items()]
            for name, one, busy in pairs:
                share = spread(quotients(busy["samples"], one["samples"]), ".2f")
                lines.append(f"| {row['case']} | {row['test']} | {plots.threads(row)} | {name} | {share} |")
    head = ["", "| model | test | threads | program | share of its speed with 1 thread, undisturbed |"]
    return [*head, "|---|---|---:|---|---:|", *lines] if lines else []


def quotients(above, below):
    return [a / b for a, b in zip(above, below)]


def cpu():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def note(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
