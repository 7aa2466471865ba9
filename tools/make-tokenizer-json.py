#!/usr/bin/env python3
"""tokenizer.json of a SentencePiece vocabulary in a GGUF file, as transformers' converter writes it.

usage: make-tokenizer-json.py MODEL.gguf OUT/tokenizer.json     needs: gguf
"""
import json
import sys

from gguf import GGUFReader

fields = GGUFReader(sys.argv[1]).fields
get = lambda key: fields["tokenizer.ggml." + key].contents()
tokens, scores, types = get("tokens"), get("scores"), get("token_type")
ids = {text: i for i, text in enumerate(tokens)}
merges = []
for text, score in zip(tokens, scores):
    cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
    merges += [(-score, ids[text], pair) for pair in cuts if pair[0] in ids and pair[1] in ids]
merges = [list(pair) for _, _, pair in sorted(merges)]
special = [i for i, kind in enumerate(types) if kind in (2, 3)]
bos = tokens[get("bos_token_id")]
frame = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
replace = lambda old, new: {"type": "Replace", "pattern": {"String": old}, "content": new}
json.dump(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": frame, "pair": frame + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                         {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": tokens[get("unknown_token_id")],
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False, "vocab": ids, "merges": merges,
        },
    },
    open(sys.argv[2], "w"),
    ensure_ascii=False,
    indent=1,
)
