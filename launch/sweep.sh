#!/usr/bin/env bash
# Trains the members of a sweep that are not finished, each in its folder of the workdir, one after
# the other; the same command resumes.
#   launch/sweep.sh [--dry-run] configs/vqvae.py                     the config's own (get_sweep)
#   launch/sweep.sh configs/var.py --sweep 'seed=0;1' 'sample.guidance=1.5;2.5'   all pairs
#   TPUS="a b" ZONE=us-east5-b WORKDIR=/gcs/runs/sweep launch/sweep.sh configs/var.py:imagenet256_d16
#                         every other member on either slice, which launch/tpu_vm.sh has set up
# WORKDIR=runs/<config>_<variant>_sweep; of slices, a folder that all hosts share
# The table of the finished ones:  python -m nexttok.evals.sweeps $WORKDIR/*
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
parse "$@"
[ ${#ARGS[@]} -ge 1 ] || fail "expected a config, such as configs/vqvae.py"
CONFIG=${ARGS[0]}
TPUS=${TPUS:-}
export DRY_RUN
if [ -z "$TPUS" ]; then
    export WORKDIR=${WORKDIR:-runs/$(name_of "$CONFIG")_sweep}
    exec launch/local.sh "${ARGS[@]}" --mode=sweep
fi
[ -n "${WORKDIR:-}" ] || fail "WORKDIR: expected a folder that the hosts of all slices share"
read -r -a slices <<<"$TPUS"
for i in "${!slices[@]}"; do
    TPU=${slices[i]} launch/tpu_vm.sh run "${ARGS[@]}" --mode=sweep "--share=$i/${#slices[@]}"
done
