#!/usr/bin/env bash
# How time and memory of a replay grow to 16,384 rows: results/scale_replay.json; minutes on one core.
set -euo pipefail
source lab/commands/clean.sh

taskset -c 1 python -m lab.scale --factor_strategy replay --results_dir results
