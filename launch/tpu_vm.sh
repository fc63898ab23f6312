#!/usr/bin/env bash
# A Cloud TPU slice of one or many hosts, as a queued resource:
#   launch/tpu_vm.sh create                        asks for the slice
#   launch/tpu_vm.sh setup                         installs the repository on every host
#   launch/tpu_vm.sh run CONFIG [--config.key=…]   trains on every host, in the background; resumes
#   launch/tpu_vm.sh watch CONFIG […]              waits for the slice, sets it up, runs, follows the
#                                                  log; asks for it anew whenever it is preempted,
#                                                  if that is confirmed, or with --yes
#   launch/tpu_vm.sh status | stop | delete        stop saves first; delete asks first, or --yes
# --dry-run prints what would run. By the environment:
#   TPU=name ZONE=us-east5-b TYPE=v5litepod-64 VERSION=v2-alpha-tpuv5-lite SPOT=0 SLICES=1
#   REPOSITORY=url (default: this one's origin)  REVISION=branch or commit (default: this one's)
#   WORKDIR=folder that all hosts share, a mounted bucket such as /gcs/runs/flextok; BUCKET=name
#   mounts one at /gcs
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
parse "$@"
[ ${#ARGS[@]} -ge 1 ] || usage
: "${TPU:?name of the slice}" "${ZONE:?its zone}"
TYPE=${TYPE:-} VERSION=${VERSION:-v2-alpha-tpuv5-lite} SPOT=${SPOT:-0} SLICES=${SLICES:-1}
BUCKET=${BUCKET:-}
REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url || true)}
REVISION=${REVISION:-$(git rev-parse HEAD)}

RUNNING="kill -0 \$(cat \"\$HOME/nexttok.pid\") 2>/dev/null" # on a host

cloud() { run gcloud compute tpus "$@" --zone="$ZONE"; }
on_every_host() { cloud tpu-vm ssh "$TPU" --worker=all --command="$1"; }
on_first_host() { cloud tpu-vm ssh "$TPU" --worker=0 --command="$1"; }

create() {
    [ -n "$TYPE" ] || fail "TYPE: expected an accelerator type, such as v5litepod-64"
    local more=()
    [ "$SPOT" = 0 ] || more+=(--spot)
    [ "$SLICES" = 1 ] || more+=("--node-count=$SLICES" "--node-prefix=$TPU")
    [ "$SLICES" != 1 ] || more+=("--node-id=$TPU")
    cloud queued-resources create "$TPU" "--accelerator-type=$TYPE" \
        "--runtime-version=$VERSION" "${more[@]}"
}

setup() {
    [ -n "$REPOSITORY" ] || fail "REPOSITORY: expected an address that the hosts can clone"
    local mount=true
    [ -z "$BUCKET" ] || mount="sudo mkdir -p /gcs && sudo chown \$USER /gcs &&
        (mountpoint -q /gcs || gcsfuse --implicit-dirs $(quoted "$BUCKET") /gcs)"
    on_every_host "set -e
        [ -d nexttok ] || git clone $(quoted "$REPOSITORY") nexttok
        cd nexttok && git fetch --quiet && git checkout --quiet $(quoted "$REVISION")
        [ -d .venv ] || python3 -m venv .venv
        .venv/bin/pip install -q -r requirements.txt 'jax[tpu]==0.10.2'
        $mount"
}

train() {
    [ ${#ARGS[@]} -ge 2 ] || fail "expected a config, such as configs/flextok.py:imagenet256_d12_d12"
    local workdir=${WORKDIR:-runs/$(name_of "${ARGS[1]}")}
    on_every_host "set -e
        cd nexttok && mkdir -p $(quoted "$workdir")
        $RUNNING && { echo 'already running'; exit 0; }
        nohup .venv/bin/python -m nexttok.main --config=$(quoted "${ARGS[1]}") \
            --workdir=$(quoted "$workdir") $(quoted "${ARGS[@]:2}") \
            >>\"\$HOME/nexttok.log\" 2>&1 </dev/null &
        echo \$! >\"\$HOME/nexttok.pid\""
}

state() {
    gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" \
        --format='value(state.state)' 2>/dev/null || echo NONE
}

stop() {
    on_every_host "$RUNNING || exit 0
        kill -TERM \$(cat \"\$HOME/nexttok.pid\")
        while $RUNNING; do sleep 1; done"
}

delete() {
    confirm "delete the slice $TPU in $ZONE and the disks of its hosts?"
    cloud queued-resources delete "$TPU" --force --quiet
}

# One round of `watch`: what a slice in this state needs next.
attend_to() {
    case $1 in
    NONE) create ;;
    SUSPENDED | FAILED) # preempted; what is on shared storage stays
        cloud queued-resources delete "$TPU" --force --quiet
        create
        ;;
    ACTIVE)
        setup && train
        on_first_host "tail --pid=\$(cat \$HOME/nexttok.pid) -n 20 -F \$HOME/nexttok.log" || true
        ;;
    *) echo "$TPU is $1" ;;
    esac
}

watch() {
    [ "$SPOT" = 0 ] || [ -n "${WORKDIR:-}" ] ||
        fail "WORKDIR: expected a shared folder, as the disks of a preempted slice are lost"
    confirm "delete what is left of $TPU in $ZONE, and ask for it anew, whenever it is preempted?"
    if [ "$DRY_RUN" = 1 ]; then
        for now in NONE ACTIVE SUSPENDED; do echo "# $now" && attend_to $now; done
        return
    fi
    while true; do
        now=$(state)
        attend_to "$now"
        if [ "$now" = ACTIVE ] && [ "$(state)" = ACTIVE ]; then
            on_first_host "$RUNNING" || break # it came to its end
        fi
        sleep "${EVERY:-30}"
    done
}

case ${ARGS[0]} in
create | setup | watch | stop | delete) "${ARGS[0]}" ;;
run) train ;;
status) cloud queued-resources describe "$TPU" ;;
*) fail "${ARGS[0]}: expected create | setup | run | watch | status | stop | delete" ;;
esac
