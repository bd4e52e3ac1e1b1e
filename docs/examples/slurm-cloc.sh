#!/bin/bash
# CLOC on several nodes under Slurm: sbatch slurm-cloc.sh
# One task per node starts torchrun, which starts one process per GPU. Change the lines marked with (*).
#SBATCH --job-name=cloc
#SBATCH --nodes=8                     # (*)
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8             # (*)
#SBATCH --cpus-per-task=96            # (*)
#SBATCH --time=24:00:00               # (*)
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=cloc-%j.log
# Ten minutes before the time is over, and when the job is preempted, this script gets the signal.
#SBATCH --signal=B:TERM@600

set -euo pipefail

RECIPE=${RECIPE:-cloc-vit-l14-336}
COLLECTION=${COLLECTION:?give the folder of the collection, on a file system that all nodes see}
RUN=${RUN:?give the run folder, on a file system that all nodes see}
GPUS=${GPUS:-8}                       # (*) per node
WORKERS=${WORKERS:-10}                # (*) loader threads per process: cores per node / GPUs per node, less two

export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1
# How long torchrun waits for a checkpoint to be written after a signal, in seconds; 30 without this.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540

MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))

# Looked at once, on the first node: exit status 1, and no node hours, when the run cannot be.
srun --nodes=1 --ntasks=1 foveate doctor "$COLLECTION" --recipe "$RECIPE" \
    --devices "$((SLURM_JOB_NUM_NODES * GPUS))" --workers "$WORKERS"

# --max-restarts=0: when a process dies, torchrun ends all, and the job is queued again from its last checkpoint.
# The two dashes before foveate separate torchrun's options from Foveate's.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$GPUS" --max-restarts=0 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$MASTER:$PORT" \
    -m -- foveate pretrain "$RECIPE" --collection "$COLLECTION" --out "$RUN" --workers "$WORKERS" &
STEP=$!

stopped=0
# The processes finish their step, write a checkpoint and leave; then the job is queued again and goes on.
trap 'stopped=1; kill -TERM "$STEP" 2>/dev/null || true' TERM

status=0
wait "$STEP" || status=$?
if [ "$stopped" = 1 ]; then
    wait "$STEP" 2>/dev/null || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
