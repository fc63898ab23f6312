#!/usr/bin/env bash
# Trains a config on a Cloud TPU VM of one host (such as v5litepod-8 or v6e-8), in the background of
# that host. Run it again to resume.
#   TPU=my-v6e ZONE=us-east5-b launch/tpu_vm.sh configs/flextok.py:imagenet256_d12_d12
set -euo pipefail
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
CONFIG=${1:?a config, such as configs/flextok.py:imagenet256_d12_d12}
shift
REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url)}
WORKDIR=${WORKDIR:-runs/$(basename "${CONFIG%%.py*}")} # on the host, or on a disk mounted there

gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 --command="
  set -e
  [ -d nexttok ] || git clone '$REPOSITORY' nexttok
  cd nexttok && git pull --ff-only
  [ -d .venv ] || python3 -m venv .venv
  .venv/bin/pip install -q -r requirements.txt 'jax[tpu]==0.10.2'
  mkdir -p '$WORKDIR'
  nohup .venv/bin/python -m nexttok.main --config='$CONFIG' --workdir='$WORKDIR' $* >>'$WORKDIR/log' 2>&1 &
  echo 'log in nexttok/$WORKDIR/log'"
