"""Tiny models with random weights, one of every causal language model family of the installed transformers.

A family is a model type in the mapping of `AutoModelForCausalLM`. Its default configuration is made small by the names
of its keys (`SMALL`), then by what the family alone needs (`ONLY`).
"""

from __future__ import annotations

import warnings
from typing import Any

BLOCKS = 3
VOCABULARY = 64
WIDTH = 32
CONTEXT = 64
WEIGHT_STD = 0.2
"""Standard deviation of matrices: large enough that every part of a block matters."""

_SHAPE: dict[str, Any] = {
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], BLOCKS),
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "dim", "embedding_size", "embedding_dim"], WIDTH),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"], 2),
    **dict.fromkeys(["swa_num_attention_heads", "mamba_n_heads", "mamba_num_heads"], 4),
    **dict.fromkeys(["head_dim", "swa_head_dim", "global_head_dim"], 8),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "n_inner"], 48),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], CONTEXT),
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_top_k", "top_k_experts"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"], 16),
    "moe_shared_expert_intermediate_size": 16,
    **dict.fromkeys(["n_group", "topk_group"], 1),
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_RECURRENT: dict[str, Any] = {
    **dict.fromkeys(["encoder_layers"], 1),
    **dict.fromkeys(["sliding_window", "sliding_window_size", "attention_window_size", "chunk_size"], 8),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 2),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 8),
    **dict.fromkeys(["mamba_d_state", "state_size", "ssm_state_size"], 8),
    **dict.fromkeys(["index_head_dim", "index_n_heads"], 4),
    **dict.fromkeys(["hidden_size_per_layer_input"], 8),
    **dict.fromkeys(["residual_multiplier"], 0.22),
    **dict.fromkeys(["is_decoder"], True),
    **dict.fromkeys(["image_size"], 28),
    **dict.fromkeys(["patch_size"], 14),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"], VOCABULARY),
    **dict.fromkeys(["bos_token_id", "decoder_start_token_id"], 0),
    **dict.fromkeys(["pad_token_id", "eos_token_id"], 1),
}  # fmt: skip
SMALL: dict[str, Any] = _SHAPE | _EXPERTS | _LATENT | _RECURRENT
"""Value of each key of a configuration that has the key, in all families."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SHARED_KV = {
    "num_kv_shared_layers": 2,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_GEMMA4 = {**_SHARED_KV, "head_dim": 8, "global_head_dim": 8}

ONLY: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "prophetnet": {"num_hidden_layers": None, "num_decoder_layers": BLOCKS, "num_encoder_layers": 1},
    "xmod": {"default_language": "en_XX"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "cpmant": {"dim_ff": 48, "dim_head": 8, "prompt_types": 4, "prompt_length": 4, "segment_types": 4},
    "ctrl": {"dff": 48},
    "dbrx": {"rope_parameters": _ROPE, "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 8},
    "gemma3n_text": {**_SHARED_KV, "laurel_rank": 4},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 2},
    "nemotron_h": {"n_groups": 1, "mamba_head_dim": 16},
    "dots3_note_text": {
        "head_dim": 12,
        **{
            f"swa_{key}": value
            for key, value in (_LATENT | {"head_dim": 12, "num_attention_heads": 4, "num_key_value_heads": 4}).items()
        },
    },
    "longcat_flash": {"head_dim": 4, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
        "attention_head_size": 8,
        "feed_forward_size": 48,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3], "cross_attn_k": 1},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "hybrid"]},
    "zamba2": {
        "layer_types": ["mamba", "hybrid", "hybrid"],
        "num_mem_blocks": 1,
        "hybrid_layer_ids": [1, 2],
        "use_shared_attention_adapter": False,
    },
}


def family_names() -> list[str]:
    """Return the model types of all causal language models of the installed transformers, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(family: str) -> Any:
    """Return a small configuration of a family. Raises ValueError, or what the family raises, if none can be made."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return _shrink(CONFIG_MAPPING[family], ONLY.get(family, {}))


def _shrink(config_class: Any, only: dict[str, Any]) -> Any:
    """Return a small configuration of a class, its parts (text, vision, audio) made small too."""
    default = config_class()
    values: dict[str, Any] = {}
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if name in only or part is None or isinstance(part, dict):
            continue
        values[name] = _shrink(type(part), ONLY.get(part.model_type, {})).to_dict()
    values |= {key: value for key, value in SMALL.items() if _is_settable(default, key)}
    if "qk_rope_head_dim" in values:  # latent attention: widths of heads are its own keys
        values.pop("head_dim", None)
        values["num_key_value_heads"] = 4
    values |= only
    return config_class(**{key: value for key, value in values.items() if value is not None})


def _is_settable(config: Any, key: str) -> bool:
    """Return True if the configuration has a key with a value, or a token id."""
    if key in getattr(config, "sub_configs", {}):
        return False
    try:
        value = getattr(config, key)
    except (AttributeError, NotImplementedError):
        return key in vars(config)
    except RuntimeError:  # one value per layer, which the value of all layers replaces
        return True
    is_derived = isinstance(getattr(type(config), key, None), property)
    return not is_derived and (value is not None or key.endswith("_token_id"))


def random_model(family: str) -> Any:
    """Return the family's small model with random weights; the global random state is left alone."""
    import torch
    import transformers

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(small_config(family)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=WEIGHT_STD)
    return model


def word_tokenizer() -> Any:
    """Return a tokenizer of VOCABULARY words; ids 0 and 1 are BOS and EOS."""
    import tokenizers
    import transformers

    vocabulary = {token: id for id, token in enumerate(["<bos>", "<eos>", *(f"w{id}" for id in range(2, VOCABULARY))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def random_lm(family: str) -> Any:
    """Return the family's small model as an LM. Raises SiteError if it has no decoder blocks."""
    from jumpahead.lm.config import LMConfig
    from jumpahead.lm.model import LM

    config = LMConfig(model=family, context=CONTEXT // 2)
    return LM(random_model(family), word_tokenizer(), name=family, digest=family, config=config)
