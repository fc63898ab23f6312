#!/usr/bin/env bash
# Trains a config in this directory's virtual environment, in the background, with a log.
#   launch/local.sh configs/flextok.py:photos --config.seed=1
set -euo pipefail
cd "$(dirname "$0")/.."
CONFIG=${1:?a config, such as configs/flextok.py}
shift
NAME=$(basename "${CONFIG%%.py*}")_$(echo "$CONFIG" | sed -n 's/.*://p')
mkdir -p "runs/$NAME"
nohup .venv/bin/python -m nexttok.main --config="$CONFIG" --workdir="runs/$NAME" "$@" >>"runs/$NAME/log" 2>&1 &
echo "process $!, log in runs/$NAME/log; kill -TERM $! saves and stops, the same command resumes"
