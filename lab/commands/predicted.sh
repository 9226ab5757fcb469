#!/usr/bin/env bash
# Replayed changes of predictions beside measured ones: results/predicted_TASK.*,
# figure/predicted_TASK.png, TASK being the argument: demo (the default, half an hour on two cores)
# or sst2 (three hours).
set -euo pipefail
source lab/commands/clean.sh
task=${1:-demo}

run=(--dataset_name "$task" --checkpoint_dir checkpoints/predicted)
halves=(--num_members 8 --member_steps 2 --member_share 0.5)
start=()
if [ "$task" = sst2 ]; then
    : "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
    : "${MODEL_DIR:?a folder with a pretrained BERT}"
    start=(--dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" --max_train_samples 1024
        --freeze_embeddings --learning_rate 4e-4 --lr_schedule linear --num_train_epochs 2)
fi
python train.py "${run[@]}" "${start[@]}"
python train.py "${run[@]}" "${start[@]}" "${halves[@]}"
python analyze.py "${run[@]}" --max_queries 100 --factor_strategy replay
python run_counterfactual.py "${run[@]}" --max_queries 100 --retrain_queries 100 \
    --strategies replay_members8_steps2_share0.5 \
    --removals 20 60 --targets $(seq 0 29)
python -m lab.predicted "${run[@]}" --results_dir results --figure_path "figure/predicted_$task.png"
