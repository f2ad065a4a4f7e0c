#!/usr/bin/env bash
# Runs what `cargo xtask gpu` packed, on a machine with GPUs: NVIDIA's driver and the CUDA toolkit
# are needed, Rust is not.
set -euo pipefail
cd "$(dirname "$0")"

usage='usage: run.sh [suite | split | harness | sanitize | rounds [RANKS] | soak]

  suite     the tests of the GPU engine, with those that take long and those that break a GPU;
            how many drafts of the demo model are accepted, asked over HTTP; split, if there are
            fewer GPUs than there can be ranks
  split     the tests of several ranks, which share one GPU in parts
  harness   compiles the harness of each phase and runs its checks and timing
  sanitize  their checks under compute-sanitizer: memcheck, synccheck and racecheck
  rounds    times rounds of the engine on RANKS GPUs (1 by default), with dummy weights
  soak      asks two servers, of the demo model and of an eighth of the largest, the same requests
            alone, among many users, and alone again; needs Python

Without a word it does suite and harness. All that is said, and the figures of rounds as JSON, is
also in out/. The status is 0 if everything passed.'

# Seconds after which a command is ended.
suite_s=1800    # kernels of all models are compiled first, and ten thousand rounds take minutes
cases_s=300     # answers are computed on one core
compile_s=900   # several are compiled at once, whatever the number of cores
harness_s=300   # most of it is arithmetic in double precision on the host
sanitize_s=1200 # a kernel takes a hundred times as long
wait_ms=900000  # less, so that a wait without end says whose it was
rounds_s=900    # kernels are compiled, and dummy weights fill the GPUs
ready_s=600     # the same, until a server answers
soak_s=600      # its users leave after a minute, and their last requests wait for each other
kill_s=10       # from being told to end to being killed

ranks_max=8
layers_few=8 # racecheck takes half a minute for each
# What a harness is compiled for that has no model of its own.
slice=kernels/models/slice

fail() {
    printf 'run.sh: %s\n' "$1" >&2
    exit 2
}

note() {
    printf '%-24s %s\n' "$1" "$2" >>out/results
}

# check NAME SECONDS COMMAND: runs it and notes how it ended. Tests may skip what more GPUs than
# there are would be needed for, and nothing else.
check() {
    local name=$1 seconds=$2 log=out/$1.log status=0 result=passed few unable
    shift 2
    printf '\n== %s: %s\n' "$name" "$*"
    timeout --kill-after=$kill_s "$seconds" "$@" 2>&1 | tee "$log" || status=$?
    few=$(grep -cE 'skipped(:| from ).* ranks need as many GPUs' "$log") || true
    unable=$(sed -nE '/ ranks need as many GPUs/d; s/.*skipped(:| from [^:]*:) //p' "$log")
    [ "$few" = 0 ] || result="passed, but for $few that need more GPUs"
    [ -z "$unable" ] || result="FAILED: tests were skipped: ${unable%%$'\n'*}"
    case $status in
    0) ;;
    124 | 137) result="FAILED: ended after $seconds seconds" ;;
    *) result="FAILED: status $status" ;;
    esac
    note "$name" "$result"
    return $status
}

# What takes long is ignored in `gpu`. What breaks a GPU is ignored in `cuda` and `broken`, where other
# tests run each of it in a process of its own. Tests of constants, and others of `demo`, read
# the source tree, which is not here.
suite() {
    check gpu $suite_s bin/gpu --test-threads=1 --nocapture || true
    check gpu_ignored $suite_s bin/gpu --ignored --test-threads=1 --nocapture || true
    check cuda $suite_s bin/cuda --test-threads=1 --nocapture --skip constants:: || true
    check broken $suite_s bin/broken --test-threads=1 --nocapture || true
    check demo $suite_s bin/demo --ignored --nocapture acceptance_from_a_gpu || true
    [ "$(wc -l <<<"$gpus")" -ge $ranks_max ] || split
}

# As many GPUs as there can be ranks, made of one (kernels/split). What ends a kernel there ends all,
# so no test is of a GPU that dies or stalls.
split() {
    local toolkit nvrtc out=$PWD/out/split
    able split nvcc || return 0
    toolkit=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
    nvrtc=$toolkit/lib64/libnvrtc.so
    [ -e "$nvrtc" ] || {
        note split "FAILED: no $nvrtc: put the nvcc of a whole toolkit first on PATH"
        return 0
    }
    # With it go kernels of an earlier run: nothing in their names is of kernels/split.
    rm -rf "$out"
    mkdir -p "$out/tmp"
    compile_split driver libcuda.so -lcuda || return 0
    compile_split nvrtc libnvrtc.so.13 "-DNVRTC=\"$nvrtc\"" || return 0
    # Each rank's stream waits for other ranks, and must not have them wait in a queue behind it.
    local -x CUDA_DEVICE_MAX_CONNECTIONS=32 SPLIT_GPUS=$ranks_max
    local -x TMPDIR=$out/tmp LD_LIBRARY_PATH=$out${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    in_parts bin/gpu ranks --skip of_the_reference
    in_parts bin/cuda rank::
    in_parts bin/broken
}

# compile_split SOURCE LIBRARY OPTIONS: it stays loaded, as NVRTC does, which would else be found in
# its place when it is opened again.
compile_split() {
    check "compile_split_$1" $compile_s nvcc -std=c++20 -O2 -shared -cudart none \
        -Xcompiler -fPIC,-Wall,-Wextra,-Werror -Xlinker -z,nodelete "kernels/split/$1.cpp" \
        "${@:3}" -o "out/split/$2"
}

# in_parts PROGRAM OPTIONS: its tests, of which there are some, and none is skipped.
in_parts() {
    local name=split_${1#bin/}
    local log=out/$name.log
    check "$name" $suite_s "$@" --test-threads=1 --nocapture --skip dies --skip stalls || return 0
    grep -qE '[1-9][0-9]* passed' "$log" || note "$name.tests" 'FAILED: there were none'
    ! grep -q 'need as many GPUs' "$log" || note "$name.parts" 'FAILED: the GPU was not split'
}

# able TASK TOOL: whether the task can be done here.
able() {
    local missing=
    command -v "$2" >/dev/null || missing="no $2 on PATH nor in /usr/local/cuda/bin"
    [ -n "$gpus" ] || missing='no GPU'
    [ -z "$missing" ] || note "$1" "FAILED: $missing"
    [ -z "$missing" ]
}

# compile SUFFIX OPTIONS: all harnesses at once, each for a model of its own if it has one.
compile() {
    local suffix=$1 source name model
    shift
    for source in kernels/harness/*.cu; do
        name=$(basename "$source" .cu)
        model=kernels/harness/${name}_model
        [ -d "$model" ] || model=$slice
        check "compile_$name$suffix" $compile_s nvcc -std=c++20 -O3 -lineinfo \
            -gencode=arch=compute_90a,code=sm_90a "$@" -I kernels -I kernels/include \
            -I kernels/harness -I "$model" "$source" -o "out/bin/$name$suffix" &
    done
    wait
}

# compiled SUFFIX: names of the harnesses that could be compiled, sorted.
compiled() {
    local source name
    for source in kernels/harness/*.cu; do
        name=$(basename "$source" .cu)
        [ ! -x "out/bin/$name$1" ] || printf '%s\n' "$name"
    done
}

harness() {
    local name arguments ranks
    able harness nvcc || return 0
    # A rank on each GPU; three share a single one.
    ranks=$(wc -l <<<"$gpus")
    [ "$ranks" -gt 1 ] || ranks=3
    [ "$ranks" -le $ranks_max ] || ranks=$ranks_max
    compile '' "-DCOLLECTIVE_RANKS=$ranks"
    check cases $cases_s bin/device_cases out/cases || true
    for name in $(compiled ''); do
        arguments=()
        if [ "$name" = phase ]; then # which tests of the CPU engine run
            KILOTOK_PHASE=out/bin/phase check phase $harness_s bin/cpu phase::kernels --nocapture || true
            continue
        fi
        # Positions are shared by one CTA, then by as many as the engine takes.
        [ "$name" != sample ] || arguments=(out/cases 1 16)
        check "$name" $harness_s "out/bin/$name" "${arguments[@]}" || true
        [ "$name" != sample ] || check sample.time $harness_s out/bin/sample --time || true
        # What depends on luck needs many passes to show.
        [ "$name" != step ] || check step.again $harness_s out/bin/step 64 1024 400 || true
        # A kernel gives up, so it comes alone.
        [ "$name" != collectives ] || check collectives.lost $harness_s out/bin/collectives lost || true
    done
}

# Sets `runs` to the arguments, a word for each run, that suit a tool under which everything is slow.
few() {
    case $1 in
    sample) runs=(out/cases) ;;
    # One tile of tokens and two, which are different kernels; two pages of context, one pass.
    step) runs=('8 70 1' '16 70 1') ;;
    phase) runs=() ;;
    *) runs=(check) ;;
    esac
}

# On one GPU, which ranks share: the tools may have kernels of several come one after the other,
# and they would wait for each other.
sanitize() {
    local name run runs tool suffix
    local -x CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} KILOTOK_WAIT_MS=$wait_ms
    CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}
    able sanitize nvcc || return 0
    able sanitize compute-sanitizer || return 0
    mkdir -p out/few/kilotok
    sed "s/^constexpr int LAYERS = .*/constexpr int LAYERS = $layers_few;/" \
        $slice/kilotok/model.h >out/few/kilotok/model.h
    local slice=out/few
    compile ''
    compile .racecheck -DKILOTOK_RACECHECK
    check cases $cases_s bin/device_cases out/cases || true
    for tool in memcheck synccheck racecheck; do
        suffix=
        [ $tool != racecheck ] || suffix=.racecheck
        for name in $(compiled "$suffix"); do
            few "$name"
            for run in "${runs[@]}"; do
                # With the number of tokens, if that is what a run begins with.
                sanitized "$name${run%%[!0-9]*}.$tool" compute-sanitizer --tool $tool \
                    --error-exitcode 1 "out/bin/$name$suffix" $run
            done
        done
    done
}

# Like `check`, and the tool must have said that it found nothing.
sanitized() {
    ! check "$1" $sanitize_s "${@:2}" || grep -qE 'SUMMARY: 0 (errors|hazards)' "out/$1.log" ||
        note "$1.summary" 'FAILED: no summary without findings'
}

rounds() {
    local ranks=$1 model=$2 phases
    able rounds nvidia-smi || return 0
    for phases in '' .phases; do
        local options=(--rounds 100 --batch '1,2,4,8')
        [ -z "$phases" ] || options=(--rounds 60 --batch 1 --phases)
        check "rounds_$ranks$phases" $rounds_s bin/kilotok bench --engine "$model" \
            --engine-kind cuda --ranks "$ranks" --load-format dummy --context 4096 \
            "${options[@]}" --commit "$commit" --out "out/rounds_$ranks$phases.json" || true
    done
}

soak() {
    able soak python3 || return 0
    # So few pages that requests lose theirs to others, and are read anew.
    soaked demo 200 --slots 32 --kv-gib 0.01
    # Prompts of many steps, through all layers.
    soaked slice 800 benches/models/slice --load-format dummy --context-max 8192
}

# soaked NAME WORDS OPTIONS: a server with these options, for as long as it is asked. The longest
# prompts have so many words.
soaked() {
    local name=$1 words=$2 log=out/serve_$1.log server second url= status=0
    local serve=(bin/kilotok serve --engine cuda --port 0 "${@:3}")
    printf '\n== serve_%s: %s\n' "$name" "${serve[*]}" | tee "$log"
    timeout --kill-after=$kill_s $((ready_s + soak_s)) "${serve[@]}" >>"$log" 2>&1 &
    server=$!
    for ((second = 0; second < ready_s; second++)); do
        url=$(sed -nE 's|^ *chat page +(http[^ ]*)/$|\1|p' "$log")
        [ -z "$url" ] && kill -0 $server 2>/dev/null || break
        sleep 1
    done
    if [ -n "$url" ]; then
        check "soak_$name" $soak_s python3 benches/soak.py "$url" --longest "$words" || true
    else
        note "soak_$name" 'FAILED: no server that could be asked'
    fi
    kill $server 2>/dev/null || true
    wait $server || status=$?
    tail -n 3 "$log"
    if [ $status = 0 ]; then
        note "serve_$name" passed
    else
        note "serve_$name" "FAILED: status $status"
    fi
}

tasks=(suite harness)
case ${1-} in
'') ;;
-h | --help)
    printf '%s\n' "$usage"
    exit
    ;;
suite | split | harness | sanitize | soak)
    [ $# = 1 ] || fail "$1 takes no more words; see --help"
    tasks=("$1")
    ;;
rounds)
    ranks=${2-1} model=benches/models/slice
    [ "$ranks" = 1 ] || model+=_$ranks
    [ -d "$model" ] || fail "there is no $model, a model for $ranks ranks"
    tasks=("rounds $ranks $model")
    ;;
*) fail "$1 is no task; see --help" ;;
esac

[ -f COMMIT ] || fail 'there is no COMMIT here: run the copy that cargo xtask gpu packs'
commit=$(<COMMIT)
# Where the toolkit is, unless PATH says otherwise.
PATH=$PATH:/usr/local/cuda/bin
rm -rf out/bin
mkdir -p out/bin
: >out/results

echo "kilotok at $commit, by $0 ${*-}"
if gpus=$(nvidia-smi -L 2>/dev/null | grep '^GPU '); then
    echo "$gpus"
else
    gpus=
    echo 'no GPU: nvidia-smi lists none. Most tests are skipped, and nothing else can run.'
    note GPU 'FAILED: nvidia-smi lists none'
fi
for task in "${tasks[@]}"; do
    $task
done
printf '\n== results, also in out/results\n'
cat out/results
! grep -q FAILED out/results
