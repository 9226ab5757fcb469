#!/usr/bin/env bash
# One prediction of the demo, asked and checked: figure/report_demo.png, figure/report_verdict.png.
# Needs chromium and Pillow; about ten minutes on two cores.
set -euo pipefail
source lab/commands/clean.sh

folder=checkpoints/report
run=(--dataset_name demo --checkpoint_dir $folder)
python train.py "${run[@]}"
python analyze.py "${run[@]}" --self_influence
python evaluate_lds.py "${run[@]}" --num_masks 40 --num_repeats 2
python run_counterfactual.py "${run[@]}" --targets 3 79 --removals 20 60
python analyze.py "${run[@]}" --query_index 79 --report $folder/report.html

shot=(chromium --headless --hide-scrollbars)
"${shot[@]}" --window-size=1180,1010 --screenshot=figure/report_demo.png $folder/report.html
"${shot[@]}" --window-size=1080,2400 --screenshot=$folder/page.png $folder/report.html
python - <<END
from PIL import Image

page = Image.open("$folder/page.png")
page.crop((0, 1288, 1080, 1588)).save("figure/report_verdict.png")
END
