"""The Gemma turn format as a chat template, for pretrained Gemma checkpoints, which come without one.

Written from the published format: turns are `<start_of_turn>user` or `<start_of_turn>model`, closed by
`<end_of_turn>`; there is no system role, so a system message opens the first user turn, with a blank line after it.
"""

from __future__ import annotations

GEMMA_END_OF_TURN = "<end_of_turn>"
GEMMA = (
    "{{ bos_token }}"
    "{%- set ns = namespace(opening='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- if not loop.first -%}"
    "{{ raise_exception('a system message must be the first one') }}"
    "{%- endif -%}"
    "{%- set ns.opening = (message['content'] | trim) + '\\n\\n' -%}"
    "{%- else -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    "{{ ns.opening + (message['content'] | trim) + '<end_of_turn>\\n' }}"
    "{%- set ns.opening = '' -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
