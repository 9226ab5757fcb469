#!/usr/bin/env bash
# The tickets, asked and checked: figure/report.html, and its first card as figure/card.png. Needs
# chromium; about five minutes on two cores.
set -euo pipefail
source lab/commands/clean.sh

folder=checkpoints/report
run=(--dataset_name tickets --checkpoint_dir $folder)
rows=(--dataset_path demo/tickets.csv --text_columns text --label_column label
    --validation_split demo/tickets_valid.csv --model_name_or_path demo --learning_rate 1e-3
    --num_train_epochs 20 --train_batch_size 16)
halves=(--num_members 8 --member_steps 2 --member_share 0.5)
python train.py "${run[@]}" "${rows[@]}"
python train.py "${run[@]}" "${rows[@]}" "${halves[@]}"
python analyze.py "${run[@]}"
python analyze.py "${run[@]}" --factor_strategy replay --self_influence
python run_counterfactual.py "${run[@]}" --targets 0 10 20 --direction harmful --removals 1
python analyze.py "${run[@]}" --query_index 0 10 20 1 12 --report figure/report.html

# The card alone: the page's head and its first article.
python - figure/report.html $folder/card.html <<'PYTHON'
import sys
from pathlib import Path

page = Path(sys.argv[1]).read_text()
head = page[: page.index("<body>")]
article = page[page.index("<article") : page.index("</article>")]
article = article[: article.index("<details")]
Path(sys.argv[2]).write_text(f"{head}<body><main>{article}</article></main></body></html>")
PYTHON
shot=(chromium --headless --no-sandbox --hide-scrollbars --force-device-scale-factor=2)
"${shot[@]}" --window-size=1040,760 --screenshot=figure/card.png "file://$PWD/$folder/card.html"
