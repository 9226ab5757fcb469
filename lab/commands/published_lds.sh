#!/usr/bin/env bash
# LDS of scores without a model on the published ground truth of RTE; about five minutes.
# masks.pt and margins.pt are those of examples/glue/files of kronfluence; results/published.json.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

run=(--dataset_name rte --checkpoint_dir checkpoints/published)
python train.py "${run[@]}" --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR"
python evaluate_lds.py "${run[@]}" --masks_path masks.pt --margins_path margins.pt
