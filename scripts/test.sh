#!/usr/bin/env bash
# Runs the tests, in an environment made for it if there is none.   bash scripts/test.sh [pytest arguments]
source "$(dirname "$0")/environment.sh"
use_environment requirements-test.txt
python -m pytest "$@"
