#!/usr/bin/env bash
# GPUs under SLURM, one process per node, which JAX joins by SLURM's own variables:
#   launch/slurm.sh [--dry-run] configs/var.py:imagenet256_d16 [--config.key=…]
# Preempted or timed out, the job saves and queues itself again. By the environment:
#   NODES=1 GPUS=8 (of a node) HOURS=24 PARTITION= ACCOUNT= WORKDIR= (shared by the nodes)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
parse "$@"
[ ${#ARGS[@]} -ge 1 ] || usage
CONFIG=${ARGS[0]}
NODES=${NODES:-1} GPUS=${GPUS:-8} HOURS=${HOURS:-24} NAME=$(name_of "$CONFIG")
WORKDIR=${WORKDIR:-runs/$NAME}
OPTIONS=("--job-name=$NAME" "--nodes=$NODES" --ntasks-per-node=1 "--gpus-per-node=$GPUS" --exclusive
    "--time=$HOURS:00:00" --requeue --signal=B:TERM@300 --open-mode=append "--output=$WORKDIR/log")
[ -z "${PARTITION:-}" ] || OPTIONS+=("--partition=$PARTITION")
[ -z "${ACCOUNT:-}" ] || OPTIONS+=("--account=$ACCOUNT")
COMMAND=(.venv/bin/python -m nexttok.main "--config=$CONFIG" "--workdir=$WORKDIR" "${ARGS[@]:1}")

# 143 is a saved stop: of a job that ran out of time or was preempted, which goes on later
JOB="#!/usr/bin/env bash
srun --kill-on-bad-exit=1 $(quoted "${COMMAND[@]}") &
trap 'scancel --signal=TERM \$SLURM_JOB_ID' TERM
wait \$! || wait \$!
status=\$?
[ \$status != 143 ] || scontrol requeue \$SLURM_JOB_ID
exit \$status"

if [ "$DRY_RUN" = 1 ]; then
    run sbatch "${OPTIONS[@]}"
    echo "$JOB"
else
    mkdir -p "$WORKDIR"
    sbatch "${OPTIONS[@]}" <<<"$JOB"
fi
