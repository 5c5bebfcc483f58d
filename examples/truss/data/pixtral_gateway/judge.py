"""What a request may ask, judged before vLLM reads it: none may hold up the server, or end it, for all.

Figures in comments are what vLLM 0.32 did with such a request.
"""

import base64
import contextlib
import io
import re

from .images import places
from .refusal import Refusal

TEXT_BYTES = (
    2**20
)  # of JSON besides the pictures: more than the context holds; 30 MiB held others up for 52 s
VALUES = 20_000  # lists, objects and words; 900,000 messages: 25 s. Token ids are counted apart
TOKENS = 2**17  # of a prompt, by number
DEPTH = 64
STRINGS = 1000  # in a list: choices of an answer, words to stop at. 500,000 choices: 8 minutes
GRAMMAR_BYTES = 2**16
REPEATS = 5000  # of a part of a schema: minItems of 1e9 took 92 bytes each
PRODUCT = 100_000  # of repeats within each other, and of a regular expression or grammar
PIXELS = 100_000_000  # four photos of 24 megapixels; four of 169 in 65 KB took 11.6 GB
HEAD = 2**18  # of base64: a photo's size stands behind its thumbnail
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FIELDS = """
model messages prompt input frequency_penalty logit_bias logprobs top_logprobs max_tokens
max_completion_tokens max_output_tokens n best_of presence_penalty response_format seed stop stream
stream_options temperature top_p tools tool_choice parallel_tool_calls user suffix echo reasoning
reasoning_effort verbosity store metadata service_tier modalities prediction safety_identifier
prompt_cache_key prompt_cache_retention instructions text truncation include max_tool_calls
previous_response_id background functions function_call
system stop_sequences top_k thinking output_config output_format container context_management
min_p min_tokens repetition_penalty length_penalty stop_token_ids ignore_eos include_stop_str_in_output
bad_words skip_special_tokens spaces_between_special_tokens allowed_token_ids structured_outputs
guided_json guided_regex guided_choice guided_grammar add_special_tokens add_generation_prompt
continue_final_message return_token_strs chat_template_kwargs include_reasoning cache_salt safe_prompt
random_seed prompt_mode
""".split()  # of OpenAI's, Anthropic's, and vLLM's and Mistral's clients
CONSTRAINTS = "response_format structured_outputs text output_config output_format tools functions".split()
COUNTS = "minItems maxItems minLength maxLength minProperties maxProperties minContains".split()
PIECE = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(\d*),?(\d*)\}|.", re.DOTALL)


def judge(body, size):
    """Refuse a body of ``size`` bytes that asks too much, but for its pictures."""
    unknown = sorted(name for name in body if name not in FIELDS)
    if unknown:
        raise refused(f"A request has no {unknown[0][:40]!r} here", "unknown_parameter")
    if size - sum(map(len, pictures(body))) > TEXT_BYTES:
        raise refused(f"A request may have {TEXT_BYTES / 2**20:g} MiB of words here, besides its pictures")
    if body.get("prompt_logprobs") is not None or (body.get("echo") and body.get("logprobs") is not None):
        raise refused("The probabilities of a prompt's tokens are not given here")
    count(body)
    for name in CONSTRAINTS:
        check_constraint(body.get(name), 1)
    for name in body:
        if name.startswith("guided_"):
            check_constraint({name.removeprefix("guided_"): body[name]}, 1)


def pictures(body):
    """The base64 text of each picture that is in the body itself."""
    for part, url in places(body):
        data = part["source"].get("data") if part.get("type") == "image" else url
        if isinstance(data, str):
            yield data


def pixels(body):
    """The pixels of its pictures, by their heads. Raises Refusal: vLLM decodes all of a request at once."""
    from PIL import Image

    total = 0
    for text in pictures(body):
        start = text.find(",", 0, 200) + 1
        for end in (start + HEAD, None):
            with contextlib.suppress(Exception):  # vLLM says what is wrong with it
                file = io.BytesIO(base64.b64decode(text[start:end]))
                with Image.open(file, formats=FORMATS) as picture:
                    total += picture.width * picture.height
                break
    if total > PIXELS:
        raise refused(f"The pictures of a request may have {PIXELS / 1e6:g} million pixels here")
    return total


def count(body):
    """Refuse more values than a conversation has."""
    left, values, level = [body], 0, 0
    while left:
        inner = []
        for each in left:
            items = each.values() if isinstance(each, dict) else each
            numbers = sum(type(item) is int for item in items)
            values += len(items) - numbers + 1
            strings = sum(type(item) is str for item in items) if isinstance(each, list) else 0
            if strings > STRINGS or numbers > TOKENS or values > VALUES:
                raise refused("A list in this request is too long")
            inner += [item for item in items if isinstance(item, dict | list)]
        left, level = inner, level + 1
        if level > DEPTH:
            raise refused("This request is nested too deeply")


def check_constraint(value, times):
    """Refuse a schema, regular expression or grammar that repeats a part, ``times`` included, too often."""
    if isinstance(value, list):
        if sum(len(each) for each in value if isinstance(each, str)) > GRAMMAR_BYTES:
            raise refused("The choices of an answer have too many letters")
        for each in value:
            check_constraint(each, times)
    if not isinstance(value, dict):
        return
    own = max([value[name] for name in COUNTS if type(value.get(name)) is int], default=1)
    times *= max(own, 1)
    if own > REPEATS or times > PRODUCT:
        raise refused(f"A schema may repeat a part {REPEATS:,} times here, and {PRODUCT:,} in all")
    for name, each in value.items():
        if name in ("regex", "pattern", "grammar", "definition", "lark") and isinstance(each, str):
            if len(each.encode()) > GRAMMAR_BYTES or length(each) * times > PRODUCT:
                raise refused("This regular expression or grammar is too large")
        else:
            check_constraint(each, times)


def length(regex):
    """How long what a regular expression describes may be, about: its atoms, with their repeats."""
    sizes, last = [0], 0
    for piece in PIECE.finditer(regex):
        if piece[0] == "(":
            sizes.append(0)
        elif piece[0] == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif piece[0].startswith("{") and (piece[1] or piece[2]):
            sizes[-1] += last * max(int(piece[2] or piece[1]) - 1, 0)
            last *= max(int(piece[2] or piece[1]), 1)
        else:
            last = 1
            sizes[-1] += 1
    return sum(sizes)


def refused(why, code="request_too_complex"):
    return Refusal(400, code, f"{why}.")
