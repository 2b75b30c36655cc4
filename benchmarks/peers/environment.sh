#!/bin/sh
# Make the peers' own environment: sh environment.sh [FOLDER]. It shares nothing with ours.
# pip's settings decide which build of torch it gets (PIP_INDEX_URL): CPU only, or one for a GPU.
set -eu
folder=${1:-"$(dirname "$0")/.venv"}
python3.11 -m venv "$folder"
"$folder/bin/pip" install --quiet \
    torch==2.13.0 transformers==5.23.0 nnsight==0.8.1 ctranslate2==4.8.5 numpy==2.4.6 \
    safetensors==0.8.0 soundfile==0.14.0
"$folder/bin/python" -c 'import ctranslate2, nnsight, torch, transformers; print(torch.__version__)'
