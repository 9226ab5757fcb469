#!/usr/bin/env bash
# GLUE's tasks on one A100 and on eight, by arithmetic: results/glue_tasks.json; seconds.
set -euo pipefail
source lab/commands/clean.sh

python -m lab.gpu --tasks --results_dir results
