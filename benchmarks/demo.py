"""Wall time of the demo's pipeline by stage: `dvc repro` in a fresh folder.

usage: python benchmarks/demo.py      needs the softlabel and dvc commands on the PATH
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from softlabel.pipeline.teachers.devices import cpu_name, cpu_threads

CHECKOUT = Path(__file__).resolve().parent.parent
STAGE = re.compile(r"^Running stage '([^'@]+)(?:@([^']+))?'")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("params.yaml", "dvc.yaml"):
            shutil.copy(CHECKOUT / file, folder)
        subprocess.run(["dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True)
        begin = time.perf_counter()
        seconds = _repro(folder)
        whole = time.perf_counter() - begin
        begin = time.perf_counter()
        subprocess.run(["dvc", "repro", "--quiet"], cwd=folder, check=True)
        again = time.perf_counter() - begin
    print(f"{cpu_name()}, {cpu_threads()} threads")
    print("| stage | runs | seconds |\n|---|---|---|")
    for stage, times in seconds.items():
        print(f"| {stage} | {len(times)} | {sum(times):.1f} |")
    print(f"| whole `dvc repro` | | {whole:.1f} |")
    print(f"| `dvc repro` again, nothing to do | | {again:.1f} |")


def _repro(folder: Path) -> dict[str, list[float]]:
    """Seconds of each run of each stage; a stage lasts until the next one's line appears."""
    seconds: dict[str, list[float]] = {}
    stage, begin = "start", time.perf_counter()
    process = subprocess.Popen(["dvc", "repro"], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        match = STAGE.match(line)
        if match:
            seconds.setdefault(stage, []).append(time.perf_counter() - begin)
            stage, begin = match[1], time.perf_counter()
    if process.wait():
        raise SystemExit("dvc repro failed; run it by hand to see why")
    seconds.setdefault(stage, []).append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
