"""OneRec written out in numpy for one history: lists of events, no masks, no batch, no cache."""

import numpy as np
from decoder_reference import at, layer, norm, project, rotate, swiglu
from lazy_reference import cross_attend, mixture, softmax


def describe(p, vector, age, action, actions):
    """One vector of an event."""
    bucket = min(int(np.log2(1 + age)), len(p["ages"]["table"]) - 1)
    x = np.concatenate(
        [vector, p["ages"]["table"][bucket], p["actions"]["table"][min(action, actions - 1)]]
    )
    hidden = x @ p["into"] + p["bias"]
    return np.where(hidden > 0, hidden, 0.01 * hidden) @ p["out"]


def project_all(p, states):
    """Keys and values of states, all heads in a row."""
    return [[(x @ p[name].reshape(len(x), -1)) for x in states] for name in ("key", "value")]


def ask(model, p, events):
    """The learned queries after reading events."""
    rows = list(p["queries"])
    for index in range(model.query_layers):
        block = at(p["blocks"], index)
        keys, values = project_all(block["events"], events)
        out = []
        for x in rows:
            normed = norm(x, block["cross_attention_norm"]["scale"])
            x = x + cross_attend(
                block["cross_attention"], normed, keys, values, model.heads, model.heads
            )
            normed = norm(x, block["feedforward_norm"]["scale"])
            out.append(x + swiglu(block["feedforward"], normed))
        rows = out
    return [norm(x, p["norm"]["scale"]) for x in rows]


def pathways(model, params, space, codes, events, user):
    """Token or None of every place of the encoder. An event is (item, time, action)."""
    table = params["tokens"]["table"]
    latest = max((time for _, time, _ in events), default=0)

    def all_of(name, chosen):
        p = params[f"describe_{name}"]
        return [
            describe(
                p,
                sum(table[first + code] for first, code in zip(space.offsets, codes[item])),
                latest - time,
                action,
                model.actions,
            )
            for item, time, action in chosen
        ]

    tokens = []
    if model.user_buckets:
        known = user >= 0 and events  # an event tells whose it is
        row = user % model.user_buckets
        tokens.append(params["users"]["table"][row] if known else None)
    liked = [event for event in events if event[2] in model.positive_actions]
    for name, count, chosen in (
        ("short", model.short, events),
        ("positive", model.positive, liked),
    ):
        if count:
            found = all_of(name, chosen[-count:])
            tokens += [None] * (count - len(found)) + found
    if model.queries:
        tokens += ask(model, params["queries"], all_of("all", events))
    return tokens


def encode(model, p, tokens):
    """States of the tokens that are there."""
    states = [x + p["positions"][place] for place, x in enumerate(tokens) if x is not None]
    for index in range(model.encoder.layers):
        block = at(p["blocks"], index)
        normed = [norm(x, block["attention_norm"]["scale"]) for x in states]
        keys, values = project_all(block["tokens"], normed)
        states = [
            x + cross_attend(block["attention"], n, keys, values, model.heads, model.heads)
            for x, n in zip(states, normed)
        ]
        states = [
            x + swiglu(block["feedforward"], norm(x, block["feedforward_norm"]["scale"]))
            for x in states
        ]
    return [norm(x, p["norm"]["scale"]) for x in states]


def reference_logits(model, params, space, codes, events, user, target):
    """Logits of each level, arrays as long as the level."""
    states = encode(model, params["encoder"], pathways(model, params, space, codes, events, user))
    table = params["tokens"]["table"]
    written = [first + code for first, code in zip(space.offsets, codes[target])][:-1]
    tokens = [table[row] for row in (1, *written)]
    blocks = params["layers"]["dense" if model.mixture is None else "sparse"]
    for index in range(model.layers):
        p = at(blocks, index)
        keys, values = project_all(at(params["cross"], index), states)
        nothing = {name: np.zeros((1, 1)) for name in ("gate", "up", "down")}
        nothing["gate"] = nothing["up"] = np.zeros((model.width, 1))
        attended = p | {"feedforward": nothing}
        if model.attention_norms:
            tokens = layer(attended, tokens, model.heads, model.rope_base)
        else:
            tokens = unnormed_layer(attended, tokens, model)
        for place, x in enumerate(tokens):
            scale = p["cross_attention_norm"]["scale"] if model.attention_norms else None
            read = x if scale is None else norm(x, scale)
            x = x + cross_attend(p["cross_attention"], read, keys, values, model.heads, model.heads)
            normed = norm(x, p["feedforward_norm"]["scale"])
            if model.mixture is None:
                tokens[place] = x + swiglu(p["feedforward"], normed)
            else:
                tokens[place] = x + mixture(model.mixture, p["feedforward"], normed)[0]
    head = params["head"]
    return [
        (norm(x, head["scale"][level]) @ head["output"]["kernel"][level])[:size]
        for level, (x, size) in enumerate(zip(tokens, space.sizes))
    ]


def unnormed_layer(p, tokens, model):
    """Causal self-attention that reads its input as it is."""
    p, answers = p["attention"], []
    for place, token in enumerate(tokens):
        seen, branch = tokens[: place + 1], np.zeros(model.width)
        for head in range(model.heads):
            q = rotate(project(p, "query", token, head), place, model.rope_base)
            keys = [
                rotate(project(p, "key", x, head), back, model.rope_base)
                for back, x in enumerate(seen)
            ]
            shares = softmax(np.array([q @ key / len(q) ** 0.5 for key in keys]))
            mixed = sum(s * project(p, "value", x, head) for s, x in zip(shares, seen))
            branch = branch + mixed @ p["output"][head]
        answers.append(token + branch)
    return answers
