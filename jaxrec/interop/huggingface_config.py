"""`config.json` as a component, and a component as `config.json`.

What a setting means for the arithmetic is taken over or refused by its name and value; what has
nothing to do with it (token ids, caches, how text is generated) is left alone. Both spellings are
read: `rope_theta` and `rope_scaling`, as most published files have it, and `rope_parameters` of
transformers 5. The older one is written, which both versions read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrec.backbones.language_model import LanguageModel
from jaxrec.backbones.prompts import Prompt
from jaxrec.backbones.rotary import RopeScaling
from jaxrec.backbones.t5 import BOS, T5
from jaxrec.data.text_tokenizer import TextTokenizer
from jaxrec.files import read_json

CONFIG, TOKENIZER = "config.json", "tokenizer.json"

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "t5": "T5ForConditionalGeneration",
}
"""Families, by `model_type`, and the class that transformers makes of each."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that is a field of the component."""

    key: str
    field: str
    kind: type = int
    absent: Any = None
    """What a file without the key means; None where the key must be there."""


LANGUAGE_MODEL = (
    Setting("num_hidden_layers", "layers"),
    Setting("hidden_size", "width"),
    Setting("num_attention_heads", "heads"),
    Setting("num_key_value_heads", "kv_heads"),
    Setting("head_dim", "head_size"),
    Setting("intermediate_size", "feedforward"),
    Setting("vocab_size", "text_vocabulary"),
    Setting("rms_norm_eps", "norm_epsilon", float, 1e-6),
    Setting("tie_word_embeddings", "tied", bool, False),
)
T5_SETTINGS = (
    Setting("num_layers", "layers"),
    Setting("num_decoder_layers", "decoder_layers"),
    Setting("d_model", "width"),
    Setting("num_heads", "heads"),
    Setting("d_kv", "head_size"),
    Setting("d_ff", "feedforward"),
    Setting("relative_attention_num_buckets", "distance_buckets", int, 32),
    Setting("relative_attention_max_distance", "max_distance", int, 128),
)

_EVERYWHERE = {"quantization_config": (None,), "partial_rotary_factor": (1.0, None)}
_LANGUAGE_MODEL = _EVERYWHERE | {"hidden_act": ("silu",)}
SUPPORTED: Mapping[str, Mapping[str, tuple]] = {
    "qwen2": _LANGUAGE_MODEL,
    "qwen3": _LANGUAGE_MODEL | {"attention_bias": (False,)},
    "llama": _LANGUAGE_MODEL | {"attention_bias": (False,), "mlp_bias": (False,)},
    "t5": _EVERYWHERE
    | {
        "is_encoder_decoder": (True,),
        "tie_word_embeddings": (True,),
        "scale_decoder_outputs": (True,),
        "layer_norm_epsilon": (1e-6,),
        "feed_forward_proj": ("relu", "gated-gelu"),
        "decoder_start_token_id": (BOS, None),
    },
}
"""Settings that change the arithmetic, and the values that are supported; an absent one is."""


def read_settings(folder: Path | str) -> dict[str, Any]:
    """`config.json` of a folder, of a family and with settings that are supported.

    Raises:
        ValueError: no such file, another family, or a setting that is not supported.
    """
    path = Path(folder) / CONFIG
    settings = read_json(path)
    family = settings.get("model_type") if isinstance(settings, dict) else None
    if family not in ARCHITECTURES:
        raise ValueError(
            f"{path}: model_type={family!r} is not supported; choose a model of "
            f"{', '.join(ARCHITECTURES)}."
        )
    for key, values in SUPPORTED[family].items():
        if key in settings and settings[key] not in values:
            raise _unsupported(path, key, settings[key], f"{family} is read with {values[0]!r}")
    _refuse_windows(path, settings)
    return settings


def read_config(folder: Path | str) -> LanguageModel | T5:
    """The component that a folder in Hugging Face's layout describes.

    Dropout, remat, dtype and the like are no matter of the weights and keep their defaults;
    change them with `dataclasses.replace`. The prompt of a `LanguageModel` has the tokenizer of the
    folder where there is one.

    Args:
        folder: holds `config.json`.

    Raises:
        ValueError: as `read_settings`, or sizes that are missing, of another kind, or impossible.
    """
    settings = read_settings(folder)
    component, fields = _kind(settings), fields_of(folder, settings)
    if component is LanguageModel and (Path(folder) / TOKENIZER).is_file():
        fields["prompt"] = Prompt(tokenizer=TextTokenizer(str(folder)))
    try:
        return component(**fields)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / CONFIG}: {error}") from None


def fields_of(folder: Path | str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the component that the settings decide.

    Args:
        folder: where the settings are from, for messages.
        settings: from `read_settings`.

    Raises:
        ValueError: a setting is missing, or of another kind.
    """
    path, family = Path(folder) / CONFIG, settings["model_type"]
    table = T5_SETTINGS if family == "t5" else LANGUAGE_MODEL
    derived = _derived(settings)
    fields = {}
    for setting in table:
        value = settings.get(setting.key)
        value = derived.get(setting.key, setting.absent) if value is None else value
        if setting.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not setting.kind:
            raise ValueError(
                f"{path}: {setting.key}={value!r} must be {setting.kind.__name__}; fetch the file "
                "again."
            )
        fields[setting.field] = value
    if family == "t5":
        return fields | {"gated": settings.get("feed_forward_proj", "relu") == "gated-gelu"}
    base, scaling = _rope(path, settings)
    return fields | {
        "rope_base": base,
        "rope_scaling": scaling,
        "attention_bias": family == "qwen2",
        "query_key_norm": family == "qwen3",
    }


def settings_of(component: LanguageModel | T5, vocabulary: int) -> dict[str, Any]:
    """What `config.json` says of a component.

    Args:
        component: the network.
        vocabulary: rows of its token table, which are more than those of the text where semantic
            IDs have theirs.

    Raises:
        ValueError: no published family has such a network.
    """
    family = family_of(component)
    table = T5_SETTINGS if family == "t5" else LANGUAGE_MODEL
    settings: dict[str, Any] = {"architectures": [ARCHITECTURES[family]], "model_type": family}
    settings |= {setting.key: getattr(component, setting.field) for setting in table}
    fixed = {key: values[0] for key, values in SUPPORTED[family].items() if key not in _EVERYWHERE}
    settings |= fixed | {"vocab_size": vocabulary}
    if isinstance(component, T5):
        return settings | {
            "num_decoder_layers": component.decoder.layers,
            "feed_forward_proj": "gated-gelu" if component.gated else "relu",
            "pad_token_id": 0,
        }
    scaling = component.rope_scaling
    return settings | {
        "rope_theta": component.rope_base,
        "rope_scaling": None
        if scaling is None
        else {"rope_type": "llama3"}
        | {key: getattr(scaling, name) for key, name in _LLAMA3.items()},
    }


def family_of(component: LanguageModel | T5) -> str:
    """The family whose arithmetic a component has.

    Raises:
        ValueError: there is none.
    """
    if isinstance(component, T5):
        if component.tied and not component.separator and not component.user_buckets:
            return "t5"
        raise ValueError(
            f"T5 with tied={component.tied}, separator={component.separator}, user_buckets="
            f"{component.user_buckets} has no counterpart in Hugging Face's T5; tied=True, "
            "separator=False, user_buckets=0 has."
        )
    if component.attention_bias and component.query_key_norm:
        raise ValueError(
            "no published family has attention_bias and query_key_norm; Qwen2.5 has the first, "
            "Qwen3 the second, Llama neither."
        )
    if component.attention_bias:
        return "qwen2"
    return "qwen3" if component.query_key_norm else "llama"


_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "original_length",
}
"""Keys of Llama 3's rope_scaling, and fields of `RopeScaling`."""


def _kind(settings: Mapping[str, Any]) -> type:
    return T5 if settings["model_type"] == "t5" else LanguageModel


def _derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What files leave out because it follows from other settings."""
    if settings["model_type"] == "t5":
        return {"num_decoder_layers": settings.get("num_layers")}
    heads, width = settings.get("num_attention_heads"), settings.get("hidden_size")
    found = {"num_key_value_heads": heads}
    if settings["model_type"] == "qwen3":
        return found | {"head_dim": 128}
    if type(heads) is int and type(width) is int and heads > 0:
        found["head_dim"] = width // heads
    return found


def _rope(path: Path, settings: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of rotary positions."""
    key = "rope_scaling" if settings.get("rope_parameters") is None else "rope_parameters"
    told = settings.get(key) or {}
    if not isinstance(told, dict):
        raise _unsupported(path, key, told, "it is an object")
    base = told.get("rope_theta", settings.get("rope_theta", 1e4))
    kind = told.get("rope_type", told.get("type", "default"))
    if type(base) not in (int, float):
        raise _unsupported(path, "rope_theta", base, "it is a number")
    if kind not in ("default", "llama3") or told.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported(path, key, told, "rope_type may be 'default' or 'llama3'")
    if kind == "default":
        return float(base), None
    if lacking := [name for name in _LLAMA3 if type(told.get(name)) not in (int, float)]:
        raise _unsupported(path, key, told, f"llama3 needs {lacking[0]}, a number")
    return float(base), RopeScaling(**{name: told[key] for key, name in _LLAMA3.items()})


def _refuse_windows(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses attention that does not see everything before; a window that is not used may stand
    there (Qwen2.5)."""
    why = "every layer attends to all tokens before"
    layers = settings.get("layer_types")
    if layers and any(each != "full_attention" for each in layers):
        raise _unsupported(path, "layer_types", layers, why)
    if settings.get("use_sliding_window") and not layers:
        window = f"{settings.get('sliding_window')!r} and use_sliding_window=True"
        raise ValueError(f"{path}: sliding_window={window} is not supported: {why}.")


def _unsupported(path: Path, key: str, value: Any, why: str) -> ValueError:
    return ValueError(f"{path}: {key}={str(value)[:200]} is not supported: {why}.")
