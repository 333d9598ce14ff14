#!/usr/bin/env bash
# Format check, lint, types, tests; the first that finds something ends the run.
# Usage: bash tests/run.sh [--slow] [pytest arguments]      --slow adds the tests that take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source ./setup.sh requirements.txt tests/requirements.txt

which=(-m "not slow")
if [ "${1:-}" = "--slow" ]; then which=(); shift; fi

ruff format --check .
ruff check .
basedpyright
pytest -n 2 "${which[@]}" "$@"
