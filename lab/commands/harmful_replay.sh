#!/usr/bin/env bash
# The same by a replay alone: results/replay/counterfactual_sst2_harmful.*. About forty minutes on two
# cores; it shares its checkpoints with harmful_sst2.sh.
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

train
train "${halves[@]}"
python analyze.py "${run[@]}" --max_queries 500 "${halves[@]}" --factor_strategy replay
rm -f results/replay/counterfactual_sst2_harmful.*  # of another machine's run: a study replaces none
python run_counterfactual.py "${run[@]}" --max_queries 500 --num_base_seeds 3 \
    --num_retrain_seeds 2 --direction harmful --strategies replay_members8_steps2_share0.5 \
    --num_targets 500 --max_targets 50 --removals 40 \
    --results_dir results/replay --figure_path results/replay/counterfactual_sst2_harmful.png
