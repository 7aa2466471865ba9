#!/bin/sh
# Fetches and builds the peers that compare.py and export_ppl.py run, at the commits that docs/speed.md was measured with.
#
#   benches/peers/build.sh [PEER...]     llama.cpp and ik_llama.cpp; bitnet.cpp only if named
#
# Takes git, cmake, a C++ compiler (bitnet.cpp: clang) and, on two cores, some 20 minutes for each. Default is this
# machine's own instructions. With AVX2=1 nothing newer than AVX2, FMA and F16C is used, to judge Lutite's AVX2 tier
# on a machine that has more; such builds lie beside the others. What is built already is built no second time.
#
#   PEERS    folder to work in          default: target/peers
#   JOBS     compilers at once          default: all cores
set -eu

folder=${PEERS:-$(cd "$(dirname "$0")/../.." && pwd)/target/peers}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
if [ "${AVX2:-0}" = 1 ]; then
    suffix=-avx2
    tier="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
else
    suffix=
    tier="-DGGML_NATIVE=ON"
fi

# source_of FOLDER OWNER/REPOSITORY COMMIT: the files of one commit, without history
source_of() {
    if [ ! -d "$1/.git" ]; then
        git init -q "$1"
        git -C "$1" remote add origin "https://github.com/$2.git"
    fi
    if [ "$(git -C "$1" rev-parse -q --verify HEAD || true)" != "$3" ]; then
        git -C "$1" fetch -q --depth 1 origin "$3"
        git -C "$1" checkout -q FETCH_HEAD
    fi
}

# build NAME TARGETS OPTION...: into NAME$suffix
build() {
    name=$1
    targets=$2
    shift 2
    # `tier` and `targets` are lists of words.
    # shellcheck disable=SC2086
    cmake -S "$name-source" -B "$name$suffix" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
        -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF $tier "$@"
    # shellcheck disable=SC2086
    cmake --build "$name$suffix" --target $targets -j "$jobs"
    echo "now there is in $folder/$name$suffix/bin: $targets" >&2
}

mkdir -p "$folder"
cd "$folder"
[ $# -gt 0 ] || set -- llama.cpp ik_llama.cpp
for peer; do
    case $peer in
    llama.cpp)
        source_of llama.cpp-source ggml-org/llama.cpp 0c1e57098bba43ac29e6e3b677cdceebdd22334f
        build llama.cpp "llama-bench llama-perplexity llama-quantize"
        ;;
    ik_llama.cpp)
        source_of ik_llama.cpp-source ikawrakow/ik_llama.cpp 8337e4cd3861406fc04e0854b1409cd1b027fbc9
        # Attention over fewer kinds of caches: the rest would double the time to build.
        build ik_llama.cpp llama-bench -DGGML_IQK_FA_ALL_QUANTS=OFF
        ;;
    bitnet.cpp)
        source_of bitnet.cpp-source microsoft/BitNet c82b5e667482d19bac0ba3817661ff8b30317fec
        source_of bitnet.cpp-source/3rdparty/llama.cpp Eddie-Wang1120/llama.cpp 406a5036f9a8aaee9ec5e96e652f61691340fe95
        # I2_S, for any shape. TL2 tables are generated for the shapes of three models, of which none is measured here.
        cp bitnet.cpp-source/preset_kernels/bitnet_b1_58-3B/bitnet-lut-kernels-tl2.h \
            bitnet.cpp-source/include/bitnet-lut-kernels.h
        build bitnet.cpp llama-bench -DBITNET_X86_TL2=OFF -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
        ;;
    *)
        echo "$peer: not one of llama.cpp, ik_llama.cpp, bitnet.cpp" >&2
        exit 2
        ;;
    esac
done
