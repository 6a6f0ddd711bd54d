#!/usr/bin/env bash
# Evaluate a checkpoint, at several thresholds, and write every heat map with its boxes.
#
#   bash wsol/val_cub.sh GPU FAMILY SCALE SIZE MODEL_PATH [KEY VALUE ...]
#   bash wsol/val_cub.sh 0 deit small 224 model_last.pth TEST.SPLIT train
#
# GPU: an id, several such as 0,1, or cpu. PYTHON names another interpreter. Works from any folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/tools_cam/launch.sh"

[ $# -ge 5 ] || fail "usage: bash $0 GPU FAMILY SCALE SIZE MODEL_PATH [KEY VALUE ...], such as: bash $0 0 deit small 224 model_last.pth"
config="$(config_of "$2" "$3" "$4")"
start "$1" test_cam.py --config_file "$config" --resume "$5" \
    TEST.SAVE_BOXED_IMAGE True MODEL.CAM_THR 0.1 "${@:6}"
