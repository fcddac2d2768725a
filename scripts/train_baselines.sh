#!/usr/bin/env bash
# Trains the generators of another kind: PPCA, a VAE and a GAN.   bash scripts/train_baselines.sh DATASET
source "$(dirname "$0")/environment.sh"
nothing_else train_baselines.sh "$@"
recipe "${1:-}"
for baseline in ppca vae gan; do train "$configs/$baseline.yaml" run="$runs/$baseline"; done
