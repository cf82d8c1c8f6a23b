#!/usr/bin/env bash
# All stages in their order; each goes on where it was stopped, and a finished one says so at once.
set -euo pipefail
cd "$(dirname "$0")/.."
# threads wait for each other's small products, but not long: beside other work they would only be in its way
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-30000}
# an expert's rows are never as many as the last time, and oneDNN writes its code anew for each number that it forgot
export ONEDNN_PRIMITIVE_CACHE_CAPACITY=${ONEDNN_PRIMITIVE_CACHE_CAPACITY:-20000}
python=$BIN/python
[ -f training/cache/sprites.zip ] || $python training/sprites.py # needs a network, the other stages do not
$python training/autoencoder.py
$python training/encoders.py
$python training/words.py
$python training/pretrain.py
$python training/distill.py dev
$python training/distill.py fast
$python training/classifiers.py
$python training/folders.py   # puts the finished variants together under training/runs/nano
$python training/evaluate.py
