"""Stream an answer, and show how sure the model was of each token.

python examples/stream.py smollm2-135m "Name three colours."
"""

import math
import sys

import clkiln

model, prompt = sys.argv[1], " ".join(sys.argv[2:])
with clkiln.Engine.load(model) as engine:
    stream = engine.stream(
        prompt, max_tokens=32, min_p=0.05, repeat_penalty=1.1, stop=["\n\n"], seed=1, logprobs=2
    )
    for piece in stream:
        print(piece, end="", flush=True)
    print(f"\n\nended by: {stream.completion.finish_reason}")
    for token in stream.completion.logprobs or []:
        second = token.top[1]
        print(f"{math.exp(token.logprob):5.0%} {token.text!r}, or {second.text!r}")
