#!/usr/bin/env bash
# Is a retrained margin of SST-2 a sum over rows? results/additive_sst2.*; after members_sst2.sh,
# whose scores it takes. 100 more retrains: about an hour on two cores.
set -euo pipefail
source lab/commands/clean.sh

python -m lab.additive --dataset_name sst2 --checkpoint_dir checkpoints/tuning \
    --first_query 200 --max_queries 200 --retrain_queries 400 \
    --scores ekfac_exact_members4_steps2_share0.5 ekfac_exact_members8_share0.5 \
    ekfac_exact_members8 ekfac_exact_steps8 ekfac_exact ekfac --results_dir results
