"""Start-up is light: neither the import nor any help text loads what takes long to load."""

import subprocess
import sys

import pytest

HEAVY = ("dvclive", "lightning_fabric", "numpy", "onnx", "onnxruntime", "pyarrow", "torch", "PIL")

HELP = """
import contextlib, io
from softlabel.cli import main
sys.argv = ["softlabel", *{arguments!r}]
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main()
assert "Usage" in shown.getvalue(), shown.getvalue()
"""


def heavy_modules_after(code: str) -> list[str]:
    report = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_the_check_sees_a_heavy_import() -> None:
    assert heavy_modules_after("import numpy") == ["numpy"]


def test_import_softlabel() -> None:
    assert heavy_modules_after("import softlabel") == []


@pytest.mark.parametrize("arguments", [["--help"], ["infer", "--help"]])
def test_help(arguments: list[str]) -> None:
    assert heavy_modules_after(HELP.format(arguments=arguments)) == []
