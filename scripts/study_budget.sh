#!/usr/bin/env bash
# What a longer budget buys: progressive and consistency distillation of one teacher after 0.3 and 3.6 million network evaluations,
# measured as the published curve, which has them after 1.2 million. The configs are in configs/DATASET-budget.
#   bash scripts/study_budget.sh fashion_mnist     about 3 hours on 2 cores
# It may be interrupted at any moment and goes on by the same command. RUNS=FOLDER chooses where runs go (default:
# runs/DATASET-budget).
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
study=${1:-}-budget && export RUNS=${RUNS:-runs/${1:-}-budget}
python -m scripts.recipe "$study" --all --lanes 2 "${@:2}"
python -m scripts.recipe "$study" curve
python -m scripts.plot "$RUNS/curves.jsonl"
