"""Rows of curves as a table, methods by steps, for terminals and for Markdown."""

from __future__ import annotations

from eval.rows import by_protocol, is_floor, measure_words, series_key


def protocol_words(rows: list[dict]) -> str:
    """The protocol of one group: "FD@449, digits-cnn features (sha256 1a2b3c4d), reference digits
    train"."""
    row = next((r for r in rows if not is_floor(r)), rows[0])
    return (
        f"{measure_words(row)}, {row['extractor']} features (sha256 {row['extractor_sha256'][:8]}), "
        f"reference {row['reference']}"
    )


def series_words(row: dict, among: list[dict]) -> str:
    """The name of the row's series: its method and sampler, and of the rest what tells it from
    others `among`."""
    if is_floor(row):
        return f"floor: {row['run']} (n = {row['n']})"

    def differs(*keys: str) -> bool:
        same = [
            r
            for r in among
            if not is_floor(r) and (r["method"], r["sampler"]) == (row["method"], row["sampler"])
        ]
        return len({tuple(r[k] for k in keys) for r in same}) > 1

    words = [row["method"], row["sampler"]]
    if row["guidance_scale"] != 1.0:
        words.append(f"guidance {row['guidance_scale']:g}")
    if differs("run", "config_sha256"):
        words.append(row["run"])
        if (
            len(
                {
                    r["config_sha256"]
                    for r in among
                    if (r["method"], r["run"]) == (row["method"], row["run"])
                }
            )
            > 1
        ):
            words.append(str(row["config_sha256"])[:6])  # folders of one name
    if differs("ema"):
        words.append(row["ema"])
    words += [f"{row[key]} {key}" for key in ("threshold", "grid") if differs(key)]
    if differs("seed"):
        words.append(f"seed {row['seed']}")
    return " ".join(words)


def number_words(value: float, std: float | None) -> str:
    """A distance with its error, in as many digits as are worth reading, and enough to see that the
    error is not zero."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    while std and digits < 3 and not round(std, digits):
        digits += 1
    return f"{value:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def _cells(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and body of one group's table."""
    steps = sorted({row["steps"] for row in rows if not is_floor(row)})
    series: dict[tuple, dict[int, dict]] = {}
    for row in rows:
        if not is_floor(row):
            series.setdefault(series_key(row), {})[row["steps"]] = row
    body = []
    for points in series.values():
        any_row = next(iter(points.values()))
        cells = [
            number_words(points[s]["fid"], points[s]["fid_std"]) if s in points else ""
            for s in steps
        ]
        body.append([series_words(any_row, rows), *cells])
    body += [
        [series_words(r, rows), number_words(r["fid"], r["fid_std"]), *[""] * (len(steps) - 1)]
        for r in rows
        if is_floor(r)
    ]
    return ["steps", *map(str, steps)], body


def _errors(rows: list[dict]) -> str:
    kinds = sorted({row["fid_error"] for row in rows if row["fid_error"]})
    return f"; ± is a standard deviation ({', '.join(kinds)})" if kinds else ""


def text_tables(rows: list[dict]) -> str:
    """One aligned table for each protocol."""
    parts = []
    for group in by_protocol(rows):
        header, body = _cells(group)
        widths = [
            max(len(line[i]) if i < len(line) else 0 for line in [header, *body])
            for i in range(len(header))
        ]
        lines = [protocol_words(group) + _errors(group)]
        for line in [header, *body]:
            lines.append(
                "  ".join(
                    c.ljust(w) if i == 0 else c.rjust(w)
                    for i, (c, w) in enumerate(zip(line, widths))
                ).rstrip()
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown_tables(rows: list[dict]) -> str:
    """The same as Markdown."""
    parts = []
    for group in by_protocol(rows):
        header, body = _cells(group)
        lines = [protocol_words(group) + _errors(group), ""]
        lines += ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
        lines += ["| " + " | ".join(line[: len(header)]) + " |" for line in body]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
