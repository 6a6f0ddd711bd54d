# Shared by train_val_cub.sh and val_cub.sh: checks of the arguments, and the start of Python.
wsol="$(unset CDPATH; cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# fail SENTENCE: stop as the Python scripts do on wrong input.
fail() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

# config_of FAMILY SCALE SIZE: print the configuration file.
config_of() {
    local file="$wsol/configs/CUB/$1_tscam_$2_patch16_$3.yaml"
    [ -f "$file" ] || fail "there is no configuration $file for FAMILY $1, SCALE $2, SIZE $3; there are: $(ls "$wsol/configs/CUB" | tr '\n' ' ')"
    echo "$file"
}

# start DEVICES SCRIPT [ARGUMENTS ...]: run a script of tools_cam on GPU ids such as 0 or 0,1, or on
# cpu; several devices get a process each (cpu,cpu: two processes without a GPU).
start() {
    local devices="$1" script="$wsol/tools_cam/$2" python="${PYTHON:-python}"
    shift 2
    command -v "$python" > /dev/null || fail "there is no $python; name the interpreter of the environment in PYTHON."
    local commas="${devices//[^,]/}"
    local count=$((${#commas} + 1)) device=cuda
    if [[ "$devices" =~ ^cpu(,cpu)*$ ]]; then
        device=cpu
    elif [[ "$devices" =~ ^[0-9]+(,[0-9]+)*$ ]]; then
        export CUDA_VISIBLE_DEVICES="$devices" CUDA_DEVICE_ORDER=PCI_BUS_ID
    else
        fail "GPUS is '$devices'; give GPU ids such as 0 or 0,1, or cpu."
    fi
    local launcher=()
    [ "$count" -eq 1 ] || launcher=("$wsol/tools_cam/launch.py" "$count")
    exec "$python" ${launcher[@]+"${launcher[@]}"} "$script" --device "$device" "$@"
}
