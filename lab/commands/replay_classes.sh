#!/usr/bin/env bash
# Replay with three classes, on rows that a user would bring: STS-B's pairs as different, related or
# same. results/replay/lds_similarity.*. About two hours on two cores.
set -euo pipefail
source lab/commands/clean.sh
: "${GLUE_DIR:?a folder with the data of nyu-mll/glue}"
: "${MODEL_DIR:?a folder with a pretrained BERT}"

data=checkpoints/replay/similarity
mkdir -p $data
python - "$GLUE_DIR" $data <<'PY'
import sys
import datasets

names = ("different", "related", "same")
for split, rows in (("train", 1024), ("validation", 400)):
    table = datasets.load_dataset(sys.argv[1], "stsb", split=f"{split}[:{rows}]")
    labels = [names[(label >= 2) + (label >= 3.5)] for label in table["label"]]
    table = table.select_columns(["sentence1", "sentence2"]).add_column("label", labels)
    table.to_csv(f"{sys.argv[2]}/{split}.csv")
PY

run=(--dataset_name similarity --checkpoint_dir checkpoints/replay)
halves=(--member_steps 2 --member_share 0.5)
train() {
    python train.py "${run[@]}" --dataset_path $data/train.csv --validation_split $data/validation.csv \
        --text_columns sentence1 sentence2 --label_column label --model_name_or_path "$MODEL_DIR" \
        --freeze_embeddings --learning_rate 4e-4 --lr_schedule linear --num_train_epochs 3 "$@"
}
analyze() { python analyze.py "${run[@]}" --max_queries 200 "$@"; }

train
train --num_members 4 "${halves[@]}"
analyze
analyze --factor_strategy identity
analyze --damping_factor 1e-4 --num_members 4 "${halves[@]}"
for count in 1 2 4; do
    analyze --factor_strategy replay --num_members $count "${halves[@]}"
done
python evaluate_lds.py "${run[@]}" --max_queries 200 --retrain_queries 200 --num_masks 60 \
    --num_repeats 2 --results_dir results/replay --figure_path results/replay/lds_similarity.png
