"""Takes this repository to a machine without a network, and brings back what came out there.

    python -m scripts.carry out lab.tar.gz --data fashion_mnist --leave results --limit 64
    tar xf lab.tar.gz && cd fast-sampling-lab       # there; then every command, scripts/*.sh too
    python -m scripts.carry back home.tar.gz runs/fashion_mnist
    python -m scripts.carry in home.tar.gz          # here again

`out` packs the commit that is checked out, data, runs and wheels. Scripts install from those wheels
where they find them, and rows name that commit, though there is no git. `in` puts files where they
were there, in runs, results or data of this repository, and replaces none that differs."""

from __future__ import annotations

import argparse
import gzip
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name
from tqdm import tqdm

from core.data.sources import files_of
from core.errors import UserError, command_line
from core.files import sha256_of, whole_file
from eval.sweep.machine import COMMIT, commit
from scripts.wheels import download

ROOT = Path(__file__).resolve().parents[1]
NAME = "fast-sampling-lab"
BROUGHT = ("runs", "results", "data")  # no code comes back, nor what git or Python would run
PLATFORMS = "manylinux_2_28_x86_64,manylinux2014_x86_64"


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{ROOT} is not a git repository: go to where it was cloned") from error


def tracked(leave: Iterable[str]) -> Iterator[tuple[str, bytes, int]]:
    """(name, content, mode) of every file of the commit that is checked out.

    Args:
        leave: files and folders that stay behind.

    Raises:
        UserError: files differ from the commit, or one of `leave` is not in it.
    """
    head = commit()
    if head is None or head.endswith("-dirty"):
        raise UserError(
            "tracked files differ from the commit that rows will name: commit them first"
        )
    left = [PurePosixPath(name) for name in leave]
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", "HEAD"))) as archive:
        members = [member for member in archive if member.isfile()]
        for path in left:
            if not any(PurePosixPath(m.name).is_relative_to(path) for m in members):
                raise UserError(f"--leave {path}: the commit has no such file or folder")
        for member in members:
            if not any(PurePosixPath(member.name).is_relative_to(path) for path in left):
                yield member.name, archive.extractfile(member).read(), member.mode


def files_under(paths: Iterable[Path], root: Path) -> list[Path]:
    """All regular files at and under `paths`, in order.

    Raises:
        UserError: there is nothing, or a path leads out of `root`, or a link is among them.
    """
    found = []
    for path in paths:
        place = (root / path).absolute()
        if not place.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path} is not in {root}: what is carried keeps its place there")
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        files = [file for file in files if not file.is_dir() or file.is_symlink()]
        if not place.exists() or not files:
            raise UserError(f"{path} does not exist, or is empty")
        if link := next((file for file in files if file.is_symlink()), None):
            raise UserError(f"{link} is a link: put the file there")
        found += files
    return found


def check_brought(names: Iterable[PurePosixPath], archive: Path) -> None:
    """Raises UserError for a name in none of the folders that results are in."""
    for name in names:
        if name.parts[0] not in BROUGHT or len(name.parts) < 2:
            raise UserError(
                f"{archive}: {name} is in none of {', '.join(BROUGHT)}, and nothing else comes back: "
                "put it there first"
            )


def lines_without(requirements: bytes, without: Iterable[str]) -> bytes:
    """A requirements file without the lines of some packages."""
    left = {canonicalize_name(name) for name in without}
    kept = []
    for line in requirements.decode().splitlines(keepends=True):
        name = re.match(r"[A-Za-z0-9._-]*", line).group()
        if not name or canonicalize_name(name) not in left:
            kept.append(line)
    return "".join(kept).encode()


def write(
    archive: Path, content: Iterable[tuple[str, bytes, int]], total: int, limit: float
) -> None:
    """Writes a whole archive of (name, content, mode), every file in the folder NAME, without
    owners and times, so that equal content makes an equal archive.

    Raises:
        UserError: it takes more than `limit` MiB; says what is large in it.
    """
    parts: dict[str, int] = {}  # bytes by the first part of the name
    with whole_file(archive) as partial:
        with (
            open(partial, "wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as packed,
        ):
            for name, data, mode in tqdm(content, total=total, desc="pack", unit="file"):
                info = tarfile.TarInfo(f"{NAME}/{name}")
                info.size, info.mode = len(data), mode
                packed.addfile(info, io.BytesIO(data))
                part = name.split("/")[0]
                parts[part] = parts.get(part, 0) + len(data)
        size = partial.stat().st_size / 2**20
        if size > limit:
            largest = sorted(parts.items(), key=lambda item: -item[1])[:4]
            words = ", ".join(f"{name} {n / 2**20:.1f}" for name, n in largest)
            raise UserError(
                f"{archive} takes {size:.1f} MiB, more than --limit {limit:g}; MiB before "
                f"compression: {words}: leave some behind by --leave, --have or --without"
            )
    print(f"{archive}: {size:.1f} MiB")


def out(options: argparse.Namespace) -> None:
    """Packs the repository and what it needs elsewhere."""
    having, without = options.have.split(","), options.without.split(",")
    files = [
        (name, lines_without(data, without) if name == options.requirements else data, mode)
        for name, data, mode in tracked(options.leave)
    ]
    files.append((COMMIT, f"{commit()}\n".encode(), 0o644))
    for name in options.data:
        for place, file in files_of(name).items():
            files.append((place, file.read_bytes(), 0o644))
    for file in files_under(options.paths, ROOT):
        files.append((file.relative_to(ROOT).as_posix(), file.read_bytes(), 0o644))
    with tempfile.TemporaryDirectory() as scratch:
        if options.python:
            file, platforms = ROOT / options.requirements, options.platform.split(",")
            wheels = download(file, having + without, options.python, platforms, Path(scratch))
            files += [(f"wheels/{wheel.name}", wheel.read_bytes(), 0o644) for wheel in wheels]
        write(options.archive, files, len(files), options.limit)


def back(options: argparse.Namespace) -> None:
    """Packs what came out, with the commit that it came from."""
    files = files_under(options.paths, ROOT)
    names = (PurePosixPath(file.relative_to(ROOT).as_posix()) for file in files)
    check_brought(names, options.archive)
    content = ((f.relative_to(ROOT).as_posix(), f.read_bytes(), 0o644) for f in files)
    write(options.archive, content, len(files), options.limit)


def bring_in(options: argparse.Namespace) -> None:
    """Unpacks what came back; raises UserError before anything is written where a file that is here
    differs, or a name leads elsewhere."""
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".carry-") as scratch:
        try:
            with tarfile.open(options.archive) as archive:
                archive.extractall(scratch, filter="data")
        except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
            raise UserError(
                f"{options.archive} is not an archive of this command: {error}"
            ) from error
        source = Path(scratch) / NAME
        found = files_under([source], Path(scratch)) if source.is_dir() else []
        if not found:
            raise UserError(f"{options.archive} holds no folder {NAME}")
        names = (PurePosixPath(file.relative_to(source).as_posix()) for file in found)
        check_brought(names, options.archive)
        places = {file: ROOT / file.relative_to(source) for file in found}
        for file, place in places.items():
            if place.exists() and (place.is_dir() or sha256_of(place) != sha256_of(file)):
                raise UserError(f"{place} exists and differs: move it away first")
        for file, place in places.items():
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(file, place)
    print(f"{len(places)} files")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.carry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="out | back | in")
    there = commands.add_parser("out", help="pack this repository for another machine")
    home = commands.add_parser("back", help="there: pack what came out")
    here = commands.add_parser("in", help="unpack what came back")
    for command, what in ((there, out), (home, back), (here, bring_in)):
        command.add_argument("archive", type=Path, help="a .tar.gz")
        command.set_defaults(run=what)
    for command, number in ((there, "*"), (home, "+")):
        command.add_argument(
            "paths", nargs=number, type=Path, help="files and folders, such as runs"
        )
        command.add_argument("--limit", type=float, default=float("inf"), metavar="MiB")
    there.add_argument("--data", nargs="*", default=[], help="data sets to take along")
    there.add_argument("--leave", nargs="*", default=[], help="tracked files and folders to leave")
    there.add_argument("--python", help="the Python there, such as 3.12, to take wheels along")
    there.add_argument("--platform", default=PLATFORMS, help="of the wheels, as pip names them")
    there.add_argument(
        "--have", default="torch,torchvision,accelerate", help="packages that are there"
    )
    there.add_argument("--without", default="", help="packages to do without, such as wandb")
    there.add_argument("--requirements", default="requirements.txt", help="what wheels are for")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
