#!/usr/bin/env python3
"""Writes token vectors with llama.cpp as the oracle: `texts.inp` -> `NAME.out` and `NAME.special.out`.

usage: make-tokenizer-vectors.py VOCAB.gguf NAME     needs: pip install llama-cpp-python==0.3.36

Texts are separated by the line `__ggml_vocab_test__`, and the ids of each are one line, as in llama.cpp's own vectors.
`NAME.out` has plain text (no special tokens parsed or added), `NAME.special.out` parses and adds them; its first line is
the ids of all tokens that end an answer.
"""
import pathlib
import sys

import llama_cpp

HERE = pathlib.Path(__file__).resolve().parent.parent / "models/tests/data/tokenizer"
SEPARATOR = b"\n__ggml_vocab_test__\n"

vocab_path, name = sys.argv[1:]
llama = llama_cpp.Llama(model_path=vocab_path, vocab_only=True, verbose=False)
vocab = llama_cpp.llama_model_get_vocab(llama._model.model)
texts = (HERE / "texts.inp").read_bytes().split(SEPARATOR)
ends = [i for i in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, i)]
for suffix, special, first in [("out", False, []), ("special.out", True, [ends])]:
    rows = first + [llama.tokenize(t, add_bos=special, special=special) for t in texts]
    (HERE / f"{name}.{suffix}").write_text("".join(" ".join(map(str, r)) + "\n" for r in rows))
print(f"{name}: {len(texts)} texts, {len(ends)} end tokens")
