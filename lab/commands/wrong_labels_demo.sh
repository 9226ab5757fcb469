#!/usr/bin/env bash
# Who finds the wrong labels of the demo? results/wrong_labels_demo.*; about five minutes.
set -euo pipefail
source lab/commands/clean.sh

run=(--dataset_name demo --checkpoint_dir checkpoints/wrong)
halves=(--member_steps 2 --member_share 0.5)
analyze() { python analyze.py "${run[@]}" --max_queries 50 --self_influence "$@"; }

python train.py "${run[@]}" --num_members 5
python train.py "${run[@]}" --num_members 4 "${halves[@]}"
analyze
for strategy in kfac diagonal identity; do
    analyze --factor_strategy $strategy
done
analyze --num_members 5
analyze --factor_strategy identity --num_members 5
for count in 1 4; do
    analyze --factor_strategy replay --num_members $count "${halves[@]}"
done
python -m lab.wrong_labels "${run[@]}" --num_members 5 --results_dir results
