"""Names written beside curves, where they cover the least."""

from __future__ import annotations

import itertools

import numpy as np

NEAR = [
    (8, 0),
    (8, 10),
    (8, -10),
    (0, 12),
    (0, -14),
    (-8, 12),
    (-8, -14),
]  # points from a curve's point to its name
FAR = [
    (14, 26),
    (14, -26),
    (-14, 26),
    (-14, -26),
    (22, 44),
    (22, -44),
    (-22, 44),
    (-22, -44),
    (30, 64),
    (-30, -64),
]
OFFSETS = NEAR + FAR  # the best places first; names in far ones get a thin line to their point


def place_labels(axes, series: list[tuple[np.ndarray, np.ndarray, str, str]]) -> None:
    """Writes each series' name near one of its points.

    Args:
        series: (x, y, words, color) each. Tries several places around every point, the last point
            first, and keeps the one that covers the fewest curves and names; leaving the axes or
            covering a name counts most.
    """
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    curves = [_along(axes.transData.transform(np.column_stack([x, y]))) for x, y, _, _ in series]
    marks = np.concatenate(
        [axes.transData.transform(np.column_stack([x, y])) for x, y, _, _ in series]
    )
    taken: list[np.ndarray] = [_box(text.get_window_extent(renderer)) for text in axes.texts]
    lines: list[np.ndarray] = []
    # Short curves have the fewest places to go, so they choose first.
    for i in sorted(range(len(series)), key=lambda i: len(series[i][0])):
        x, y, words, color = series[i]
        text = axes.annotate(
            words,
            (x[-1], y[-1]),
            xytext=OFFSETS[0],
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
            zorder=5,
        )
        best = (np.inf, ())
        for back, point in enumerate(range(len(x) - 1, -1, -1)):
            for rank, (dx, dy) in enumerate(OFFSETS):
                text.xy = (x[point], y[point])
                text.set_position((dx, dy))
                text.set_horizontalalignment("left" if dx > 0 else "center" if dx == 0 else "right")
                box = _box(text.get_window_extent(renderer))
                own = 3.0 * _inside(curves[i], box)
                others = 3.0 * sum(_inside(curve, box) for j, curve in enumerate(curves) if j != i)
                marked = 150.0 * _inside(
                    marks, box
                )  # a point that is covered is a measurement lost
                names = 300.0 * sum(_overlap(box, other) for other in taken)
                outside = 200.0 * (
                    box[0] < frame.x0
                    or box[2] > figure.bbox.x1
                    or box[1] < frame.y0
                    or box[3] > frame.y1
                )
                cost = own + others + marked + names + outside + 0.25 * rank + 1.0 * back
                centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
                if (dx, dy) in FAR:  # its line should cross neither names nor other names' lines
                    line = _along(
                        np.stack([axes.transData.transform((x[point], y[point])), centre])
                    )
                    cost += 20.0 * sum(_inside(line, other) > 0 for other in taken)
                    cost += 20.0 * sum(_inside(other, box) > 0 for other in lines)
                elif (
                    min(distances := [_distance(curve, centre) for curve in curves]) < distances[i]
                ):
                    cost += 8.0  # it would be read as another curve's name
                if cost < best[0]:
                    best = (
                        cost,
                        ((x[point], y[point]), (dx, dy), text.get_horizontalalignment(), box),
                    )
        text.remove()
        point, offset, side, box = best[1]
        arrow = (
            {"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4}
            if offset in FAR
            else None
        )
        text = axes.annotate(
            words, point, xytext=offset, textcoords="offset points", ha=side, va="center", fontsize=9, color=color, zorder=5,
            arrowprops=arrow,
        )  # fmt: skip
        taken.append(box)
        if offset in FAR:
            lines.append(
                _along(
                    np.stack(
                        [
                            axes.transData.transform(point),
                            [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2],
                        ]
                    )
                )
            )
        _outline(text)


def _outline(text) -> None:
    from matplotlib.patheffects import withStroke

    text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _along(points: np.ndarray, spacing: float = 6.0) -> np.ndarray:
    """Pixels [K, 2] every `spacing` along the broken line through points [N, 2]."""
    parts = [points[:1]]
    for a, b in itertools.pairwise(points):
        count = max(2, int(np.hypot(*(b - a)) / spacing))
        parts.append(a + (b - a) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(parts)


def _box(extent) -> np.ndarray:
    return np.array([extent.x0 - 2, extent.y0 - 1, extent.x1 + 2, extent.y1 + 1])


def _distance(points: np.ndarray, centre: np.ndarray) -> float:
    return float(np.hypot(*(points - centre).T).min())


def _inside(points: np.ndarray, box: np.ndarray) -> int:
    x, y = points.T
    return int(((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])).sum())


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])
