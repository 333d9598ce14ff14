#!/usr/bin/env bash
# Format check, lint, types, tests; stops at the first failure.
# Usage: bash tests/run.sh [--slow] [pytest arguments]      --slow: also the tests that take minutes
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup.sh requirements.txt tests/requirements.txt

which=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then which=(); shift; fi

# The tests of the report page need a browser, and those of DICOM results are stricter with dciodvfy. They are skipped,
# or do without, if it cannot be installed.
wanted=()
command -v "${ICH_BROWSER:-chromium}" chromium-browser google-chrome > /dev/null || wanted+=(chromium)
command -v dciodvfy > /dev/null || wanted+=(dicom3tools)
if [ ${#wanted[@]} -gt 0 ]; then
    echo "Installing ${wanted[*]} for the tests (once)"
    apt=(env DEBIAN_FRONTEND=noninteractive)
    [ "$EUID" -eq 0 ] || apt=(sudo -n "${apt[@]}")
    { "${apt[@]}" apt-get update && "${apt[@]}" apt-get install --yes --no-install-recommends "${wanted[@]}"; } &> /dev/null ||
        echo "${wanted[*]} could not be installed: some tests are skipped" >&2
fi

ruff format --check .
ruff check .
basedpyright
export OMP_NUM_THREADS=1    # threads of two processes on two cores only wait for one another
pytest -n 2 "${which[@]}" "$@"
