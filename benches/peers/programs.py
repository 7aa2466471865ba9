"""The programs that are compared, and how each is asked for one test.

Lutite answers with `lutite bench -o json`. The peers are builds of llama.cpp or descend from it, and answer with
`llama-bench -o json`; they differ in how an answer behind a filled cache is asked for, and in repacking.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Test:
    """What llama-bench calls pp512, tg128, tg32 @ d4096."""

    what: str  # "pp" reads a prompt, "tg" writes an answer
    tokens: int
    depth: int = 0  # tokens that the cache holds before

    def __str__(self):
        return f"{self.what}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    def lengths(self):
        prompt, answer = (self.tokens, 0) if self.what == "pp" else (0, self.tokens)
        return ["-p", str(prompt), "-n", str(answer)]


@dataclass(frozen=True)
class Peer:
    """A llama-bench binary and the arguments that it always gets."""

    name: str
    path: str
    arguments: tuple = ()
    # ik_llama.cpp split off before `-d`, and has `-gp` for an answer behind a prompt.
    depth_by: str = "-d"

    def measure(self, file, test, threads):
        """One repetition, after the warm-up of its own: tokens per second, and the build."""
        command = [self.path, "-m", file, "-t", str(threads), "-r", "1", "-o", "json", *self.arguments]
        if not test.depth:
            command += test.lengths()
        elif self.depth_by == "-d":
            command += [*test.lengths(), "-d", str(test.depth)]
        elif test.what == "tg":
            command += ["-p", "0", "-n", "0", "-gp", f"{test.depth},{test.tokens}"]
        else:
            sys.exit(f"{self.name} has no test of a prompt behind a filled cache")
        row = answer(command)[0]
        return row["samples_ts"][0], row.get("build_commit", "unknown")


@dataclass(frozen=True)
class Lutite:
    """The binary `lutite`."""

    path: str

    def measure(self, model, test, threads):
        """One repetition: the row that `lutite bench` prints. `model` is a list of arguments."""
        command = [self.path, "bench", *model, "-t", str(threads), "-r", "1", "-o", "json", *test.lengths()]
        return answer([*command, "-d", str(test.depth)])[0]

    def quantize(self, source, out, arguments):
        run([self.path, "quantize", source, "-o", out, "--no-measure", *arguments])

    def version(self):
        return run([self.path, "--version"]).strip()


def answer(command):
    """The rows of JSON that a benchmark prints; at least one."""
    text = run(command)
    try:
        rows = json.loads(text)
        if rows:
            return rows
    except json.JSONDecodeError:
        pass
    sys.exit(f"{' '.join(command)}\nprinted no result, but: {text[:500]!r}")


def run(command, with_errors=False):
    """Standard output of a program, or that and its standard error; ends with the latter where it fails."""
    # Options of lutite are variables as well, and must not change what is measured.
    kept = ("LUTITE_HOME", "LUTITE_ISA")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LUTITE_") or k in kept}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}; is the path right, and is it built?")
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr if with_errors else done.stdout


class BusyCore:
    """While it is entered, another program keeps the last CPU busy."""

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def spread(values, form):
    """Median, least and greatest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
