#!/usr/bin/env bash
# SST-2 with BERT-base on this GPU: results/gpu.json; by the estimate about an hour on an A100.
# Arguments are handed on: gpu.sh --random_weights --rows 8192 --precisions tf32
set -euo pipefail
source lab/commands/clean.sh

python -m lab.gpu --results_dir results "$@"
