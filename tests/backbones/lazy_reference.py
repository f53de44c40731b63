"""Mixture and lazy decoder written out in numpy for one history: loops, no batch, no cache.

The decoder is a *standard* cross-attention decoder: every layer projects the context to keys and
values with matrices of its own. What makes it lazy is which matrices those are: identities on a
part of the context, found by `projections` (METHODS B6, test iv).
"""

import numpy as np
from decoder_reference import at, layer, norm, swiglu


def softmax(scores):
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def mixture(cfg, p, x):
    """Answer of a mixture for one token, and the experts it chose."""
    scores = p["router"] @ x
    values = softmax(scores) if cfg.gate == "softmax" else 1 / (1 + np.exp(-scores))
    order = values + p["bias"] if cfg.balance == "bias" else values
    chosen = sorted(range(cfg.experts), key=lambda e: (-order[e], e))[: cfg.top_k]
    total = sum(values[e] for e in chosen)
    y = sum(values[e] / total * swiglu({k: p[k][e] for k in ("gate", "up", "down")}, x)
            for e in chosen)  # fmt: skip
    return y + swiglu(p["shared"], x) if cfg.shared else y, chosen


def projections(decoder, p):
    """For every layer: matrices of keys and values over the context, and the scales after them."""
    shape, answer = decoder.context, []
    identity = np.eye(shape.chunks * shape.channels)
    for i in range(decoder.layers):
        group = int(np.floor(i * decoder.kv_layers / decoder.layers))
        part = group * decoder.kv_split * shape.channels
        to_keys = identity[:, part : part + shape.channels]
        scale = p["key_norm"]["scale"][group]
        if decoder.kv_split == 1:
            answer.append((to_keys, to_keys, scale, scale))
            continue
        to_values = identity[:, part + shape.channels : part + 2 * shape.channels]
        answer.append((to_keys, to_values, scale, p["value_norm"]["scale"][group]))
    return answer


def cross_attend(p, x, keys, values, heads, groups):
    """Branch of one token; keys and values are one vector an event, all heads in a row."""
    branch = np.zeros(p["output"].shape[-1])
    for head in range(heads) if keys else ():
        query, group = x @ p["query"][:, head], head // (heads // groups)
        size = len(query)
        mine = slice(group * size, (group + 1) * size)
        shares = softmax(np.array([query @ key[mine] / size**0.5 for key in keys]))
        mixed = sum(share * value[mine] for share, value in zip(shares, values))
        branch = branch + mixed @ p["output"][head]
    return branch


def read_context(decoder, params, space, codes, history):
    """One vector an item, oldest first."""
    p, shape, rows = params["context"], decoder.context, []
    for index, item in enumerate(history):
        total = sum(
            params["context_tokens"]["table"][first + code]
            for first, code in zip(space.offsets, codes[item])
        )
        x = norm(total, p["merge"]["norm"]["scale"]) @ p["merge"]["project"]["kernel"]
        if shape.item_buckets:
            x = x + p["merge"]["items"]["table"][item % shape.item_buckets]
        if shape.positions:
            back = len(history) - 1 - index
            x = x + p["positions"]["table"][min(back, shape.positions - 1)]
        rows.append(x @ p["kernel"].reshape(shape.width, -1))
    return rows


def reference_logits(decoder, params, space, codes, history, target):
    """Logits of each level (arrays as long as the level), and every mixture's choices."""
    context = read_context(decoder, params, space, codes, history)
    table = params["tokens"]["table"]
    written = [first + code for first, code in zip(space.offsets, codes[target])][:-1]
    tokens, chosen = [table[row] for row in (1, *written)], []
    dense = decoder.layers if decoder.mixture is None else decoder.dense_layers
    for i, matrices in enumerate(projections(decoder, params["context"])):
        to_keys, to_values, key_scale, value_scale = matrices
        blocks = params["layers"]["dense" if i < dense else "sparse"]
        p = at(blocks, i if i < dense else i - dense)
        keys = [norm(c @ to_keys, key_scale) for c in context]
        values = [norm(c @ to_values, value_scale) for c in context]
        tokens = [
            x
            + cross_attend(
                p["cross_attention"],
                norm(x, p["cross_attention_norm"]["scale"]),
                *(keys, values, decoder.heads, decoder.context.kv_heads),
            )
            for x in tokens
        ]
        # The decoder's reference has attention and SwiGLU in one; here the second is nothing.
        nothing = {name: np.zeros((1, 1)) for name in ("gate", "up", "down")}
        nothing["gate"] = nothing["up"] = np.zeros((decoder.width, 1))
        tokens = layer(p | {"feedforward": nothing}, tokens, decoder.heads, decoder.rope_base)
        for place, x in enumerate(tokens):
            normed = norm(x, p["feedforward_norm"]["scale"])
            if i < dense:
                tokens[place] = x + swiglu(p["feedforward"], normed)
            else:
                y, experts = mixture(decoder.mixture, p["feedforward"], normed)
                tokens[place] = x + y
                chosen.append((i - dense, experts))
    head = params["head"]
    logits = [
        (norm(x, head["scale"][level]) @ head["output"]["kernel"][level])[:size]
        for level, (x, size) in enumerate(zip(tokens, space.sizes))
    ]
    return logits, chosen
