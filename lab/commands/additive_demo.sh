#!/usr/bin/env bash
# Is a retrained margin of the demo a sum over rows? results/additive_demo.*; after members_demo.sh,
# whose scores it takes. 100 more retrains: about five minutes on two cores.
set -euo pipefail
source lab/commands/clean.sh

python -m lab.additive --dataset_name demo --checkpoint_dir checkpoints/tuning \
    --first_query 50 --max_queries 50 --scores ekfac identity --results_dir results
