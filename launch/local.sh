#!/usr/bin/env bash
# Trains a config in this repository's virtual environment, in the background, with a log; the same
# command resumes.
#   launch/local.sh [--dry-run] configs/flextok.py:photos --config.seed=1
#   PROCESSES=2 launch/local.sh configs/flextok.py    as several processes; where one dies, the
#                                                     others are stopped and all start again
# PROCESSES=1  RESTARTS=3 (of several processes)  PORT=7391  WORKDIR=runs/<config>_<variant>
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh
parse "$@"
[ ${#ARGS[@]} -ge 1 ] || fail "expected a config, such as configs/flextok.py"
CONFIG=${ARGS[0]}
PROCESSES=${PROCESSES:-1} RESTARTS=${RESTARTS:-3} PORT=${PORT:-7391}
WORKDIR=${WORKDIR:-runs/$(name_of "$CONFIG")}
COMMAND=("${PYTHON:-.venv/bin/python}" -m nexttok.main "--config=$CONFIG" "--workdir=$WORKDIR" "${ARGS[@]:1}")

# Runs all processes once; fails when one of them does.
together() {
    local ids=() status=0 i
    for ((i = 0; i < PROCESSES; i++)); do
        "${COMMAND[@]}" "--coordinator=localhost:$PORT" "--processes=$PROCESSES" "--process=$i" \
            >>"$WORKDIR/log.$i" 2>&1 &
        ids+=($!)
    done
    trap 'kill -TERM "${ids[@]}" 2>/dev/null; wait; exit 143' TERM INT
    for ((i = 0; i < PROCESSES; i++)); do
        wait -n || { status=$? && break; }
    done
    [ $status = 0 ] || kill -KILL "${ids[@]}" 2>/dev/null || true
    wait || true
    return $status
}

supervise() {
    local left=$RESTARTS status
    while true; do
        status=0
        together || status=$?
        if [ $status = 0 ] || [ $status = 2 ] || [ $status = 143 ]; then return $status; fi
        [ "$left" -gt 0 ] || return $status
        left=$((left - 1))
        echo "a process ended with status $status; starting again, $left restarts left" >&2
    done
}

if [ "$DRY_RUN" = 1 ]; then
    for ((i = 0; i < PROCESSES; i++)); do
        several=()
        [ "$PROCESSES" = 1 ] ||
            several=("--coordinator=localhost:$PORT" "--processes=$PROCESSES" "--process=$i")
        run "${COMMAND[@]}" "${several[@]}"
    done
    exit 0
fi
mkdir -p "$WORKDIR"
if [ "$PROCESSES" = 1 ]; then
    nohup "${COMMAND[@]}" >>"$WORKDIR/log" 2>&1 &
else
    [ "${FOREGROUND:-0}" = 0 ] || { supervise && exit || exit $?; }
    FOREGROUND=1 nohup "$0" "$@" >>"$WORKDIR/log" 2>&1 &
fi
echo "process $!, log in $WORKDIR/log; kill -TERM $! saves and stops, the same command resumes"
