#!/usr/bin/env bash
# A TPU slice of a GKE cluster, through XPK (github.com/AI-Hypercomputer/xpk):
#   launch/gke.sh [--dry-run] create CONFIG [--config.key=…]     starts a workload; resumes
#   launch/gke.sh list | delete                                  delete asks first, or --yes
# By the environment:
#   CLUSTER= ZONE= PROJECT= TYPE=v5litepod-256 SLICES=1 NAME=<config>-<variant> RESTARTS=10
#   WORKDIR=/gcs/runs/<name>, on storage that `xpk storage attach` mounts in every host
#   IMAGE=python:3.11  BASE=.  the repository, copied onto the image
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
parse "$@"
[ ${#ARGS[@]} -ge 1 ] || usage
: "${CLUSTER:?name of the cluster}" "${ZONE:?its zone}" "${PROJECT:?its project}"
WHERE=("--cluster=$CLUSTER" "--zone=$ZONE" "--project=$PROJECT")

create() {
    [ ${#ARGS[@]} -ge 2 ] || fail "expected a config, such as configs/flextok.py:imagenet256_d12_d12"
    local name workdir
    name=${NAME:-$(name_of "${ARGS[1]}" | tr _ -)}
    workdir=${WORKDIR:-/gcs/runs/$name}
    run xpk workload create "${WHERE[@]}" "--workload=$name" "--tpu-type=${TYPE:?of the slice}" \
        "--num-slices=${SLICES:-1}" "--max-restarts=${RESTARTS:-10}" \
        "--base-docker-image=${IMAGE:-python:3.11}" "--script-dir=${BASE:-.}" \
        "--command=pip install -q -r requirements.txt 'jax[tpu]==0.10.2' && python -m nexttok.main \
--config=$(quoted "${ARGS[1]}")--workdir=$(quoted "$workdir")$(quoted "${ARGS[@]:2}")"
}

case ${ARGS[0]} in
create) create ;;
list) run xpk workload list "${WHERE[@]}" ;;
delete)
    : "${NAME:?of the workload}"
    confirm "stop the workload $NAME on $CLUSTER?"
    run xpk workload delete "${WHERE[@]}" "--workload=$NAME"
    ;;
*) fail "${ARGS[0]}: expected create | list | delete" ;;
esac
