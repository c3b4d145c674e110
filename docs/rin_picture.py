"""Draws docs/rin.svg, the picture of a Recurrent Interface Network in the README.

    python -m docs.rin_picture
"""

from pathlib import Path

WIDTH, HEIGHT = 900, 330
INTERFACE, LATENTS = 95, 235  # heights of the two rows of tokens
STEP, BLOCK = 400, 165  # widths of a denoising step and of a block in it
GREEN, BLUE, GREY = "#2a9d6f", "#3566b8", "#555"


def text(x: float, y: float, words: str, size: int = 14, colour: str = GREY) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}">{words}</text>'


def tokens(x: float, y: float, count: int, side: int, colour: str) -> str:
    """A row of squares, centred at x."""
    left = x - count * (side + 2) / 2
    return "".join(
        f'<rect x="{left + i * (side + 2):.1f}" y="{y - side / 2:.1f}" width="{side}" '
        f'height="{side}" rx="2" fill="{colour}"/>'
        for i in range(count)
    )


def arrow(*points: tuple[float, float], colour: str = GREY) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
        'marker-end="url(#head)"/>'
    )


def block(x: float) -> list[str]:
    """Read, compute and write, with the first of them at x."""
    top, bottom = INTERFACE + 22, LATENTS - 24
    return [
        arrow((x, top), (x, bottom), colour=BLUE),
        text(x - 22, (top + bottom) / 2 - 20, "read"),
        arrow((x + 14, bottom + 6), (x + 40, bottom - 18), (x + 66, bottom + 6), colour=BLUE),
        text(x + 40, bottom - 26, "compute"),
        arrow((x + 80, bottom), (x + 80, top), colour=GREEN),
        text(x + 103, (top + bottom) / 2 - 20, "write"),
    ]


def step(x: float, name: str, before: str, after: str) -> list[str]:
    """A denoising step in a frame with its left edge at x."""
    middle = x + STEP / 2
    frame = (
        f'<rect x="{x}" y="40" width="{STEP - 20}" height="240" rx="10" fill="none" '
        f'stroke="{GREY}" stroke-opacity="0.4"/>'
    )
    return [
        frame,
        text(middle - 10, 30, name, 15),
        text(x + 60, INTERFACE - 25, before),
        text(x + STEP - 75, INTERFACE - 25, after),
        tokens(middle - 10, INTERFACE, 24, 12, GREEN),
        tokens(middle - 10, LATENTS, 8, 20, BLUE),
        *block(x + 55),
        *block(x + 55 + BLOCK),
    ]


def picture() -> str:
    """The whole SVG file."""
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" '
        f'markerHeight="5" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{GREY}"/></marker></defs>'
    )
    parts = [
        marker,
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *step(20, "a denoising step", "noisy x", "prediction"),
        *step(20 + STEP + 60, "the next step", "less noisy x", "prediction"),
        arrow((20 + STEP - 20, INTERFACE), (20 + STEP + 58, INTERFACE), colour=GREEN),
        arrow((20 + STEP - 20, LATENTS), (20 + STEP + 58, LATENTS), colour=BLUE),
        text(WIDTH / 4 + 5, 315, "many interface tokens: the patches of x", 14, GREEN),
        text(3 * WIDTH / 4 - 5, 315, "few latents: they carry over to the next step", 14, BLUE),
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" text-anchor="middle">\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("rin.svg").write_text(picture(), encoding="utf-8")
