#!/usr/bin/env bash
# Who finds labels of a GLUE task that were made wrong? results/wrong_labels_TASK.*, TASK being the
# argument: sst2 (the default) or cola; about an hour on two cores.
set -euo pipefail
source lab/commands/clean.sh
task=${1:-sst2}
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

data=checkpoints/wrong/data_$task
run=(--dataset_name "$task" --checkpoint_dir checkpoints/wrong)
halves=(--member_steps 2 --member_share 0.5)
analyze() { python analyze.py "${run[@]}" --max_queries 1 --self_influence "$@"; }

python -m lab.wrong_labels --write $data --dataset_name "$task" --dataset_path "$GLUE_DIR" \
    --share 0.1 --seed 0 --max_train_samples 2000
train() {
    python train.py "${run[@]}" --dataset_path $data --model_name_or_path "$MODEL_DIR" \
        --freeze_embeddings --learning_rate 4e-4 --lr_schedule linear --num_train_epochs 3 "$@"
}
train --num_members 5
train --num_members 4 "${halves[@]}"
analyze
for strategy in kfac diagonal identity; do
    analyze --factor_strategy $strategy
done
analyze --num_members 5
for count in 1 4; do
    analyze --factor_strategy replay --num_members $count "${halves[@]}"
done
python -m lab.wrong_labels "${run[@]}" --num_members 5 --results_dir results
