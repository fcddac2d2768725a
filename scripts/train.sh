#!/usr/bin/env bash
# Trains a method of a data set, and before it what it starts from (a teacher, a flow, pairs).
#   bash scripts/train.sh DATASET METHOD [key=value ...]
# Overrides go to METHOD; --dry-run shows the plan, --help the rest.
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
exec python -m scripts.recipe "$@"
