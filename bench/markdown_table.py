"""How the pages that are made from records print a table and a figure."""

from __future__ import annotations


def table(header: list[str], rows: list[list[str]], align: str = "---:") -> list[str]:
    """Lines of Markdown: the first column to the left, the others to the right, or as ``align`` says."""
    rule = ["---", *[align] * (len(header) - 1)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in (header, rule, *rows)]


def figure(value: float) -> str:
    """Of three digits that count, and without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"


def spread(found: dict[str, float], digits: int = 2) -> str:
    """The median, and the middle 80 % in brackets."""
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f}-{found['high']:.{digits}f})"
