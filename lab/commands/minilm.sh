#!/usr/bin/env bash
# MiniLM's scores on SST-2 and RTE, to be read; no result. About ten minutes on two cores.
set -euo pipefail
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

runs=(--checkpoint_dir checkpoints/minilm)
start=(--dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" --train_batch_size 32)
python train.py --dataset_name sst2 "${runs[@]}" "${start[@]}" --max_train_samples 2048 \
    --learning_rate 1e-4 --num_train_epochs 3 --seed 1004
python train.py --dataset_name rte "${runs[@]}" "${start[@]}" --max_train_samples 256 \
    --learning_rate 2e-05 --num_train_epochs 1
for task in sst2 rte; do
    python analyze.py --dataset_name $task "${runs[@]}" --max_queries 32
done
