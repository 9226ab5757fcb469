#!/usr/bin/env bash
# Speed against stock kronfluence: results/speed.json and speed.md; about two hours on two cores.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

python -m lab.speed --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" \
    --results_dir results
