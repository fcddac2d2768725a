"""Names written beside curves, where they cover the least."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

NEAR = [(8, 0), (8, 9), (8, -9), (0, 12), (0, -12), (-8, 9), (-8, -9)]
ANGLES = np.deg2rad([30, -30, 60, -60, 120, -120, 150, -150, 0])
FAR = [(r * np.cos(a), r * np.sin(a)) for r in (28, 44, 62, 84, 110) for a in ANGLES]
OFFSETS = np.array(NEAR + FAR)  # points from a curve's point to its name, the best places first
LINED = np.arange(len(OFFSETS)) >= len(NEAR)  # names that far get a thin line to their point
ROUNDS = 4  # in which every name may move once more, now that the others have their places

# What a place costs, per time
OUTSIDE, NAME, MARK, CURVE = 1000.0, 600.0, 250.0, 4.0
CROSSED, MISREAD, OVER, PASSED, SHARED, RANK, BACK = 40.0, 20.0, 6.0, 20.0, 6.0, 0.4, 1.0


class Curve(NamedTuple):
    """Points in data coordinates, and the name to write beside one of them; "" for a curve that
    names only keep away from."""

    x: np.ndarray
    y: np.ndarray
    words: str
    color: str


class Places(NamedTuple):
    """Where a name may go: arrays over the candidates, in pixels."""

    points: np.ndarray  # [K, 2], of the curve
    offsets: np.ndarray  # [K, 2], in points of print
    boxes: np.ndarray  # [K, 4]: left, bottom, right, top
    lined: np.ndarray  # [K]
    cost: np.ndarray  # [K], whatever the other names do
    lines: np.ndarray  # [K, 2, 2]: from the point to the nearest of the box; of no length if near


def place_labels(axes, curves: list[Curve], size: float = 9.0) -> None:
    """Writes each curve's name near one of its points.

    Tries several places around every point, the last point first, and keeps the one that covers the
    fewest curves. Leaving the axes, or covering another name or a point, counts most. Then each
    name may move again, now that the others have their places.
    """
    named = [i for i, curve in enumerate(curves) if curve.words]
    pixels = [axes.transData.transform(np.column_stack([c.x, c.y])) for c in curves]
    places = {i: _places(axes, curves, pixels, i, size) for i in named}
    # Short curves have the fewest places to go, so they choose first.
    order, chosen = sorted(named, key=lambda i: len(pixels[i])), {}
    for _ in range(ROUNDS):
        for i in order:
            others = [(places[j].boxes[k], places[j].lines[k]) for j, k in chosen.items() if j != i]
            chosen[i] = int(np.argmin(places[i].cost + _conflicts(places[i], others)))
    for i, k in chosen.items():
        _write(axes, curves[i], places[i], k, pixels[i], size)


def _places(axes, curves: list[Curve], pixels: list[np.ndarray], own: int, size: float) -> Places:
    """The candidates for one name, with what each covers of curves, points and earlier words."""
    figure, curve = axes.figure, curves[own]
    scale = figure.dpi / 72
    width, height = _size(axes, curve.words, size)
    back = np.repeat(np.arange(len(curve.x)), len(OFFSETS))  # 0: the last point
    points = pixels[own][::-1][back]
    offsets = np.tile(OFFSETS, (len(curve.x), 1))
    centre = points + scale * offsets
    sideways = np.where(np.abs(offsets[:, 0]) < 1, 0.0, np.sign(offsets[:, 0]))
    left = centre[:, 0] + (sideways - 1) * width / 2
    low = centre[:, 1] - height / 2
    boxes = np.stack([left - 2, low - 1, left + width + 2, low + height + 1], axis=1)
    lined = np.tile(LINED, len(curve.x))
    frame = axes.get_window_extent()
    cost = RANK * np.tile(np.arange(len(OFFSETS)), len(curve.x)) + BACK * back
    outside = (boxes[:, 0] < frame.x0) | (boxes[:, 2] > frame.x1)
    outside |= (boxes[:, 1] < frame.y0) | (boxes[:, 3] > frame.y1)
    cost = cost + OUTSIDE * outside
    tracks = [_along(track) for track in pixels]
    cost += CURVE * _inside(np.concatenate(tracks), boxes)
    # A point that is covered is a measurement lost; its mark and its ring have a width.
    marks = np.concatenate([track for curve, track in zip(curves, pixels) if curve.words])
    cost += MARK * _inside(marks, boxes + 4 * scale * np.array([-1, -1, 1, 1]))
    for text in axes.texts:
        cost += NAME * _overlap(boxes, _box(text.get_window_extent()))
    near = {i: _distance(t, boxes) for i, t in enumerate(tracks) if curves[i].words}
    cost += MISREAD * (~lined & (np.min(list(near.values()), axis=0) < near[own]))
    ends = np.clip(points, boxes[:, :2], boxes[:, 2:])
    lines = np.stack([points, np.where(lined[:, None], ends, points)], axis=1)
    cost += _lines_over(lines, lined, pixels, marks, 5 * scale)
    return Places(points, offsets, boxes, lined, cost, lines)


def _lines_over(
    lines: np.ndarray, lined: np.ndarray, pixels: list[np.ndarray], marks: np.ndarray, near: float
) -> np.ndarray:
    """What each candidate's line costs where it crosses curves or other points; and, lined or not,
    what it costs that other curves share its point."""
    cost = np.zeros(len(lines))
    for part in (part for track in pixels for part in itertools.pairwise(track)):
        cost += OVER * _cross(lines, np.array(part))
    gaps = np.hypot(*(marks - lines[:, :1]).transpose(2, 0, 1))  # [K, marks], from the own point
    shared = gaps < near
    cost += SHARED * (shared.sum(1) - 1)
    for at in _shares(lines):
        gaps = np.hypot(*(marks - at[:, None]).transpose(2, 0, 1))
        passed = (gaps < near) & ~shared & lined[:, None]
        cost += PASSED * passed.sum(1)
    return cost


def _shares(lines: np.ndarray, count: int = 16) -> np.ndarray:
    """[count, K, 2]: points along each of lines [K, 2, 2]."""
    share = np.linspace(0, 1, count)[:, None, None]
    return (1 - share) * lines[:, 0] + share * lines[:, 1]


def _conflicts(places: Places, others: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """What each candidate costs beside names that have their places (box and line of each)."""
    cost = np.zeros(len(places.boxes))
    along = _shares(places.lines)
    for box, line in others:
        cost += NAME * _overlap(places.boxes, box)
        cost += CROSSED * (_inside(_along(line), places.boxes) > 0)
        cost += CROSSED * ((along > box[:2]) & (along < box[2:])).all(2).any(0)
        cost += CROSSED * _cross(places.lines, line)
    return cost


def _write(axes, curve: Curve, places: Places, k: int, pixels: np.ndarray, size: float) -> None:
    from matplotlib.patheffects import withStroke

    nearest = int(np.argmin(np.hypot(*(pixels - places.points[k]).T)))
    dx, dy = places.offsets[k]
    side = "center" if abs(dx) < 1 else "left" if dx > 0 else "right"
    box = places.boxes[k].reshape(2, 2)
    line = {
        "arrowstyle": "-", "color": curve.color, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4,
        "relpos": tuple((places.lines[k][1] - box[0]) / (box[1] - box[0])),
    }  # fmt: skip
    text = axes.annotate(
        curve.words, (curve.x[nearest], curve.y[nearest]), xytext=(dx, dy),
        textcoords="offset points", ha=side, va="center", fontsize=size, color=curve.color,
        zorder=5, arrowprops=line if places.lined[k] else None,
    )  # fmt: skip
    text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _size(axes, words: str, size: float) -> tuple[float, float]:
    """Width and height of words, in pixels."""
    text = axes.text(0.5, 0.5, words, transform=axes.transAxes, fontsize=size)
    extent = text.get_window_extent()
    text.remove()
    return extent.width, extent.height


def _along(points: np.ndarray, spacing: float = 6.0) -> np.ndarray:
    """Pixels [K, 2] every `spacing` along the broken line through points [N, 2]."""
    parts = [points[:1]]
    for a, b in itertools.pairwise(points):
        count = max(2, int(np.hypot(*(b - a)) / spacing))
        parts.append(a + (b - a) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(parts)


def _box(extent) -> np.ndarray:
    return np.array([extent.x0 - 2, extent.y0 - 1, extent.x1 + 2, extent.y1 + 1])


def _distance(track: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[K]: from each of boxes [K, 4] to the nearest point of a track [N, 2]; 0 inside."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    gaps = np.maximum(np.maximum(low - track, track - high), 0)
    return np.hypot(gaps[..., 0], gaps[..., 1]).min(1)


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[K]: how many of points [N, 2] are in each of boxes [K, 4]."""
    (x, y), (left, bottom, right, top) = points.T, boxes.T[:, :, None]
    return ((x > left) & (x < right) & (y > bottom) & (y < top)).sum(1)


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """[K]: whether each of boxes [K, 4] meets a box [4]."""
    left, bottom, right, top = boxes.T
    return (left < box[2]) & (box[0] < right) & (bottom < box[3]) & (box[1] < top)


def _cross(lines: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[K]: whether each of lines [K, 2, 2] crosses another one [2, 2]."""

    def side(p, q, r) -> np.ndarray:
        (px, py), (qx, qy), (rx, ry) = p.T, q.T, r.T
        return (qx - px) * (ry - py) - (qy - py) * (rx - px)

    (a, b), (c, d) = lines.transpose(1, 0, 2), other
    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
