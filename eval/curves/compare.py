"""Two series of a curve, point by point: which is better, by how much, and whether that is more
than its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from core.errors import UserError, nearest
from eval.rows import PROTOCOL, SERIES, identity, is_floor

KEYS = (*SERIES, *PROTOCOL, "steps", "weights_sha256", "fid_error")  # what a selector may name
SIGNIFICANT = 2.0  # |z| from which a difference counts as larger than its error, where the error is well known


@dataclass(frozen=True)
class Comparison:
    """One point. at: steps or network evaluations; a, b: the distances (lower is better); error:
    the standard error of a - b; z: (a - b) / error; both None where a row has no error bar. needed:
    the |z| from which it is more than its error."""

    at: float
    a: float
    b: float
    error: float | None
    needed: float = SIGNIFICANT

    @property
    def difference(self) -> float:
        return self.a - self.b

    @property
    def ratio(self) -> float | None:
        return self.a / self.b if self.b > 0 else None

    @property
    def z(self) -> float | None:
        return self.difference / self.error if self.error else None

    @property
    def verdict(self) -> str:
        """ "a", "b": better by more than the error; "none": not so; "unknown": there is no error
        bar."""
        if self.z is None:
            return "unknown"
        if abs(self.z) < self.needed:
            return "none"
        return "a" if self.difference < 0 else "b"


def standard_error(row: dict) -> float | None:
    """The standard error of the row's `fid`; None without an error bar.

    fid_std is the spread of one set of n images. A row of "K sets" reports their mean, whose error
    is sqrt(K) times smaller.
    """
    return None if row["fid_std"] is None else row["fid_std"] / _sets(row) ** 0.5


def _sets(row: dict) -> int:
    words = (row["fid_error"] or "").split()
    return int(words[0]) if len(words) == 2 and words[1] == "sets" else 1


def needed_z(x: dict, y: dict) -> float:
    """The |z| from which two rows' difference is more than its error: 2 where the errors are well
    known, and more where they come from a few sets, so that chance goes beyond it no more often
    (4.6 %): Student's t with Welch and Satterthwaite's degrees of freedom. Two rows of 3 sets with
    errors of one size need 2.9."""
    errors = [(standard_error(row) ** 2, _sets(row) - 1) for row in (x, y)]
    spent = sum(variance**2 / sets for variance, sets in errors if sets)
    if not spent:
        return SIGNIFICANT
    degrees = sum(variance for variance, _ in errors) ** 2 / spent
    return float(stats.t.isf(stats.norm.sf(SIGNIFICANT), degrees))


def select(rows: list[dict], selector: str) -> list[dict]:
    """The measured rows that a selector means: a method, or key=value pairs, such as
    "method=ddpm,sampler=unipc".

    Of rows that measure the same thing the last is taken.

    Raises:
        UserError: an unknown key, or no such row, with what there is.
    """
    wanted = {}
    for part in selector.split(","):
        key, given, value = part.partition("=")
        key, value = (key, value) if given else ("method", key)
        if key not in KEYS:
            raise UserError(f"'{selector}': unknown key '{key}'{nearest(key, KEYS)}")
        wanted[key] = value
    measured = [row for row in rows if not is_floor(row)]
    chosen = [
        row for row in measured if all(_same(row[key], value) for key, value in wanted.items())
    ]
    if not chosen:
        key, value = next(
            ((k, v) for k, v in wanted.items() if not any(_same(r[k], v) for r in measured)),
            ("", selector),
        )
        known = nearest(value, {row[key] for row in measured}) if key and measured else ""
        raise UserError(f"no row is '{selector}'{known}")
    return list({identity(row): row for row in chosen}.values())


def _same(stored, text: str) -> bool:
    return (
        f"{stored:g}" == f"{float(text):g}"
        if isinstance(stored, float) and _is_number(text)
        else str(stored) == text
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _protocol(row: dict) -> tuple:
    return tuple(row[key] for key in PROTOCOL)


def _points(rows: list[dict], by: str, name: str) -> dict[float, dict]:
    points: dict[float, dict] = {}
    for row in rows:
        at = round(row[by], 6)
        if (other := points.setdefault(at, row)) is not row:
            key = next((k for k in KEYS if row[k] != other[k]), "steps")
            raise UserError(
                f"{name} has several rows at {by} = {at:g}, which differ in {key} ({other[key]} and {row[key]}): "
                f"say which, for example {name.split(',')[0]},{key}={row[key]}"
            )
    return points


def compare(
    a: list[dict], b: list[dict], by: str = "steps", names: Sequence[str] = ("a", "b")
) -> list[list[Comparison]]:
    """The points that both series have, sorted, in one list for each protocol that both were
    measured with.

    The two errors are combined as if independent. Rows of one seed share their noise, which usually
    correlates them, so that the true error is rather smaller. Neither includes what another
    training run would change.

    Args:
        a, b: rows, from `select`. by: "steps" or "nfe". names: of the two, for messages.

    Raises:
        UserError: no common protocol, naming the field that differs; several rows for one point; no
            common point.
    """
    if by not in ("steps", "nfe"):
        raise UserError(f"by = '{by}': steps or nfe")
    common = [p for p in dict.fromkeys(map(_protocol, a)) if p in set(map(_protocol, b))]
    if not common:
        # The closest pair of rows, so that the field named is the one in the way.
        x, y = min(
            ((x, y) for x in a for y in b),
            key=lambda pair: sum(pair[0][k] != pair[1][k] for k in PROTOCOL),
        )
        differing = [f"{key} ({x[key]} and {y[key]})" for key in PROTOCOL if x[key] != y[key]]
        raise UserError(
            f"{names[0]} and {names[1]} were measured differently, they differ in {', '.join(differing)}"
        )
    results = []
    for protocol in common:
        mine = _points([row for row in a if _protocol(row) == protocol], by, names[0])
        theirs = _points([row for row in b if _protocol(row) == protocol], by, names[1])
        found = []
        for at in sorted(mine.keys() & theirs.keys()):
            x, y = mine[at], theirs[at]
            errors = standard_error(x), standard_error(y)
            error = None if None in errors else (errors[0] ** 2 + errors[1] ** 2) ** 0.5
            found.append(
                Comparison(
                    at, x["fid"], y["fid"], error, SIGNIFICANT if error is None else needed_z(x, y)
                )
            )
        results.append(found)
    if not any(results):
        raise UserError(f"{names[0]} and {names[1]} have no {by} in common")
    return results


def comparison_table(points: list[Comparison], by: str, names: Sequence[str]) -> str:
    """Aligned lines: the point, both distances, difference with its error, ratio, z, and the
    verdict in words."""
    words = {
        "a": f"{names[0]} is better",
        "b": f"{names[1]} is better",
        "none": "within the error",
        "unknown": "no error bar",
    }
    lines = [[by, names[0], names[1], "difference", "error", "ratio", "z", ""]]
    for p in points:
        optional = ["-" if v is None else f"{v:.3g}" for v in (p.error, p.ratio)]
        z = "-" if p.z is None else f"{p.z:+.1f}"
        lines.append(
            [
                f"{p.at:g}",
                f"{p.a:.4g}",
                f"{p.b:.4g}",
                f"{p.difference:+.3g}",
                *optional,
                z,
                words[p.verdict],
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == last else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )
