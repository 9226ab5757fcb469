#!/usr/bin/env bash
# Which checkpoints of the demo to score together, on tuning masks: results/members_demo.*.
# Trains and scores what --plan prints, 100 retrains: about an hour on two cores.
set -euo pipefail
source lab/commands/clean.sh

study() {
    python -m lab.members --dataset_name demo --checkpoint_dir checkpoints/tuning \
        --first_query 50 --max_queries 50 --scores ekfac ekfac_sampled identity "$@"
}
plan=$(study --plan)
bash -ec "${plan//.../}"
study --results_dir results
