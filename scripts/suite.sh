#!/usr/bin/env bash
# Everything behind a published curve: trains all methods, measures, draws, writes results/DATASET.
#   bash scripts/suite.sh digits            hours on 2 cores: some 30 methods, 2 minutes to 10 each
#   bash scripts/suite.sh fashion_mnist     days on 2 cores, a night for the methods of the quickstart
# It may be interrupted at any moment and goes on by the same command; what is finished is not done
# again. RUNS=FOLDER chooses where runs go (default: runs/DATASET), OUT=FOLDER where results go
# (default: results/DATASET). SEEDS=0,1,2 trains and measures every method with three seeds, so that
# a number is their mean with its standard error; it takes three times as long.
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
dataset=${1:-} && export RUNS=${RUNS:-runs/${1:-}}
if [ "$dataset" = digits ]; then # its teacher is trained too
    export SHIPPED=${SHIPPED:-no}
fi
python -m scripts.recipe "$dataset" --all --lanes 2 "${@:2}"
if grep -qs '^extractor: inception' "${CONFIGS:-configs}/$dataset"/*.yaml; then
    python -m scripts.fetch_inception
fi
python -m scripts.recipe "$dataset" --sweeps
python -m scripts.publish "$RUNS" "${OUT:-results/$dataset}"
