"""Semantic IDs from Hugging Face's T5 under a Python trie, timed: the peer of `t5_generate.py`.

    python benchmarks/peers/t5_generate.py --given given.npz --found found.npz --beams 20 \
        --repeats 5 --threads 2

Reads a model and a batch from `given.npz`: sizes, weights under Hugging Face's names, histories of
tokens, and the semantic IDs of the catalogue as tokens. `generate` with `prefix_allowed_tokens_fn`
over a dictionary of prefixes is how published code constrains its beams (LC-Rec, MiniOneRec and
their descendants). Writes the IDs and scores of all beams; prints the seconds of a batch.

Imports torch, transformers and numpy only, so it runs in an environment without jaxrec.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

PAD, BOS = 0, 1


def build(given: dict[str, np.ndarray]) -> T5ForConditionalGeneration:
    """The model with the weights that it was given."""
    sizes = {name[5:]: int(given[name]) for name in given if name.startswith("size ")}
    config = T5Config(
        **sizes,
        feed_forward_proj="relu",
        tie_word_embeddings=True,
        pad_token_id=PAD,
        decoder_start_token_id=BOS,
        bos_token_id=BOS,
        eos_token_id=None,
        dropout_rate=0.0,
    )
    model = T5ForConditionalGeneration(config).eval()
    own = model.state_dict()
    weights = {name[7:]: torch.from_numpy(given[name]) for name in given if name[:7] == "weight "}
    for shared in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        weights[shared] = weights["shared.weight"]
    model.load_state_dict({name: weights[name].reshape(own[name].shape) for name in own})
    return model


def trie_of(paths: np.ndarray) -> Callable[[int, torch.Tensor], list[int]]:
    """Tokens that may follow each prefix, looked up in a dictionary."""
    follow: dict[tuple[int, ...], set[int]] = {}
    for path in paths.tolist():
        for depth, token in enumerate(path):
            follow.setdefault(tuple(path[:depth]), set()).add(token)
    tokens = {prefix: sorted(found) for prefix, found in follow.items()}

    def allowed(_: int, sentence: torch.Tensor) -> list[int]:
        return tokens[tuple(sentence.tolist()[1:])]

    return allowed


def main() -> None:
    """Generates a few times and says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--given", required=True)
    parser.add_argument("--found", required=True)
    parser.add_argument("--beams", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with np.load(options.given) as file:
        given = dict(file)
    model, allowed = build(given), trie_of(given["paths"])
    histories = torch.from_numpy(given["histories"])
    length = given["paths"].shape[1]
    times, made = [], None
    for _ in range(1 + options.repeats):
        start = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(
                input_ids=histories,
                attention_mask=torch.ones_like(histories),
                num_beams=options.beams,
                num_return_sequences=options.beams,
                max_new_tokens=length,
                length_penalty=0.0,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
                return_dict_in_generate=True,
                output_scores=True,
            )
        times.append(time.perf_counter() - start)
    beams = made.sequences[:, 1:].reshape(len(histories), options.beams, length)
    scores = made.sequences_scores.reshape(len(histories), options.beams)
    np.savez(options.found, paths=beams.numpy(), scores=scores.numpy())
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps({"seconds": statistics.median(times[1:]), "versions": versions}))


if __name__ == "__main__":
    main()
