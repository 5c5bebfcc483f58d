"""Has random weights end a call of a tool: the grammar allows it more fields than the call has, without end.

vLLM loads it (`--logits-processors short_calls:ShortCalls`). It changes only what a grammar is held against,
and what closes JSON is chosen where the grammar allows it. So no client has to ask for it: not all can.
"""

from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import LogitsProcessor


class ShortCalls(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory):
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self.ends = [tokenizer.encode(text)[-1] for text in ('"}', "}", "]", "}]")]

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        by_grammar = logits.isneginf().any(dim=1)
        logits[:, self.ends] += 100 * by_grammar.unsqueeze(1)
        return logits
