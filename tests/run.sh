#!/usr/bin/env bash
# Format check, lint, types, tests; stops at the first failure.
# Usage: bash tests/run.sh [--slow] [pytest arguments]      --slow: also the tests that take minutes
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup.sh requirements.txt tests/requirements.txt

which=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then which=(); shift; fi

# The tests of the report page need a browser. They are skipped if there is none and it cannot be installed.
if ! command -v "${ICH_BROWSER:-chromium}" chromium-browser google-chrome > /dev/null; then
    echo "Installing chromium for the browser tests (once)"
    apt=(env DEBIAN_FRONTEND=noninteractive)
    [ "$EUID" -eq 0 ] || apt=(sudo -n "${apt[@]}")
    { "${apt[@]}" apt-get update && "${apt[@]}" apt-get install --yes --no-install-recommends chromium; } &> /dev/null ||
        echo "chromium could not be installed: the browser tests are skipped" >&2
fi

ruff format --check .
ruff check .
basedpyright
export OMP_NUM_THREADS=1    # threads of two processes on two cores only wait for one another
# worksteal: a process gets adjacent tests, so that the fixtures of a file are made once
pytest -n 2 --dist worksteal "${which[@]}" "$@"
