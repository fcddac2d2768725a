# Sourced by every script here: goes to the repository's root, makes .venv if needed, and activates it.
#
#   PYTHON=python3.12   the interpreter that creates .venv (default: python3)
#   VENV=PATH           another place for the environment; VENV=none uses the Python that is active
#
# Where there is a folder wheels/ (scripts.carry makes it), packages come from there and from what
# the interpreter has, and no network is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# use_environment REQUIREMENTS: installs the file once; a changed file is installed again.
use_environment() {
    local requirements=$1 venv=${VENV:-.venv} site=() source=()
    if [ -d wheels ]; then
        site=(--system-site-packages) source=(--no-index --find-links wheels)
    fi
    if [ "$venv" = none ]; then
        return
    fi
    if [ ! -f "$venv/bin/activate" ]; then # written last, so one that was interrupted is made again
        echo "creating $venv" >&2
        "${PYTHON:-python3}" -m venv ${site[@]+"${site[@]}"} "$venv"
    fi
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
    local stamp="$venv/.installed-$(basename "$requirements")"
    if ! cat requirements*.txt | cmp -s - "$stamp"; then
        echo "installing $requirements into $venv (once; a few minutes and gigabytes)" >&2
        python -m pip install --quiet --disable-pip-version-check ${source[@]+"${source[@]}"} \
            -r "$requirements"
        cat requirements*.txt > "$stamp"
    fi
}
