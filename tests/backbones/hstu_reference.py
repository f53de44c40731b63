"""HSTU written out in plain numpy, one history at a time, float64."""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def bucket(seconds):
    return min(int(np.floor(np.log(max(abs(seconds), 1)) / 0.301)), 128)


def bias_of(block, slots, position, asked, happened):
    """[t, t]: rows ask, columns are read."""
    total = np.zeros((len(position), len(position)))
    for i in range(len(position)):
        for j in range(len(position)):
            if "position_bias" in block:
                total[i, j] += block["position_bias"][position[j] - position[i] + slots - 1]
            if "time_bias" in block:
                total[i, j] += block["time_bias"][bucket(int(asked[i]) - int(happened[j]))]
    return total


def layer(x, block, *, slots, position, asked, happened):
    normed, heads = norm(x), block["query"].shape[1]
    relative = bias_of(block, slots, position, asked, happened)
    gates, mixed = [], []
    for head in range(heads):
        u, v, q, k = (
            silu(normed @ block[name][:, head]) for name in ("gate", "value", "query", "key")
        )
        weights = silu(q @ k.T + relative) / slots * np.tri(len(x))
        gates.append(u)
        mixed.append(weights @ v)
    gated = np.concatenate(gates, -1) * norm(np.concatenate(mixed, -1))
    return x + gated @ block["output"].reshape(-1, x.shape[-1]) + block["output_bias"]


def layers(x, params, number, **what):
    for index in range(number):
        x = layer(x, {name: leaf[index] for name, leaf in params["blocks"].items()}, **what)
    return x


def unit(x):
    return x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), 1e-6)


def retrieval_states(network, params, history, times):
    """States that predict every event of the history, [t, d]."""
    table, events = params["items"]["table"], np.arange(len(history))
    before = np.stack([table[-1], *(table[item] for item in history[:-1])])
    x = before * np.sqrt(network.width) + params["positions"]["table"][events]
    happened = [times[0], *times[:-1]]
    what = {"slots": network.length + 1, "position": events, "asked": times, "happened": happened}
    return unit(layers(x, params["layers"], network.layers, **what))


def ranking_logits(network, params, history, actions, times):
    """Logits of the kinds of action at every event, [t, a]."""
    items, kinds = params["items"]["table"], params["actions"]["table"]
    tokens = [row for item, action in zip(history, actions) for row in (items[item], kinds[action])]
    places = np.arange(len(tokens))
    x = np.stack(tokens) * np.sqrt(network.width) + params["positions"]["table"][places]
    when = np.repeat(times, 2)
    slots = 2 * (network.length + 1)
    what = {"slots": slots, "position": places, "asked": when, "happened": when}
    x = layers(x, params["layers"], network.layers, **what)
    return norm(x[::2]) @ params["head"]["kernel"] + params["head"]["bias"]
