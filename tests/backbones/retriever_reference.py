"""Retrievers written out in plain numpy, one history at a time, float64."""

import numpy as np


def layer_norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / scale * params["scale"] + params["bias"]


def affine(x, params):
    return x @ params["kernel"] + params["bias"]


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(queries, keys, params, heads, causal):
    q, k, v = (affine(x, params[name]) for x, name in
               ((queries, "query"), (keys, "key"), (keys, "value")))  # fmt: skip
    size = q.shape[-1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / np.sqrt(size)
        if causal:
            scores = np.where(np.tri(len(scores), dtype=bool), scores, -np.inf)
        mixed.append(softmax(scores) @ v[:, part])
    return affine(np.concatenate(mixed, -1), params["output"])


def transformer(x, params, *, layers, heads, norms, causal):
    activation = gelu if norms == "post" else lambda x: np.maximum(x, 0)

    def feed(x, params):
        return affine(activation(affine(x, params["up"])), params["down"])

    for layer in range(layers):
        block = _layer(params["blocks"], layer)
        first = lambda x, block=block: layer_norm(x, block["attention_norm"])  # noqa: E731
        second = lambda x, block=block: layer_norm(x, block["feedforward_norm"])  # noqa: E731
        if norms == "post":
            x = first(x + attend(x, x, block["attention"], heads, causal))
            x = second(x + feed(x, block["feedforward"]))
        elif norms == "pre":
            x = x + attend(first(x), first(x), block["attention"], heads, causal)
            x = x + feed(second(x), block["feedforward"])
        else:
            x = second(first(x) + attend(first(x), x, block["attention"], heads, causal))
            x = x + feed(x, block["feedforward"])
    return x if norms == "post" else layer_norm(x, params["norm"])


def _layer(tree, layer):
    if isinstance(tree, dict):
        return {name: _layer(value, layer) for name, value in tree.items()}
    return tree[layer]


def sasrec_states(network, params, history):
    """States that predict every event of the history, [t, d]."""
    table = params["items"]["table"]
    before = np.stack([table[-1], *(table[item] for item in history[:-1])])
    x = before * np.sqrt(network.width) + params["positions"]["table"][: len(history)]
    shape = {"layers": network.layers, "heads": network.heads, "norms": network.norms}
    return transformer(x, params["layers"], causal=True, **shape)


def bert_states(network, params, history):
    """States of every event, with what stands there (items, or n for a MASK), [t, d + 1]."""
    x = np.stack([params["items"]["table"][item] for item in history])
    x = layer_norm(x + params["positions"]["table"][: len(history)], params["input_norm"])
    shape = {"layers": network.layers, "heads": network.heads, "norms": "post"}
    x = transformer(x, params["layers"], causal=False, **shape)
    guess = params["guess"]
    x = layer_norm(gelu(affine(x, guess["project"])), guess["norm"])
    return np.concatenate([x, np.ones((len(x), 1))], axis=-1)


def gru_states(network, params, history):
    """States that predict every event of the history, [t, d]."""
    table, width = params["items"]["table"], network.hidden
    inputs = np.stack([table[-1], *(table[item] for item in history[:-1])])
    for layer in range(network.layers):
        weights = params[f"layer_{layer}"]
        state, states = np.zeros(width), []
        for x in inputs:
            driven = x @ weights["read"] + weights["bias"]
            recalled = state @ weights["keep"]
            reset, update = (
                1 / (1 + np.exp(-(driven[part] + recalled[part])))
                for part in (slice(0, width), slice(width, 2 * width))
            )
            memory = recalled[2 * width :] + weights["candidate_bias"]
            candidate = np.tanh(driven[2 * width :] + reset * memory)
            state = (1 - update) * candidate + update * state
            states.append(state)
        inputs = np.stack(states)
    return affine(inputs, params["output"])


def caser_states(network, params, history):
    """States that predict every event of the history, [t, d + 1]."""
    table, filters = params["items"]["table"], params["convolutions"]
    states = []
    for event in range(len(history)):
        window = np.zeros((network.window, network.width))
        known = history[max(0, event - network.window) : event]
        if known:
            window[-len(known) :] = table[known]
        read = []
        for height in range(1, network.window + 1):
            kernel = filters[f"horizontal_{height}"].reshape(height, network.width, -1)
            bias = filters[f"horizontal_bias_{height}"]
            places = [
                np.einsum("hd,hdf->f", window[start : start + height], kernel) + bias
                for start in range(network.window - height + 1)
            ]
            read.append(np.maximum(np.stack(places), 0).max(0))
        columns = np.einsum("ld,lv->vd", window, filters["vertical"]).reshape(-1)
        found = np.concatenate([*read, columns])
        states.append(np.append(np.maximum(affine(found, params["dense"]), 0), 1.0))
    return np.stack(states)
