#!/usr/bin/env bash
# How far off the noise ceiling is, in simulated studies: results/ceiling.json; a minute.
set -euo pipefail
source lab/commands/clean.sh

python -m lab.ceiling --results_dir results
