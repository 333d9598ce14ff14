#!/usr/bin/env bash
# Everything, in order: raw slices -> folds -> stage 1 -> stage 2 -> stack -> blend -> thresholds -> submission -> scores -> report.
# Usage: bash run_all.sh [recipe] [--set key=value ...] [--quiet | --verbose]
# Each stage does what is missing or stale, and nothing else.
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh requirements.txt

[[ "${1:--}" != -* ]] || set -- configs/demo.yaml "$@"

ich demo       "$@"    # where the recipe's competition is a synthetic one
ich prepare    "$@"
ich folds      "$@"
ich pretrain   "$@"    # where the recipe has something to pre-train
ich cnn        "$@"
ich end_to_end "$@"
ich sequence   "$@"
ich external   "$@"    # where the recipe has predictions from elsewhere
ich smooth     "$@"    # where the recipe has a Gaussian baseline
ich stack      "$@"
ich blend      "$@"
ich thresholds "$@"
ich submit     "$@"
ich score      "$@"
ich explain    "$@"
ich report     "$@"
