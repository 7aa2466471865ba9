"""Lines, dots, words and axes as SVG text: all that the drawings of measurements need."""

from html import escape
from math import ceil, floor, log, log10

OURS, THEIRS, LINE, GRID = "#c0392b", "#2c3e50", "#888", "#e4e4e4"
ROW_PX, FONT_PX = 18, 11


class Svg:
    """Elements, collected. Sizes are in pixels."""

    def __init__(self, width, height):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" font-family="sans-serif" font-size="{FONT_PX}">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def line(self, x1, y1, x2, y2, colour, width=1):
        place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.parts.append(f'<line {place} stroke="{colour}" stroke-width="{width}"/>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')

    def text(self, x, y, text, anchor="start", colour="#222"):
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
        self.parts.append(f"<text {place}>{escape(text)}</text>")

    def __str__(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def decades(values):
    """Powers of ten around some numbers."""
    values = list(values)
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)


def axes(svg, left, top, size, xs, ys, step):
    """Draws the grid of a square around some numbers: a line at each whole `step` of `xs`, and `ys` on a logarithmic axis.
    Returns two functions, which say where an x and where a y lies."""
    low, high = floor(min(xs) / step) * step, ceil(max(xs) / step) * step
    bottom, ceiling = min(ys) / 1.2, max(ys) * 1.2

    def x(value):
        return left + size * (value - low) / max(high - low, step)

    def y(value):
        return top + size * (1 - log(value / bottom) / log(ceiling / bottom))

    for mark in range(low, high + 1, step):
        svg.line(x(mark), top, x(mark), top + size, GRID)
        svg.text(x(mark), top + size + 16, f"{mark}", "middle")
    for mark in (m * 10**e for e in range(-4, 5) for m in (1, 2, 5)):
        if bottom <= mark <= ceiling:
            svg.line(left, y(mark), left + size, y(mark), GRID)
            svg.text(left - 6, y(mark) + 4, f"{mark:g}", "end")
    return x, y
