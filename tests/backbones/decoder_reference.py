"""The decoder written out in numpy for one history: loops, no masks, no packing, no cache."""

import numpy as np


def norm(x, scale):
    return x / np.sqrt(np.mean(x * x) + 1e-6) * scale


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(p, x):
    return (silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def rotate(x, position, base):
    """Turns pairs (i, i + half) of one head as complex numbers."""
    half = len(x) // 2
    angles = position * base ** (-2 * np.arange(half) / len(x))
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])


def project(p, name, x, head):
    """Query, key or value of one head, with Qwen2.5's bias and Qwen3's norm where they exist."""
    x = x @ p[name][:, head]
    if f"{name}_bias" in p:
        x = x + p[f"{name}_bias"][head]
    return norm(x, p[f"{name}_norm"]["scale"]) if f"{name}_norm" in p else x


def layer(p, tokens, heads, base):
    """One block over the tokens of one history."""
    kv_heads = p["attention"]["key"].shape[1]
    normed = [norm(x, p["attention_norm"]["scale"]) for x in tokens]
    out = []
    for t, x in enumerate(tokens):
        mixed = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            q = rotate(project(p["attention"], "query", normed[t], head), t, base)
            scores = [
                q
                @ rotate(project(p["attention"], "key", normed[s], group), s, base)
                / len(q) ** 0.5
                for s in range(t + 1)
            ]
            shares = np.exp(np.array(scores) - max(scores))
            shares /= shares.sum()
            values = [project(p["attention"], "value", normed[s], group) for s in range(t + 1)]
            mixed.append(sum(a * v for a, v in zip(shares, values)))
        x = x + sum(m @ o for m, o in zip(mixed, p["attention"]["output"]))
        out.append(x + swiglu(p["feedforward"], norm(x, p["feedforward_norm"]["scale"])))
    return out


def at(tree, index):
    """One layer out of stacked parameters."""
    if isinstance(tree, dict):
        return {name: at(branch, index) for name, branch in tree.items()}
    return tree[index]


def run_layers(decoder, p, tokens):
    for index in range(decoder.layers):
        tokens = layer(at(p["blocks"], index), tokens, decoder.heads, decoder.rope_base)
    return [norm(x, p["norm"]["scale"]) for x in tokens]


def reference_logits(decoder, params, space, codes, items):
    """Logits `[t][l]` (arrays as long as the level) of every event of one history."""
    table, head = params["tokens"]["table"], params["head"]

    def vector(item, level):
        return table[space.offsets[level] + codes[item, level]]

    levels = range(space.levels)
    if decoder.history == "flat":
        tokens = [table[1]] + [vector(item, level) for item in items for level in levels]
        states = run_layers(decoder, params["history"], tokens[:-1])

        def logit(t, level):
            return states[t * space.levels + level] @ head["kernel"][level]

        return [
            [logit(t, level)[: space.sizes[level]] for level in levels] for t in range(len(items))
        ]
    tokens = [table[1]]
    for item in items[:-1]:
        merge = params["merge"]
        total = norm(sum(vector(item, level) for level in levels), merge["norm"]["scale"])
        x = total @ merge["project"]["kernel"]
        if decoder.item_buckets:
            x = x + merge["items"]["table"][item % decoder.item_buckets]
        tokens.append(x)
    states = run_layers(decoder, params["history"], tokens)
    answer = []
    for t, item in enumerate(items):
        rows = []
        for level in levels:
            x = states[t] @ head["project"]["kernel"] + head["level"][level]
            x = x + sum((vector(item, j) for j in range(level)), np.zeros_like(x))
            for block in range(decoder.head_layers):
                x = x + swiglu(
                    head[f"feedforward_{block}"], norm(x, head[f"norm_{block}"]["scale"])
                )
            kernel = head["output"]["kernel"][level]
            rows.append((norm(x, head["norm"]["scale"]) @ kernel)[: space.sizes[level]])
        answer.append(rows)
    return answer
