#!/usr/bin/env bash
# Copies a measured curve into results/: rows, kept samples, configs, pictures, tables and the report page.
#   bash scripts/publish.sh runs/quickstart results/digits
source "$(dirname "$0")/environment.sh"
use_environment requirements.txt
from=${1:?folder with curves.jsonl} to=${2:?folder in results}
if [ ! -f "$from/curves.jsonl" ]; then
    echo "error: $from/curves.jsonl does not exist: run scripts/quickstart.sh or python -m scripts.evaluate first" >&2
    exit 2
fi
if [ "$from" -ef "$to" ]; then
    echo "error: $from and $to are one folder: python -m scripts.plot and scripts.report draw in place" >&2
    exit 2
fi
kept='import json, sys; print(*{row["samples"] for row in map(json.loads, sys.stdin) if row.get("samples")}, sep="\n")'
# rows FROM TO: the curves file and the samples of its rows (not those of earlier weights); pictures of a protocol that may not be there
# any more go.
rows() {
    rm -rf "$2/samples"
    rm -f "$2"/{curves,seconds,coverage,samples}*.{png,svg}
    mkdir -p "$2/samples"
    cp "$1/curves.jsonl" "$2/"
    python -c "$kept" < "$2/curves.jsonl" | while read -r file; do
        [ ! -f "$1/$file" ] || cp "$1/$file" "$2/$file"
    done
}
rows "$from" "$to"
rm -rf "$to/configs"
mkdir "$to/configs"
for config in "$from"/*/config.yaml; do
    [ ! -f "$config" ] || cp "$config" "$to/configs/$(basename "$(dirname "$config")").yaml"
done
ratios=()
if grep -q '"run": "teacher"' "$to/curves.jsonl"; then ratios=(--relative-to teacher); fi
python -m scripts.plot "$to/curves.jsonl" --markdown "$to/table.md" ${ratios[@]+"${ratios[@]}"}
python -m scripts.report "$to" --runs "$from"
rm -rf "$to/solvers"
if [ -f "$from/solvers/curves.jsonl" ]; then # all solvers of the run that these are of, by their protocol
    rows "$from/solvers" "$to/solvers"
    same='import json, sys; row = [row for row in map(json.loads, sys.stdin) if row["sampler"]][0]
print(*(f"{key}={row[key]}" for key in ("run", "n", "extractor")), sep=",")'
    python -m scripts.plot "$to"/{solvers/,}curves.jsonl --only "$(python -c "$same" < "$to/solvers/curves.jsonl")" \
        --out "$to/solvers" --markdown "$to/solvers/table.md"
fi
