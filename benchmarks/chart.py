"""A scatter plot as SVG: points of several kinds, each with the range of its measurements."""

from collections.abc import Mapping, Sequence

COLORS = ("#1f6f8b", "#c0582b", "#5b7f3a")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 360, 70, 300, 50

Point = tuple[float, Sequence[float], str]  # x; the measured y, whose mean is drawn; its name


def scatter(series: Mapping[str, Sequence[Point]], x_title: str, y_title: str) -> str:
    """The plot, its axes from zero; kinds without a point are left out."""
    series = {kind: points for kind, points in series.items() if points}
    every = [point for points in series.values() for point in points]
    furthest = 1.1 * max((x for x, _, _ in every), default=1.0)
    highest = 1.1 * max((max(ys) for _, ys, _ in every), default=1.0)

    def x_of(value: float) -> float:
        return LEFT + value / furthest * (WIDTH - LEFT - 40)

    def y_of(value: float) -> float:
        return BOTTOM - value / highest * (BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT - 50}" y="20" font-weight="bold">{y_title}</text>',
        f'<text x="{(LEFT + WIDTH) / 2}" y="{BOTTOM + 46}" text-anchor="middle">{x_title}</text>',
    ]
    for i in range(5):
        x, y = furthest * i / 4, highest * i / 4
        parts.append(
            f'<path d="M{LEFT} {y_of(y):.1f}H{WIDTH - 20}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y_of(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>'
            f'<text x="{x_of(x):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{x:.2g}</text>'
        )
    for row, ((kind, points), color) in enumerate(zip(series.items(), COLORS, strict=False)):
        parts.append(
            f'<text x="{WIDTH - 20}" y="{20 + 18 * row}" text-anchor="end" fill="{color}">'
            f"{kind}</text>"
        )
        for x, ys, name in points:
            middle = y_of(sum(ys) / len(ys))
            parts.append(
                f'<path d="M{x_of(x):.1f} {y_of(min(ys)):.1f}V{y_of(max(ys)):.1f}" '
                f'stroke="{color}" stroke-width="2"/>'
                f'<circle cx="{x_of(x):.1f}" cy="{middle:.1f}" r="4" fill="{color}"/>'
                f'<text x="{x_of(x) + 7:.1f}" y="{middle + 4:.1f}">{name}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])
