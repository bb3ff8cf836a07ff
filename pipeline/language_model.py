"""A checkpoint's language model alone: what training changes and what the proof compares, without any tower.

A multimodal checkpoint then needs no image library, and no memory for what a text never uses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# A multimodal checkpoint names its language model's tensors after the whole; the text-only class leaves that out.
_TEXT_NAMES = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}

# Functions that PyTorch leaves to MKL on a CPU.
_OF_MKL = ("cos", "erf", "exp", "expm1", "log", "log1p", "log2", "sin", "sqrt", "tan", "tanh")

# Tensors of a checkpoint that are not the language model's.
TOWERS = re.compile(r"vision|audio|multi_modal_projector")


def load(checkpoint: Path, **options: Any) -> tuple[Any, list[str]]:
    """The model by transformers, from safetensors, and the names of tensors that the checkpoint lacks for it."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    settle_functions()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is left out of the checkpoint is meant; what is missing is told
    config = AutoConfig.from_pretrained(checkpoint)
    text = config.get_text_config()
    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        config=text,
        key_mapping=_TEXT_NAMES if text is not config else None,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    return model, sorted(set(report["missing_keys"]))


def settle_functions() -> None:
    """Call each of MKL's functions once, in one thread, before anything is computed.

    MKL picks a function's code in its first call. Where two threads make that call at once, one of them may take code of
    low accuracy for its half (PyTorch's issue 188792): in one process of twelve a run's first cosines, and so its bytes,
    were others.
    """
    import torch

    few = torch.full((8,), 0.5)
    for name in _OF_MKL:
        for values in (few, few.double()):
            getattr(torch, name)(values)
