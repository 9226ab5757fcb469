#!/usr/bin/env bash
# Which predictions of the demo flip: results/counterfactual_demo.*, figure/counterfactual_demo.png.
# About an hour on two cores.
set -euo pipefail
source lab/commands/clean.sh

run=(--dataset_name demo --checkpoint_dir checkpoints/flips)
python train.py "${run[@]}" --num_members 5
python analyze.py "${run[@]}"
python analyze.py "${run[@]}" --num_members 5
python analyze.py "${run[@]}" --factor_strategy identity
rm -f results/counterfactual_demo.*  # of another machine's run: a study replaces none
python run_counterfactual.py "${run[@]}" \
    --strategies ekfac ekfac_members5 identity tfidf random --num_targets 53 --removals 20 60 120 \
    --results_dir results --figure_path figure/counterfactual_demo.png
