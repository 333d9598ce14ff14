#!/usr/bin/env bash
# All stages in order: raw slices -> folds -> stage 1 -> stage 2 -> stack -> blend -> thresholds -> submission -> scores -> report.
# Usage: bash run_all.sh [recipe] [--set key=value ...] [--quiet | --verbose]
# Each stage makes what is missing or out of date, and nothing else.
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh requirements.txt

[[ "${1:--}" != -* ]] || set -- configs/demo.yaml "$@"

ich changes    "$@"    # warns of what will be made again because the recipe has changed
ich demo       "$@"    # only if the recipe has a synthetic competition
ich prepare    "$@"
ich folds      "$@"
ich pretrain   "$@"    # only if the recipe has a pretrain section
ich cnn        "$@"
ich end_to_end "$@"
ich sequence   "$@"
ich external   "$@"    # only if the recipe has an external section
ich smooth     "$@"    # only if the recipe has a smooth section
ich stack      "$@"
ich blend      "$@"
ich thresholds "$@"
ich submit     "$@"
ich score      "$@"
ich explain    "$@"
ich report     "$@"
ich results    "$@" --seconds "$SECONDS"    # the file to submit, the page to open, the time
