#!/usr/bin/env bash
# Runs the tests, in an environment made for it if there is none; --all: the slow ones too, and
# thousands of random inputs where there are a few otherwise.
#   bash scripts/test.sh [--all] [pytest arguments]
source "$(dirname "$0")/environment.sh"
use_environment requirements-test.txt
if [ "${1:-}" = "--all" ]; then
    shift
    set -- -m "" "$@"
    export HYPOTHESIS_PROFILE="${HYPOTHESIS_PROFILE:-long}"
fi
python -m pytest "$@"
