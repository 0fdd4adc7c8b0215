#!/usr/bin/env bash
# One training run from a recipe. Stopped at any point, the same command continues from the last checkpoint.
#   bash run_scripts/train.sh projects/debug.yaml [a.b=c ...]      `ra-blip config RECIPE` prints what would run
#   RA_BLIP_PROCESSES=8 bash run_scripts/train.sh RECIPE ...        a process a GPU; strategy.name=zero wants
#   RA_BLIP_EXTRAS=cpu,deepspeed as well. Under SLURM: run_scripts/slurm.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" "${RA_BLIP_EXTRAS:-cpu}"

if [ "${RA_BLIP_PROCESSES:-1}" -gt 1 ]; then
  torchrun --standalone --nproc-per-node "$RA_BLIP_PROCESSES" -m ra_blip train "$@"
else
  ra-blip train "$@"
fi
