#!/usr/bin/env bash
# The profile of the demo in lab/README.md: results/profile_demo.json, and all tables; a minute.
set -euo pipefail
source lab/commands/clean.sh

python train.py --dataset_name demo
python analyze.py --dataset_name demo --overwrite --profile > checkpoints/profile.txt
python -m lab.pages --profile checkpoints/profile.txt
