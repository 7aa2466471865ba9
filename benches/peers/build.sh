#!/bin/sh
# Makes the virtual environment that compare.py runs in, with llama.cpp inside the package llama-cpp-python.
#
#   benches/peers/build.sh [FOLDER]      default: target/peers
#
# The package is compiled here for this machine's own instructions (GGML_NATIVE, llama.cpp's default), which
# takes a C++ compiler and some 10 to 30 minutes on two cores. A folder that has the right version already is
# left as it is. Not part of CI.
set -eu

version=0.3.36
folder=${1:-$(dirname "$0")/../../target/peers}
python=$folder/bin/python

if [ -x "$python" ] && "$python" -c "import llama_cpp, sys; sys.exit(llama_cpp.__version__ != '$version')"; then
    echo "$folder has llama-cpp-python $version" >&2
else
    python3 -m venv "$folder"
    # From source, so that the peer is not held back by a wheel for older processors.
    "$python" -m pip install --no-binary llama-cpp-python "llama-cpp-python==$version"
fi
echo "now: $python benches/peers/compare.py --model FILE" >&2
