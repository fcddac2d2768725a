"""The wheels that a machine without a network needs, for a named Python and platform, by pip."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core.errors import UserError, reason


def requirements_of(file: Path) -> list[Requirement]:
    """The lines of a requirements file, and of those that it names by `-r`."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            found += requirements_of(file.parent / line[3:].strip())
        elif line:
            found.append(Requirement(line))
    return found


def needed(
    wanted: Iterable[str], having: Iterable[str], report: dict, environment: dict[str, str]
) -> dict[str, str]:
    """Name -> version of what `wanted` needs but for what is there, and but for what only that
    needs.

    Args:
        report: what `pip install --report` says (PyPA, "installation report", version 1).
        environment: what decides the markers of dependencies.
    """
    there = {canonicalize_name(name) for name in having}
    packages = {canonicalize_name(p["metadata"]["name"]): p["metadata"] for p in report["install"]}
    found, left = {}, [canonicalize_name(name) for name in wanted]
    while left:
        name = left.pop()
        if name in found or name in there or name not in packages:
            continue
        found[name] = packages[name]["version"]
        for line in packages[name].get("requires_dist", []):
            requirement = Requirement(line)
            if not requirement.marker or requirement.marker.evaluate(environment | {"extra": ""}):
                left.append(canonicalize_name(requirement.name))
    return found


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments],
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"pip found no wheels: {reason(Exception(said[-1]), 300)}")


def download(
    requirements: Path, having: Iterable[str], python: str, platforms: list[str], folder: Path
) -> list[Path]:
    """Puts wheels into `folder`, and gives their paths.

    Args:
        having: packages that the other machine has or does without.
        python: such as "3.12".
        platforms: as pip names them, such as "manylinux_2_28_x86_64".

    Raises:
        UserError: pip finds no wheel, in its own words.
    """
    there = {canonicalize_name(name) for name in having}
    wanted = [r for r in requirements_of(requirements) if canonicalize_name(r.name) not in there]
    if not wanted:
        return []
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    target += [f"--platform={platform}" for platform in platforms]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "report.json"
        resolve = ["install", "--dry-run", "--ignore-installed", "--target", scratch]
        _pip(*resolve, "--report", str(file), *target, *map(str, wanted))
        report = json.loads(file.read_text(encoding="utf-8"))
    system = {"python_version": python, "python_full_version": f"{python}.0"}
    pins = needed([r.name for r in wanted], there, report, default_environment() | system)
    exact = [f"{name}=={version}" for name, version in sorted(pins.items())]
    _pip("download", "--no-deps", "--dest", str(folder), *target, *exact)
    return sorted(folder.glob("*.whl"))
