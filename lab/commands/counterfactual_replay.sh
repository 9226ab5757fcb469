#!/usr/bin/env bash
# Which predictions of SST-2 flip, and which are mended, by a replay alone: results/replay/counterfactual_sst2*.
# Under two hours on two cores. Checkpoints, targets and seeds are those of counterfactual_sst2.sh and harmful_sst2.sh.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

run=(--dataset_name sst2 --checkpoint_dir checkpoints/flips)
halves=(--num_members 8 --member_share 0.5 --member_steps 2)
train() {
    python train.py "${run[@]}" --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" \
        --max_train_samples 1024 --freeze_embeddings --learning_rate 4e-4 --lr_schedule linear \
        --num_train_epochs 2 --use_half_precision "$@"
}
study() {  # name of the result, flags
    local result=results/replay/$1
    shift
    rm -f "$result".*  # of another machine's run: a study replaces none
    python run_counterfactual.py "${run[@]}" --max_queries 500 --num_base_seeds 3 \
        --num_retrain_seeds 2 --max_targets 50 --strategies replay_members8_steps2_share0.5 \
        --results_dir results/replay "$@"
}

train
train "${halves[@]}"
python analyze.py "${run[@]}" --max_queries 500 "${halves[@]}" --factor_strategy replay
study counterfactual_sst2 --num_targets 100 --removals 40 120
study counterfactual_sst2_harmful --num_targets 500 --removals 40 --direction harmful
