"""Kills training, pairs, sweeps, ablations, plots and reports with kill -9, runs the same command
again until it finishes, and compares with one that was left alone, to the bit.

    python -m tests.kill --times 40
    python -m tests.kill --times 20 --what two --seed 3

Half of the kills fall at a random time, the other half just ahead of a random change to a file. For
`two`, training in two processes by torchrun, the launcher and a single rank are killed in turn. The
exit code is 1 where anything differs or cannot go on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.kill.same import differences
from tests.kill.subjects import Subject, prepared
from tests.kill.two import kill_in_two
from tests.kill.victims import Moment, import_all, run

KINDS = ("train", "pairs", "sweep", "ablation", "plot", "report", "two")
MOST = 4  # kills of one folder, in a row


class Tally(Counter):
    """kills, resumed, losses, differences; lines: what was lost or differs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []


def kill_one(subject: Subject, alone: Path, folder: Path, kills: int, rng: random.Random) -> Tally:
    """Kills the subject's command `kills` times, each up to MOST times in a row."""
    tally, log = Tally(), folder.with_suffix(".log")
    if run(subject.command(folder), log).code:
        raise SystemExit(f"{subject.kind} {subject.name} failed: {log.read_text()[-2000:]}")
    folder.rename(alone)  # what is compared was made under the same name
    whole = run(subject.command(folder), log)  # how long it takes, and how often it changes files
    tally.lines += [f"{subject.name}, left alone twice: {d}" for d in differences(alone, folder)]
    while tally["kills"] < kills:
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        words, end, row = [], None, rng.randint(1, min(MOST, kills - tally["kills"]))
        for _ in range(row):
            moment = Moment(seconds=rng.uniform(0, whole.seconds))
            if rng.random() < 0.5:
                moment = Moment(change=rng.randint(1, whole.changes))
            end = run(subject.command(folder), log, moment)
            if not end.killed:
                break
            tally["kills"] += 1
            words.append(f"{moment.seconds:.3f} s" if moment.seconds else f"file {moment.change}")
        if end.killed:
            end = run(subject.command(folder), log)
        if not words:
            continue
        tally["resumed"] += end.code == 0
        found = differences(alone, folder) if end.code == 0 else []
        tally["losses"] += end.code != 0
        tally["differences"] += len(found) > 0
        if end.code:
            found = [log.read_text(errors="replace").strip().splitlines()[-1]]
        tally.lines += [
            f"{subject.kind} {subject.name} killed at {', '.join(words)}: {f}" for f in found
        ]
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--times",
        type=int,
        required=True,
        help="kills of each thing in --what, shared among its subjects, of which those "
        "of methods that had none yet come first",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--what", default=",".join(KINDS), help="default: %(default)s")
    parser.add_argument("--short", action="store_true", help="two methods, and what they need")
    a = parser.parse_args()
    kinds = a.what.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"--what {unknown[0]}: one of {', '.join(KINDS)}")
    import_all()
    rng, total, lines = random.Random(a.seed), Counter(), []
    print(f"{'what':<28}{'kills':>7}{'resumed':>9}{'losses':>8}{'differences':>13}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        subjects = prepared(folder, kinds, a.short)
        for kind in kinds:
            mine = [subject for subject in subjects if subject.kind == kind]
            if spared := [subject.name for subject in mine[a.times :]]:
                print(f"{kind}: too few --times for a kill of {', '.join(spared)}", flush=True)
            for number, subject in enumerate(mine[: a.times]):
                kills = a.times // len(mine) + (number < a.times % len(mine))
                alone, killed = (folder / f"{kind}-{number}" / n for n in ("alone", "killed"))
                alone.parent.mkdir()
                if kind == "two":
                    tally = kill_in_two(subject, alone, killed, kills, rng, Tally())
                else:
                    tally = kill_one(subject, alone, killed, kills, rng)
                total += tally
                lines += tally.lines
                counts = [tally[key] for key in ("kills", "resumed", "losses", "differences")]
                what = f"{kind} {subject.name}".strip()
                print("{:<28}{:>7}{:>9}{:>8}{:>13}".format(what, *counts), flush=True)
                shutil.rmtree(alone.parent)
    print(*lines, sep="\n", end="\n" * bool(lines))
    sys.exit(1 if lines or total["losses"] or total["differences"] else 0)


if __name__ == "__main__":
    main()
