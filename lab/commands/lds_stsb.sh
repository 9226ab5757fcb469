#!/usr/bin/env bash
# LDS on STS-B, a regression, with MiniLM: results/lds_stsb.*, figure/lds_stsb.png. Members, scores,
# 500 retrains: about a day on two cores.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

run=(--dataset_name stsb --checkpoint_dir checkpoints/lds)
train() {
    python train.py "${run[@]}" --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" \
        --max_train_samples 1024 --freeze_embeddings --train_batch_size 16 --learning_rate 1e-4 \
        --lr_schedule linear --num_train_epochs 4 --use_half_precision "$@"
}
analyze() { python analyze.py "${run[@]}" --max_queries 200 "$@"; }

train --num_members 8 --member_share 0.5
train --num_members 4
train --num_members 4 --member_share 0.5 --member_steps 2

analyze
for strategy in kfac diagonal identity; do
    analyze --factor_strategy $strategy
done
for damping in 1e-4 1e-2 heuristic; do
    analyze --damping_factor $damping
done
analyze --fisher sampled
analyze --use_half_precision
analyze --query_gradient_rank 32
for count in 2 4 8; do
    analyze --damping_factor 1e-4 --num_members $count --member_share 0.5
done
analyze --damping_factor 1e-4 --num_members 4
analyze --damping_factor 1e-4 --num_members 4 --member_share 0.5 --member_steps 2
analyze --num_members 8 --member_share 0.5
analyze --factor_strategy identity --num_members 8 --member_share 0.5

rm -f results/lds_stsb.*  # of another machine's run: a study replaces none
python evaluate_lds.py "${run[@]}" --max_queries 200 --num_masks 100 --num_repeats 5 \
    --retrain_queries 400 --results_dir results --figure_path figure/lds_stsb.png
