"""Two drawings of the results, written as SVG text: ratios, and a roofline."""

import sys
from math import log10
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from svg import GRID, LINE, OURS, ROW_PX, THEIRS, Svg, decades


def threads(row):
    return f"{row['threads']}, a core busy" if row["busy"] else str(row["threads"])


def ratios(rows):
    """Lutite over each peer: a dot at the median, a bar from least to greatest, 1 as a line, on a logarithmic axis."""
    entries = []
    for row in rows:
        for name, peer in row["peers"].items():
            quotients = [a / b for a, b in zip(row["lutite"]["samples"], peer["samples"])]
            entries.append((f"{row['case']} {row['test']}, threads {threads(row)}: {name}, {row['file']}", quotients))
    left, width, top = 470, 900, 40
    least = min([0.5, *(min(q) for _, q in entries)])
    most = max([2.0, *(max(q) for _, q in entries)])

    def x(value):
        return left + (width - left - 60) * log10(value / least) / log10(most / least)

    bottom = top + ROW_PX * len(entries)
    svg = Svg(width, bottom + 30)
    svg.text(left, 16, "tokens per second, Lutite / peer; right of 1 Lutite is faster")
    for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        if least <= mark <= most:
            svg.line(x(mark), top - 6, x(mark), bottom, LINE if mark == 1 else GRID, 2 if mark == 1 else 1)
            svg.text(x(mark), bottom + 16, f"{mark:g}", "middle")
    for i, (name, quotients) in enumerate(entries):
        y = top + ROW_PX * (i + 0.5)
        middle = median(quotients)
        colour = OURS if middle >= 1 else THEIRS
        svg.text(left - 10, y + 4, name, "end")
        svg.line(x(min(quotients)), y, x(max(quotients)), y, colour, 2)
        svg.dot(x(middle), y, colour)
        svg.text(width - 10, y + 4, f"{middle:.2f}", "end")
    return str(svg)


def roofline(rows):
    """For each number of threads, tokens per second of answers over bytes read per token. The line is what the read
    loop of `lutite bench` reaches, its median: bytes per second / bytes per token. Who reads its bytes
    from memory is hardly above it."""
    rows = [row for row in rows if row["test"].startswith("tg") and not row["busy"]]
    counts = sorted({row["threads"] for row in rows})
    points = {count: [] for count in counts}
    for row in rows:
        ours = row["lutite"]
        name = f"Lutite {row['case']}"
        all_points = [(name, ours, OURS)]
        file = row["file"].removesuffix(".gguf")
        all_points += [(f"{peer} {file}", theirs, THEIRS) for peer, theirs in row["peers"].items()]
        for name, side, colour in all_points:
            name = f"{name}, {row['test']}"
            # Lutite's model is measured once for each file of the peers; the first will do.
            if name not in (point[0] for point in points[row["threads"]]):
                points[row["threads"]].append((name, side["bytes_per_token"], median(side["samples"]), colour))
    if not counts:
        return str(Svg(300, 30))
    every = [point for part in points.values() for point in part]
    x_low, x_high = decades(point[1] for point in every)
    y_low, y_high = decades(point[2] for point in every)
    size, gap, top = 360, 60, 40
    legend = top + size + 50
    panel = size + gap + 160
    longest = max(map(len, points.values()))
    svg = Svg(max(panel * len(counts), 2 * panel) + 20, legend + ROW_PX * longest + 20)
    for at, count in enumerate(counts):
        left = gap + at * panel

        def x(value):
            return left + size * (log10(value) - x_low) / (x_high - x_low)

        def y(value):
            return top + size * (1 - (log10(value) - y_low) / (y_high - y_low))

        for power in range(x_low, x_high + 1):
            svg.line(x(10**power), top, x(10**power), top + size, GRID)
            svg.text(x(10**power), top + size + 14, magnitude(power), "middle")
        for power in range(y_low, y_high + 1):
            svg.line(left, y(10**power), left + size, y(10**power), GRID)
            svg.text(left - 6, y(10**power) + 4, f"{10.0**power:g}", "end")
        read = median(row["lutite"]["read_gb_s"] for row in rows if row["threads"] == count) * 1e9
        # Cut to the panel.
        from_x = max(10**x_low, read / 10**y_high)
        to_x = min(10**x_high, read / 10**y_low)
        if from_x < to_x:
            svg.line(x(from_x), y(read / from_x), x(to_x), y(read / to_x), LINE, 2)
        plural = "s" if count > 1 else ""
        svg.text(left, 16, f"{count} thread{plural}; read loop {read / 1e9:.1f} GB/s")
        svg.text(left, 30, "tokens per second over bytes per token", colour=LINE)
        for i, (name, size_bytes, speed, colour) in enumerate(points[count]):
            svg.dot(x(size_bytes), y(speed), colour)
            svg.text(x(size_bytes) + 6, y(speed) + 4, str(i + 1), colour=colour)
            share = 100 * size_bytes * speed / read
            line = f"{i + 1}  {name}: {speed:.1f} t/s, {share:.0f} % of the read loop"
            svg.text(left - 40, legend + ROW_PX * i, line, colour=colour)
    return str(svg)


def magnitude(power):
    names = {0: "B", 3: "KB", 6: "MB", 9: "GB", 12: "TB"}
    base = power // 3 * 3
    return f"{10 ** (power - base)} {names.get(base, f'e{base} B')}"
