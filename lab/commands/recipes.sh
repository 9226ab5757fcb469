#!/usr/bin/env bash
# LDS on the demo for three ways of training it: results/recipes/. 100 retrains each:
# about half an hour on two cores.
set -euo pipefail
source lab/commands/clean.sh

study() {
    local folder=checkpoints/recipes/$1
    local results=results/recipes/$1
    local run=(--dataset_name demo --checkpoint_dir "$folder")
    shift
    python train.py "${run[@]}" "$@"
    python analyze.py "${run[@]}"
    python analyze.py "${run[@]}" --factor_strategy identity
    python analyze.py "${run[@]}" --damping_factor 1e-4
    python analyze.py "${run[@]}" --damping_factor 1e-2
    rm -f "$results"/lds_demo.*  # of another machine's run: a study replaces none
    python evaluate_lds.py "${run[@]}" --num_masks 50 --num_repeats 2 \
        --results_dir "$results" --figure_path "$folder/lds.png"
}

study default
study all --no-freeze_embeddings
study short --num_train_epochs 2
