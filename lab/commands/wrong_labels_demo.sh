#!/usr/bin/env bash
# Who finds the wrong labels of the demo? results/wrong_labels_demo.*; about five minutes.
set -euo pipefail
source lab/commands/clean.sh

run=(--dataset_name demo --checkpoint_dir checkpoints/wrong)
analyze() { python analyze.py "${run[@]}" --max_queries 50 --self_influence "$@"; }

python train.py "${run[@]}" --num_members 5
analyze
for strategy in kfac diagonal identity; do
    analyze --factor_strategy $strategy
done
analyze --num_members 5
analyze --factor_strategy identity --num_members 5
python -m lab.wrong_labels "${run[@]}" --num_members 5 --results_dir results
