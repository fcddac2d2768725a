#!/usr/bin/env bash
# Everything behind a published curve: trains all methods, measures, draws, writes results/DATASET.
#   bash scripts/suite.sh digits            about 25 minutes on 2 cores
#   bash scripts/suite.sh fashion_mnist     about 5 hours on 2 cores, and 7 more for Inception, 1000
#                                           steps and all solvers
# It may be interrupted at any moment and goes on by the same command; what is finished is not done
# again. RUNS=FOLDER chooses where runs go (default: runs/DATASET), OUT=FOLDER where results go
# (default: results/DATASET).
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
dataset=${1:-} && export RUNS=${RUNS:-runs/${1:-}}
bash scripts/quickstart.sh "$@"
if grep -qs '^extractor: inception' "${CONFIGS:-configs}/$dataset"/*.yaml; then
    python -m scripts.fetch_inception
fi
python -m scripts.recipe "$dataset" --sweeps # what the quickstart leaves out, such as Inception's FID
python -m scripts.publish "$RUNS" "${OUT:-results/$dataset}"
