#!/usr/bin/env bash
# Tell DVC whether this folder is a git checkout of its own, with at least one commit.
#
# DVC refuses to run in an unpacked archive, would write into a foreign repository that the archive
# happens to lie in, and dvclive fails before the first commit: all three run without git instead.
# The setting goes to .dvc/config.local, which is never committed.
set -euo pipefail
cd "$(dirname "$0")/.."

own_history() {
    [ "$(git rev-parse --show-toplevel 2>/dev/null)" = "$(pwd -P)" ] &&
        git rev-parse --quiet --verify HEAD >/dev/null 2>&1
}

if own_history; then
    if grep -qs no_scm .dvc/config.local; then
        dvc config --local --unset core.no_scm
    fi
elif ! grep -qs no_scm .dvc/config.local; then
    # DVC cannot start in order to write the setting that lets it start.
    printf '[core]\n    no_scm = true\n' >>.dvc/config.local
fi
