#!/usr/bin/env bash
# The estimate for one A100, by arithmetic: results/gpu_estimate.json; seconds.
set -euo pipefail
source lab/commands/clean.sh

python -m lab.gpu --estimate --results_dir results
