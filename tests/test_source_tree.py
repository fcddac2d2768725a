"""What the sources must not hold: code that runs what a file says, and files opened in whatever
encoding the machine has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# File: what it may do all the same, and why.
ALLOWED: dict[str, dict[str, str]] = {
    "tests/helpers/archives.py": {"pickle": "writes CIFAR-10 in its published format"},
    "tests/helpers/attacks.py": {"pickle": "writes the attacks"},
    "tests/eval/features/test_weights_run_nothing.py": {
        "pickle": "shows that the attacks work",
        "torch.load": "shows that the attacks work",
    },
    "tests/teachers/diffusers_format/test_write.py": {
        "trust_remote_code": "loads an export as its users do; the test wrote it"
    },
    "tests/test_readme.py": {"exec": "runs the lines of the README"},
    "tests/teachers/diffusers_format/test_write_readme.py": {
        "exec": "runs the lines of a README that the test wrote"
    },
}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "_Loader"}  # _Loader is core.config's SafeLoader
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_YAML = {"unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "load_all"}


def _dotted(node: ast.expr) -> str:
    """ "torch.load" of the expression torch.load; "" of what is no plain name."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _constant(call: ast.Call, keyword: str) -> object:
    """The value of the call's argument of that name; None where it is absent, "?" where it is not
    written out."""
    for given in call.keywords:
        if given.arg == keyword:
            return given.value.value if isinstance(given.value, ast.Constant) else "?"
    return None


def dangers(source: str) -> set[str]:
    """Short names of the things in a Python source that run what a file or a string says."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
            imported = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {"torch.load"} & imported | {f"from yaml: {n}" for n in imported if n in {
                "yaml.load", *(f"yaml.{name}" for name in UNSAFE_YAML)
            }}  # fmt: skip
        else:
            names = []
        found |= {"pickle" for name in names if name in UNPICKLERS}
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func)
        last = name.rpartition(".")[2]
        if name == "torch.load" and _constant(node, "weights_only") is not True:
            found.add("torch.load")
        if name in ("torch.hub.load", "torch.hub.load_state_dict_from_url"):
            found.add("torch.hub")
        if name == "yaml.load":
            loader = node.args[1] if len(node.args) > 1 else None
            loader = next((k.value for k in node.keywords if k.arg == "Loader"), loader)
            if loader is None or _dotted(loader).rpartition(".")[2] not in SAFE_LOADERS:
                found.add("yaml.load")
        if name.startswith("yaml.") and last in UNSAFE_YAML:
            found.add("yaml.load")
        if name in ("eval", "exec", "__import__", "builtins.eval", "builtins.exec"):
            found.add(name.rpartition(".")[2])
        if name in ("os.system", "os.popen") or _constant(node, "shell") not in (None, False):
            found.add("shell")
        if _constant(node, "allow_pickle") not in (None, False):
            found.add("pickle")
        if _constant(node, "trust_remote_code") not in (None, False):
            found.add("trust_remote_code")
    return found


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text in the machine's encoding."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or _constant(node, "encoding") is not None:
            continue
        last = node.func.attr if isinstance(node.func, ast.Attribute) else _dotted(node.func)
        method = isinstance(node.func, ast.Attribute)
        if last in ("read_text", "write_text") and method and len(node.args) == (last[0] == "w"):
            lines.append(node.lineno)
        elif last == "open" and _dotted(node.func) in ("open", "io.open", "gzip.open", "os.fdopen"):
            mode = _constant(node, "mode") or "r"
            if len(node.args) > 1:
                mode = getattr(node.args[1], "value", "?")
            if "b" not in str(mode):
                lines.append(node.lineno)
        elif _constant(node, "text") is True or _constant(node, "universal_newlines") is True:
            lines.append(node.lineno)
    return lines


def _sources() -> dict[str, str]:
    files = [
        file
        for file in ROOT.rglob("*.py")
        if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
        and file.relative_to(ROOT).parts[0] not in ("runs", "data", "wandb")
    ]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def test_nothing_runs_what_a_file_says():
    sources = _sources()
    assert {"core/config.py", "eval/features/inception.py", "lab.py"} <= sources.keys()
    found = {file: dangers(text) for file, text in sources.items()}
    unexpected = {
        file: some - ALLOWED.get(file, {}).keys()
        for file, some in found.items()
        if some - ALLOWED.get(file, {}).keys()
    }
    assert unexpected == {}


def test_text_is_utf8_on_every_machine():
    found = {
        file: lines
        for file, text in _sources().items()
        if not file.startswith("tests/") and (lines := without_encoding(text))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("line", "danger"),
    [
        ("torch.load(f)", "torch.load"),
        ("torch.load(f, weights_only=False)", "torch.load"),
        ("torch.load(f, weights_only=flag)", "torch.load"),
        ("from torch import load", "torch.load"),
        ("torch.hub.load_state_dict_from_url(u)", "torch.hub"),
        ("yaml.load(t, yaml.Loader)", "yaml.load"),
        ("yaml.load(t, Loader=yaml.FullLoader)", "yaml.load"),
        ("yaml.load(t)", "yaml.load"),
        ("yaml.unsafe_load(t)", "yaml.load"),
        ("from yaml import load", "from yaml: yaml.load"),
        ("import pickle", "pickle"),
        ("from joblib import load", "pickle"),
        ("np.load(f, allow_pickle=True)", "pickle"),
        ("eval(t)", "eval"),
        ("exec(t)", "exec"),
        ("__import__(n)", "__import__"),
        ("subprocess.run(c, shell=True)", "shell"),
        ("os.system(c)", "shell"),
        ("cls.from_pretrained(n, trust_remote_code=True)", "trust_remote_code"),
    ],
)
def test_the_scan_sees_each(line, danger):
    assert dangers(line) == {danger}


def test_the_scan_lets_pass_what_is_safe():
    for line in (
        "torch.load(f, weights_only=True)",
        "yaml.load(t, _Loader)",
        "yaml.safe_load(t)",
        "network.eval()",
        "subprocess.run(c)",
        "np.load(f)",
    ):
        assert dangers(line) == set()
    for line in (
        "p.read_text()",
        "p.write_text(t)",
        "open(f)",
        "open(f, 'w')",
        "run(c, text=True)",
    ):
        assert without_encoding(line) == [1], line
    for line in (
        "p.read_text(encoding='utf-8')",
        "read_text(p)",
        "write_text(p, t)",
        "open(f, 'rb')",
        "Image.open(f)",
        "run(c, text=True, encoding='utf-8')",
    ):
        assert without_encoding(line) == [], line
