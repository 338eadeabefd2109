#!/usr/bin/env bash
# One task of slurm.sbatch: sets the variables that torchrun would set, and replaces itself with the given program (pretrain.py or
# tools/preflight.py, and its arguments), so that signals reach it.
set -euo pipefail
# shellcheck source=examples/launch/common.sh
source examples/launch/common.sh

for name in SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_NTASKS_PER_NODE MASTER_ADDR MASTER_PORT PYTHON; do
  require "$name" "this script is started by srun from slurm.sbatch"
done
export RANK=$SLURM_PROCID
export LOCAL_RANK=$SLURM_LOCALID
export WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
exec "$PYTHON" "$@"
