#!/usr/bin/env bash
# Which wrong predictions of SST-2 are mended: results/counterfactual_sst2_harmful.* and its figure.
# About two hours on two cores; it shares its checkpoints with counterfactual_sst2.sh.
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
analyze() { python analyze.py "${run[@]}" --max_queries 500 "${halves[@]}" --overwrite "$@"; }

train
train "${halves[@]}"
analyze --damping_factor 1e-4
rm -f results/counterfactual_sst2_harmful.*  # of another machine's run: a study replaces none
python run_counterfactual.py "${run[@]}" --max_queries 500 --num_base_seeds 3 \
    --num_retrain_seeds 2 --direction harmful \
    --strategies ekfac_damping0.0001_members8_share0.5 tfidf random \
    --num_targets 500 --max_targets 50 --removals 40 \
    --results_dir results --figure_path figure/counterfactual_sst2_harmful.png
