#!/usr/bin/env bash
# Build the sdist and the wheel, install the wheel into an empty environment, and run the demo's
# steps from a folder outside the checkout.
#
# usage: scripts/check_wheel.sh PYTHON     a Python that has the `build` package
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 PYTHON" >&2; exit 2; }
builder=$(command -v "$1") || { echo "error: no such Python: $1" >&2; exit 2; }
case $builder in /*) ;; *) builder=$PWD/$builder ;; esac
checkout=$(cd "$(dirname "$0")/.." && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Nothing may reach the new environment but what pip installs there.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

echo "wheel check: building (the wheel from the sdist)"
"$builder" -m build --outdir "$work/dist" "$checkout" >"$work/build.log" 2>&1 || {
    cat "$work/build.log" >&2
    exit 1
}
wheel=$(echo "$work"/dist/softlabel-*.whl)

echo "wheel check: installing $(basename "$wheel") into an empty environment"
"$builder" -m venv "$work/venv"
python=$work/venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check -c "$checkout/constraints.txt" "$wheel[demo]"
"$python" -m pip check

mkdir "$work/project"
cd "$work/project"
"$python" - <<'PY'
import importlib.util
import sys

found = [name for name in ("pipeline", "stages", "schemas", "tests") if importlib.util.find_spec(name)]
if found:
    sys.exit(f"error: installed under a bare name: {', '.join(found)}")
import softlabel

if not softlabel.__file__.startswith(sys.prefix):
    sys.exit(f"error: softlabel comes from {softlabel.__file__}, not from the wheel")
PY

echo "wheel check: running the demo's steps outside the checkout"
cp "$checkout/params.yaml" "$checkout/dvc.yaml" .
export PATH=$work/venv/bin:$PATH
dvc init --quiet --no-scm
dvc config core.analytics false
dvc repro
[ -s reports/report.html ] || { echo "error: reports/report.html is missing" >&2; exit 1; }
echo "wheel check: passed"
