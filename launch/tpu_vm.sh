#!/usr/bin/env bash
# Trains a config on every worker of a Cloud TPU VM slice. Run it again to resume.
#   TPU=my-v5p ZONE=us-east5-a WORKDIR=gs://bucket/flextok launch/tpu_vm.sh configs/flextok.py:imagenet256_d12_d12
set -euo pipefail
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}" "${WORKDIR:?where checkpoints go}"
CONFIG=${1:?a config, such as configs/flextok.py:imagenet256_d12_d12}
shift
REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url)}

gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  set -e
  [ -d nexttok ] || git clone '$REPOSITORY' nexttok
  cd nexttok && git pull --ff-only
  [ -d .venv ] || python3 -m venv .venv
  .venv/bin/pip install -q -r requirements.txt 'jax[tpu]==0.10.2'
  .venv/bin/python -m nexttok.main --config='$CONFIG' --workdir='$WORKDIR' $*"
