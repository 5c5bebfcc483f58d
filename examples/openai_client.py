"""Two pictures in one request, streamed, with OpenAI's own client.

pip install openai
eval "$(pixtral-sky endpoint --env)"      # sets OPENAI_BASE_URL and OPENAI_API_KEY
python examples/openai_client.py
"""

import base64
import os
from pathlib import Path

from openai import OpenAI

HERE = Path(__file__).parent


def picture(name: str, media_type: str) -> dict:
    data = base64.b64encode((HERE / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}


client = OpenAI()
stream = client.chat.completions.create(
    model="pixtral",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Describe this chart in detail please."},
                picture("chart.png", "image/png"),
                {"type": "text", "text": "And what does this receipt add up to?"},
                picture("receipt.jpg", "image/jpeg"),
            ],
        }
    ],
    max_tokens=int(os.environ.get("MAX_TOKENS", "256")),
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        usage = chunk.usage
        print(f"\n[{usage.prompt_tokens} tokens in the prompt, {usage.completion_tokens} in the answer]")
