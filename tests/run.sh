#!/usr/bin/env bash
# Format check, lint, types, tests; stops at the first failure.
# Usage: bash tests/run.sh [--slow] [pytest arguments]      --slow: also the tests that take minutes
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup.sh requirements.txt tests/requirements.txt

which=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then which=(); shift; fi

# The tests of the report page need a browser, and are skipped without one. Those of DICOM results also run dciodvfy, if
# it is there.
apt=(env DEBIAN_FRONTEND=noninteractive)
[ "$EUID" -eq 0 ] || apt=(sudo -n "${apt[@]}")
install_once() {  # a package, if none of these commands is there
    ! command -v "${@:2}" > /dev/null || return 0
    echo "Installing $1 for the tests (once)"
    { "${apt[@]}" apt-get update && "${apt[@]}" apt-get install --yes --no-install-recommends "$1"; } &> /dev/null ||
        echo "$1 could not be installed: its tests are skipped" >&2
}
install_once chromium "${ICH_BROWSER:-chromium}" chromium-browser google-chrome
install_once dicom3tools dciodvfy

ruff format --check .
ruff check .
basedpyright
export OMP_NUM_THREADS=1    # threads of two processes on two cores only wait for one another
# worksteal: a process gets adjacent tests, so that the fixtures of a file are made once
pytest -n 2 --dist worksteal "${which[@]}" "$@"
