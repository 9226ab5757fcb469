#!/usr/bin/env bash
# Replay beside EKFAC on STS-B, a regression, with MiniLM, on the stored retrains of lds_stsb.sh:
# results/replay/lds_stsb.*. About two hours on two cores.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

run=(--dataset_name stsb --checkpoint_dir checkpoints/replay)
halves=(--member_steps 2 --member_share 0.5)
train() {
    python train.py "${run[@]}" --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" \
        --max_train_samples 1024 --freeze_embeddings --train_batch_size 16 --learning_rate 1e-4 \
        --lr_schedule linear --num_train_epochs 4 --use_half_precision "$@"
}
analyze() { python analyze.py "${run[@]}" --max_queries 200 "$@"; }

train
train --num_members 8 "${halves[@]}"
analyze
analyze --factor_strategy identity
analyze --damping_factor 1e-4 --num_members 8 --member_share 0.5
for count in 1 2 4 8; do
    analyze --factor_strategy replay --num_members $count "${halves[@]}"
done

truth=results/lds_stsb.npz
python evaluate_lds.py "${run[@]}" --max_queries 200 --masks_path $truth --margins_path $truth \
    --results_dir results/replay --figure_path results/replay/lds_stsb.png
