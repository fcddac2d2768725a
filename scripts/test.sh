#!/usr/bin/env bash
# Runs the tests, in an environment made for it if there is none; with --all the slow ones too.
#   bash scripts/test.sh [--all] [pytest arguments]
source "$(dirname "$0")/environment.sh"
use_environment requirements-test.txt
if [ "${1-}" = --all ]; then
    set -- -m "" "${@:2}"
fi
python -m pytest "$@"
