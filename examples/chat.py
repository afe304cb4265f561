"""A conversation: each line of standard input is a turn. Only new tokens are computed.

printf 'What is the capital of France?\\nAnd of Italy?\\n' | python examples/chat.py smollm2-135m
"""

import sys

import clkiln

with clkiln.Engine.load(sys.argv[1]) as engine:
    messages: list[clkiln.Message] = [{"role": "system", "content": "Answer in one sentence."}]
    for line in sys.stdin:
        messages.append({"role": "user", "content": line.strip()})
        stream = engine.chat_stream(messages, temperature=0, max_tokens=64)
        for piece in stream:
            print(piece, end="", flush=True)
        answer = stream.completion
        print(f"  [{answer.prefilled} tokens prefilled, {answer.reused} reused]")
        messages.append({"role": "assistant", "content": answer.text})
