"""Makes tests/golden/huggingface: tiny random models by transformers, what they say, and slopes.

    ENVIRONMENT/bin/python tests/golden/make_hf_goldens.py

needs torch and transformers (made with 2.13.0 and 5.24.0), which jaxrec does not: tests read the
files. Every folder is what `save_pretrained` writes, in float32; `gradients/` holds the slopes of
the loss in the same layout, `expected.npz` the tokens and the logits.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

FOLDER = Path(__file__).parent / "huggingface"
# Heads that do not add up to the width, two query heads a key head, depths above one.
SHARED = {
    "vocab_size": 23,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **SHARED | {"num_attention_heads": 2, "num_key_value_heads": 1},
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=True,
        ),
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(
            **SHARED,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=True,
        ),
    ),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            **SHARED,
            head_dim=8,
            rms_norm_eps=1e-5,
            rope_parameters=LLAMA3,
            tie_word_embeddings=False,
        ),
    ),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(
            vocab_size=17,  # two special tokens, levels of 7, 5 and 3 codes
            d_model=12,
            d_kv=4,
            d_ff=20,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=2,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=12,
            dropout_rate=0.0,
            decoder_start_token_id=1,
        ),
    ),
}


def randomise(model: torch.nn.Module) -> None:
    """Numbers large enough for every weight to matter; norms around 1."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        is_norm = "norm" in name
        torch.nn.init.normal_(weight, mean=1.0 if is_norm else 0.0, std=0.3)


def read_text(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Logits of two texts; the loss is the mean over all tokens but the first of each."""
    tokens = torch.randint(0, model.config.vocab_size, (2, 40))
    logits = model(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)
    )
    loss.backward()
    return {"tokens": tokens, "logits": logits, "loss": loss}


def read_histories(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Logits of the codes of a target after four, one and no items; the loss is their mean."""
    offsets = torch.tensor([2, 9, 14])
    codes = torch.stack([torch.randint(0, size, (10,)) for size in (7, 5, 3)], dim=1)
    items = torch.tensor([[3, 9, 7, 1], [0, 0, 0, 5]])
    exists = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]])
    targets = torch.tensor([2, 8])
    written = codes[targets] + offsets
    start = torch.full((2, 1), model.config.decoder_start_token_id)
    logits = model(
        input_ids=(codes[items] + offsets).reshape(2, -1),
        attention_mask=exists.repeat_interleave(3, dim=1),
        decoder_input_ids=torch.cat([start, written[:, :-1]], dim=1),
    ).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(6, -1), written.reshape(6))
    loss.backward()
    return {
        "codes": codes,
        "items": items,
        "exists": exists,
        "targets": targets,
        "logits": logits,
        "loss": loss,
    }


def main() -> None:
    """Writes one folder a family."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for family, (kind, config) in MODELS.items():
        config._attn_implementation = "eager"
        folder = FOLDER / family
        model = kind(config).float().eval()
        randomise(model)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        read = read_histories if family == "t5" else read_text
        expected = {name: each.detach().numpy() for name, each in read(model).items()}
        np.savez(folder / "expected.npz", **expected)
        gradients = folder / "gradients"
        gradients.mkdir()
        shutil.copyfile(folder / "config.json", gradients / "config.json")
        # named_parameters gives a shared weight once, as save_pretrained does.
        slopes = {name: weight.grad.contiguous() for name, weight in model.named_parameters()}
        save_file(slopes, gradients / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
