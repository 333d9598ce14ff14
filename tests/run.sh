#!/usr/bin/env bash
# Format check, lint, types, tests; the first that finds something ends the run.
# Usage: bash tests/run.sh [--slow] [pytest arguments]      --slow adds the tests that take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup.sh requirements.txt tests/requirements.txt

which=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then which=(); shift; fi

# The report's page is tried in a browser. Where there is none, and none may be installed, these tests skip.
if ! command -v "${ICH_BROWSER:-chromium}" chromium-browser google-chrome > /dev/null; then
    echo "Installing chromium for the tests of the page (once)"
    may=(env DEBIAN_FRONTEND=noninteractive)
    [ "$EUID" -eq 0 ] || may=(sudo -n "${may[@]}")
    { "${may[@]}" apt-get update && "${may[@]}" apt-get install --yes --no-install-recommends chromium; } &> /dev/null ||
        echo "chromium could not be installed: the tests of the page skip" >&2
fi

ruff format --check .
ruff check .
basedpyright
pytest -n 2 "${which[@]}" "$@"
