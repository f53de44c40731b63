"""T5 written out in numpy for one history: loops over heads and tokens, no batch, no cache.

Written from the paper (arXiv:1910.10683) and from METHODS B1 of what Hugging Face does, in float64,
with the bucket rule by logarithms.
"""

import math

import numpy as np


def bucket(distance, bidirectional, buckets, max_distance):
    """The published rule for `key - query`; the small number undoes rounding of the logarithm."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        steps = abs(distance)
    else:
        steps = max(-distance, 0)
    exact = buckets // 2
    if steps < exact:
        return first + steps
    share = math.log(steps / exact) / math.log(max_distance / exact)
    return first + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)


def norm(x, scale):
    return x / np.sqrt(np.mean(x * x) + 1e-6) * scale


def norm_all(p, tokens):
    return [norm(x, p["scale"]) for x in tokens]


def softmax(scores):
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def attend(p, queries, sources, sees, bias):
    """Branches of all queries; `bias(head, q, s)` is added to the score, nothing is scaled."""
    branches = []
    for q, x in enumerate(queries):
        seen = [s for s in range(len(sources)) if sees(q, s)]
        branch = np.zeros_like(x)
        for head in range(p["query"].shape[1]) if seen else ():
            query = x @ p["query"][:, head]
            scores = [query @ (sources[s] @ p["key"][:, head]) + bias(head, q, s) for s in seen]
            values = [sources[s] @ p["value"][:, head] for s in seen]
            mixed = sum(share * v for share, v in zip(softmax(np.array(scores)), values))
            branch = branch + mixed @ p["output"][head]
        branches.append(branch)
    return branches


def feed_forward(p, x):
    hidden = x @ p["up"]
    if "gate" in p:
        gate = x @ p["gate"]
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        hidden = hidden * 0.5 * gate * (1 + np.tanh(inner))
    else:
        hidden = np.maximum(hidden, 0)
    return hidden @ p["down"]


def at(tree, layer):
    """One layer out of stacked parameters."""
    if isinstance(tree, dict):
        return {name: at(branch, layer) for name, branch in tree.items()}
    return tree[layer]


def run_stack(t5, p, tokens, states):
    """The encoder (no states) or the decoder over one sequence."""
    encoder = states is None
    table = p["bias"]["table"]

    def bias(head, q, s):
        return table[bucket(s - q, encoder, t5.distance_buckets, t5.max_distance), head]

    layers = t5.layers if encoder else t5.decoder.layers
    for index in range(layers):
        block = at(p["blocks"], index)

        own = norm_all(block["attention_norm"], tokens)
        branches = attend(block["attention"], own, own, lambda q, s: encoder or s <= q, bias)
        tokens = [x + branch for x, branch in zip(tokens, branches)]
        if not encoder:
            queries = norm_all(block["cross_attention_norm"], tokens)
            branches = attend(
                block["cross_attention"], queries, states, lambda q, s: True, lambda h, q, s: 0.0
            )
            tokens = [x + branch for x, branch in zip(tokens, branches)]
        normed = norm_all(block["feedforward_norm"], tokens)
        branches = [feed_forward(block["feedforward"], x) for x in normed]
        tokens = [x + branch for x, branch in zip(tokens, branches)]
    return norm_all(p["norm"], tokens)


def reference_logits(t5, params, space, codes, history, target, user_row=None):
    """Logits of each level (arrays as long as the level) of a target after a history of items."""
    table = params["tokens"]["table"]

    def row(item, level):
        return table[space.offsets[level] + codes[item, level]]

    read = [] if user_row is None else [table[user_row]]
    for item in history:
        read += [row(item, level) for level in range(space.levels)]
        read += [table[-1]] if t5.separator else []
    states = run_stack(t5, params["encoder"], read, None) if read else []
    written = [table[1], *(row(target, level) for level in range(space.levels - 1))]
    out = run_stack(t5, params["decoder"], written, states)
    answer = []
    for level, (x, size) in enumerate(zip(out, space.sizes)):
        if t5.tied:
            every = (x * t5.width**-0.5) @ table.T
            first = space.offsets[level]
            answer.append(every[first : first + size])
        else:
            kernels = params["output"]["kernel"]
            of_levels = [x @ kernels[each, :, :many] for each, many in enumerate(space.sizes)]
            every = np.concatenate(of_levels)
            answer.append(of_levels[level])
        if t5.softmax == "vocabulary":
            answer[-1] = answer[-1] - np.logaddexp.reduce(every)
    return answer
