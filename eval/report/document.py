"""report.html: curves, samples, trajectories, losses, prices and configs of one curves file in one
page that needs no network.

The page is eval/report/page/: page.html with the styles and scripts put in, Plotly among them, and
everything measured as one block of JSON. Pictures are data URIs. The same input gives the same
file, byte for byte.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import sys
from pathlib import Path

from torch import Tensor

from core.errors import UserError
from core.files import check_place, sha256_of, write_text
from core.pictures import read_samples
from core.runs import Load
from eval.curves.seeds import SeedMean, count_of
from eval.curves.series import (
    by_protocol,
    floor_of,
    floors_of,
    measured,
    protocol_label,
    series_label,
    series_of,
)
from eval.curves.style import Look, look_of
from eval.curves.trade_off import class_distance
from eval.curves_file import read_measured
from eval.report.training import find_runs, loss_by_level, prices, read_configs, run_folder
from eval.report.trajectories import films
from eval.rows import Row, measure_label
from eval.text import one_line

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("common.js", "curve.js", "samples.js", "trajectories.js", "training.js")
LIGHT, DARK = (0xFF, 0xFF, 0xFF), (0x17, 0x1A, 0x20)  # the page's panels
CONTRAST = (
    3.0,
    4.0,
)  # least ratio between a line and light or dark ground (WCAG 2.1, 1.4.11 asks for 3)
MEASURES = ("fid", "fid_infinity", "kid", "precision", "recall", "class_distance")
MARKERS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x",
    "<": "triangle-left", ">": "triangle-right", "p": "pentagon", "h": "hexagon",
}  # fmt: skip
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def _luminance(rgb: tuple[int, ...]) -> float:
    linear = [c / 12.92 if (c := v / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for v in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def readable(color: str, ground: tuple[int, ...]) -> str:
    """`color` (#RRGGBB) moved towards white on dark ground or black on light, no further than
    CONTRAST asks; greys are mirrored on dark ground, so that the blackest stays the strongest."""
    rgb = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
    dark = _luminance(ground) < 0.2
    if dark and max(rgb) - min(rgb) < 12:
        rgb = tuple(255 - v for v in rgb)
    end = 255 if dark else 0
    for k in range(21):
        mixed = tuple(round(v + (end - v) * k / 20) for v in rgb)
        low, high = sorted((_luminance(mixed), _luminance(ground)))
        if (high + 0.05) / (low + 0.05) >= CONTRAST[dark]:
            break
    return "#" + "".join(f"{v:02X}" for v in mixed)


def _dash(dashes: str | tuple) -> str:
    return DASHES[dashes] if isinstance(dashes, str) else ",".join(f"{2 * v}px" for v in dashes[1])


def png_uri(image: Tensor) -> str:
    """uint8 [C, H, W] as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(
        buffer, format="PNG", optimize=True
    )
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def series_data(rows: list[Row]) -> list[dict]:
    """What the page knows of each series (method, sampler and options), in order of appearance.

    The same samples measured by two extractors are one series. Of one that was trained with several
    seeds, `run` is that of the first.
    """
    methods = [row.method for row in measured(rows)]
    series = []
    for points in series_of(rows).values():
        row = points[0]
        look: Look = look_of(row.method, row.sampler, methods)
        series.append(
            {
                "method": row.method,
                "run": row.members[0].run,
                "seed": row.seed,
                "seeds": count_of(points),
                "label": one_line(look.label),
                "name": series_label(row, rows),
                "light": readable(look.color, LIGHT),
                "dark": readable(look.color, DARK),
                "marker": MARKERS[look.marker],
                "dash": _dash(look.dashes),
            }
        )
    return series


def sample_strips(series: list[list[Row]], folder: Path) -> list[dict]:
    """[{"series", "steps", "nfe", "image", "width", "height"}] for every kept strip of samples that
    is there. Rows may come from anywhere: nothing outside `folder` is put into the page."""
    strips = []
    for index, rows in enumerate(series):
        last = {row.steps: row for row in rows if row.samples}  # measured again: the last counts
        for _, row in sorted(last.items()):
            try:
                png, width, height = read_samples(folder, row.samples)
            except UserError as error:
                print(f"warning: {error}; the report goes without it", file=sys.stderr)
                continue
            entry = {"series": index, "steps": row.steps, "nfe": row.nfe, "image": _uri(png)}
            strips.append(entry | {"width": width, "height": height})
    return strips


def trajectory_data(
    series: list[list[Row]], runs: Path | None, steps: list[int], count: int, load: Load
) -> dict:
    """The films of eval.report.trajectories with their sheets as data URIs, or {"missing": why
    there are none}."""
    if count == 0:
        return {"missing": "This report was made with --images 0."}
    if runs is None:
        return {"missing": "The folders of the runs were not found."}
    try:
        found = films(series, runs, steps, count, load)
    except UserError as error:
        print(f"warning: no trajectories: {error}", file=sys.stderr)
        return {"missing": f"{error}."}
    return found | {"sheets": {key: png_uri(image) for key, image in found["sheets"].items()}}


def collect(curves: Path, runs: Path | None, steps: list[int], images: int, load: Load) -> dict:
    """Everything the page shows, as plain data.

    Args:
        runs: folder of the runs (None: look beside the curves and under runs/).
        steps: step counts whose trajectories are filmed; images: how many images each.

    Raises:
        UserError: no curves there, or nothing measured in them, or `runs` holds none of the runs.
    """
    sha256 = None
    while True:  # a sweep may append to it in the meantime
        before = sha256_of(curves) if curves.is_file() else None
        rows, sha256 = read_measured(curves), sha256_of(curves)
        if sha256 == before:
            break
    groups = by_protocol(rows)
    shown = shown_rows(rows, groups)
    # Of several training seeds the first is shown where one can be
    firsts = [row.members[0] for row in measured(shown)]
    names = list(dict.fromkeys(row.run for row in firsts))
    if runs is not None and not any(run_folder(runs, name) for name in names):
        raise UserError(
            f"--runs {runs} holds none of the runs {', '.join(names)}: give the folder they are in"
        )
    runs = runs or find_runs(curves.parent, rows)
    points = list(series_of(shown).values())
    known = prices(firsts, runs)
    names += [one["run"] for one in known if one["run"] not in names]
    there = {name: run for name in names if (run := run_folder(runs, name))}
    losses = {name: loss for name, run in there.items() if (loss := loss_by_level(run))}
    means = [row for row in shown if isinstance(row, SeedMean)]
    data = row_data(rows, means, groups)
    return {
        "dataset": one_line(rows[0].dataset),
        "source": {"file": curves.name, "sha256": sha256},
        "rows": data,
        "groups": group_data(groups, shown, [*rows, *means], data),
        "series": series_data(shown),
        "strips": sample_strips(points, curves.parent),
        "trajectories": trajectory_data(points, runs, steps, images, load),
        "losses": losses,
        "prices": known,
        "configs": read_configs(curves.parent, runs, names),
    }


def shown_rows(rows: list[Row], groups: list[list[Row]]) -> list[Row]:
    """The rows in the order of the file, where those that are seeds of one thing are their mean."""
    place = {id(row): i for i, row in enumerate(rows)}
    means = [row for group in groups for row in group if isinstance(row, SeedMean)]
    joined = {member.series for row in means for member in row.members}
    alone = [row for row in rows if row.is_floor or row.series not in joined]
    return sorted([*alone, *means], key=lambda row: place[id(row.members[0])])


def row_data(rows: list[Row], means: list[SeedMean], groups: list[list[Row]]) -> list[dict]:
    """The rows as they are published, with the class distance of those that are shown. After them
    the means over training seeds, with the error that is shown and, as "members", the rows of their
    seeds by their index."""
    data = {id(row): row.model_dump() | {"class_distance": None} for row in rows}
    place = {id(row): i for i, row in enumerate(rows)}
    for row in means:
        values = row.model_dump(exclude={"of_seeds"}) | {"class_distance": None}
        members = [place[id(member)] for member in row.members]
        data[id(row)] = values | {"fid_std": row.bar, "members": members}
    for group in groups:
        for row in group:
            for one in {id(r): r for r in (row, *row.members)}.values():
                data[id(one)]["class_distance"] = class_distance(one, floor_of(group))
    return list(data.values())


def group_data(
    groups: list[list[Row]], shown: list[Row], every: list[Row], data: list[dict]
) -> list[dict]:
    """What the page shows of each protocol: its measures, and rows (`data`, of `every` row) and
    series by their index."""
    place = {id(row): i for i, row in enumerate(every)}
    index = {key: i for i, key in enumerate(series_of(shown))}
    found = []
    for group in groups:
        drawn = sorted(measured(group), key=lambda row: (index[row.series], row.nfe))
        there = [data[place[id(row)]] for row in group]
        found.append(
            {
                "words": protocol_label(group),
                "measures": {
                    key: one_line(measure_label(drawn[0], key))
                    for key in MEASURES
                    if any(row[key] is not None for row in there)
                },
                "points": [{"row": place[id(row)], "series": index[row.series]} for row in drawn],
                "floors": [place[id(row)] for row in floors_of(group)],
            }
        )
    return found


def render(data: dict) -> str:
    """The page."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("the report needs plotly: pip install plotly") from error
    parts = {
        "TITLE": html.escape(f"{data['dataset']}: sampling in few steps"),
        "STYLE": (PAGE / "page.css").read_text(encoding="utf-8"),
        # "<" would let text such as "</script>" end the block.
        "DATA": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"@@([A-Z]+)@@", lambda mark: parts[mark[1]], page)


def write_report(
    curves: Path,
    out: Path,
    load: Load,
    runs: Path | None = None,
    steps: list[int] | None = None,
    images: int = 4,
) -> Path:
    """Writes the report of `curves` to `out` and returns `out`."""
    check_place(out)
    text = render(collect(curves, runs, steps or [1, 4, 16], images, load))
    write_text(out, text)
    return out
