"""Two series of a curve, point by point: which is better, by how much, and whether that is more
than its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from core.errors import UserError, nearest
from eval.curves.seeds import KEYS, OF_A_SEED, mean_and_error, seedless
from eval.curves.series import measured
from eval.rows import Protocol, Row
from eval.text import one_line, text_table

SIGNIFICANT = 2.0  # |z| from which a difference is more than its error, where that is well known


@dataclass(frozen=True)
class Comparison:
    """One point. at: steps or network evaluations; a, b: the distances (lower is better); error:
    the standard error of a - b; z: (a - b) / error; both None where a row has no error bar. needed:
    the |z| from which it is more than its error. seeds: training seeds of a and of b; from two on
    the error is that of training."""

    at: float
    a: float
    b: float
    error: float | None
    needed: float = SIGNIFICANT
    seeds: tuple[int, int] = (1, 1)

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


def standard_error(row: Row) -> float | None:
    """The standard error of the row's `fid`; None without an error bar.

    fid_std is the spread of one set of n images, or of one training. A row of several reports their
    mean, whose error is smaller by the root of their number.
    """
    return None if row.fid_std is None else row.fid_std / row.repeats**0.5


def needed_z(x: Row, y: Row) -> float:
    """The |z| from which two rows' difference is more than its error: 2 where the errors are well
    known, and more where they come from a few sets or seeds, so that chance goes beyond it no more often
    (4.6 %): Student's t with Welch and Satterthwaite's degrees of freedom. Two rows of 3 sets with
    errors of one size need 2.9."""
    errors = [(standard_error(row) ** 2, row.repeats - 1) for row in (x, y)]
    spent = sum(variance**2 / free for variance, free in errors if free)
    if not spent:
        return SIGNIFICANT
    degrees = sum(variance for variance, _ in errors) ** 2 / spent
    return float(stats.t.isf(stats.norm.sf(SIGNIFICANT), degrees))


def select(rows: list[Row], selector: str) -> list[Row]:
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
    points = measured(rows)
    chosen = [row for row in points if all(_is(row, k, v) for k, v in wanted.items())]
    if not chosen:
        key, value = next(
            ((k, v) for k, v in wanted.items() if not any(_same(getattr(r, k), v) for r in points)),
            ("", selector),
        )
        known = nearest(value, {getattr(row, key) for row in points}) if key and points else ""
        raise UserError(one_line(f"no row is '{selector}'{known}"))
    return list({row.key: row for row in chosen}.values())


def _is(row: Row, key: str, text: str) -> bool:
    """A run is meant by its name, or by that of all its seeds."""
    return _same(getattr(row, key), text) or (key == "run" and seedless(row) == text)


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


def _points(rows: list[Row], by: str, name: str) -> dict[float, list[Row]]:
    """The rows of each point: one, or one for each training seed."""
    points: dict[float, list[Row]] = {}
    for row in rows:
        at = round(getattr(row, by), 6)
        for other in points.setdefault(at, []):
            _check_seeds(row, other, f"{name} has several rows at {by} = {at:g}", name)
        points[at].append(row)
    return points


def _check_seeds(row: Row, other: Row, where: str, name: str) -> None:
    """Raises UserError where two rows are more than two training seeds of one thing."""
    known = None not in (row.train_seed, other.train_seed)
    if known and row.train_seed != other.train_seed and seedless(row) == seedless(other):
        keys = [key for key in KEYS if key not in OF_A_SEED]
    else:
        keys = KEYS
    key = next((k for k in keys if getattr(row, k) != getattr(other, k)), None)
    if key is None and keys is not KEYS and row.options == other.options:
        return
    if key is None:
        raise UserError(f"{where}, which differ in options alone")
    mine, theirs = getattr(row, key), getattr(other, key)
    raise UserError(
        one_line(
            f"{where}, which differ in {key} ({theirs} and {mine}): say which, for example "
            f"{name.split(',')[0]},{key}={mine}"
        )
    )


def compare(
    a: list[Row], b: list[Row], by: str = "steps", names: Sequence[str] = ("a", "b")
) -> dict[Protocol, list[Comparison]]:
    """The points that both series have, sorted, by each protocol that both were measured with.

    Several training seeds of a run count as one thing. With two or more of both, the error is that
    of training: paired where both have the same seeds, else combined as if independent.

    With one seed, the errors of the two rows are combined as if independent. Rows of one seed share
    their noise, which usually correlates them, so that the true error is rather smaller. Neither
    includes what another training run would change.

    Args:
        a, b: rows, from `select`. by: "steps" or "nfe". names: of the two, for messages.

    Raises:
        UserError: no common protocol, naming the field that differs; several rows for one point; no
            common point.
    """
    if by not in ("steps", "nfe"):
        raise UserError(f"by = '{by}': steps or nfe")
    theirs = {row.protocol for row in b}
    common = [p for p in dict.fromkeys(row.protocol for row in a) if p in theirs]
    if not common:
        raise UserError(one_line(_in_the_way(a, b, names)))
    results = {}
    for protocol in common:
        one = _points([row for row in a if row.protocol == protocol], by, names[0])
        two = _points([row for row in b if row.protocol == protocol], by, names[1])
        shared = sorted(one.keys() & two.keys())
        results[protocol] = [_comparison(at, one[at], two[at]) for at in shared]
    if not any(results.values()):
        raise UserError(f"{names[0]} and {names[1]} have no {by} in common")
    return results


def _comparison(at: float, one: list[Row], two: list[Row]) -> Comparison:
    means = [mean_and_error([row.fid for row in rows])[0] for rows in (one, two)]
    seeds = (len(one), len(two))
    if min(seeds) >= 2:
        error, degrees = _training_error(one, two)
        needed = float(stats.t.isf(stats.norm.sf(SIGNIFICANT), degrees))
        return Comparison(at, *means, error, needed, seeds)
    # The seed that both have, so that several seeds do not count as more than the one beside them
    known = {row.train_seed for row in one} & {row.train_seed for row in two}
    x, y = (next((r for r in rows if r.train_seed in known), rows[0]) for rows in (one, two))
    errors = standard_error(x), standard_error(y)
    if None in errors:
        return Comparison(at, x.fid, y.fid, None)
    return Comparison(at, x.fid, y.fid, (errors[0] ** 2 + errors[1] ** 2) ** 0.5, needed_z(x, y))


def _training_error(one: list[Row], two: list[Row]) -> tuple[float, float]:
    """The standard error of the difference of two means over training seeds, and its degrees of
    freedom."""
    a, b = ({row.train_seed: row.fid for row in rows} for rows in (one, two))
    if a.keys() == b.keys():
        return mean_and_error([a[seed] - b[seed] for seed in a])[1], len(a) - 1
    parts = [(mean_and_error(list(v.values()))[1] ** 2, len(v) - 1) for v in (a, b)]
    variance = sum(part for part, _ in parts)
    spent = sum(part**2 / degrees for part, degrees in parts)
    return variance**0.5, float(variance**2 / spent) if spent else parts[0][1]


def seeds_words(points: list[Comparison], names: Sequence[str]) -> str:
    """What the error is of, in a line."""
    fewest = [min(point.seeds[i] for point in points) for i in (0, 1)]
    if min(fewest) >= 2:
        counts = " and ".join(f"{n} of {name}" for n, name in zip(fewest, names, strict=True))
        return f"mean over training seeds: {counts}; the error is that of training"
    return (
        "one training seed compared: the error is that of the samples alone, and another training "
        "would change more"
    )


def _in_the_way(a: list[Row], b: list[Row], names: Sequence[str]) -> str:
    """What the protocols of the closest pair of rows differ in."""

    def differing(x: Protocol, y: Protocol) -> list[str]:
        pairs = zip(Protocol._fields, x, y, strict=True)
        return [f"{key} ({mine} and {theirs})" for key, mine, theirs in pairs if mine != theirs]

    found = min((differing(x.protocol, y.protocol) for x in a for y in b), key=len)
    return f"{names[0]} and {names[1]} were measured differently, they differ in {', '.join(found)}"


def comparison_table(points: list[Comparison], by: str, names: Sequence[str]) -> str:
    """Aligned lines: the point, both distances, difference with its error, ratio, z, and the
    verdict in words."""
    verdicts = {
        "a": f"{names[0]} is better",
        "b": f"{names[1]} is better",
        "none": "within the error",
        "unknown": "no error bar",
    }
    lines = [[by, names[0], names[1], "difference", "error", "ratio", "z", ""]]
    for p in points:
        error, ratio = ("-" if v is None else f"{v:.3g}" for v in (p.error, p.ratio))
        z = "-" if p.z is None else f"{p.z:+.1f}"
        distances = [f"{p.at:g}", f"{p.a:.4g}", f"{p.b:.4g}", f"{p.difference:+.3g}"]
        lines.append([*distances, error, ratio, z, verdicts[p.verdict]])
    return text_table(lines, left=(len(lines[0]) - 1,))
