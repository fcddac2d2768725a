#!/usr/bin/env bash
# Copies a measured curve into results/: see python -m scripts.publish --help.
#   bash scripts/publish.sh runs/quickstart results/digits
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
python -m scripts.publish "$@"
