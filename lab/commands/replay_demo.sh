#!/usr/bin/env bash
# Replay beside EKFAC on the demo, on the stored retrains of lds_demo.sh:
# results/replay/lds_demo.*. About ten minutes on two cores.
set -euo pipefail
source lab/commands/clean.sh

run=(--dataset_name demo --checkpoint_dir checkpoints/replay)
halves=(--member_steps 2 --member_share 0.5)
train() { python train.py "${run[@]}" "$@"; }
analyze() { python analyze.py "${run[@]}" --max_queries 50 "$@"; }

train --member_steps 4
train --num_members 16 "${halves[@]}"
analyze
analyze --factor_strategy identity
analyze --damping_factor 1e-4 --num_members 8 "${halves[@]}"
for count in 1 2 4 8 16; do
    analyze --factor_strategy replay --num_members $count "${halves[@]}"
done
analyze --factor_strategy replay --member_steps 4

truth=results/lds_demo.npz
python evaluate_lds.py "${run[@]}" --max_queries 50 --masks_path $truth --margins_path $truth \
    --results_dir results/replay --figure_path results/replay/lds_demo.png
