#!/usr/bin/env bash
# One training run from a recipe. Stopped at any point, the same command continues from the last checkpoint.
#   bash run_scripts/train.sh projects/debug.yaml [a.b=c ...]      `ra-blip config RECIPE` prints what would run
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" cpu

ra-blip train "$@"
