#!/usr/bin/env bash
# LDS on SST-2 with MiniLM: results/lds_sst2.*, figure/lds_sst2.png. Members, scores, 500 retrains:
# about six hours on two cores.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

run=(--dataset_name sst2 --checkpoint_dir checkpoints/lds)
train() {
    python train.py "${run[@]}" --dataset_path "$GLUE_DIR" --model_name_or_path "$MODEL_DIR" \
        --max_train_samples 1024 --freeze_embeddings --learning_rate 4e-4 --lr_schedule linear \
        --num_train_epochs 2 "$@"
}
analyze() { python analyze.py "${run[@]}" --max_queries 200 "$@"; }

train --member_steps 8
train --num_members 8 --member_share 0.5
train --num_members 4 --member_share 0.5 --member_steps 2

analyze
for strategy in identity diagonal kfac; do
    analyze --factor_strategy $strategy
done
for damping in 1e-4 1e-2 heuristic; do
    analyze --damping_factor $damping
done
analyze --use_half_precision
analyze --query_gradient_rank 32
analyze --fisher sampled
analyze --fisher exact --damping_factor 1e-4
for count in 2 4 8; do
    analyze --fisher exact --member_steps $count
    analyze --fisher exact --num_members $count --member_share 0.5
done
for count in 1 2 4; do
    analyze --fisher exact --num_members $count --member_share 0.5 --member_steps 2
done
analyze --fisher exact --damping_factor 1e-4 --num_members 8 --member_share 0.5
analyze --fisher exact --damping_factor 1e-4 --num_members 4 --member_steps 2 --member_share 0.5

rm -f results/lds_sst2.*  # of another machine's run: a study replaces none
python evaluate_lds.py "${run[@]}" --max_queries 200 --retrain_queries 400 \
    --results_dir results --figure_path figure/lds_sst2.png
