"""Lutite beside llama.cpp: same file, same threads, repetitions interleaved.

    cargo build --release -p lutite
    benches/peers/build.sh
    target/peers/bin/python benches/peers/compare.py --model FILE [--threads 1,2]

A round is Lutite, llama.cpp, Lutite again. The table has the medians over all rounds, the ratio within a round (first
Lutite run / llama.cpp), and the same ratio of Lutite's two runs: what differs there is noise, and a ratio nearer to 1
than the noise is no result. In parentheses stand least and greatest.

Both sides are measured as llama-bench does: ppN reads N random tokens in batches of 512, tgN feeds N random tokens one
by one, each from an empty cache; warm-up first; 16-bit KV; flash attention as each decides. Of llama.cpp only the calls
of llama_decode are timed, no Python between them.
"""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import llama_cpp

BATCH = 512
WARM_STEPS = 4


class LlamaCpp:
    """A model and a context of llama.cpp."""

    def __init__(self, path, threads, context):
        llama_cpp.llama_backend_init()
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(self.quiet, None)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {context} positions")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(vocab)

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokens_per_second(self, test, n):
        step = BATCH if test == "pp" else 1
        self.feed(min(n, WARM_STEPS if step == 1 else step), step)
        return n / self.feed(n, step)

    def feed(self, n, step):
        """Feeds n random tokens into an empty cache; returns the seconds in llama_decode."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        tokens = [random.randrange(self.vocab) for _ in range(n)]
        seconds = 0.0
        for at in range(0, n, step):
            part = tokens[at : at + step]
            # The array has to outlive the batch, which only points to it.
            array = (ctypes.c_int32 * len(part))(*part)
            batch = llama_cpp.llama_batch_get_one(array, len(part))
            start = time.perf_counter()
            code = llama_cpp.llama_decode(self.context, batch)
            llama_cpp.llama_synchronize(self.context)
            seconds += time.perf_counter() - start
            if code:
                sys.exit(f"llama_decode failed with code {code}")
        return seconds


def lutite(args, threads):
    """One repetition of both tests: {"pp": tokens per second, "tg": ...}."""
    command = [args.lutite, "bench", "-m", args.model, "-o", "json", "-r", "1", "-t", str(threads)]
    command += ["-p", str(args.pp), "-n", str(args.tg), "-b", str(BATCH)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stderr}")
    return {row["test"][:2]: row["tokens_per_second"] for row in json.loads(done.stdout)}


def spread(values, form):
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[2]
    parser.add_argument("--model", required=True, help="a GGUF file that both programs run")
    parser.add_argument("--lutite", default=str(here / "target/release/lutite"), help="the binary")
    parser.add_argument("--threads", default="1,2", help="thread counts")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pp", type=int, default=512, help="tokens of the prompt; 0: no such test")
    parser.add_argument("--tg", type=int, default=128, help="tokens of the answer; 0: no such test")
    args = parser.parse_args()
    if args.rounds < 1 or (args.pp, args.tg) == (0, 0):
        parser.error("nothing to measure")
    tests = [(name, n) for name, n in (("pp", args.pp), ("tg", args.tg)) if n]

    print(f"| test | threads | Lutite t/s | llama.cpp {llama_cpp.__version__} t/s | ratio | Lutite / itself |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    load = []
    for threads in map(int, args.threads.split(",")):
        peer = LlamaCpp(args.model, threads, max(args.pp, args.tg))
        rounds = []
        for i in range(args.rounds):
            first = lutite(args, threads)
            other = {name: peer.tokens_per_second(name, n) for name, n in tests}
            rounds.append((first, other, lutite(args, threads)))
            print(f"{threads} threads: round {i + 1} of {args.rounds}", file=sys.stderr)
        peer.close()
        load.append(f"{os.getloadavg()[0]:.1f} with {threads}")
        for name, n in tests:
            ours, theirs, again = ([part[name] for part in side] for side in zip(*rounds))
            ratio = [a / b for a, b in zip(ours, theirs)]
            noise = [a / b for a, b in zip(ours, again)]
            cells = [spread(ours, ".1f"), spread(theirs, ".1f"), spread(ratio, ".2f"), spread(noise, ".2f")]
            print(f"| {name}{n} | {threads} | {' | '.join(cells)} |", flush=True)
    # Above the number of threads there were others on the machine, and a barrier waits for whoever was put aside.
    print(f"\n{os.cpu_count()} CPUs; load average at the end, by threads: {', '.join(load)}")


if __name__ == "__main__":
    main()
