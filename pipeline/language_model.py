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

# Tensors of a checkpoint that are not the language model's.
TOWERS = re.compile(r"vision|audio|multi_modal_projector")


def load(checkpoint: Path, **options: Any) -> tuple[Any, list[str]]:
    """The model by transformers, from safetensors, and the names of tensors that the checkpoint lacks for it."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

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
