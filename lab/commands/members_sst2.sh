#!/usr/bin/env bash
# Which checkpoints of SST-2 to score together, on tuning masks: results/members_sst2.*.
# Trains and scores what --plan prints, 100 retrains: about ten hours on two cores.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

study() {
    python -m lab.members --dataset_name sst2 --checkpoint_dir checkpoints/tuning \
        --first_query 200 --max_queries 200 --scores ekfac ekfac_sampled \
        ekfac_damping0.0001 ekfac_damping1e-05 ekfac_damping0.001 \
        ekfac_dampingheuristic "$@"
}
plan=$(study --plan)
recipe=$(printf '%q ' --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" \
    --max_train_samples 1024 --freeze_embeddings --learning_rate 4e-4 --lr_schedule linear \
    --num_train_epochs 2)
bash -ec "${plan//.../$recipe}"
study --results_dir results
