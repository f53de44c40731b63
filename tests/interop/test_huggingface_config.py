"""What a config.json means, in both spellings, and what is refused by its name and value."""

import json
import math
from pathlib import Path

import pytest

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.rotary import RopeScaling
from jaxrec.backbones.t5 import T5
from jaxrec.interop.huggingface_config import read_config, settings_of
from jaxrec.interop.weight_names import sizes_of, weights_of

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "huggingface"
ABSENT = object()

# What the published files say, as far as the arithmetic goes, in the spelling of transformers 4.
QWEN25_05B = {
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_06B = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA32_1B = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
T5_SMALL = {
    "model_type": "t5",
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "num_heads": 8,
    "num_layers": 6,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
PUBLISHED = {"qwen2": QWEN25_05B, "qwen3": QWEN3_06B, "llama": LLAMA32_1B, "t5": T5_SMALL}


def config(folder, settings, **changes):
    told = {key: each for key, each in (settings | changes).items() if each is not ABSENT}
    (folder / "config.json").write_text(json.dumps(told))
    return read_config(folder)


def refuses(folder, settings, message, **changes):
    with pytest.raises(ValueError) as caught:
        config(folder, settings, **changes)
    assert message in str(caught.value)
    assert str(folder / "config.json") in str(caught.value)


def test_published_models(tmp_path):
    assert config(tmp_path, QWEN25_05B) == LanguageModel(
        layers=24, width=896, heads=14, kv_heads=2, head_size=64, feedforward=4864,
        text_vocabulary=151936, tied=True, rope_base=1e6, norm_epsilon=1e-6, attention_bias=True,
    )  # fmt: skip
    assert config(tmp_path, QWEN3_06B) == LanguageModel(
        layers=28, width=1024, heads=16, kv_heads=8, head_size=128, feedforward=3072,
        text_vocabulary=151936, tied=True, rope_base=1e6, norm_epsilon=1e-6, query_key_norm=True,
    )  # fmt: skip
    assert config(tmp_path, LLAMA32_1B) == LanguageModel(
        layers=16, width=2048, heads=32, kv_heads=8, head_size=64, feedforward=8192,
        text_vocabulary=128256, tied=True, rope_base=5e5, norm_epsilon=1e-5,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    )  # fmt: skip
    expected = T5(layers=6, decoder_layers=6, width=512, heads=8, head_size=64, feedforward=2048)
    assert config(tmp_path, T5_SMALL) == expected


@pytest.mark.parametrize(
    ("family", "count"), [("qwen2", 494_032_768), ("qwen3", 596_049_920), ("llama", 1_235_814_400)]
)
def test_parameters_of_published_models(family, count, tmp_path):
    """The published sizes of Qwen2.5-0.5B, Qwen3-0.6B and Llama-3.2-1B."""
    model = config(tmp_path, PUBLISHED[family])
    sizes = sizes_of(model, model.text_vocabulary)
    weights = weights_of(family, model)
    assert sum(math.prod(weight.shape(sizes)) for weight in weights) == count


@pytest.mark.parametrize("family", PUBLISHED)
def test_there_and_back(family, tmp_path):
    """What is written is read as the same, and says what the published file says."""
    settings = PUBLISHED[family]
    component = config(tmp_path, settings)
    written = settings_of(component, settings["vocab_size"])
    assert config(tmp_path, written) == component
    said = settings.keys() & written.keys()
    assert {key: written[key] for key in said} == {key: settings[key] for key in said}
    assert "head_dim" in written or family == "t5"


def test_both_spellings_mean_the_same(tmp_path):
    for settings in (QWEN25_05B, QWEN3_06B, LLAMA32_1B):
        told = settings.get("rope_scaling") or {"rope_type": "default"}
        new = {"rope_parameters": {"rope_theta": settings["rope_theta"], **told}}
        gone = {"rope_theta": ABSENT, "rope_scaling": ABSENT}
        assert config(tmp_path, settings, **new, **gone) == config(tmp_path, settings)
    linear = LLAMA32_1B["rope_scaling"] | {"type": "llama3", "rope_type": ABSENT}
    old = {key: each for key, each in linear.items() if each is not ABSENT}
    assert config(tmp_path, LLAMA32_1B, rope_scaling=old) == config(tmp_path, LLAMA32_1B)


def test_what_files_leave_out(tmp_path):
    model = config(tmp_path, LLAMA32_1B, num_key_value_heads=ABSENT, head_dim=None,
                   tie_word_embeddings=ABSENT, rope_theta=ABSENT, rope_scaling=ABSENT,
                   rms_norm_eps=ABSENT)  # fmt: skip
    assert (model.kv_heads, model.head_size, model.tied) == (32, 64, False)
    assert (model.rope_base, model.rope_scaling, model.norm_epsilon) == (1e4, None, 1e-6)
    assert config(tmp_path, QWEN3_06B, head_dim=ABSENT).head_size == 128
    t5 = config(tmp_path, T5_SMALL, num_decoder_layers=2, relative_attention_max_distance=64,
                feed_forward_proj="gated-gelu", tie_word_embeddings=True)  # fmt: skip
    assert (t5.decoder_layers, t5.max_distance, t5.gated) == (2, 64, True)


YARN = {"rope_type": "yarn", "factor": 4.0}
UNSUPPORTED = {
    "qwen2": {
        "hidden_act": "gelu",
        "use_sliding_window": (True, "sliding_window=32768 and use_sliding_window=True"),
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_scaling": YARN,
        "rope_parameters": YARN,
        "rope_theta": "1e6",
        "quantization_config": {"quant_method": "gptq"},
        "model_type": ("mixtral", "model_type='mixtral' is not supported; choose a model of qwen2"),
        "hidden_size": (ABSENT, "hidden_size=None must be int"),
        "num_attention_heads": ("14", "num_attention_heads='14' must be int"),
        "vocab_size": (True, "vocab_size=True must be int"),
        "num_key_value_heads": (3, "kv_heads=3 must divide heads=14"),
        "tie_word_embeddings": (1, "tie_word_embeddings=1 must be bool"),
        "partial_rotary_factor": 0.5,
    },
    "qwen3": {"attention_bias": True, "hidden_act": "relu"},
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
    },
    "t5": {
        "tie_word_embeddings": False,
        "scale_decoder_outputs": False,
        "feed_forward_proj": "gated-silu",
        "layer_norm_epsilon": 1e-5,
        "is_encoder_decoder": False,
        "decoder_start_token_id": 0,
        "relative_attention_num_buckets": (7, "distance_buckets=7 must be a multiple of 4"),
    },
}


@pytest.mark.parametrize(
    ("family", "key"), [(family, key) for family, keys in UNSUPPORTED.items() for key in keys]
)
def test_unsupported_settings_are_refused_by_name_and_value(family, key, tmp_path):
    value = UNSUPPORTED[family][key]
    value, message = value if isinstance(value, tuple) else (value, f"{key}={value} is not")
    refuses(tmp_path, PUBLISHED[family], message, **{key: value})


def test_a_window_that_is_not_used_may_stand_there(tmp_path):
    model = config(tmp_path, QWEN25_05B)
    every = ["full_attention"] * 24
    assert config(tmp_path, QWEN25_05B, layer_types=every) == model
    assert config(tmp_path, QWEN25_05B, layer_types=every, use_sliding_window=True) == model


def test_llama3_scaling_needs_its_numbers(tmp_path):
    told = {"rope_type": "llama3", "factor": 8.0}
    refuses(tmp_path, LLAMA32_1B, "llama3 needs low_freq_factor, a number", rope_scaling=told)
    refuses(tmp_path, LLAMA32_1B, "it is an object", rope_scaling="llama3")


def test_files_that_are_no_configuration(tmp_path):
    for text, message in {"[]": "model_type=None", "{": "not readable as JSON"}.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        read_config(tmp_path / "nowhere")


def test_the_tokenizer_of_the_folder_asks(tmp_path):
    assert config(tmp_path, QWEN25_05B).prompt.tokenizer.path == ""
    (tmp_path / "tokenizer.json").write_text("{}")
    assert config(tmp_path, QWEN25_05B).prompt.tokenizer.path == str(tmp_path)


def test_goldens_are_read():
    llama = read_config(GOLDEN / "llama")
    assert (llama.rope_base, llama.rope_scaling) == (500.0, RopeScaling(4.0, 1.0, 4.0, 32))
