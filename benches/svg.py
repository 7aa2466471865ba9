"""Lines, dots and words as SVG text: all that the drawings of measurements need."""

from html import escape
from math import ceil, floor, log10

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
