#!/usr/bin/env bash
# Which wrong predictions of SST-2 are mended: results/counterfactual_sst2_harmful.* and its figure.
# After counterfactual_sst2.sh, whose checkpoints it takes; about three hours on two cores.
set -euo pipefail
source lab/commands/clean.sh

run=(--dataset_name sst2 --checkpoint_dir checkpoints/flips --max_queries 500)
python analyze.py "${run[@]}" --num_members 8 --member_share 0.5 --damping_factor 1e-4 --overwrite
rm -f results/counterfactual_sst2_harmful.*  # of another machine's run: a study replaces none
python run_counterfactual.py "${run[@]}" --num_base_seeds 3 --num_retrain_seeds 2 \
    --direction harmful --strategies ekfac_damping0.0001_members8_share0.5 tfidf random \
    --num_targets 500 --max_targets 50 --removals 40 \
    --results_dir results --figure_path figure/counterfactual_sst2_harmful.png
