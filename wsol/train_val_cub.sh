#!/usr/bin/env bash
# Train, and evaluate after every epoch; the same command goes on where it was killed.
#
#   bash wsol/train_val_cub.sh GPUS FAMILY SCALE SIZE [KEY VALUE ...]
#   bash wsol/train_val_cub.sh 0,1 deit small 224 DATA.DATADIR /path/to/CUB_200_2011
#
# GPUS: ids such as 0 or 0,1 (data-parallel), or cpu. Among the last arguments may be --lr 1e-4,
# --resume and --overwrite. PYTHON names another interpreter. Works from any folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/tools_cam/launch.sh"

[ $# -ge 4 ] || fail "usage: bash $0 GPUS FAMILY SCALE SIZE [KEY VALUE ...], such as: bash $0 0,1 deit small 224"
config="$(config_of "$2" "$3" "$4")"
start "$1" train_cam.py --config_file "$config" --lr 5e-5 MODEL.CAM_THR 0.1 "${@:5}"
