#!/usr/bin/env bash
# One training run on one or more nodes under SLURM: a launcher a node, which starts a process a GPU.
#   sbatch --nodes 2 --gpus-per-node 8 run_scripts/slurm.sh projects/ra_blip/answer_webqa.yaml [a.b=c ...]
# SLURM's signal before the time limit saves a checkpoint, and --requeue continues from it.
#SBATCH --job-name=ra-blip
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --signal=TERM@120
#SBATCH --requeue
cd -- "${SLURM_SUBMIT_DIR:?start it by sbatch from the root of the repository}"
. run_scripts/environment.sh "${RA_BLIP_EXTRAS:-cpu}" # cpu,deepspeed for strategy.name=zero

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))" \
  -m ra_blip train "$@"
