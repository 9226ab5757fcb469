#!/usr/bin/env bash
# Which predictions of the demo flip: results/counterfactual_demo.*, figure/counterfactual_demo.png.
# Some 80 minutes on two cores.
set -euo pipefail
source lab/commands/clean.sh

run=(--dataset_name demo --checkpoint_dir checkpoints/flips)
halves=(--num_members 8 --member_steps 2 --member_share 0.5)
python train.py "${run[@]}" --num_members 5
python train.py "${run[@]}" "${halves[@]}"
python analyze.py "${run[@]}"
python analyze.py "${run[@]}" --num_members 5
python analyze.py "${run[@]}" --factor_strategy identity
python analyze.py "${run[@]}" --factor_strategy replay "${halves[@]}"
rm -f results/counterfactual_demo.*  # of another machine's run: a study replaces none
python run_counterfactual.py "${run[@]}" \
    --strategies ekfac ekfac_members5 replay_members8_steps2_share0.5 identity tfidf random \
    --num_targets 53 --removals 20 60 120 \
    --results_dir results --figure_path figure/counterfactual_demo.png
