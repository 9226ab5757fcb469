#!/usr/bin/env bash
# How time and memory grow to 400,000 rows: results/scale.json; about an hour on one core.
set -euo pipefail
source lab/commands/clean.sh

taskset -c 1 python -m lab.scale --results_dir results
