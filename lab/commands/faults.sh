#!/usr/bin/env bash
# What may go wrong, and any rows and flags for ten minutes: results/faults.json, search.json.
# About twenty minutes on two cores.
set -euo pipefail
source lab/commands/clean.sh

python tests/faults/run.py --trials 240 --result results/faults.json
SEARCH_SECONDS=600 SEARCH_RESULT=results/search.json python -m pytest tests/test_search.py
