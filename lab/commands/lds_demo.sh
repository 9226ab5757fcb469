#!/usr/bin/env bash
# LDS on the demo: results/lds_demo.*, figure/lds_demo.png. Members, scores, 500 retrains:
# about an hour on two cores.
set -euo pipefail
source lab/commands/clean.sh

run=(--dataset_name demo --checkpoint_dir checkpoints/lds)
train() { python train.py "${run[@]}" "$@"; }
analyze() { python analyze.py "${run[@]}" --max_queries 50 "$@"; }

train --num_members 20
train --num_members 20 --member_share 0.5
train --num_members 4 --member_share 0.5 --member_steps 2

analyze
for strategy in kfac diagonal identity; do
    analyze --factor_strategy $strategy
done
for damping in 1e-4 1e-2 heuristic; do
    analyze --damping_factor $damping
done
analyze --use_half_precision
analyze --query_gradient_rank 8
analyze --fisher sampled
for count in 2 5 10 20; do
    analyze --num_members $count
    analyze --num_members $count --member_share 0.5
done
analyze --num_members 4 --member_steps 2 --member_share 0.5
analyze --factor_strategy identity --num_members 5
analyze --damping_factor 1e-4 --num_members 5
analyze --damping_factor 1e-4 --num_members 10 --member_share 0.5
analyze --damping_factor 1e-4 --num_members 4 --member_steps 2 --member_share 0.5

rm -f results/lds_demo.*  # of another machine's run: a study replaces none
python evaluate_lds.py "${run[@]}" --max_queries 50 --mask_seed 2 \
    --results_dir results --figure_path figure/lds_demo.png
