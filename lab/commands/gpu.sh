#!/usr/bin/env bash
# What one GPU does in nine minutes (or --minutes): results/gpu.json. Arguments are handed on.
# WHEELS: a folder of wheels, for a machine that reaches no package index. GLUE_DIR: the data.
set -euo pipefail
source lab/commands/clean.sh

if [ -n "${WHEELS:-}" ]; then
    python -m pip install --quiet --no-index --find-links "$WHEELS" -r requirements.txt
fi
python -m lab.gpu --results_dir results ${GLUE_DIR:+--dataset_path "$GLUE_DIR"} "$@"
