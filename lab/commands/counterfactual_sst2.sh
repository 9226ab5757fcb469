#!/usr/bin/env bash
# Which predictions of SST-2 flip: results/counterfactual_sst2.*, figure/counterfactual_sst2.png.
# About ten hours on two cores.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

run=(--dataset_name sst2 --checkpoint_dir checkpoints/flips)
halves=(--num_members 8 --member_share 0.5)
train() {
    python train.py "${run[@]}" --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" \
        --max_train_samples 1024 --freeze_embeddings --learning_rate 4e-4 --lr_schedule linear \
        --num_train_epochs 2 --use_half_precision "$@"
}
analyze() { python analyze.py "${run[@]}" --max_queries 200 "$@"; }

train
train "${halves[@]}" --member_steps 2
analyze
analyze "${halves[@]}" --damping_factor 1e-4
rm -f results/counterfactual_sst2.*  # of another machine's run: a study replaces none
python run_counterfactual.py "${run[@]}" --max_queries 200 --retrain_queries 200 \
    --num_base_seeds 3 --num_retrain_seeds 2 --num_targets 100 --max_targets 50 \
    --removals 40 120 --strategies ekfac ekfac_damping0.0001_members8_share0.5 \
    tfidf random \
    --results_dir results --figure_path figure/counterfactual_sst2.png
