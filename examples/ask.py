"""Ask a model one question.

python examples/ask.py smollm2-135m "What is the capital of France?"
"""

import sys

import clkiln

model, question = sys.argv[1], " ".join(sys.argv[2:])
with clkiln.Engine.load(model) as engine:
    answer = engine.generate(question, temperature=0, max_tokens=64)
    print(answer.text)
