#!/usr/bin/env bash
# Runs the tests, in an environment made for it if there is none; --all: the slow ones too.
#   bash scripts/test.sh [--all] [pytest arguments]
source "$(dirname "$0")/environment.sh"
use_environment requirements-test.txt
if [ "${1:-}" = "--all" ]; then
    shift
    set -- -m "" "$@"
fi
python -m pytest "$@"
