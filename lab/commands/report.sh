#!/usr/bin/env bash
# One prediction of the demo, asked and checked: figure/report_demo.png. Needs chromium; about five
# minutes on two cores.
set -euo pipefail
source lab/commands/clean.sh

folder=checkpoints/report
run=(--dataset_name demo --checkpoint_dir $folder)
halves=(--num_members 4 --member_steps 2 --member_share 0.5)
python train.py "${run[@]}"
python train.py "${run[@]}" "${halves[@]}"
python analyze.py "${run[@]}" --factor_strategy replay --self_influence
python run_counterfactual.py "${run[@]}" --targets 79 --removals 20 60 \
    --strategies replay_members4_steps2_share0.5
python analyze.py "${run[@]}" --factor_strategy replay --query_index 79 \
    --report $folder/report.html

shot=(chromium --headless --no-sandbox --hide-scrollbars)
"${shot[@]}" --window-size=1180,1010 --screenshot=figure/report_demo.png $folder/report.html
