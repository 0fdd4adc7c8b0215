#!/usr/bin/env bash
# One training run on one or more nodes under SLURM, a process a GPU.
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 run_scripts/slurm.sh projects/ra_blip/answer_webqa.yaml [a.b=c ...]
# Two minutes before the time limit SLURM asks the processes to stop: they save, leave with 75, and the job is queued again.
# Any other end is final; the same command continues.
#SBATCH --job-name=ra-blip
#SBATCH --cpus-per-task=8
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
cd -- "${SLURM_SUBMIT_DIR:?start it by sbatch from the root of the repository}"
. run_scripts/environment.sh "${RA_BLIP_EXTRAS:-cpu}" # cpu,deepspeed for strategy.name=zero

nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export MASTER_ADDR="${nodes%%$'\n'*}" MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-8}" # srun does not take it from sbatch by itself, from 22.05 on
code=0
# Not through torchrun: its own exit code is 1, and SIGUSR1 ends it. --wait: a rank that hangs outlives the first by a minute.
srun --wait=60 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec ra-blip train "$@"' \
  ra-blip "$@" || code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
